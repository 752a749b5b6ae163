//! IPv4 and IPv6 behind one trait, so that the decision is written once.

use crate::abi::{FlowKey4, FlowKey6, endpoint_words, path, ports};
use crate::flow::Host;

/// An address family. Addresses are held as words in network order: byte arrays would be spilled byte by byte.
pub trait Family: Sized {
    /// 4 or 6.
    const NUMBER: u8;
    /// An address, network order.
    type Address: Copy + PartialEq;
    /// Key of a flow.
    type Key: Copy;
    /// Builds the key of a flow.
    fn key(remote: &Self::Address, local_port: u16, remote_port: u16, protocol: u8, local: u8) -> Self::Key;
    /// What a host word repeats of its address.
    fn check(address: &Self::Address) -> u32;
    /// The address as four words; IPv4 in the first.
    fn wide(address: &Self::Address) -> [u32; 4];
    /// The endpoint's first address of this family, 0 when it has none.
    fn first_address<H: Host>(host: &H) -> Self::Address;
}

/// IPv4.
#[derive(Clone, Copy, Debug)]
pub struct V4;
/// IPv6.
#[derive(Clone, Copy, Debug)]
pub struct V6;

impl Family for V4 {
    const NUMBER: u8 = 4;
    type Address = u32;
    type Key = FlowKey4;
    #[inline(always)]
    fn key(remote: &u32, local_port: u16, remote_port: u16, protocol: u8, local: u8) -> FlowKey4 {
        FlowKey4 { remote: *remote, ports: ports(local_port, remote_port), path: path(protocol, local) }
    }
    #[inline(always)]
    fn check(address: &u32) -> u32 {
        *address
    }
    #[inline(always)]
    fn wide(address: &u32) -> [u32; 4] {
        [*address, 0, 0, 0]
    }
    #[inline(always)]
    fn first_address<H: Host>(host: &H) -> u32 {
        host.endpoint(endpoint_words::ADDRESS4) as u32
    }
}

impl Family for V6 {
    const NUMBER: u8 = 6;
    type Address = [u32; 4];
    type Key = FlowKey6;
    #[inline(always)]
    fn key(remote: &[u32; 4], local_port: u16, remote_port: u16, protocol: u8, local: u8) -> FlowKey6 {
        FlowKey6 { remote: *remote, ports: ports(local_port, remote_port), path: path(protocol, local) }
    }
    #[inline(always)]
    fn check(address: &[u32; 4]) -> u32 {
        address[0] ^ address[1].rotate_left(7) ^ address[2].rotate_left(13) ^ address[3].rotate_left(19)
    }
    #[inline(always)]
    fn wide(address: &[u32; 4]) -> [u32; 4] {
        *address
    }
    #[inline(always)]
    fn first_address<H: Host>(host: &H) -> [u32; 4] {
        let [a, b] = halves(host.endpoint(endpoint_words::ADDRESS6_HIGH));
        let [c, d] = halves(host.endpoint(endpoint_words::ADDRESS6_LOW));
        [a, b, c, d]
    }
}

/// A word as two, in the order of memory.
#[inline(always)]
const fn halves(word: u64) -> [u32; 2] {
    let (low, high) = (word as u32, (word >> 32) as u32);
    if cfg!(target_endian = "little") { [low, high] } else { [high, low] }
}
