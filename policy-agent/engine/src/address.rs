//! Addresses as the kernel's maps hold them: words in network order.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use policy_common::family::{Family, V4, V6};

use ipnet::Ipv6Net;

use crate::model::ObjectKey;

/// An IPv4 address as one word in network order.
#[must_use]
pub const fn word4(address: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}

/// An IPv6 address as four words in network order.
#[must_use]
pub fn words6(address: Ipv6Addr) -> [u32; 4] {
    let octets = address.octets();
    std::array::from_fn(|i| {
        u32::from_ne_bytes([octets[4 * i], octets[4 * i + 1], octets[4 * i + 2], octets[4 * i + 3]])
    })
}

/// Inverse of [`word4`].
#[must_use]
pub fn address4(word: u32) -> Ipv4Addr {
    Ipv4Addr::from(word.to_ne_bytes())
}

/// Inverse of [`words6`].
#[must_use]
pub fn address6(words: [u32; 4]) -> Ipv6Addr {
    let mut octets = [0; 16];
    for (chunk, word) in octets.chunks_exact_mut(4).zip(words) {
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    Ipv6Addr::from(octets)
}

/// What the host word of an address repeats of it.
#[must_use]
pub fn check(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(a) => V4::check(&word4(a)),
        IpAddr::V6(a) => V6::check(&words6(a)),
    }
}

/// The address that stands for a group of sockets in the tables. Sockets share the addresses of their host, so where one
/// socket of the host talks to another, the kernel asks for this one. It is in the block to be discarded (RFC 6666), so
/// no packet has it.
#[must_use]
pub fn identity(key: &ObjectKey) -> IpAddr {
    // FNV-1a.
    let bytes = key.namespace.bytes().chain([b'/']).chain(key.name.bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    IpAddr::V6(Ipv6Addr::from(0x0100_u128 << 112 | u128::from(hash)))
}

/// Where every [`identity`] is.
pub(crate) const IDENTITIES: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0), 64);

/// Whether an address is an [`identity`].
#[must_use]
pub fn is_identity(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(ip) if IDENTITIES.contains(ip))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_differ_and_are_known() {
        let one = identity(&ObjectKey::new("a", "b"));
        assert!(is_identity(&one) && one != identity(&ObjectKey::new("ab", "")));
        assert!(!is_identity(&"2001:db8::1".parse().unwrap()) && !is_identity(&"10.0.0.1".parse().unwrap()));
    }

    #[test]
    fn words_round_trip() {
        let four = Ipv4Addr::new(10, 1, 2, 3);
        assert_eq!(word4(four).to_ne_bytes(), [10, 1, 2, 3]);
        assert_eq!(address4(word4(four)), four);
        let six: Ipv6Addr = "2001:db8::7".parse().unwrap();
        assert_eq!(words6(six)[0].to_ne_bytes(), [0x20, 0x01, 0x0d, 0xb8]);
        assert_eq!(address6(words6(six)), six);
    }
}
