//! Where a destination is real: the egress that a pod's hook deferred, judged behind kube-proxy's translation, at the
//! device by which the packet leaves the node or at the pod to which it goes.

use aya_ebpf::bindings::__sk_buff;
use policy_common::abi::{
    Direction, EndpointWord, ROW_OPEN, counter_index, counter_untagged, endpoint_words, interface_flags,
    interface_kind, meta_flags, meta_words, tag,
};
use policy_common::exit::{Leaving, leaving};
use policy_common::flow::Host;
use policy_common::reason::Reason;
use policy_common::tagged;
use policy_common::verdict::Verdict;

use crate::access::{Kernel, interface, meta};
use crate::behind::{UNTAGGED, exit4, exit6, owner};
use crate::count::count;
use crate::found::{ARP, SLOW, SLOW4, SLOW6};
use crate::front::parse;
use crate::report::{AT_EXIT, report, report_place};
use crate::skb::Skb;
use crate::{NEXT, SHOT};

/// What leaves by a device that is not a pod's.
#[inline(always)]
pub(crate) fn node_exit(skb: Skb) -> i32 {
    if !judged(skb, Direction::Egress) {
        return SHOT;
    }
    // Nodes that share a kernel are such namespaces: another node would take the tag for one of its own.
    if skb.tc_index() != 0 && interface(skb.ifindex()).flags & interface_flags::LEADS_AWAY != 0 {
        skb.set_tc_index(0);
    }
    NEXT
}

/// Judges what is still to be judged of the packet's way out of its pod; false = drop. `at`: at a device of the node
/// (egress) or at another pod (ingress).
#[inline(always)]
pub(crate) fn judged(skb: Skb, at: Direction) -> bool {
    let ingress = skb.ingress_ifindex();
    match leaving(skb.tc_index() as u16, ingress != 0) {
        Leaving::Judged => true,
        Leaving::Deferred => leave(skb.raw(), at as u32, 0) != 0,
        Leaving::Untagged => {
            let came = interface(ingress);
            let bridge = came.kind == interface_kind::EXIT && came.flags & interface_flags::BRIDGE != 0;
            if came.kind != interface_kind::POD && !bridge {
                return true;
            }
            leave(skb.raw(), at as u32, UNTAGGED | if bridge { 0 } else { came.slot as u32 }) != 0
        }
    }
}

/// Judges the packet of `sender` (slot and [`UNTAGGED`]; slot 0 = to be found by the source address). 0 = drop.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn leave(context: *mut __sk_buff, at: u32, sender: u32) -> u64 {
    let skb = Skb::from_raw(context);
    let mark = skb.tc_index() as u16;
    let untagged = sender & UNTAGGED != 0;
    let at_exit = at == Direction::Egress as u32;
    let device = if at_exit { skb.ifindex() } else { 0 };
    let mut slot = if untagged { sender & 0xffff } else { tag::slot(mark) as u32 };
    let mut found = ARP;
    if untagged && slot == 0 {
        found = parse(skb, device);
        slot = owner(skb.raw(), found as u32) as u32;
        if slot == 0 {
            return 1;
        }
    }
    let Some(kernel) = Kernel::new(skb, slot as u16) else { return 0 };
    if untagged {
        // It may have come before the hook that tags.
        let home = interface(kernel.endpoint(endpoint_words::INTERFACE) as u32);
        if home.kind != interface_kind::POD || home.flags & interface_flags::ATTACHING != 0 {
            return 1;
        }
        count(counter_untagged(if at_exit { Direction::Egress } else { Direction::Ingress }), skb.len());
        if meta(meta_words::FLAGS) & meta_flags::BACKENDS != 0 {
            return 1;
        }
    } else if !tagged::names(mark, kernel.endpoint(endpoint_words::IDENTITY)) {
        // Nobody is left to whom the drop could be told.
        count(counter_index(Reason::StaleTag, Direction::Egress), skb.len());
        return 0;
    }
    let word = kernel.endpoint(endpoint_words::POLICY);
    if EndpointWord::unpack(word).egress_row != ROW_OPEN {
        if found == ARP {
            found = parse(skb, device);
        }
        let sender = slot | sender & UNTAGGED;
        let verdict = match found {
            ARP => return 1,
            SLOW4 => Verdict(exit4(skb.raw(), word, sender)),
            SLOW6 => Verdict(exit6(skb.raw(), word, sender)),
            reason => Verdict(reason << 4),
        };
        if !verdict.passes() {
            let family = if found & SLOW != 0 { found as u8 } else { 0 };
            report(skb.raw(), word, verdict.0, report_place(slot, Direction::Egress, family) | AT_EXIT);
            return 0;
        }
    }
    if !untagged {
        // Tunnels pass two devices.
        skb.set_tc_index((mark & !tag::DEFERRED) as u32);
    }
    1
}
