//! Whose a socket is: the nearest control group above it that is an endpoint. Peers on the same host share its addresses,
//! so where their address allows nothing, their own socket is looked for.

use core::ffi::c_void;
use core::mem::MaybeUninit;
use core::ptr::read_volatile;

use aya_ebpf::bindings::{__sk_buff, bpf_sock_tuple};
use aya_ebpf::helpers::generated as bpf;
use policy_common::abi::{CGROUP_LEVELS, Cgroup, HostWord, host_flags, meta_words};
use policy_common::packet::protocol;
use policy_common::side::{ON_THE_WAY_IN, Side};
use policy_common::verdict::Verdict;

use crate::access::meta;
use crate::carry;
use crate::judge::{peer6, side};
use crate::maps::CGROUPS;
use crate::skb::Skb;

/// `BPF_F_CURRENT_NETNS`.
const THIS_NETNS: u64 = u64::MAX;
/// No peer was found.
const NOBODY: u64 = 0;
/// First half of every address that stands for an endpoint, in the order of memory.
const IDENTITIES: u64 = u64::from_ne_bytes([1, 0, 0, 0, 0, 0, 0, 0]);

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

/// Second half of the address that stands for the peer, if the peer of the carried packet is a socket of this host and
/// an endpoint's; else 0. `inbound` = 1: the packet comes from the peer. It calls nothing: its frame is large.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn peer_identity(context: *mut __sk_buff, inbound: u32) -> u64 {
    let skb = Skb::from_raw(context);
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
    // SAFETY: an element that was just found; its value never changes.
    let [_, _, c, d] = unsafe { read_volatile(&raw const (*group).identity) }.map(|w| w as u64);
    c | d << 32
}

/// {of this side, of the other side} out of what a packet has of its source and its destination.
#[inline(always)]
fn turned<T>(inbound: u32, source: T, destination: T) -> (T, T) {
    if inbound != 0 { (destination, source) } else { (source, destination) }
}

/// The verdict on one direction. The node's own processes have no privilege here: they are peers like any other, and
/// allowed if a rule names their address or the endpoint that they belong to.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn socket_side(context: *mut __sk_buff, who: u64, what: u32) -> u64 {
    // An argument that is never read would not be passed, and the verifier misses it.
    Skb::from_raw(context).len();
    let asked = Side::unpack(who, what);
    let (plain, what) = Side { host: 0, ..asked }.pack();
    let by_address = side(context, plain, what);
    if Verdict(by_address).passes() || asked.host & host_flags::OWN_NODE == 0 {
        return by_address;
    }
    let identity = peer_identity(context, (asked.bits & ON_THE_WAY_IN != 0) as u32);
    if identity == NOBODY {
        return by_address;
    }
    let class = HostWord::unpack(peer6(IDENTITIES, identity)).class;
    let (plain, what) = Side { host: 0, class, ..asked }.pack();
    side(context, plain, what)
}
