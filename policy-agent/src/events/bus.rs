//! One way in for flows, any number of ways out: the ring for the past, a bounded channel for each live reader.
//!
//! The writer never waits. A reader that is too slow loses the oldest messages and learns how many.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::broadcast;

use crate::events::ring::Ring;
use crate::proto::flow::{Flow, LostEventSource};

/// Messages that wait for the slowest live reader before it loses some.
pub const LIVE_CAPACITY: usize = 1_024;

/// What live readers get.
#[derive(Clone, Debug)]
pub enum Message {
    /// A flow.
    Flow(Arc<Flow>),
    /// Something that the agent itself has to tell.
    Notice(String),
    /// Events that never became flows.
    Lost {
        /// Where.
        source: LostEventSource,
        /// How many.
        count: u64,
    },
}

/// Totals of an endpoint's counters of events that were not delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelLosses {
    /// The ring was full.
    pub ring_full: u64,
    /// Held back by the rate limit.
    pub suppressed: u64,
}

/// Counts for status and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Flows in the ring.
    pub kept: usize,
    /// Flows that fit in the ring.
    pub capacity: usize,
    /// Flows since the start.
    pub seen: u64,
    /// When the bus was made.
    pub started: Instant,
    /// Live readers.
    pub readers: usize,
}

/// The bus.
#[derive(Debug)]
pub struct Bus {
    state: Mutex<State>,
    live: broadcast::Sender<Message>,
    started: Instant,
}

#[derive(Debug)]
struct State {
    ring: Ring,
    /// By endpoint id; `None` until the counters were read once: what was lost before belongs to an earlier run.
    losses: Option<BTreeMap<u32, KernelLosses>>,
}

/// The past, and everything that comes after it without a gap.
#[derive(Debug)]
pub struct Subscription {
    /// Flows in the ring, oldest first.
    pub past: Vec<Arc<Flow>>,
    /// What follows.
    pub live: broadcast::Receiver<Message>,
}

impl Bus {
    /// A bus that keeps so many flows, and so many messages for a slow reader.
    #[must_use]
    pub fn new(ring: usize, live: usize) -> Self {
        let (live, _) = broadcast::channel(live.max(1));
        let state = State { ring: Ring::new(ring), losses: None };
        Self { state: Mutex::new(state), live, started: Instant::now() }
    }

    /// Adds a flow.
    pub fn publish(&self, flow: Flow) {
        let flow = Arc::new(flow);
        let mut state = self.lock();
        state.ring.push(flow.clone());
        // Sent under the lock, so that a new subscription sees each flow once. An error only says that nobody listens.
        let _: Result<_, _> = self.live.send(Message::Flow(flow));
    }

    /// Tells live readers something about the agent itself.
    pub fn tell(&self, notice: String) {
        // An error only says that nobody listens.
        let _: Result<_, _> = self.live.send(Message::Notice(notice));
    }

    /// Tells readers what was lost since the last call. Call it about once a second with the totals of each endpoint's
    /// counters, by endpoint id. An endpoint that is new has lost all that it counts.
    pub fn report_losses(&self, totals: BTreeMap<u32, KernelLosses>) {
        let mut state = self.lock();
        let before = state.losses.replace(totals.clone());
        drop(state);
        let Some(before) = before else { return };
        let mut lost = KernelLosses::default();
        for (id, now) in totals {
            let before = before.get(&id).copied().unwrap_or_default();
            lost.ring_full += now.ring_full.saturating_sub(before.ring_full);
            lost.suppressed += now.suppressed.saturating_sub(before.suppressed);
        }
        for (source, count) in [
            (LostEventSource::PerfEventRingBuffer, lost.ring_full),
            (LostEventSource::ObserverEventsQueue, lost.suppressed),
        ] {
            if count > 0 {
                let _: Result<_, _> = self.live.send(Message::Lost { source, count });
            }
        }
    }

    /// Begins to listen.
    #[must_use]
    pub fn subscribe(&self) -> Subscription {
        let state = self.lock();
        Subscription { past: state.ring.snapshot(), live: self.live.subscribe() }
    }

    /// The flows in the ring, oldest first.
    #[must_use]
    pub fn past(&self) -> Vec<Arc<Flow>> {
        self.lock().ring.snapshot()
    }

    /// Counts.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let state = self.lock();
        Stats {
            kept: state.ring.len(),
            capacity: state.ring.capacity(),
            seen: state.ring.seen(),
            started: self.started,
            readers: self.live.receiver_count(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole after every statement, so a panic of another thread leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::broadcast::error::TryRecvError;

    use super::*;

    fn flow(uuid: &str) -> Flow {
        Flow { uuid: uuid.to_owned(), ..Flow::default() }
    }

    fn next(live: &mut broadcast::Receiver<Message>) -> Result<String, TryRecvError> {
        live.try_recv().map(|message| match message {
            Message::Flow(flow) => flow.uuid.clone(),
            Message::Notice(notice) => notice,
            Message::Lost { source, count } => format!("{} {count}", source.as_str_name()),
        })
    }

    #[test]
    fn past_and_live_meet_without_gap_or_repeat() {
        let bus = Bus::new(8, 8);
        bus.publish(flow("a"));
        let mut subscription = bus.subscribe();
        bus.publish(flow("b"));
        assert_eq!(subscription.past.iter().map(|flow| &*flow.uuid).collect::<Vec<_>>(), ["a"]);
        assert_eq!(next(&mut subscription.live), Ok("b".to_owned()));
        assert_eq!(next(&mut subscription.live), Err(TryRecvError::Empty));
    }

    #[test]
    fn a_slow_reader_learns_what_it_lost() {
        let bus = Bus::new(8, 4);
        let mut live = bus.subscribe().live;
        (0..10).for_each(|i| bus.publish(flow(&i.to_string())));
        assert_eq!(next(&mut live), Err(TryRecvError::Lagged(6)));
        assert_eq!(next(&mut live), Ok("6".to_owned()));
        assert_eq!(bus.stats().seen, 10);
    }

    #[test]
    fn kernel_losses_are_told_as_differences() {
        let bus = Bus::new(8, 8);
        let mut live = bus.subscribe().live;
        let report = |totals: &[(u32, u64, u64)]| {
            let of = |&(id, ring_full, suppressed)| (id, KernelLosses { ring_full, suppressed });
            bus.report_losses(totals.iter().map(of).collect());
        };
        report(&[(1, 5, 100), (2, 0, 50)]);
        assert_eq!(next(&mut live), Err(TryRecvError::Empty), "what was before us is not ours to tell");
        report(&[(1, 7, 100), (2, 0, 50)]);
        assert_eq!(next(&mut live), Ok("PERF_EVENT_RING_BUFFER 2".to_owned()));
        // One endpoint goes with its counters, another comes.
        report(&[(2, 0, 60), (3, 0, 20)]);
        assert_eq!(next(&mut live), Ok("OBSERVER_EVENTS_QUEUE 30".to_owned()));
        report(&[(2, 0, 60), (3, 0, 20)]);
        assert_eq!(next(&mut live), Err(TryRecvError::Empty));
    }
}
