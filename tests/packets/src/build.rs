//! Network and transport headers with correct lengths and checksums.

use crate::{
    checksum::{crc32c, internet, pseudo_header},
    frame::Frame,
};
use std::net::IpAddr;

/// IP protocol numbers.
pub mod proto {
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// GRE: a protocol without ports.
    pub const GRE: u8 = 47;
    /// ICMP for IPv6.
    pub const ICMP6: u8 = 58;
    /// IPv6 destination options.
    pub const DESTINATION: u8 = 60;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// TCP flag bits.
pub mod flags {
    /// The sender has no more data.
    pub const FIN: u8 = 0x01;
    /// Opens a connection.
    pub const SYN: u8 = 0x02;
    /// Aborts a connection.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 0x10;
}

/// A packet from its IP header on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// The bytes as they travel.
    pub bytes: Vec<u8>,
}

impl Packet {
    /// The packet in an Ethernet frame.
    pub fn ethernet(&self, src: [u8; 6], dst: [u8; 6]) -> Frame {
        let ethertype = if self.is_v4() { crate::ethertype::IPV4 } else { crate::ethertype::IPV6 };
        Frame::new(src, dst, ethertype, &self.bytes)
    }

    /// The packet in as many fragments as `mtu` asks for, in order; IPv6 fragments carry `id` in full, IPv4 16 bits.
    ///
    /// The packet must not be a fragment and must have no IPv4 options or extension headers.
    pub fn fragments(&self, mtu: usize, id: u32) -> Vec<Packet> {
        let header = if self.is_v4() { 20 } else { 40 };
        let room = (mtu - header - if self.is_v4() { 0 } else { 8 }) / 8 * 8;
        let (src, dst, proto) = self.ends();
        let mut out = Vec::new();
        let payload = &self.bytes[header..];
        for (n, part) in payload.chunks(room).enumerate() {
            let more = (n + 1) * room < payload.len();
            let ip = Ip::new(src, dst).id(id).fragment(n * room, more);
            out.push(ip.packet(proto, part));
        }
        out
    }

    /// The first `length` bytes alone: what a broken sender emits.
    pub fn truncated(mut self, length: usize) -> Packet {
        self.bytes.truncate(length);
        self
    }

    fn is_v4(&self) -> bool {
        self.bytes[0] >> 4 == 4
    }

    fn ends(&self) -> (IpAddr, IpAddr, u8) {
        let octets4 = |at: usize| <[u8; 4]>::try_from(&self.bytes[at..at + 4]).expect("four bytes").into();
        let octets6 =
            |at: usize| <[u8; 16]>::try_from(&self.bytes[at..at + 16]).expect("sixteen bytes").into();
        if self.is_v4() {
            (octets4(12), octets4(16), self.bytes[9])
        } else {
            (octets6(8), octets6(24), self.bytes[6])
        }
    }
}

/// An IPv6 extension header with its body; bodies are padded to the length the protocol wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extension {
    /// Hop-by-hop options (padding only).
    HopByHop,
    /// A routing header without segments left.
    Routing,
    /// Destination options of this many bytes in all, a multiple of 8.
    Destination(usize),
    /// Authentication header.
    Authentication,
}

/// An IP header to be: addresses, and what differs from the ordinary.
#[derive(Debug, Clone)]
pub struct Ip {
    pub(super) src: IpAddr,
    pub(super) dst: IpAddr,
    hop_limit: u8,
    id: u32,
    options: Vec<u8>,
    extensions: Vec<Extension>,
    fragment: Option<(usize, bool)>,
}

impl Ip {
    /// A header between two addresses of one family.
    pub fn new(src: IpAddr, dst: IpAddr) -> Self {
        Self { src, dst, hop_limit: 64, id: 1, options: Vec::new(), extensions: Vec::new(), fragment: None }
    }

    /// Time to live or hop limit.
    pub fn hop_limit(mut self, value: u8) -> Self {
        self.hop_limit = value;
        self
    }

    /// Identification, which fragments share.
    pub fn id(mut self, id: u32) -> Self {
        self.id = id;
        self
    }

