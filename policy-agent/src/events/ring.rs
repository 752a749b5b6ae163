//! The last flows, in memory, oldest overwritten first.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use crate::events::clock::nanoseconds;
use crate::proto::flow::Flow;

/// Flows that are kept unless asked otherwise.
pub const CAPACITY: usize = 4_096;

/// A bounded list of flows.
#[derive(Debug)]
pub struct Ring {
    flows: VecDeque<Arc<Flow>>,
    capacity: usize,
    seen: u64,
}

/// Which part of the past is asked for. Counts are of flows that match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// Nothing.
    None,
    /// All of it.
    All,
    /// The newest so many.
    Last(u64),
    /// The oldest so many.
    First(u64),
}

/// Bounds of time, in nanoseconds since 1970, both included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Period {
    /// Nothing before.
    pub since: Option<i64>,
    /// Nothing after.
    pub until: Option<i64>,
}

impl Period {
    /// Whether a flow falls into it.
    #[must_use]
    pub fn contains(&self, flow: &Flow) -> bool {
        let Self { since, until } = *self;
        let time = flow.time.as_ref().map_or(0, nanoseconds);
        since.is_none_or(|since| since <= time) && until.is_none_or(|until| time <= until)
    }
}

impl Ring {
    /// An empty ring of at least one place.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { flows: VecDeque::new(), capacity: capacity.max(1), seen: 0 }
    }

    /// Adds the newest flow.
    pub fn push(&mut self, flow: Arc<Flow>) {
        if self.flows.len() == self.capacity {
            self.flows.pop_front();
        }
        self.flows.push_back(flow);
        self.seen += 1;
    }

    /// Flows in the ring.
    #[must_use]
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// Flows that fit.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Flows ever added.
    #[must_use]
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// The flows as they are now, oldest first, for a search outside of any lock.
    #[must_use]
    pub fn snapshot(&self) -> Vec<Arc<Flow>> {
        self.flows.iter().cloned().collect()
    }
}

/// The flows of a range that match, oldest first.
///
/// The last N matches are not the matches among the last N, so the search goes backwards from the end.
#[must_use]
pub fn search(flows: &[Arc<Flow>], range: Range, matches: impl Fn(&Flow) -> bool) -> Vec<Arc<Flow>> {
    let limit = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
    let hits = flows.iter().filter(|flow| matches(flow));
    match range {
        Range::None => Vec::new(),
        Range::All => hits.cloned().collect(),
        Range::First(count) => hits.take(limit(count)).cloned().collect(),
        Range::Last(count) => {
            let mut newest: Vec<_> = hits.rev().take(limit(count)).cloned().collect();
            newest.reverse();
            newest
        }
    }
}

/// Namespaces that are an end of one of the flows, sorted.
#[must_use]
pub fn namespaces(flows: &[Arc<Flow>], period: Period) -> BTreeSet<String> {
    flows
        .iter()
        .filter(|flow| period.contains(flow))
        .flat_map(|flow| flow.source.iter().chain(&flow.destination))
        .filter(|endpoint| !endpoint.namespace.is_empty())
        .map(|endpoint| endpoint.namespace.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::clock::timestamp;

    fn flow(time: i64) -> Arc<Flow> {
        Arc::new(Flow { time: Some(timestamp(time)), ..Flow::default() })
    }

    fn times(flows: &[Arc<Flow>]) -> Vec<i64> {
        flows.iter().map(|flow| nanoseconds(flow.time.as_ref().unwrap())).collect()
    }

    #[test]
    fn the_oldest_gives_way() {
        let mut ring = Ring::new(3);
        (0..5).for_each(|time| ring.push(flow(time)));
        assert_eq!(times(&ring.snapshot()), [2, 3, 4]);
        assert_eq!((ring.len(), ring.capacity(), ring.seen()), (3, 3, 5));
    }

    #[test]
    fn counts_are_of_matches() {
        let flows: Vec<_> = (0..10).map(flow).collect();
        let even = |flow: &Flow| flow.time.as_ref().map_or(0, nanoseconds) % 2 == 0;
        let found = |range| times(&search(&flows, range, even));
        assert_eq!(found(Range::Last(2)), [6, 8]);
        assert_eq!(found(Range::First(2)), [0, 2]);
        assert_eq!(found(Range::Last(u64::MAX)), [0, 2, 4, 6, 8]);
        assert_eq!(found(Range::All).len(), 5);
        assert_eq!(found(Range::None).len(), 0);
    }

    #[test]
    fn both_ends_of_a_period_belong_to_it() {
        let period = Period { since: Some(3), until: Some(5) };
        let inside: Vec<_> = (0..10).filter(|time| period.contains(&flow(*time))).collect();
        assert_eq!(inside, [3, 4, 5]);
    }
}
