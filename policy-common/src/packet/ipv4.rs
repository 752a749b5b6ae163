//! IPv4: options, fragments, and the packet inside an ICMP error.

use super::bytes::OFFSET_MASK;
use super::transport::{self, ICMP_HEADER};
use super::{Bytes, Packet, facts, protocol};
use crate::reason::Reason;

/// An IPv4 packet and the offset behind its transport header.
type Parsed = (Packet<u32>, usize);

/// Parses the IPv4 packet at `at`.
///
/// # Errors
///
/// The reason for which an isolated endpoint must drop the frame.
#[inline(always)]
pub fn parse<B: Bytes>(bytes: &B, at: usize) -> Result<Packet<u32>, Reason> {
    let mut at = at;
    let mut outer = Packet::default();
    // At most two headers: the packet, and the one inside an error. One loop, so that the code exists once.
    for level in 0..2 {
        let (packet, behind) = header(bytes, at, level == 1)?;
        if !packet.is(facts::ERROR) {
            if level == 0 {
                return Ok(packet);
            }
            return Ok(packet.into_error(outer.source, outer.flags, outer.code, outer.facts & facts::ROUTER));
        }
        let facts = bytes.forget(packet.facts);
        outer = Packet { flags: bytes.forget(packet.flags as u32) as u8, facts, ..packet };
        at = (bytes.forget(behind as u32) & OFFSET_MASK) as usize;
    }
    // An error about an error.
    Err(Reason::IcmpNoFlow)
}

#[inline(always)]
fn header<B: Bytes>(bytes: &B, at: usize, inner: bool) -> Result<Parsed, Reason> {
    let Some(h) = bytes.words::<5>(at) else { return Err(Reason::Malformed) };
    let first = u32::from_be(h[0]);
    let header = (first >> 24 & 15) * 4;
    if first >> 28 != 4 || header < 20 {
        return Err(Reason::Malformed);
    }
    let left = remaining(first & 0xffff, header, inner)?;
    let second = u32::from_be(h[1]);
    let offset = second & 0x1fff;
    let mut packet = Packet {
        source: h[3],
        destination: h[4],
        fragment: second >> 16,
        protocol: (u32::from_be(h[2]) >> 16) as u8,
        ..Packet::default()
    };
    if offset != 0 {
        if inner {
            return Err(Reason::IcmpNoFlow);
        }
        // A second fragment eight bytes in could overwrite the flags by which the first was judged (RFC 3128).
        if offset == 1 && packet.protocol == protocol::TCP {
            return Err(Reason::FragmentTiny);
        }
        packet.facts = facts::LATER_FRAGMENT;
        return Ok((packet, 0));
    }
    let behind = at + header as usize;
    let more = second & 0x2000 != 0 && !inner;
    let Some(t) = transport::read(bytes, behind, packet.protocol, left, inner) else {
        return Err(if more { Reason::FragmentTiny } else { Reason::Malformed });
    };
    packet.source_port = t.source_port;
    packet.destination_port = t.destination_port;
    packet.flags = t.flags;
    packet.code = t.code;
    packet.facts = t.facts | if more { facts::FIRST_FRAGMENT } else { 0 };
    if packet.protocol == protocol::ICMP {
        packet.facts |= match t.flags {
            3 | 4 | 11 | 12 => facts::ERROR,
            5 => facts::ERROR | facts::ROUTER,
            _ => 0,
        };
    }
    Ok((packet, behind + ICMP_HEADER))
}

/// Bytes behind the header by the total length. 0 in the field is a segmented packet beyond 64 KB; the length of a
/// quoted packet says nothing about what is quoted.
#[inline(always)]
fn remaining(total: u32, header: u32, inner: bool) -> Result<u32, Reason> {
    if total == 0 || inner {
        return Ok(u32::MAX);
    }
    if total < header { Err(Reason::Malformed) } else { Ok(total - header) }
}