    /// IPv4 options; padded with end-of-list to a multiple of four, at most 40 bytes.
    pub fn options(mut self, bytes: &[u8]) -> Self {
        self.options = bytes.to_vec();
        self.options.resize(bytes.len().next_multiple_of(4), 0);
        self
    }

    /// One more IPv6 extension header, after those already there.
    pub fn extension(mut self, extension: Extension) -> Self {
        self.extensions.push(extension);
        self
    }

    /// Makes it a fragment: byte offset (a multiple of 8) and whether more follow.
    pub fn fragment(mut self, offset: usize, more: bool) -> Self {
        self.fragment = Some((offset, more));
        self
    }

    /// The packet with this payload.
    pub fn packet(self, proto: u8, payload: &[u8]) -> Packet {
        match self.src {
            IpAddr::V4(_) => self.packet4(proto, payload),
            IpAddr::V6(_) => self.packet6(proto, payload),
        }
    }

    /// A TCP segment.
    pub fn tcp(self, tcp: &Tcp) -> Packet {
        let mut segment = tcp.header();
        segment.extend(&tcp.payload);
        self.summed(proto::TCP, segment, 16)
    }

    /// A UDP datagram.
    pub fn udp(self, sport: u16, dport: u16, payload: &[u8]) -> Packet {
        let mut datagram = Vec::with_capacity(8 + payload.len());
        datagram.extend(sport.to_be_bytes());
        datagram.extend(dport.to_be_bytes());
        datagram.extend((8 + payload.len() as u16).to_be_bytes());
        datagram.extend([0, 0]);
        datagram.extend(payload);
        self.summed(proto::UDP, datagram, 6)
    }

    /// An SCTP packet with one chunk.
    pub fn sctp(self, sctp: &Sctp) -> Packet {
        self.packet(proto::SCTP, &sctp.bytes())
    }

    /// The packet whose transport checksum, at `at`, covers the pseudo header too.
    pub(super) fn summed(self, proto: u8, mut payload: Vec<u8>, at: usize) -> Packet {
        let pseudo = pseudo_header(self.src, self.dst, proto, payload.len());
        let sum = internet(&[&pseudo, &payload]);
        // In UDP a zero means "not summed"; the all-ones form is equal and always allowed.
        let sum = if sum == 0 && proto == proto::UDP { u16::MAX } else { sum };
        payload[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        self.packet(proto, &payload)
    }

    fn packet4(self, proto: u8, payload: &[u8]) -> Packet {
        let (IpAddr::V4(src), IpAddr::V4(dst)) = (self.src, self.dst) else {
            panic!("a packet from {} to {} has two families", self.src, self.dst)
        };
        let words = 5 + self.options.len() / 4;
        let total = words * 4 + payload.len();
        let (offset, more) = self.fragment.unwrap_or((0, false));
        let mut bytes = vec![0x40 | words as u8, 0];
        bytes.extend((total as u16).to_be_bytes());
        bytes.extend((self.id as u16).to_be_bytes());
        bytes.extend(((offset / 8) as u16 | if more { 0x2000 } else { 0 }).to_be_bytes());
        bytes.extend([self.hop_limit, proto, 0, 0]);
        bytes.extend(src.octets());
        bytes.extend(dst.octets());
        bytes.extend(&self.options);
        let sum = internet(&[&bytes]);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes.extend(payload);
        Packet { bytes }
    }

    fn packet6(self, proto: u8, payload: &[u8]) -> Packet {
        let (IpAddr::V6(src), IpAddr::V6(dst)) = (self.src, self.dst) else {
            panic!("a packet from {} to {} has two families", self.src, self.dst)
        };
        let mut next = proto;
        let mut chain: Vec<u8> = Vec::new();
        // Each header names the one behind it, so the chain is built from its end.
        if let Some((offset, more)) = self.fragment {
            let mut header = vec![next, 0];
            header.extend((offset as u16 | u16::from(more)).to_be_bytes());
            header.extend(self.id.to_be_bytes());
            next = proto::FRAGMENT;
            chain = header;
        }
        for extension in self.extensions.iter().rev() {
            let (kind, mut header) = extension.encode(next);
            header.extend(&chain);
            (next, chain) = (kind, header);
        }
        let mut bytes = vec![0x60, 0, 0, 0];
        bytes.extend(((chain.len() + payload.len()) as u16).to_be_bytes());
        bytes.extend([next, self.hop_limit]);
        bytes.extend(src.octets());
        bytes.extend(dst.octets());
        bytes.extend(&chain);
        bytes.extend(payload);
        Packet { bytes }
    }
}

impl Extension {
    fn encode(&self, next: u8) -> (u8, Vec<u8>) {
        match self {
            Self::HopByHop => (proto::HOP_BY_HOP, vec![next, 0, 1, 4, 0, 0, 0, 0]),
            Self::Routing => (proto::ROUTING, vec![next, 0, 4, 0, 0, 0, 0, 0]),
            Self::Destination(length) => {
                let mut header = vec![next, (length / 8 - 1) as u8];
                header.resize(*length, 0);
                (proto::DESTINATION, header)
            }
            // The length counts words of four, less two.
            Self::Authentication => (51, vec![next, 1, 0, 0, 0, 0, 0, 7, 0, 0, 0, 1]),
        }
    }
}

/// A TCP segment to be.
#[derive(Debug, Clone)]
pub struct Tcp {
    sport: u16,
    dport: u16,
    flags: u8,
    seq: u32,
    ack: u32,
    payload: Vec<u8>,
}

impl Tcp {
    /// A segment with these [`flags`].
    pub fn new(sport: u16, dport: u16, flags: u8) -> Self {
        Self { sport, dport, flags, seq: 1, ack: 0, payload: Vec::new() }
    }

