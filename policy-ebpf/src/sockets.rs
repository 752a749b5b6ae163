//! Whose a socket is: the nearest control group above it that is an endpoint; and whose the socket at the other end is,
//! if that is on the same host.

use core::ffi::c_void;
use core::mem::MaybeUninit;
use core::ptr::read_volatile;

use aya_ebpf::bindings::{__sk_buff, bpf_sock_tuple};
use aya_ebpf::helpers::generated as bpf;
use policy_common::abi::{CGROUP_LEVELS, Cgroup, meta_words};
use policy_common::packet::protocol;

use crate::access::meta;
use crate::carry;
use crate::maps::CGROUPS;
use crate::skb::Skb;

/// `BPF_F_CURRENT_NETNS`.
const THIS_NETNS: u64 = u64::MAX;
/// No peer was found.
pub(crate) const NOBODY: u64 = 0;

/// The nearest endpoint: `own` group of a socket, else the one above it at a level.
#[inline(always)]
fn nearest(own: u64, above: impl Fn(i32) -> u64) -> Option<*const Cgroup> {
    if let Some(found) = CGROUPS.get_ptr(own) {
        return Some(found);
    }
    let deepest = meta(meta_words::CGROUP_LEVEL);
    for step in 0..CGROUP_LEVELS {
        let level = CGROUP_LEVELS - step;
        if level as u64 > deepest {
            continue;
        }
        let id = above(level as i32);
        if let Some(found) = CGROUPS.get_ptr(id) {
            return Some(found);
        }
    }
    None
}

/// Slot of the packet's socket, 0 = none.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn slot_of_socket(context: *mut __sk_buff) -> u64 {
    // SAFETY: the kernel passes a valid context; the helpers take nothing else.
    let above = |level| unsafe { bpf::bpf_skb_ancestor_cgroup_id(context, level) };
    // SAFETY: as above.
    let found = nearest(unsafe { bpf::bpf_skb_cgroup_id(context) }, above);
    // SAFETY: an element that was just found; its value never changes.
    found.map_or(0, |group| unsafe { read_volatile(&raw const (*group).slot) as u64 })
}

/// In the second argument of [`peer_of`]: the packet comes from the peer.
pub(crate) const INBOUND: u32 = 1;
/// In the second argument of [`peer_of`]: its slot is wanted.
pub(crate) const SLOT: u32 = 2;

/// Second half of the address that stands for the peer, or its slot, if the peer of the carried packet is a socket of
/// this host and an endpoint's; else 0. It calls nothing: its frame is large.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn peer_of(context: *mut __sk_buff, asked: u32) -> u64 {
    let (skb, inbound) = (Skb::from_raw(context), asked & INBOUND);
    let (number, ports) = ((skb.note::<1>() >> 8) as u8, skb.note::<0>());
    if !matches!(number, protocol::TCP | protocol::UDP) {
        return NOBODY;
    }
    let (here, there) = turned(inbound, (ports >> 16) as u16, ports as u16);
    let ports = (here.to_be() as u32) | (there.to_be() as u32) << 16;
    // The packet as the peer's socket would receive it: {source, destination, ports}. Not zeroed before: that is a call
    // of a function, and this one is at the end of the longest chain that the stack of 5.10 has room for.
    let mut tuple = MaybeUninit::<[u32; 9]>::uninit();
    let words = tuple.as_mut_ptr().cast::<u32>();
    let size = if carry::is_six(skb) {
        let packet = carry::take6(skb);
        let (from, to) = turned(inbound, packet.source, packet.destination);
        let all = [from[0], from[1], from[2], from[3], to[0], to[1], to[2], to[3], ports];
        // SAFETY: nine words, as many as there are.
        unsafe { words.cast::<[u32; 9]>().write(all) };
        36
    } else {
        let packet = carry::take4(skb);
        let (from, to) = turned(inbound, packet.source, packet.destination);
        // SAFETY: the first three words of nine.
        unsafe { words.cast::<[u32; 3]>().write([from, to, ports]) };
        12
    };
    let (at, tuple) = (context.cast::<c_void>(), words.cast::<bpf_sock_tuple>());
    // SAFETY: the tuple lives on the stack, with the size given; the socket is released below.
    let socket = unsafe {
        if number == protocol::TCP {
            bpf::bpf_sk_lookup_tcp(at, tuple, size, THIS_NETNS, 0)
        } else {
            bpf::bpf_sk_lookup_udp(at, tuple, size, THIS_NETNS, 0)
        }
    };
    if socket.is_null() {
        return NOBODY;
    }
    let socket = socket.cast::<c_void>();
    // SAFETY: the socket is held.
    let above = |level| unsafe { bpf::bpf_sk_ancestor_cgroup_id(socket, level) };
    // SAFETY: as above.
    let found = nearest(unsafe { bpf::bpf_sk_cgroup_id(socket) }, above);
    // SAFETY: held since the look-up, and not used any more.
    unsafe { bpf::bpf_sk_release(socket) };
    let Some(group) = found else { return NOBODY };
    if asked & SLOT != 0 {
        // SAFETY: an element that was just found; its value never changes.
        return unsafe { read_volatile(&raw const (*group).slot) as u64 };
    }
    // SAFETY: as above.
    let [_, _, c, d] = unsafe { read_volatile(&raw const (*group).identity) }.map(|w| w as u64);
    c | d << 32
}

/// {of this side, of the other side} out of what a packet has of its source and its destination.
#[inline(always)]
fn turned<T>(inbound: u32, source: T, destination: T) -> (T, T) {
    if inbound != 0 { (destination, source) } else { (source, destination) }
}
