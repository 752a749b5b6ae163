//! Notices on their way: each once, no faster than the rate, and not for ever more of them.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::Notice;

/// Events that may be written one right after another.
const BURST: u32 = 10;
/// After those there is one in this time.
const PERIOD: Duration = Duration::from_secs(6);
/// Notices that wait at most.
const WAITING: usize = 500;

/// What became of notices, since the start.
#[derive(Debug, Default)]
pub struct Count {
    /// Written by this agent.
    pub written: AtomicU64,
    /// Another agent, or this one before a restart, had written it.
    pub present: AtomicU64,
    /// Held back: too many waited.
    pub suppressed: AtomicU64,
    /// The API server refused it.
    pub refused: AtomicU64,
}

impl Count {
    /// Values with their names.
    #[must_use]
    pub fn values(&self) -> [(&'static str, u64); 4] {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        [
            ("written", of(&self.written)),
            ("present", of(&self.present)),
            ("suppressed", of(&self.suppressed)),
            ("refused", of(&self.refused)),
        ]
    }
}

/// The queue.
#[derive(Debug)]
pub(super) struct Queue {
    /// Everything that is the case now: when it is to be written, `None` = that is done or left to others.
    known: HashMap<Notice, Option<Instant>>,
    tokens: u32,
    refilled: Instant,
}

impl Queue {
    pub(super) fn new(now: Instant) -> Self {
        Self { known: HashMap::new(), tokens: BURST, refilled: now }
    }

    /// Takes over what is the case now; what no longer is, is not written any more. `wait` tells how long a new notice
    /// waits, if this agent is to write it. Returns how many are held back.
    pub(super) fn follow(
        &mut self,
        now: Instant,
        notices: BTreeSet<Notice>,
        wait: impl Fn(&Notice) -> Option<Duration>,
    ) -> u64 {
        self.known.retain(|notice, _| notices.contains(notice));
        let mut waiting = self.known.values().flatten().count();
        let mut suppressed = 0;
        for notice in notices {
            if self.known.contains_key(&notice) {
                continue;
            }
            let mut at = wait(&notice).map(|wait| now + wait);
            if at.is_some() && waiting >= WAITING {
                at = None;
                suppressed += 1;
            }
            waiting += usize::from(at.is_some());
            self.known.insert(notice, at);
        }
        suppressed
    }

    /// A notice whose time has come, if there is a token for it. It counts as done.
    pub(super) fn next(&mut self, now: Instant) -> Option<Notice> {
        while self.tokens < BURST && now.saturating_duration_since(self.refilled) >= PERIOD {
            self.refilled += PERIOD;
            self.tokens += 1;
        }
        if self.tokens == BURST {
            self.refilled = now;
        }
        let due = self.known.iter_mut().filter_map(|(notice, at)| Some(((*at)?, notice, at)));
        let (_, notice, at) = due.min_by(|(a, x, _), (b, y, _)| (a, x).cmp(&(b, y)))?;
        if self.tokens == 0 || at.is_some_and(|at| at > now) {
            return None;
        }
        self.tokens -= 1;
        *at = None;
        Some(notice.clone())
    }

    /// A notice could not be written: again later, unless it is no longer the case.
    pub(super) fn again(&mut self, notice: &Notice, at: Instant) {
        if let Some(known) = self.known.get_mut(notice) {
            *known = Some(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Reason;
    use super::*;
    use policy_engine::model::ObjectKey;

    fn notices(numbers: std::ops::Range<u64>) -> BTreeSet<Notice> {
        let notice = |version| Notice {
            policy: ObjectKey::new("x", "p"),
            uid: "u".into(),
            version,
            reason: Reason::NotHonoured,
            field: String::new(),
            message: "m".to_owned(),
        };
        numbers.map(notice).collect()
    }

    fn drain(queue: &mut Queue, now: Instant) -> Vec<u64> {
        std::iter::from_fn(|| queue.next(now)).map(|notice| notice.version).collect()
    }

    #[test]
    fn each_is_written_once_while_it_is_the_case() {
        let (now, at_once) = (Instant::now(), |_: &Notice| Some(Duration::ZERO));
        let mut queue = Queue::new(now);
        queue.follow(now, notices(0..2), at_once);
        assert_eq!(drain(&mut queue, now), [0, 1]);
        queue.follow(now, notices(0..3), at_once);
        assert_eq!(drain(&mut queue, now), [2], "the others were written");
        queue.again(notices(2..3).first().unwrap(), now);
        assert_eq!(drain(&mut queue, now), [2], "it could not be written");
        queue.follow(now, notices(1..2), at_once);
        queue.again(notices(2..3).first().unwrap(), now);
        assert_eq!(drain(&mut queue, now), [0; 0], "mended");
        queue.follow(now, notices(4..5), |_| None);
        assert_eq!(drain(&mut queue, now), [0; 0], "left to others");
        queue.follow(now, notices(5..6), |_| Some(Duration::from_secs(15)));
        assert_eq!(drain(&mut queue, now), [0; 0], "its time has not come");
        assert_eq!(drain(&mut queue, now + Duration::from_secs(15)), [5]);
    }

    #[test]
    fn a_storm_becomes_a_trickle_and_the_rest_is_counted() {
        let mut now = Instant::now();
        let mut queue = Queue::new(now);
        let suppressed = queue.follow(now, notices(0..10_000), |_| Some(Duration::ZERO));
        assert_eq!(suppressed, 10_000 - WAITING as u64);
        assert_eq!(drain(&mut queue, now).len(), BURST as usize);
        for _ in 0..5 {
            now += PERIOD;
            assert_eq!(drain(&mut queue, now).len(), 1);
        }
        assert_eq!(queue.follow(now, notices(0..10_000), |_| Some(Duration::ZERO)), 0, "counted once");
    }
}
