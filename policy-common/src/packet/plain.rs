//! The ordinary packet, read in two steps: TCP or UDP right behind an IP header without options or extensions.
//!
//! It says nothing that the full parsers do not say; whatever is not ordinary is left to them.

use super::{Bytes, ETHERNET_HEADER, Packet, facts, protocol, tcp};

/// The last two bytes before the IP header.
#[inline(always)]
fn ethertype<B: Bytes>(bytes: &B) -> Option<u16> {
    // The word that ends with them: one load instead of two of a byte each.
    let [word] = bytes.words::<1>(ETHERNET_HEADER - 4)?;
    Some(u32::from_be(word) as u16)
}

/// The frame's IPv4 packet, if it is ordinary and opens no connection: UDP, or TCP without SYN.
#[inline(always)]
pub fn plain4<B: Bytes>(bytes: &B) -> Option<Packet<u32>> {
    if ethertype(bytes)? != 0x0800 {
        return None;
    }
    let h = bytes.words::<7>(ETHERNET_HEADER)?;
    let (first, second) = (u32::from_be(h[0]), u32::from_be(h[1]));
    // Version, a header of five words, and neither "more fragments" nor an offset.
    if first >> 24 != 0x45 || second & 0x3fff != 0 {
        return None;
    }
    let number = (u32::from_be(h[2]) >> 16) as u8;
    // 0 is a segmented packet beyond 64 KB.
    let left = if first & 0xffff == 0 { u32::MAX } else { (first & 0xffff).checked_sub(20)? };
    let ports = u32::from_be(h[5]);
    let t = transport(bytes, ETHERNET_HEADER + 20, number, left)?;
    Some(Packet {
        source: h[3],
        destination: h[4],
        fragment: second >> 16,
        facts: t.facts,
        source_port: (ports >> 16) as u16,
        destination_port: ports as u16,
        protocol: number,
        flags: t.flags,
        code: 0,
    })
}

/// The same for IPv6.
#[inline(always)]
pub fn plain6<B: Bytes>(bytes: &B) -> Option<Packet<[u32; 4]>> {
    if ethertype(bytes)? != 0x86dd {
        return None;
    }
    let [first, second] = bytes.words::<2>(ETHERNET_HEADER)?.map(u32::from_be);
    if first >> 28 != 6 {
        return None;
    }
    let number = (second >> 8) as u8;
    let left = if second >> 16 == 0 { u32::MAX } else { second >> 16 };
    let [ports, _] = bytes.words::<2>(ETHERNET_HEADER + 40)?.map(u32::from_be);
    let t = transport(bytes, ETHERNET_HEADER + 40, number, left)?;
    // Addresses last: a kernel program has no registers to keep them in.
    let a = bytes.words::<8>(ETHERNET_HEADER + 8)?;
    let (source, destination) = ([a[0], a[1], a[2], a[3]], [a[4], a[5], a[6], a[7]]);
    // Those that may be mapped ones have 64 zeroes in front.
    if a[0] | a[1] == 0 || a[4] | a[5] == 0 {
        return None;
    }
    Some(Packet {
        source,
        destination,
        fragment: 0,
        facts: t.facts,
        source_port: (ports >> 16) as u16,
        destination_port: ports as u16,
        protocol: number,
        flags: t.flags,
        code: 0,
    })
}

/// What is not in the first two words of a transport header.
struct Rest {
    facts: u32,
    flags: u8,
}

/// Reads the rest of the header at `at`, of which the first eight bytes are there. `left` bounds it.
#[inline(always)]
fn transport<B: Bytes>(bytes: &B, at: usize, number: u8, left: u32) -> Option<Rest> {
    if number == protocol::UDP {
        return (left >= 8).then_some(Rest { facts: facts::OPENS, flags: 0 });
    }
    if number != protocol::TCP || left < 20 {
        return None;
    }
    // Up to the header's end: the receiver reads it whole.
    let [word, _] = bytes.words::<2>(at + 12)?;
    let flags = (u32::from_be(word) >> 16) as u8;
    (flags & tcp::SYN == 0).then_some(Rest { facts: 0, flags })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{Link, Slice, link, parse4, parse6};

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Plain {
        V4(Packet<u32>),
        V6(Packet<[u32; 4]>),
    }

    fn plain(bytes: &Slice<'_>) -> Option<Plain> {
        plain4(bytes).map(Plain::V4).or_else(|| plain6(bytes).map(Plain::V6))
    }

    /// What the full parsers say.
    fn full(frame: &[u8]) -> Option<Plain> {
        let bytes = Slice(frame);
        match link(&bytes).ok()? {
            Link::Ip4 => parse4(&bytes, ETHERNET_HEADER).ok().map(Plain::V4),
            Link::Ip6 => parse6(&bytes, ETHERNET_HEADER).ok().map(Plain::V6),
            Link::Arp => None,
        }
    }

    /// A frame of this version and protocol that both parsers take.
    fn frame(version: u8, number: u8) -> Vec<u8> {
        let mut frame = vec![0_u8; 74];
        let at = if version == 4 { 34 } else { 54 };
        if version == 4 {
            frame[12..14].copy_from_slice(&[0x08, 0x00]);
            frame[14..24].copy_from_slice(&[0x45, 0, 0, 60, 0, 7, 0x40, 0, 64, number]);
            frame[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        } else {
            frame[12..14].copy_from_slice(&[0x86, 0xdd]);
            frame[14..22].copy_from_slice(&[0x60, 0, 0, 0, 0, 20, number, 64]);
            (frame[22], frame[37], frame[38], frame[53]) = (0xfd, 1, 0xfd, 2);
        }
        frame[at..at + 4].copy_from_slice(&[0x9c, 0x40, 0x00, 0x50]);
        frame[at + 13] = tcp::ACK;
        frame
    }

    #[test]
    fn ordinary_packets_are_read() {
        for (version, number) in [(4, 6), (4, 17), (6, 6), (6, 17)] {
            let frame = frame(version, number);
            let read = plain(&Slice(&frame));
            assert!(read.is_some() && read == full(&frame), "{version} {number}: {read:?}");
        }
    }

    #[test]
    fn what_opens_or_is_cut_off_is_left_to_the_full_parsers() {
        let mut syn = frame(4, 6);
        syn[47] = tcp::SYN;
        assert_eq!(plain(&Slice(&syn)), None);
        assert_eq!(plain(&Slice(&frame(4, 6)[..53])), None);
        assert_eq!(plain(&Slice(&frame(6, 17)[..61])), None);
        assert_eq!(plain(&Slice(&frame(4, 132))), None);
    }

    #[test]
    fn it_says_nothing_that_the_full_parsers_do_not_say() {
        let mut dice = 0x9e37_79b9_7f4a_7c15_u64;
        let mut roll = |sides: usize| {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (dice >> 33) as usize % sides
        };
        let mut read = 0;
        for round in 0..400_000 {
            let version = if round % 2 == 0 { 4 } else { 6 };
            let mut frame = frame(version, [6, 17][roll(2)]);
            for _ in 0..roll(4) {
                let at = roll(frame.len());
                frame[at] = [roll(256) as u8, 0, 0xff, frame[at] ^ (1 << roll(8))][roll(4)];
            }
            frame.truncate(if roll(3) == 0 { roll(75) } else { 74 });
            if let Some(packet) = plain(&Slice(&frame)) {
                assert_eq!(Some(packet), full(&frame), "{frame:02x?}");
                read += 1;
            }
        }
        assert!(read > 100_000, "only {read} ordinary packets");
    }
}
