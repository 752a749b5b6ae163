//! Programs for the agent's own questions, for tests and for benchmarks. They are never attached by the agent.

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use policy_common::abi::TICK_SHIFT;

use crate::NEXT;
use crate::maps::PROGS;
use crate::skb::Skb;

/// Result of `retag` when no program stands at its index.
const NOT_CALLED: i32 = 77;

/// Does nothing: what a benchmark subtracts.
#[classifier]
pub(crate) fn empty(_: TcContext) -> i32 {
    NEXT
}

/// Returns the current tick, which user space has no other way to read.
#[classifier]
pub(crate) fn tick(_: TcContext) -> i32 {
    // SAFETY: the helper has no arguments.
    (unsafe { aya_ebpf::helpers::generated::bpf_jiffies64() } >> TICK_SHIFT) as i32
}

/// Calls program {bits 16 and 17 of the mark} of `PROGS` with the low half of the mark as tag: BPF_PROG_TEST_RUN cannot set
/// `tc_index`.
#[classifier]
pub(crate) fn retag(context: TcContext) -> i32 {
    let skb = Skb::new(&context);
    let mark = skb.mark();
    skb.set_tc_index(mark & 0xffff);
    // SAFETY: a tail call runs another verified program on the same context, or returns.
    unsafe { PROGS.tail_call(&context, mark >> 16 & 3) };
    NOT_CALLED
}
