//! A parsed packet on its way from one function to the next, in the control block of the packet itself.
//!
//! A program of a socket runs with interrupts on: another one of the same CPU may come between, so there is no memory
//! per CPU to use. The block has 20 bytes; the addresses of IPv6 are read from the packet once more.
//!
//! Word 3, and for IPv6 word 2, stay 0: the IP layer has its flags there, and a look-up of a socket reads from them
//! whether the packet came by another device. Datagrams are whole here, so nobody asks for their identification.

use policy_common::family::{V4, V6};
use policy_common::packet::{Bytes, Packet, facts};
use policy_common::seen::Seen;

use crate::bytes::Direct;
use crate::skb::Skb;

/// In the carried facts, in place of one that the parser alone uses.
const IPV6: u32 = facts::ALERT;
const _: () = assert!(facts::ALERT == 128, "the carried facts have eight bits");

/// Carries an IPv4 packet.
#[inline(always)]
pub(crate) fn put4(skb: Skb, packet: &Packet<u32>) {
    put(skb, packet, 0);
    skb.set_note::<2>(packet.source);
    skb.set_note::<4>(packet.destination);
}

/// Carries an IPv6 packet that is not inside an error.
#[inline(always)]
pub(crate) fn put6(skb: Skb, packet: &Packet<[u32; 4]>) {
    put(skb, packet, IPV6);
}

#[inline(always)]
fn put<A>(skb: Skb, packet: &Packet<A>, family: u32) {
    let Packet { source_port, destination_port, protocol, flags, code, .. } = packet;
    skb.set_note::<0>((*source_port as u32) << 16 | *destination_port as u32);
    let marks = packet.facts & (IPV6 - 1) | family;
    skb.set_note::<1>(marks | (*protocol as u32) << 8 | (*flags as u32) << 16 | (*code as u32) << 24);
}

#[inline(always)]
fn take<A>(skb: Skb, source: A, destination: A) -> Packet<A> {
    let (ports, marks) = (skb.note::<0>(), skb.note::<1>());
    Packet {
        source,
        destination,
        fragment: 0,
        facts: marks & (IPV6 - 1),
        source_port: (ports >> 16) as u16,
        destination_port: ports as u16,
        protocol: (marks >> 8) as u8,
        flags: (marks >> 16) as u8,
        code: (marks >> 24) as u8,
    }
}

/// Whether an IPv6 packet is carried.
#[inline(always)]
pub(crate) fn is_six(skb: Skb) -> bool {
    skb.note::<1>() & IPV6 != 0
}

/// The IPv4 packet that was put.
#[inline(always)]
pub(crate) fn take4(skb: Skb) -> Packet<u32> {
    take(skb, skb.note::<2>(), skb.note::<4>())
}

/// The IPv6 packet that was put; without addresses if its header is gone.
#[inline(always)]
pub(crate) fn take6(skb: Skb) -> Packet<[u32; 4]> {
    let header = Direct::new(skb, 0).words::<8>(8);
    let [a, b, c, d, e, f, g, h] = header.unwrap_or([0; 8]);
    take(skb, [a, b, c, d], [e, f, g, h])
}

/// What an event repeats of the carried packet.
#[inline(always)]
pub(crate) fn seen(skb: Skb) -> Seen {
    if is_six(skb) { Seen::packet::<V6>(&take6(skb)) } else { Seen::packet::<V4>(&take4(skb)) }
}
