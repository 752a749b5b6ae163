//! IPv6: extension headers, fragments, neighbour discovery, and the packet inside an ICMPv6 error.

use super::bytes::OFFSET_MASK;
use super::transport::{self, ICMP_HEADER};
use super::{Bytes, Packet, facts, protocol};
use crate::reason::Reason;

/// Extension headers that are parsed; more are refused.
const EXTENSION_HEADERS: usize = 6;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;

/// An IPv6 packet and the offset behind its ICMPv6 header.
type Parsed = (Packet<[u32; 4]>, usize);

/// Where the walk over the extension headers ended.
#[derive(Clone, Copy)]
struct Walk {
    /// Bytes behind the fixed header.
    length: u32,
    protocol: u8,
    fragment: u32,
    facts: u32,
}

/// Parses the IPv6 packet at `at`.
///
/// # Errors
///
/// The reason for which an isolated endpoint must drop the frame.
#[inline(always)]
pub fn parse<B: Bytes>(bytes: &B, at: usize) -> Result<Packet<[u32; 4]>, Reason> {
    let mut at = at;
    let mut outer = Packet::default();
    // At most two headers: the packet, and the one inside an error. One loop, so that the code exists once.
    for level in 0..2 {
        let (packet, behind) = header(bytes, at, level == 1)?;
        if !packet.is(facts::ERROR) {
            if level == 0 {
                return Ok(packet);
            }
            return Ok(packet.into_error(outer.source, outer.flags, outer.code, 0));
        }
        outer = Packet { flags: bytes.forget(packet.flags as u32) as u8, ..packet };
        at = (bytes.forget(behind as u32) & OFFSET_MASK) as usize;
    }
    // An error about an error.
    Err(Reason::IcmpNoFlow)
}

#[inline(always)]
fn header<B: Bytes>(bytes: &B, at: usize, inner: bool) -> Result<Parsed, Reason> {
    let Some(h) = bytes.words::<10>(at) else { return Err(Reason::Malformed) };
    if u32::from_be(h[0]) >> 28 != 6 {
        return Err(Reason::Malformed);
    }
    let second = u32::from_be(h[1]);
    let (payload, hops) = (second >> 16, second as u8);
    let source = [h[2], h[3], h[4], h[5]];
    let destination = [h[6], h[7], h[8], h[9]];
    if mapped(&source) || mapped(&destination) {
        return Err(Reason::MappedAddress);
    }
    let walk = extensions(bytes, at + 40, (second >> 8) as u8)?;
    let mut packet = Packet {
        source,
        destination,
        fragment: walk.fragment,
        facts: walk.facts,
        protocol: walk.protocol,
        ..Packet::default()
    };
    if packet.is(facts::LATER_FRAGMENT) {
        return if inner { Err(Reason::IcmpNoFlow) } else { Ok((packet, 0)) };
    }
    // 0 is a segmented packet beyond 64 KB; the length of a quoted packet says nothing about what is quoted.
    let left = if payload == 0 || inner { u32::MAX } else { payload.saturating_sub(walk.length) };
    let behind = at + 40 + walk.length as usize;
    let Some(t) = transport::read(bytes, behind, packet.protocol, left, inner) else {
        let first = packet.is(facts::FIRST_FRAGMENT);
        return Err(if first { Reason::FragmentTiny } else { Reason::Malformed });
    };
    packet.source_port = t.source_port;
    packet.destination_port = t.destination_port;
    packet.flags = t.flags;
    packet.code = t.code;
    packet.facts |= t.facts;
    if packet.protocol == protocol::ICMP6 {
        packet.facts |= message(t.flags, hops, packet.facts);
    }
    Ok((packet, behind + ICMP_HEADER))
}

/// What an ICMPv6 type means for us. The hop limit proves that a message comes from the link itself.
#[inline(always)]
fn message(kind: u8, hops: u8, seen: u32) -> u32 {
    let fragment = seen & facts::FIRST_FRAGMENT != 0;
    match kind {
        1..=4 => facts::ERROR,
        134 | 137 if hops == 255 && !fragment => facts::NEIGHBOUR | facts::ROUTER,
        133..=136 if hops == 255 && !fragment => facts::NEIGHBOUR,
        130..=132 | 143 if hops == 1 && !fragment && seen & facts::ALERT != 0 => facts::NEIGHBOUR,
        _ => 0,
    }
}

#[inline(always)]
fn extensions<B: Bytes>(bytes: &B, start: usize, next: u8) -> Result<Walk, Reason> {
    let mut w = Walk { length: 0, protocol: next, fragment: 0, facts: 0 };
    for _ in 0..EXTENSION_HEADERS {
        if !matches!(w.protocol, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION) {
            return Ok(w);
        }
        let at = start + w.length as usize;
        let Some([head, more]) = bytes.words::<2>(at) else { return Err(Reason::Malformed) };
        let head = u32::from_be(head);
        let size = head >> 16 & 0xff;
        if w.protocol == FRAGMENT {
            // A fragment of a fragment: which datagram its ports would be those of, nobody can say.
            if w.facts & facts::FIRST_FRAGMENT != 0 {
                return Err(Reason::Malformed);
            }
            let later = head & 0xfff8 != 0;
            w.fragment = more;
            w.facts |= match (later, head & 1 != 0) {
                (true, _) => facts::LATER_FRAGMENT,
                (false, true) => facts::FIRST_FRAGMENT,
                (false, false) => 0,
            };
            w.length += 8;
            w.protocol = (head >> 24) as u8;
            if later {
                return Ok(w);
            }
        } else {
            // Router alert as first option: type 5, length 2.
            if w.protocol == HOP_BY_HOP && head & 0xffff == 0x0502 {
                w.facts |= facts::ALERT;
            }
            w.length += if w.protocol == AUTHENTICATION { (size + 2) * 4 } else { (size + 1) * 8 };
            w.protocol = (head >> 24) as u8;
        }
        w.length = bytes.forget(w.length) & OFFSET_MASK;
        w.facts = bytes.forget(w.facts);
    }
    if matches!(w.protocol, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION) {
        return Err(Reason::TooManyExtensionHeaders);
    }
    Ok(w)
}

/// `::ffff:0:0/96` must not be on a wire: it would name an IPv4 host by an IPv6 policy.
#[inline(always)]
fn mapped(a: &[u32; 4]) -> bool {
    a[0] == 0 && a[1] == 0 && a[2] == 0xffff_u32.to_be()
}
