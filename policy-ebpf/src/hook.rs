//! The hook on the host side of a pod's interface, in both directions.
//!
//! The verifier walks a global function once, with arguments of which it knows nothing, instead of once for every path
//! that leads to a call; and its stack frame exists only while it runs. So the hook is a chain of such functions. Their
//! arguments are numbers and the context, which is all that 5.10 allows; a packet that takes the long way crosses in
//! this CPU's [`crate::maps::Parsed`].

use aya_ebpf::bindings::__sk_buff;
use policy_common::abi::{
    Direction, EndpointWord, ROW_OPEN, counter_unhooked, endpoint_words, interface_kind, tag,
};
use policy_common::decide::{decide_slowly, established};
use policy_common::family::{V4, V6};
use policy_common::flow::Host;
use policy_common::packet::{plain4, plain6};
use policy_common::reason::Reason;
use policy_common::verdict::Verdict;

use crate::access::{Kernel, interface};
use crate::bytes::Direct;
use crate::count::count;
use crate::found::{ARP, SLOW, SLOW4, SLOW6};
use crate::front::{parse, parsed};
use crate::report::{report, report_place};
use crate::skb::Skb;
use crate::{NEXT, SHOT, exit};

/// Ethertype of IPv6, network order.
const IPV6: u32 = 0x86dd_u16.to_be() as u32;

/// The functions of one direction.
macro_rules! direction {
    ($hook:ident, $quick6:ident, $slow4:ident, $slow6:ident, $direction:expr) => {
        direction!(quick $quick6, $direction);
        direction!(slow $slow4, V4, packet4, $direction);
        direction!(slow $slow6, V6, packet6, $direction);

        /// Judges the packet.
        #[inline(always)]
        pub(crate) fn $hook(skb: Skb) -> i32 {
            let interface = interface(skb.ifindex());
            let slot = interface.slot as u32;
            if interface.kind != interface_kind::POD {
                if $direction as u8 == Direction::Egress as u8 {
                    // Nobody before us may set our tag.
                    skb.set_tc_index(0);
                }
                count(counter_unhooked($direction), skb.len());
                return NEXT;
            }
            let Some(kernel) = Kernel::new(skb, interface.slot) else { return NEXT };
            if $direction as u8 == Direction::Egress as u8 {
                // Whatever it was: nobody before us may set our tag, least of all the pod.
                let generation = (kernel.endpoint(endpoint_words::IDENTITY) >> 48) as u16;
                skb.set_tc_index(tag::new(kernel.slot, generation) as u32);
            } else if !exit::judged(skb, Direction::Ingress) {
                return SHOT;
            }
            let word = kernel.endpoint(endpoint_words::POLICY);
            let mut found = Reason::VlanTagged as u64;
            if skb.vlan_present() == 0 {
                // Nearly all packets are ordinary ones of an allowed flow. IPv4 needs no call here, so little is spilled
                // and read again; the longer addresses of IPv6 would take the stack that the long way needs.
                let data = Direct::new(skb, 0);
                let quick = match plain4(&data) {
                    Some(packet) => established::<V4, _>(&kernel, word, $direction, &packet),
                    None if skb.protocol() == IPV6 => {
                        Some(Verdict($quick6(skb.raw(), word, slot))).filter(|verdict| verdict.0 != 0)
                    }
                    None => None,
                };
                if let Some(verdict) = quick {
                    return pass(skb, $direction, verdict.is_deferred());
                }
                found = parse(skb, 0);
            }
            let verdict = match found {
                ARP => return NEXT,
                SLOW4 => Verdict($slow4(skb.raw(), word, slot)),
                SLOW6 => Verdict($slow6(skb.raw(), word, slot)),
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
    (quick $name:ident, $direction:expr) => {
        /// The verdict's word on an ordinary IPv6 packet in the middle of an allowed flow, else 0.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $name(context: *mut __sk_buff, word: u64, slot: u32) -> u64 {
            let skb = Skb::from_raw(context);
            let (Some(packet), Some(kernel)) = (plain6(&Direct::new(skb, 0)), Kernel::new(skb, slot as u16)) else {
                return 0;
            };
            established::<V6, _>(&kernel, word, $direction, &packet).map_or(0, |verdict| verdict.0)
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
            let (Some(kernel), Some(parsed)) = (kernel, parsed()) else { return (Reason::Internal as u64) << 4 };
            decide_slowly::<$family, Kernel>(&kernel, word, $direction, &mut parsed.$packet).0
        }
    };
}

direction!(pod_in, quick_in6, slow_in4, slow_in6, Direction::Ingress);
direction!(pod_out, quick_out6, slow_out4, slow_out6, Direction::Egress);

/// The tag, which stands already, says what is left to be judged.
#[inline(always)]
fn pass(skb: Skb, direction: Direction, deferred: bool) -> i32 {
    if direction as u8 == Direction::Egress as u8 && deferred {
        skb.set_tc_index(skb.tc_index() | tag::DEFERRED as u32);
    }
    NEXT
}
