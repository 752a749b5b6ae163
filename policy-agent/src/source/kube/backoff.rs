//! How long to wait before a failed request is tried again: longer each time, and not the same on every node.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

const FIRST: Duration = Duration::from_millis(200);
const LAST: Duration = Duration::from_secs(5);

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

/// All that wait for the same server: when it answers one of them, none of the others waits on.
#[derive(Clone, Debug)]
pub(super) struct Again {
    tell: Arc<watch::Sender<()>>,
    told: watch::Receiver<()>,
}

impl Again {
    /// Nobody was answered yet.
    pub(super) fn new() -> Self {
        let (tell, told) = watch::channel(());
        Self { tell: Arc::new(tell), told }
    }

    /// The server answers again.
    pub(super) fn tell(&mut self) {
        self.tell.send_replace(());
        self.told.mark_unchanged();
    }

    /// Waits so long, or until somebody is answered; also if that was since the last wait. True = somebody is answered.
    pub(super) async fn wait(&mut self, at_most: Duration) -> bool {
        !at_most.is_zero() && matches!(timeout(at_most, self.told.changed()).await, Ok(Ok(())))
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

    const LONG: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn one_answer_ends_the_waits_of_all_others() {
        let mut first = Again::new();
        let (mut second, mut third) = (first.clone(), first.clone());
        assert!(!second.wait(Duration::from_millis(1)).await);
        let waiting = tokio::spawn(async move { second.wait(LONG).await });
        tokio::task::yield_now().await;
        first.tell();
        assert!(waiting.await.unwrap(), "who was waiting");
        assert!(third.wait(LONG).await, "and who was just trying in vain");
        let short = Duration::from_millis(1);
        assert!(!third.wait(short).await && !first.wait(short).await, "once, and not who told it");
    }

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
