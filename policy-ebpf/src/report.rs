//! What is told of a packet: counters that are always exact, and events as far as buckets and ring have room.

use aya_ebpf::bindings::__sk_buff;
use policy_common::abi::{Direction, limits, meta_flags, meta_words};
use policy_common::event::event_flags;
use policy_common::family::{V4, V6};
use policy_common::flow::Host;
use policy_common::seen::Seen;
use policy_common::verdict::Verdict;

use crate::access::{Kernel, meta};
use crate::bytes::Direct;
use crate::carry;
use crate::count::{add, count};
use crate::event::{Place, event};
use crate::front::parsed;
use crate::maps::{EPSTAT, RULE_HITS};
use crate::skb::Skb;

/// In the last argument of [`report`]: judged behind the translation of a Service.
pub(crate) const AT_EXIT: u32 = 1 << 26;

/// The last argument of [`report`]: {slot 16, direction 2, family of the parsed packet 8, at exit 1}.
#[inline(always)]
pub(crate) fn report_place(slot: u32, direction: Direction, family: u8) -> u32 {
    slot | (direction as u32) << 16 | (family as u32) << 18
}

/// Counts a packet that was judged by the tables or dropped, and reports a drop, or a new flow where that is wanted.
/// A function of its own, see [`crate::judge`]. `place` = see [`report_place`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn report(context: *mut __sk_buff, word: u64, verdict: u64, place: u32) -> u64 {
    tell::<false>(context, word, verdict, place)
}

/// [`report`] for programs of sockets: the packet is carried by itself, and has no Ethernet header.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn report_socket(context: *mut __sk_buff, word: u64, verdict: u64, place: u32) -> u64 {
    tell::<true>(context, word, verdict, place)
}

#[inline(always)]
fn tell<const SOCKET: bool>(context: *mut __sk_buff, word: u64, verdict: u64, place: u32) -> u64 {
    let (skb, verdict) = (Skb::from_raw(context), Verdict(verdict));
    let (slot, direction) = (place as u16, (place >> 16) as u8 & 3);
    let length = skb.len();
    count(verdict.reason_number() as u32 * 2 + (direction as u32).wrapping_sub(1), length);
    if verdict.rule() != 0 && (verdict.is_recorded() || !verdict.passes()) {
        let rule = verdict.rule();
        add(RULE_HITS.get_ptr_mut(if rule < limits::RULE_HITS { rule } else { 0 }), length);
    }
    let Some(stat) = EPSTAT.get_ptr_mut(slot as u32) else { return 0 };
    // SAFETY: this CPU's own element; tc programs of one CPU do not interrupt each other.
    unsafe {
        (*stat).judged += verdict.is_counted() as u64;
        (*stat).flows += verdict.is_recorded() as u64;
        (*stat).dropped += !verdict.passes() as u64;
    }
    let wanted = verdict.is_recorded() && meta(meta_words::FLAGS) & meta_flags::VERDICTS != 0;
    if verdict.passes() && !wanted {
        return 0;
    }
    if let Some(kernel) = Kernel::new(skb, slot) {
        let now = kernel.now();
        let seen = match ((place >> 18) as u8, if SOCKET { None } else { parsed() }) {
            (4 | 6, _) if SOCKET => carry::seen(skb),
            (4, Some(parsed)) => Seen::packet::<V4>(&parsed.packet4),
            (6, Some(parsed)) => Seen::packet::<V6>(&parsed.packet6),
            _ if SOCKET => Seen::default(),
            _ => Seen::frame(&Direct::new(skb, 0)),
        };
        let exit = if place & AT_EXIT != 0 { event_flags::EXIT } else { 0 };
        let flags = exit | if SOCKET { event_flags::SOCKET } else { 0 };
        event::<SOCKET>(&Place { kernel, word, direction, now, flags }, &seen, verdict, stat);
    }
    0
}
