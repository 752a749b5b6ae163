//! Counters of packets, per CPU and always exact.

use policy_common::abi::Counter;

use crate::maps::COUNTERS;

/// Adds a packet to a counter of this CPU.
#[inline(always)]
pub(crate) fn add(counter: Option<*mut Counter>, bytes: u32) {
    let Some(c) = counter else { return };
    // SAFETY: this CPU's own element; tc programs of one CPU do not interrupt each other.
    unsafe {
        (*c).packets += 1;
        (*c).bytes += bytes as u64;
    }
}

/// Counts a packet by its reason.
#[inline(always)]
pub(crate) fn count(index: u32, bytes: u32) {
    add(COUNTERS.get_ptr_mut(index), bytes);
}
