//! Events: records of packets in the ring, as many as buckets and ring have room for.

use aya_ebpf::helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns};
use policy_common::abi::{Direction, EndpointStat, endpoint_words};
use policy_common::event::{Event, event_flags};
use policy_common::flow::Host;
use policy_common::seen::Seen;
use policy_common::verdict::Verdict;

use crate::access::Kernel;
use crate::bucket::{is_repeat, take};
use crate::maps::{EPSTAT, EVENTS};
use crate::sockets::{INBOUND, SLOT, peer_of};

/// Events per tick, CPU and endpoint.
const ENDPOINT_EVENTS: u32 = 64;
/// Events per tick and CPU: the ring holds more than two ticks of them.
const CPU_EVENTS: u32 = 2048;

/// Where and under which word the packet was judged.
pub(crate) struct Place {
    pub(crate) kernel: Kernel,
    pub(crate) word: u64,
    pub(crate) direction: u8,
    pub(crate) now: u32,
    pub(crate) flags: u8,
}

/// Tells a packet, as far as buckets and ring have room.
#[inline(always)]
pub(crate) fn event<const SOCKET: bool>(
    place: &Place,
    seen: &Seen,
    verdict: Verdict,
    stat: *mut EndpointStat,
) {
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
    let tag = if !SOCKET {
        place.kernel.skb.tc_index() as u16
    } else if seen.family == 0 {
        0
    } else {
        let inbound = (place.direction == Direction::Ingress as u8) as u32 * INBOUND;
        peer_of(place.kernel.skb.raw(), inbound | SLOT) as u16
    };
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
        tag,
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