    /// Sequence and acknowledgement numbers.
    pub fn numbers(mut self, seq: u32, ack: u32) -> Self {
        (self.seq, self.ack) = (seq, ack);
        self
    }

    /// Data.
    pub fn payload(mut self, bytes: &[u8]) -> Self {
        self.payload = bytes.to_vec();
        self
    }

    fn header(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(20 + self.payload.len());
        bytes.extend(self.sport.to_be_bytes());
        bytes.extend(self.dport.to_be_bytes());
        bytes.extend(self.seq.to_be_bytes());
        bytes.extend(self.ack.to_be_bytes());
        bytes.extend([0x50, self.flags]);
        bytes.extend(0xffffu16.to_be_bytes());
        bytes.extend([0; 4]);
        bytes
    }
}

/// An SCTP packet to be, with one chunk.
#[derive(Debug, Clone)]
pub struct Sctp {
    sport: u16,
    dport: u16,
    tag: u32,
    kind: u8,
    flags: u8,
    body: Vec<u8>,
}

impl Sctp {
    /// Opens an association.
    pub fn init(sport: u16, dport: u16) -> Self {
        Self::parameters(sport, dport, 0, 1)
    }

    /// Answers an INIT.
    pub fn init_ack(sport: u16, dport: u16) -> Self {
        Self::parameters(sport, dport, 0x1234_5678, 2)
    }

    /// Carries data in an association.
    pub fn data(sport: u16, dport: u16, payload: &[u8]) -> Self {
        let mut body = vec![0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        body.extend(payload);
        Self { sport, dport, tag: 0x1234_5678, kind: 0, flags: 3, body }
    }

    fn parameters(sport: u16, dport: u16, tag: u32, kind: u8) -> Self {
        let mut body = 0x1234_5678u32.to_be_bytes().to_vec();
        body.extend(65_536u32.to_be_bytes());
        body.extend([0, 1, 0, 1, 0, 0, 0, 1]);
        Self { sport, dport, tag, kind, flags: 0, body }
    }

    /// The bytes from the SCTP header on.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(16 + self.body.len());
        bytes.extend(self.sport.to_be_bytes());
        bytes.extend(self.dport.to_be_bytes());
        bytes.extend(self.tag.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend([self.kind, self.flags]);
        bytes.extend((4 + self.body.len() as u16).to_be_bytes());
        bytes.extend(&self.body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        let sum = crc32c(&bytes).to_le_bytes();
        bytes[8..12].copy_from_slice(&sum);
        bytes
    }
}
