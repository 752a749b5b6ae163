//! What an event repeats of its packet.

use policy_common::event::event_flags;
use policy_common::family::{Family, V4, V6};
use policy_common::packet::{Bytes, ETHERNET_HEADER, Link, Packet, facts, link, protocol};

use crate::bytes::Direct;
use crate::flows::scratch;
use crate::skb::Skb;

/// Addresses, ports and flags. All 0 where they are not known.
#[derive(Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) source: [u32; 4],
    pub(crate) destination: [u32; 4],
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    pub(crate) family: u8,
    pub(crate) protocol: u8,
    pub(crate) tcp_flags: u8,
    pub(crate) icmp_code: u8,
    pub(crate) flags: u8,
}

impl Seen {
    /// Of the packet of this family that stands in the scratch value; of a frame that could not be parsed for 0.
    #[inline(always)]
    pub(crate) fn new(skb: Skb, family: u8) -> Self {
        match (family, scratch()) {
            (4, Some(s)) => Self::of::<V4>(&s.packet4),
            (6, Some(s)) => Self::of::<V6>(&s.packet6),
            _ => Self::of_frame(skb),
        }
    }

    #[inline(always)]
    fn of<F: Family>(packet: &Packet<F::Address>) -> Self {
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

    /// The addresses of a frame, as far as they are there.
    #[inline(always)]
    fn of_frame(skb: Skb) -> Self {
        let (mut source, mut destination) = ([0; 4], [0; 4]);
        let (mut family, mut protocol) = (0, 0);
        let bytes = Direct::new(skb, 0);
        match link(&bytes) {
            Ok(Link::Ip4) => {
                if let Some([_, _, word, from, to]) = bytes.words(ETHERNET_HEADER) {
                    (family, protocol) = (4, (u32::from_be(word) >> 16) as u8);
                    (source[0], destination[0]) = (from, to);
                }
            }
            Ok(Link::Ip6) => {
                if let Some([_, _, a, b, c, d, e, f, g, h]) = bytes.words(ETHERNET_HEADER) {
                    family = 6;
                    (source, destination) = ([a, b, c, d], [e, f, g, h]);
                }
            }
            Ok(Link::Arp) | Err(_) => {}
        }
        Self {
            source,
            destination,
            source_port: 0,
            destination_port: 0,
            family,
            protocol,
            tcp_flags: 0,
            icmp_code: 0,
            flags: 0,
        }
    }
}
