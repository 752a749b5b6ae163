//! A translated packet: parsed at whatever device it leaves by, and judged by the policy of the pod that sent it.

use aya_ebpf::bindings::__sk_buff;
use policy_common::abi::{ANY_SLOT, LocalKey, interface_flags};
use policy_common::exit::judge_exit;
use policy_common::family::{Family, V4, V6};
use policy_common::flow::FlowMaps;
use policy_common::packet::{Bytes, ETHERNET_HEADER, Link, link, parse4, parse6};
use policy_common::reason::Reason;

use crate::access::{Kernel, interface};
use crate::bytes::Direct;
use crate::flows::scratch;
use crate::found::{ARP, PULL, SLOW4, SLOW6};
use crate::skb::Skb;

/// Beside a slot: the packet has lost its tag.
pub(crate) const UNTAGGED: u32 = 1 << 16;

/// Parses the packet into the scratch value: one of the constants of [`crate::found`], or a reason. `device` = by which it
/// leaves, 0 at a pod.
#[inline(always)]
pub(crate) fn parse(skb: Skb, device: u32) -> u64 {
    let found = front_exit(skb.raw(), device);
    let short = found == Reason::Malformed as u64 || found == Reason::FragmentTiny as u64;
    // A header may lie outside the linear part.
    if short && skb.pull_more(PULL) { front_exit(skb.raw(), device) } else { found }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn front_exit(context: *mut __sk_buff, device: u32) -> u64 {
    let skb = Skb::from_raw(context);
    let refused = Reason::Internal as u64;
    let (Some(kernel), Some(scratch)) = (Kernel::new(skb, 0), scratch()) else { return refused };
    let bytes = Direct::new(skb, kernel.zero);
    let bare = device != 0 && interface(device).flags & interface_flags::NO_ETHERNET != 0;
    let (kind, at) = if bare {
        let kind = match bytes.words::<1>(0) {
            Some([first]) if u32::from_be(first) >> 28 == 4 => Ok(Link::Ip4),
            Some([first]) if u32::from_be(first) >> 28 == 6 => Ok(Link::Ip6),
            Some(_) => Err(Reason::UnknownEthertype),
            None => Err(Reason::Malformed),
        };
        (kind, 0)
    } else {
        (link(&bytes), ETHERNET_HEADER)
    };
    match kind {
        Ok(Link::Arp) => ARP,
        Ok(Link::Ip4) => match parse4(&bytes, at) {
            Ok(packet) => {
                scratch.packet4 = packet;
                SLOW4
            }
            Err(reason) => reason as u64,
        },
        Ok(Link::Ip6) => match parse6(&bytes, at) {
            Ok(packet) => {
                scratch.packet6 = packet;
                SLOW6
            }
            Err(reason) => reason as u64,
        },
        Err(reason) => reason as u64,
    }
}

/// Slot of the endpoint that has the source address of the parsed packet, 0 when none has. `found` = what [`parse`] said.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn owner(context: *mut __sk_buff, found: u32) -> u64 {
    let skb = Skb::from_raw(context);
    // An argument that is never read would not be passed, and the verifier misses it.
    skb.len();
    let (Some(kernel), Some(scratch)) = (Kernel::new(skb, 0), scratch()) else { return 0 };
    let (family, address) = match found as u64 {
        SLOW4 => (4, V4::wide(&scratch.packet4.source)),
        SLOW6 => (6, V6::wide(&scratch.packet6.source)),
        _ => return 0,
    };
    FlowMaps::<V4>::local(&kernel, &LocalKey { slot: ANY_SLOT, family, address }) as u64
}

macro_rules! exit {
    ($name:ident, $family:ty, $packet:ident) => {
        /// Judges the parsed packet by the egress policy of `sender`: its slot, and perhaps [`UNTAGGED`]. Returns the
        /// verdict's word.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub(crate) extern "C" fn $name(context: *mut __sk_buff, word: u64, sender: u32) -> u64 {
            let skb = Skb::from_raw(context);
            skb.len();
            let kernel = Kernel::new(skb, sender as u16);
            let (Some(kernel), Some(scratch)) = (kernel, scratch()) else {
                return (Reason::Internal as u64) << 4;
            };
            let mut packet = scratch.$packet;
            let untagged = sender & UNTAGGED != 0;
            let verdict = judge_exit::<$family, Kernel>(&kernel, word, untagged, &mut packet);
            scratch.$packet = packet;
            verdict.0
        }
    };
}

exit!(exit4, V4, packet4);
exit!(exit6, V6, packet6);
