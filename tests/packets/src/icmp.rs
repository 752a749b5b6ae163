//! ICMP, ICMPv6, neighbour discovery, multicast listener messages.

use crate::{
    build::{Ip, Packet, proto},
    checksum::internet,
};
use std::net::{IpAddr, Ipv6Addr};

/// An error about a packet on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IcmpError {
    /// The port has no listener.
    PortUnreachable,
    /// The host cannot be reached.
    HostUnreachable,
    /// The packet is larger than the next link carries: its MTU.
    TooBig(u16),
    /// The hop limit ran out.
    TimeExceeded,
}

/// The echo identifier that probes of a process may use: distinct between processes, mostly.
pub fn echo_identifier() -> u16 {
    std::process::id() as u16
}

impl Ip {
    /// An echo request.
    pub fn echo_request(self, id: u16, seq: u16, payload: &[u8]) -> Packet {
        let kind = if self.is_v4() { 8 } else { 128 };
        self.echo(kind, id, seq, payload)
    }

    /// An echo reply.
    pub fn echo_reply(self, id: u16, seq: u16, payload: &[u8]) -> Packet {
        let kind = if self.is_v4() { 0 } else { 129 };
        self.echo(kind, id, seq, payload)
    }

    /// An error that quotes the beginning of `about`.
    pub fn error(self, error: IcmpError, about: &Packet) -> Packet {
        let (v4, v6, rest) = match error {
            IcmpError::PortUnreachable => ((3, 3), (1, 4), 0),
            IcmpError::HostUnreachable => ((3, 1), (1, 3), 0),
            IcmpError::TooBig(mtu) => ((3, 4), (2, 0), u32::from(mtu)),
            IcmpError::TimeExceeded => ((11, 0), (3, 0), 0),
        };
        let (kind, code) = if self.is_v4() { v4 } else { v6 };
        let mut body = rest.to_be_bytes().to_vec();
        // IPv4 senders quote the header and at least 8 bytes; IPv6 senders as much as fits.
        let quote = about.bytes.len().min(if self.is_v4() { 548 } else { 1200 });
        body.extend(&about.bytes[..quote]);
        self.icmp(kind, code, &body)
    }

    /// An ICMP or ICMPv6 message of any type; `body` follows the checksum.
    pub fn icmp(self, kind: u8, code: u8, body: &[u8]) -> Packet {
        let mut message = vec![kind, code, 0, 0];
        message.extend(body);
        if self.is_v4() {
            let sum = internet(&[&message]);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
            self.packet(proto::ICMP, &message)
        } else {
            self.summed(proto::ICMP6, message, 2)
        }
    }

    /// A neighbour solicitation for `target` with the sender's link-layer address.
    pub fn neighbour_solicitation(self, target: Ipv6Addr, mac: [u8; 6]) -> Packet {
        let mut body = vec![0; 4];
        body.extend(target.octets());
        body.extend([1, 1]);
        body.extend(mac);
        self.icmp(135, 0, &body)
    }

    /// An unsolicited neighbour advertisement of `target` that overrides what others remember.
    pub fn neighbour_advertisement(self, target: Ipv6Addr, mac: [u8; 6]) -> Packet {
        let mut body = vec![0x20, 0, 0, 0];
        body.extend(target.octets());
        body.extend([2, 1]);
        body.extend(mac);
        self.icmp(136, 0, &body)
    }

    /// A router advertisement that makes the sender a default router for half an hour.
    pub fn router_advertisement(self) -> Packet {
        self.icmp(134, 0, &[64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0])
    }

    /// A version 2 multicast listener report for `group`.
    pub fn listener_report(self, group: Ipv6Addr) -> Packet {
        let mut body = vec![0, 0, 0, 1, 4, 0, 0, 0];
        body.extend(group.octets());
        self.icmp(143, 0, &body)
    }

    fn echo(self, kind: u8, id: u16, seq: u16, payload: &[u8]) -> Packet {
        let mut body = Vec::with_capacity(4 + payload.len());
        body.extend(id.to_be_bytes());
        body.extend(seq.to_be_bytes());
        body.extend(payload);
        self.icmp(kind, 0, &body)
    }

    fn is_v4(&self) -> bool {
        matches!(self.src, IpAddr::V4(_))
    }
}
