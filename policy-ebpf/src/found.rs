//! What the functions that parse a packet tell their caller, in one number: one of these, or a reason's.

/// Bytes made linear when a header is not: Ethernet, IPv6 with some extensions, an ICMP error with what it quotes.
pub(crate) const PULL: u32 = 256;

/// ARP passes.
pub(crate) const ARP: u64 = 1 << 9;
/// A packet in [`crate::maps::Parsed`], of the family in the low bits.
pub(crate) const SLOW: u64 = 1 << 10;
pub(crate) const SLOW4: u64 = SLOW | 4;
pub(crate) const SLOW6: u64 = SLOW | 6;
