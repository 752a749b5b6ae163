//! How long to wait before a failed request is tried again: longer each time, and not the same on every node.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

const FIRST: Duration = Duration::from_millis(200);
const LAST: Duration = Duration::from_secs(15);

/// Failures in a row.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The wait after another failure: between half of a span that doubles and all of it.
    pub(super) fn next(&mut self) -> Duration {
        let span = FIRST.saturating_mul(1 << self.failures.min(16)).min(LAST);
        self.failures += 1;
        span / 2 + part(span / 2)
    }

    /// Something worked.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

/// A random part of a time: agents that lost the same server must not come back at the same moment.
pub(super) fn part(whole: Duration) -> Duration {
    // Each state has its own random keys.
    let random = RandomState::new().hash_one(0_u8) >> 32;
    whole.mul_f64(random as f64 / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_their_limit_and_start_over() {
        let mut backoff = Backoff::default();
        for n in 0..40 {
            let wait = backoff.next();
            let span = FIRST.saturating_mul(1 << n.min(16)).min(LAST);
            assert!((span / 2..=span).contains(&wait), "{n}: {wait:?} of {span:?}");
        }
        backoff.reset();
        assert!(backoff.next() <= FIRST);
    }
}
