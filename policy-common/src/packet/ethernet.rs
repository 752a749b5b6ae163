//! The Ethernet header: which parser goes on.

use super::Bytes;
use crate::reason::Reason;

/// Bytes before the IP header.
pub const ETHERNET_HEADER: usize = 14;

/// What the ethertype announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// IPv4.
    Ip4,
    /// IPv6.
    Ip6,
    /// Address resolution.
    Arp,
}

/// Reads the ethertype.
///
/// # Errors
///
/// The reason for which an isolated endpoint must drop the frame.
#[inline(always)]
pub fn link<B: Bytes>(bytes: &B) -> Result<Link, Reason> {
    let Some(ethertype) = bytes.load::<2>(12) else { return Err(Reason::Malformed) };
    match u16::from_be_bytes(ethertype) {
        0x0800 => Ok(Link::Ip4),
        0x86dd => Ok(Link::Ip6),
        0x0806 => Ok(Link::Arp),
        0x8100 | 0x88a8 | 0x9100 => Err(Reason::VlanTagged),
        _ => Err(Reason::UnknownEthertype),
    }
}
