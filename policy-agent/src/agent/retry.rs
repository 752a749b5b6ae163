//! When to try again: soon at first, then less and less often.

use std::time::{Duration, Instant};

const FIRST: Duration = Duration::from_millis(100);
const LAST: Duration = Duration::from_secs(10);

/// The time of the next attempt.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Retry {
    wait: Option<Duration>,
    at: Option<Instant>,
}

impl Retry {
    /// An attempt failed.
    pub(super) fn failed(&mut self, now: Instant) {
        if self.at.is_some_and(|at| at > now) {
            return;
        }
        let wait = self.wait.map_or(FIRST, |wait| (wait * 2).min(LAST));
        (self.wait, self.at) = (Some(wait), Some(now + wait));
    }

    /// Everything is well.
    pub(super) fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// When, if at all.
    #[must_use]
    pub(super) fn at(&self) -> Option<Instant> {
        self.at
    }

    /// Whether an attempt is due.
    #[must_use]
    pub(super) fn due(&self, now: Instant) -> bool {
        self.at.is_some_and(|at| at <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_their_limit_and_start_over() {
        let (mut retry, mut now) = (Retry::default(), Instant::now());
        assert!(!retry.due(now));
        let mut waits = Vec::new();
        for _ in 0..12 {
            retry.failed(now);
            retry.failed(now);
            let at = retry.at().unwrap();
            waits.push(at - now);
            now = at;
            assert!(retry.due(now));
        }
        assert_eq!((waits[0], waits[1], waits[11]), (FIRST, FIRST * 2, LAST));
        retry.succeeded();
        assert_eq!(retry.at(), None);
    }
}
