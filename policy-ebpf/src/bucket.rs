//! Who may write into the event ring: a filter of repeats, and a bucket of tokens for each CPU and endpoint.

use policy_common::abi::EndpointStat;
use policy_common::verdict::Verdict;

use crate::maps::{RECENT, RECENT_EVENTS};
use policy_common::seen::Seen;

/// Whether the same was told in this tick already. First events may use up the bucket, repeats only half of it.
#[inline(always)]
pub(crate) fn is_repeat(slot: u16, now: u32, seen: &Seen, verdict: Verdict) -> bool {
    let what = (slot as u32) << 16 | verdict.class() as u32;
    let which =
        (verdict.reason_number() as u32) << 24 | (seen.protocol as u32) << 16 | seen.destination_port as u32;
    let hash = (what.wrapping_mul(0x9e37_79b1) ^ which).wrapping_mul(0x85eb_ca6b);
    let hash = hash ^ hash >> 15;
    let signature = (now as u64) << 32 | hash as u64;
    let Some(last) = RECENT.get_ptr_mut(hash & (RECENT_EVENTS - 1)) else { return true };
    // SAFETY: this CPU's own element.
    unsafe {
        let same = *last == signature;
        *last = signature;
        same
    }
}

/// Takes a token, keeping `reserve` tokens for others.
#[inline(always)]
pub(crate) fn take(stat: *mut EndpointStat, now: u32, limit: u32, reserve: u32) -> bool {
    // SAFETY: this CPU's own element.
    unsafe {
        if (*stat).refilled != now {
            (*stat).refilled = now;
            (*stat).tokens = limit;
        }
        if (*stat).tokens <= reserve {
            return false;
        }
        (*stat).tokens -= 1;
    }
    true
}
