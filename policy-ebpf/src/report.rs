//! What is told of a packet: counters that are always exact, and events as far as buckets and ring have room.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns};
use policy_common::abi::{Direction, EndpointStat, endpoint_words, limits, meta_flags, meta_words};
use policy_common::event::{Event, event_flags};
use policy_common::family::{V4, V6};
use policy_common::seen::Seen;
use policy_common::verdict::Verdict;

use crate::access::{Kernel, meta};
use crate::bucket::{is_repeat, take};
use crate::bytes::Direct;
use crate::carry;
use crate::count::{add, count};
use crate::front::parsed;
use crate::maps::{EPSTAT, EVENTS, RULE_HITS};
use crate::skb::Skb;
use policy_common::flow::Host;

/// Events per tick, CPU and endpoint.
const ENDPOINT_EVENTS: u32 = 64;
/// Events per tick and CPU: the ring holds more than two ticks of them.
const CPU_EVENTS: u32 = 2048;

/// Where and under which word the packet was judged.
struct Place {
    kernel: Kernel,
    word: u64,
    direction: u8,
    now: u32,
    flags: u8,
}

/// In the last argument of [`report`]: judged behind the translation of a Service.
pub(crate) const AT_EXIT: u32 = 1 << 26;

/// In the last argument of [`report`]: the packet is carried by itself, and has no Ethernet header.
pub(crate) const AT_SOCKET: u32 = 1 << 27;

/// The last argument of [`report`]: {slot 16, direction 2, family of the parsed packet 8, at exit 1, at socket 1}.
#[inline(always)]
pub(crate) fn report_place(slot: u32, direction: Direction, family: u8) -> u32 {
    slot | (direction as u32) << 16 | (family as u32) << 18
}

/// Counts a packet that was judged by the tables or dropped, and reports a drop, or a new flow where that is wanted.
/// A function of its own, see [`crate::judge`]. `place` = see [`report_place`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn report(context: *mut __sk_buff, word: u64, verdict: u64, place: u32) -> u64 {
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
        let seen = match ((place >> 18) as u8, parsed()) {
            (4 | 6, _) if place & AT_SOCKET != 0 => carry::seen(skb),
            (4, Some(parsed)) => Seen::packet::<V4>(&parsed.packet4),
            (6, Some(parsed)) => Seen::packet::<V6>(&parsed.packet6),
            _ if place & AT_SOCKET != 0 => Seen::default(),
            _ => Seen::frame(&Direct::new(skb, 0)),
        };
        let flags = if place & AT_EXIT != 0 { event_flags::EXIT } else { 0 };
        event(&Place { kernel, word, direction, now, flags }, &seen, verdict, stat);
    }
    0
}

#[inline(always)]
fn event(place: &Place, seen: &Seen, verdict: Verdict, stat: *mut EndpointStat) {
    let dropped = !verdict.passes();
    let reserve =
        if is_repeat(place.kernel.slot, place.now, seen, verdict) { ENDPOINT_EVENTS / 2 } else { 0 };
    let Some(cpu) = EPSTAT.get_ptr_mut(0) else { return };
    if !take(stat, place.now, ENDPOINT_EVENTS, reserve) || !take(cpu, place.now, CPU_EVENTS, reserve) {
        // SAFETY: this CPU's own element.
        unsafe {
            (*stat).suppressed += dropped as u64;
            (*stat).suppressed_since += dropped as u64;
            (*stat).verdicts_lost += !dropped as u64;
        }
        return;
    }
    let Some(mut entry) = EVENTS.reserve(0) else {
        // SAFETY: this CPU's own element.
        unsafe {
            (*stat).ring_full += dropped as u64;
            (*stat).verdicts_lost += !dropped as u64;
        }
        return;
    };
    // SAFETY: this CPU's own elements; the helpers have no arguments.
    let (sequence, suppressed, time, number) = unsafe {
        (*cpu).flows += 1;
        let suppressed = (*stat).suppressed_since;
        (*stat).suppressed_since = 0;
        ((*cpu).flows, suppressed, bpf_ktime_get_ns(), bpf_get_smp_processor_id())
    };
    entry.write(Event {
        time,
        word: place.word,
        sequence: (number as u64) << 48 | sequence & 0xffff_ffff_ffff,
        endpoint: place.kernel.endpoint(endpoint_words::IDENTITY) as u32,
        ifindex: place.kernel.skb.ifindex(),
        rule: verdict.rule(),
        suppressed: suppressed as u32,
        length: place.kernel.skb.len(),
        slot: place.kernel.slot,
        class: verdict.class(),
        rule_set: verdict.rule_set(),
        source_port: seen.source_port,
        destination_port: seen.destination_port,
        tag: place.kernel.skb.tc_index() as u16,
        source: seen.source,
        destination: seen.destination,
        direction: place.direction,
        reason: verdict.reason_number(),
        family: seen.family,
        protocol: seen.protocol,
        tcp_flags: seen.tcp_flags,
        icmp_code: seen.icmp_code,
        opener: verdict.opener(),
        flags: seen.flags | place.flags | if dropped { 0 } else { event_flags::VERDICT },
    });
    entry.submit(0);
}
