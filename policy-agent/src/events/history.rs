//! The last worlds that were enforced, so that a record is explained by the policy that judged it and not by today's.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use policy_engine::model::ObjectKey;
use policy_engine::world::World;

/// Worlds that are kept.
pub const KEPT: usize = 64;

/// A local endpoint under one world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointState {
    /// Endpoint id, never reused.
    pub id: u32,
    /// Epoch once the plan is committed.
    pub epoch: u32,
    /// The pod.
    pub pod: ObjectKey,
    /// Host side interface.
    pub interface: Arc<str>,
}

/// A world and the state of the endpoints under it.
#[derive(Debug)]
pub struct Generation {
    /// Number of the plan that enforces it.
    pub plan: u64,
    /// `CLOCK_MONOTONIC` in nanoseconds when the plan's first write was about to happen.
    pub since: u64,
    /// The world.
    pub world: Arc<World>,
    /// Endpoints by slot.
    pub endpoints: BTreeMap<u16, EndpointState>,
}

/// A generation found for a record.
#[derive(Clone, Debug)]
pub struct Found {
    /// The world to explain with.
    pub generation: Arc<Generation>,
    /// The record's own world is no longer (or not) known: this is the newest one.
    pub as_of_now: bool,
}

/// The last [`KEPT`] generations.
#[derive(Debug, Default)]
pub struct History {
    generations: VecDeque<Arc<Generation>>,
}

impl History {
    /// Adds the world of a plan. Call it *before* the plan's first write, with the epochs that the plan leaves behind:
    /// packets are judged by the new world before the executor returns.
    pub fn push(&mut self, generation: Generation) {
        if self.generations.len() == KEPT {
            self.generations.pop_front();
        }
        self.generations.push_back(Arc::new(generation));
    }

    /// The newest generation.
    #[must_use]
    pub fn newest(&self) -> Option<&Arc<Generation>> {
        self.generations.back()
    }

    /// The world under which endpoint `id` in `slot` had this epoch at this time. Plans that change nothing for the
    /// endpoint leave its epoch as it is, so several worlds may fit: all give the same verdict, and the last one that had
    /// begun by then has the right names.
    #[must_use]
    pub fn find(&self, slot: u16, id: u32, epoch: u32, time: u64) -> Option<Found> {
        let mut fits = self.generations.iter().filter(|generation| {
            generation.endpoints.get(&slot).is_some_and(|state| state.id == id && state.epoch == epoch)
        });
        let first = fits.next();
        let fit = fits.take_while(|generation| generation.since <= time).last().or(first);
        match fit {
            Some(generation) => Some(Found { generation: generation.clone(), as_of_now: false }),
            None => Some(Found { generation: self.newest()?.clone(), as_of_now: true }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generation(plan: u64, epoch: u32) -> Generation {
        let state =
            EndpointState { id: 7, epoch, pod: ObjectKey::new("shop", "db"), interface: "veth0".into() };
        Generation { plan, since: plan * 100, world: Arc::default(), endpoints: BTreeMap::from([(3, state)]) }
    }

    fn plan(history: &History, epoch: u32, time: u64) -> (u64, bool) {
        let found = history.find(3, 7, epoch, time).unwrap();
        (found.generation.plan, found.as_of_now)
    }

    #[test]
    fn the_epoch_selects_and_time_decides_between_equals() {
        let mut history = History::default();
        assert!(history.find(3, 7, 1, 0).is_none());
        for (number, epoch) in [(1, 1), (2, 2), (3, 2), (4, 2), (5, 3)] {
            history.push(generation(number, epoch));
        }
        assert_eq!(plan(&history, 1, 900), (1, false));
        assert_eq!(plan(&history, 2, 250), (2, false));
        assert_eq!(plan(&history, 2, 399), (3, false));
        assert_eq!(plan(&history, 2, 9_999), (4, false));
        // Judged by the new word before the generation's time stamp was taken on another CPU.
        assert_eq!(plan(&history, 3, 499), (5, false));
    }

    #[test]
    fn what_is_not_kept_is_marked() {
        let mut history = History::default();
        for number in 1..=KEPT as u64 + 1 {
            history.push(generation(number, number as u32));
        }
        let newest = KEPT as u64 + 1;
        assert_eq!(plan(&history, 1, 100), (newest, true), "its world was dropped");
        assert_eq!(plan(&history, 2, 200), (2, false));
        assert!(history.find(3, 8, 2, 200).unwrap().as_of_now, "another endpoint had the slot");
        assert!(history.find(4, 7, 2, 200).unwrap().as_of_now, "no such slot");
    }
}
