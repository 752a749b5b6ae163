//! The hook on the host side of a pod's interface, in both directions.
//!
//! The verifier walks a global function once, with arguments of which it knows nothing, instead of once for every path
//! that leads to a call; and its stack frame exists only while it runs. So the hook is a chain of such functions. Their
//! arguments are numbers and the context, which is all that 5.10 allows; a packet that takes the long way crosses in
//! the scratch value.

use aya_ebpf::bindings::__sk_buff;
use policy_common::abi::{
    Direction, EndpointWord, ROW_OPEN, counter_unhooked, endpoint_words, interface_kind, tag,
};
use policy_common::decide::{decide_slowly, established};
use policy_common::family::{V4, V6};
use policy_common::flow::Host;
use policy_common::packet::{ETHERNET_HEADER, Link, link, parse4, parse6};
use policy_common::reason::Reason;
use policy_common::verdict::Verdict;

use crate::access::{Kernel, interface};
use crate::bytes::Direct;
use crate::count::count;
use crate::flows::scratch;
use crate::found::{ARP, FOUND, PULL, SLOW, SLOW4, SLOW6};
use crate::report::{report, report_place};
use crate::skb::Skb;
use crate::{NEXT, SHOT, exit};

/// The functions of one direction.
macro_rules! direction {
    ($hook:ident, $front:ident, $slow4:ident, $slow6:ident, $direction:expr) => {
        /// Parses the packet and takes the short way if it can. Else one of the constants above, or the number of the
        /// reason for which a frame cannot be judged.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $front(context: *mut __sk_buff, word: u64, slot: u32) -> u64 {
            let skb = Skb::from_raw(context);
            let refused = Reason::Internal as u64;
            let Some(kernel) = Kernel::new(skb, slot as u16) else { return refused };
            let bytes = Direct::new(skb, kernel.zero);
            match link(&bytes) {
                Ok(Link::Arp) => ARP,
                Ok(Link::Ip4) => match parse4(&bytes, ETHERNET_HEADER) {
                    Ok(packet) => {
                        if let Some(verdict) = established::<V4, _>(&kernel, word, $direction, &packet) {
                            return FOUND | verdict.is_deferred() as u64;
                        }
                        let Some(scratch) = scratch() else { return refused };
                        scratch.packet4 = packet;
                        SLOW4
                    }
                    Err(reason) => reason as u64,
                },
                Ok(Link::Ip6) => match parse6(&bytes, ETHERNET_HEADER) {
                    Ok(packet) => {
                        if let Some(verdict) = established::<V6, _>(&kernel, word, $direction, &packet) {
                            return FOUND | verdict.is_deferred() as u64;
                        }
                        let Some(scratch) = scratch() else { return refused };
                        scratch.packet6 = packet;
                        SLOW6
                    }
                    Err(reason) => reason as u64,
                },
                Err(reason) => reason as u64,
            }
        }

        direction!(slow $slow4, V4, packet4, $direction);
        direction!(slow $slow6, V6, packet6, $direction);

        /// Judges the packet.
        #[inline(always)]
        pub(crate) fn $hook(skb: Skb) -> i32 {
            if $direction as u8 == Direction::Egress as u8 {
                // Nobody before us may set our tag, least of all the pod.
                skb.set_tc_index(0);
            }
            let interface = interface(skb.ifindex());
            let slot = interface.slot as u32;
            if interface.kind != interface_kind::POD {
                count(counter_unhooked($direction), skb.len());
                return NEXT;
            }
            let Some(kernel) = Kernel::new(skb, interface.slot) else { return NEXT };
            if $direction as u8 == Direction::Egress as u8 {
                let generation = (kernel.endpoint(endpoint_words::IDENTITY) >> 48) as u16;
                skb.set_tc_index(tag::new(kernel.slot, generation) as u32);
            } else if !exit::judged(skb, Direction::Ingress) {
                return SHOT;
            }
            let word = kernel.endpoint(endpoint_words::POLICY);
            let mut found = Reason::VlanTagged as u64;
            if skb.vlan_present() == 0 {
                found = $front(skb.raw(), word, slot);
                let short = found == Reason::Malformed as u64 || found == Reason::FragmentTiny as u64;
                // A header may lie outside the linear part.
                if short && skb.pull_more(PULL) {
                    found = $front(skb.raw(), word, slot);
                }
            }
            let verdict = match found {
                ARP => return NEXT,
                SLOW4 => Verdict($slow4(skb.raw(), word, slot)),
                SLOW6 => Verdict($slow6(skb.raw(), word, slot)),
                _ if found & FOUND != 0 => return pass(skb, $direction, found & 1 != 0),
                _ if EndpointWord::unpack(word).row($direction) == ROW_OPEN => return NEXT,
                reason => Verdict(reason << 4),
            };
            if verdict.is_counted() || !verdict.passes() {
                let family = if found & SLOW != 0 { found as u8 } else { 0 };
                report(skb.raw(), word, verdict.0, report_place(slot, $direction, family));
            }
            if verdict.passes() { pass(skb, $direction, verdict.is_deferred()) } else { SHOT }
        }
    };
    (slow $name:ident, $family:ty, $packet:ident, $direction:expr) => {
        /// The long way. Returns the verdict's word.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $name(context: *mut __sk_buff, word: u64, slot: u32) -> u64 {
            let skb = Skb::from_raw(context);
            // An argument that is never read would not be passed, and the verifier misses it.
            skb.len();
            let kernel = Kernel::new(skb, slot as u16);
            let (Some(kernel), Some(scratch)) = (kernel, scratch()) else { return (Reason::Internal as u64) << 4 };
            let mut packet = scratch.$packet;
            let verdict = decide_slowly::<$family, Kernel>(&kernel, word, $direction, &mut packet);
            scratch.$packet = packet;
            verdict.0
        }
    };
}

direction!(pod_in, front_in, slow_in4, slow_in6, Direction::Ingress);
direction!(pod_out, front_out, slow_out4, slow_out6, Direction::Egress);

/// The tag, which stands already, says what is left to be judged.
#[inline(always)]
fn pass(skb: Skb, direction: Direction, deferred: bool) -> i32 {
    if direction as u8 == Direction::Egress as u8 && deferred {
        skb.set_tc_index(skb.tc_index() | tag::DEFERRED as u32);
    }
    NEXT
}
