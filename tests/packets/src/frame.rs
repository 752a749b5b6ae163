//! Ethernet frames: header, VLAN tag, ARP.

use std::net::Ipv4Addr;

/// Values of the Ethernet type field.
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// 802.1Q tag.
    pub const VLAN: u16 = 0x8100;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
}

/// The link-layer address of everyone.
const BROADCAST: [u8; 6] = [0xff; 6];

/// A frame with its Ethernet header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The bytes as they travel, without the frame check sequence.
    pub bytes: Vec<u8>,
}

impl Frame {
    /// A frame of any type.
    pub fn new(src: [u8; 6], dst: [u8; 6], ethertype: u16, payload: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(14 + payload.len());
        bytes.extend(dst);
        bytes.extend(src);
        bytes.extend(ethertype.to_be_bytes());
        bytes.extend(payload);
        Self { bytes }
    }

    /// A broadcast request: who has `target`?
    pub fn arp_request(mac: [u8; 6], sender: Ipv4Addr, target: Ipv4Addr) -> Self {
        Self::new(mac, BROADCAST, ethertype::ARP, &arp(1, (mac, sender), ([0; 6], target)))
    }

    /// The answer to a request.
    pub fn arp_reply(mac: [u8; 6], sender: Ipv4Addr, asker: ([u8; 6], Ipv4Addr)) -> Self {
        Self::new(mac, asker.0, ethertype::ARP, &arp(2, (mac, sender), asker))
    }

    /// The frame with an 802.1Q tag in its bytes.
    pub fn vlan(mut self, id: u16) -> Self {
        let [a, b] = ethertype::VLAN.to_be_bytes();
        let [c, d] = id.to_be_bytes();
        self.bytes.splice(12..12, [a, b, c, d]);
        self
    }
}

fn arp(operation: u16, sender: ([u8; 6], Ipv4Addr), target: ([u8; 6], Ipv4Addr)) -> Vec<u8> {
    let mut bytes = vec![0, 1, 8, 0, 6, 4];
    bytes.extend(operation.to_be_bytes());
    for (mac, ip) in [sender, target] {
        bytes.extend(mac);
        bytes.extend(ip.octets());
    }
    bytes
}
