//! What a captured frame says, as far as tests ask.

use crate::{ethertype, proto};
use std::net::IpAddr;

/// The fields of a captured IP packet; ports are zero where there are none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Protocol of the payload, behind extension headers.
    pub proto: u8,
    /// Source port; the type of an ICMP message.
    pub sport: u16,
    /// Destination port; the identifier of an echo message.
    pub dport: u16,
    /// TCP flags.
    pub tcp_flags: u8,
    /// Byte offset of the fragment, zero for whole packets.
    pub fragment_offset: usize,
    /// Everything behind the IP header.
    pub payload: Vec<u8>,
}

impl View {
    /// Reads an Ethernet frame; `None` if it is not IP or too short to be.
    pub fn of_frame(frame: &[u8]) -> Option<Self> {
        let kind = u16::from_be_bytes(frame.get(12..14)?.try_into().ok()?);
        match kind {
            ethertype::IPV4 | ethertype::IPV6 => Self::of_packet(&frame[14..]),
            _ => None,
        }
    }

    /// Reads a packet from its IP header on.
    pub fn of_packet(packet: &[u8]) -> Option<Self> {
        if packet.first()? >> 4 == 4 { Self::v4(packet) } else { Self::v6(packet) }
    }

    fn v4(packet: &[u8]) -> Option<Self> {
        let header = usize::from(packet[0] & 15) * 4;
        let total = usize::from(u16::from_be_bytes(packet.get(2..4)?.try_into().ok()?));
        let offset = usize::from(u16::from_be_bytes(packet.get(6..8)?.try_into().ok()?) & 0x1fff) * 8;
        let src: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
        let dst: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
        let payload = packet.get(header..total.min(packet.len()))?;
        Some(Self::with_payload(src.into(), dst.into(), packet[9], offset, payload))
    }

    fn v6(packet: &[u8]) -> Option<Self> {
        let src: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
        let dst: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
        let (mut next, mut at, mut offset) = (packet[6], 40, 0);
        while [proto::HOP_BY_HOP, proto::ROUTING, proto::FRAGMENT, proto::DESTINATION].contains(&next) {
            let header = packet.get(at..at + 8)?;
            let length = if next == proto::FRAGMENT { 8 } else { (usize::from(header[1]) + 1) * 8 };
            if next == proto::FRAGMENT {
                offset = usize::from(u16::from_be_bytes([header[2], header[3]]) & !7);
            }
            (next, at) = (header[0], at + length);
        }
        Some(Self::with_payload(src.into(), dst.into(), next, offset, packet.get(at..)?))
    }

    fn with_payload(src: IpAddr, dst: IpAddr, proto: u8, fragment_offset: usize, payload: &[u8]) -> Self {
        let word = |at: usize| payload.get(at..at + 2).map_or(0, |b| u16::from_be_bytes([b[0], b[1]]));
        let (sport, dport) = match proto {
            _ if fragment_offset > 0 => (0, 0),
            proto::TCP | proto::UDP | proto::SCTP => (word(0), word(2)),
            proto::ICMP | proto::ICMP6 => (payload.first().copied().unwrap_or(0).into(), word(4)),
            _ => (0, 0),
        };
        let tcp_flags = if proto == proto::TCP { payload.get(13).copied().unwrap_or(0) } else { 0 };
        Self { src, dst, proto, sport, dport, tcp_flags, fragment_offset, payload: payload.to_vec() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Extension, IcmpError, Ip, Tcp, checksum::pseudo_header, flags, internet};

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_built_packet_reads_back() {
        let built =
            Ip::new(ip("10.0.0.1"), ip("10.0.0.2")).options(&[1, 1]).tcp(&Tcp::new(1000, 80, flags::SYN));
        let view = View::of_frame(&built.ethernet([2; 6], [4; 6]).bytes).unwrap();
        assert_eq!((view.src, view.dst), (ip("10.0.0.1"), ip("10.0.0.2")));
        assert_eq!((view.proto, view.sport, view.dport, view.tcp_flags), (proto::TCP, 1000, 80, flags::SYN));
        assert_eq!(internet(&[&built.bytes[..24]]), 0, "the header's checksum sums to zero");
        assert_eq!(internet(&[&pseudo_header(view.src, view.dst, proto::TCP, 20), &view.payload]), 0);
    }

    #[test]
    fn extension_headers_and_fragments_read_back() {
        let (src, dst) = (ip("fd00::1"), ip("fd00::2"));
        let built = Ip::new(src, dst).extension(Extension::HopByHop).extension(Extension::Destination(16));
        let view = View::of_packet(&built.udp(53, 5353, b"hello").bytes).unwrap();
        assert_eq!((view.proto, view.sport, view.dport, view.payload.len()), (proto::UDP, 53, 5353, 13));
        for (src, dst) in [(src, dst), (ip("10.0.0.1"), ip("10.0.0.2"))] {
            let whole = Ip::new(src, dst).udp(53, 5353, &[7; 3000]);
            let parts = whole.fragments(1500, 9);
            assert_eq!(parts.len(), 3);
            let views: Vec<View> = parts.iter().map(|p| View::of_packet(&p.bytes).unwrap()).collect();
            assert_eq!((views[0].sport, views[0].fragment_offset), (53, 0));
            assert_eq!((views[1].sport, views[2].sport), (0, 0), "later fragments have no ports");
            let joined: Vec<u8> = views.into_iter().flat_map(|v| v.payload).collect();
            assert_eq!(joined, View::of_packet(&whole.bytes).unwrap().payload);
        }
    }

    #[test]
    fn an_error_quotes_the_packet_it_is_about() {
        for (src, dst) in [(ip("10.0.0.1"), ip("10.0.0.2")), (ip("fd00::1"), ip("fd00::2"))] {
            let about = Ip::new(src, dst).udp(53, 5353, b"x");
            let error = Ip::new(dst, src).error(IcmpError::PortUnreachable, &about);
            let view = View::of_packet(&error.bytes).unwrap();
            assert_eq!(&view.payload[8..], &about.bytes[..]);
        }
    }
}
