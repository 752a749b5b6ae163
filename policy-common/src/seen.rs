//! What an event repeats of its packet.

use crate::event::event_flags;
use crate::family::Family;
use crate::packet::{Bytes, ETHERNET_HEADER, Link, Packet, facts, link, protocol};

/// Addresses (network order), ports and flags; 0 where they are not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Source address; IPv4 in the first word.
    pub source: [u32; 4],
    /// Destination address; IPv4 in the first word.
    pub destination: [u32; 4],
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// 4, 6, or 0 for a frame that is not IP.
    pub family: u8,
    /// IP protocol.
    pub protocol: u8,
    /// TCP flags, or ICMP type.
    pub tcp_flags: u8,
    /// ICMP code.
    pub icmp_code: u8,
    /// Bits of [`event_flags`].
    pub flags: u8,
}

impl Seen {
    /// Of a parsed packet.
    #[inline(always)]
    #[must_use]
    pub fn packet<F: Family>(packet: &Packet<F::Address>) -> Self {
        let icmp = packet.is(facts::ERROR) || matches!(packet.protocol, protocol::ICMP | protocol::ICMP6);
        let fragment = packet.is(facts::FIRST_FRAGMENT | facts::LATER_FRAGMENT);
        Self {
            source: F::wide(&packet.source),
            destination: F::wide(&packet.destination),
            source_port: packet.source_port,
            destination_port: packet.destination_port,
            family: F::NUMBER,
            protocol: packet.protocol,
            tcp_flags: packet.flags,
            icmp_code: if icmp { packet.code } else { 0 },
            flags: (fragment as u8 * event_flags::FRAGMENT)
                | (packet.is(facts::ERROR) as u8 * event_flags::ICMP_INNER),
        }
    }

    /// The addresses of a frame that cannot be judged, as far as they are there.
    #[inline(always)]
    #[must_use]
    pub fn frame<B: Bytes>(bytes: &B) -> Self {
        let (mut source, mut destination) = ([0; 4], [0; 4]);
        let (mut family, mut number) = (0, 0);
        match link(bytes) {
            Ok(Link::Ip4) => {
                if let Some([_, _, word, from, to]) = bytes.words(ETHERNET_HEADER) {
                    (family, number) = (4, (u32::from_be(word) >> 16) as u8);
                    (source[0], destination[0]) = (from, to);
                }
            }
            Ok(Link::Ip6) => {
                if let Some([_, word, a, b, c, d, e, f, g, h]) = bytes.words(ETHERNET_HEADER) {
                    (family, number) = (6, (u32::from_be(word) >> 8) as u8);
                    (source, destination) = ([a, b, c, d], [e, f, g, h]);
                }
            }
            Ok(Link::Arp) | Err(_) => {}
        }
        Self { source, destination, family, protocol: number, ..Self::default() }
    }
}
