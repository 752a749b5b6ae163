//! Flow maps of slots that nobody has yet: the kernel waits for a grace period when a map enters an array of maps, and a
//! new pod must not wait for it.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use policy_common::abi::{endpoint_words, limits};

use super::bpf;
use super::endpoint::gone;
use super::error::{Error, Result};
use super::executor::Executor;
use super::ledger::Ledger;
use super::map::{ANY, Map, bytes_of};
use super::spec::MapId;

/// Slots whose maps are made at the same time: all of them wait for one grace period, the next ones for another.
const AT_ONCE: usize = 64;

/// What is known of a slot whose endpoint does not stand in its words, or not yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Its maps are being made.
    Making,
    /// Its maps are in place and empty; whether both are.
    Ready { six: bool },
    /// An endpoint has it.
    Taken,
}

/// The slots, as the maker of spare maps and the makers of endpoints share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Slots(Arc<(Mutex<BTreeMap<u16, Stage>>, Condvar)>);

/// What the slot of a new endpoint has already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct There {
    /// A flow map of IPv4.
    pub four: bool,
    /// A flow map of IPv6.
    pub six: bool,
}

/// Makes spare flow maps, on a thread of its own.
#[derive(Debug)]
pub struct SpareMaker {
    slots: Slots,
    flows4: Map,
    flows6: Map,
    ep: Map,
    entries: u32,
    ledger: Arc<Mutex<Ledger>>,
}

impl Slots {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u16, Stage>> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, slot: u16, stage: Option<Stage>) {
        match stage {
            Some(stage) => drop(self.lock().insert(slot, stage)),
            None => drop(self.lock().remove(&slot)),
        }
        self.0.1.notify_all();
    }

    /// Gives a slot to an endpoint. If its maps are just being made, waits for them: they would come into its way.
    pub(super) fn take(&self, slot: u16) -> There {
        let making = |slots: &mut BTreeMap<u16, Stage>| slots.get(&slot) == Some(&Stage::Making);
        let mut slots = self.0.1.wait_while(self.lock(), making).unwrap_or_else(PoisonError::into_inner);
        match slots.insert(slot, Stage::Taken) {
            Some(Stage::Ready { six }) => There { four: true, six },
            Some(Stage::Making | Stage::Taken) | None => There::default(),
        }
    }

    /// The slot's endpoint and its maps are gone.
    pub(super) fn free(&self, slot: u16) {
        self.set(slot, None);
    }

    fn begin(&self, slot: u16) -> bool {
        let mut slots = self.lock();
        let is_free = !slots.contains_key(&slot);
        if is_free {
            slots.insert(slot, Stage::Making);
        }
        is_free
    }

    fn ready(&self) -> BTreeSet<u16> {
        let slots = self.lock();
        slots.iter().filter(|(_, s)| matches!(s, Stage::Ready { .. })).map(|(slot, _)| *slot).collect()
    }
}

impl Executor {
    /// Slots without endpoint whose flow maps are in place: an endpoint there is made without waiting.
    #[must_use]
    pub fn spare_slots(&self) -> BTreeSet<u16> {
        self.slots.ready()
    }

    /// What makes flow maps of free slots.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn spare_maker(&self) -> Result<SpareMaker> {
        let map = |id: MapId| Map::new(self.maps[id].try_clone_fd()?, id.spec());
        Ok(SpareMaker {
            slots: self.slots.clone(),
            flows4: map(MapId::Flows4)?,
            flows6: map(MapId::Flows6)?,
            ep: map(MapId::Ep)?,
            entries: self.flow_entries,
            ledger: self.ledger.clone(),
        })
    }
}

impl SpareMaker {
    /// Removes flow maps of slots without endpoint, which an earlier agent had in store.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn clear(&self) -> Result<()> {
        let words = self.ep.words()?;
        for slot in 1..limits::ENDPOINTS as u16 {
            if words.load(u32::from(slot), endpoint_words::IDENTITY)? as u32 != 0 || !self.slots.begin(slot) {
                continue;
            }
            let done = [(&self.flows4, MapId::Flows4), (&self.flows6, MapId::Flows6)]
                .into_iter()
                .try_for_each(|(map, id)| remove_flows(map, id, slot.into(), &self.ledger));
            self.slots.free(slot);
            done?;
        }
        Ok(())
    }

    /// Puts empty flow maps into these slots, as far as they are free and have none; `six`: of both families. Blocks for
    /// some milliseconds, however few they are: each map waits for a grace period, and many wait for the same one. Hands
    /// back in how many slots they are now.
    ///
    /// # Errors
    /// The kernel's answer; the slots that it concerns stay without.
    pub fn make(&self, slots: &[u16], six: bool) -> Result<usize> {
        let words = self.ep.words()?;
        let mut made = 0;
        for slots in slots.chunks(AT_ONCE) {
            let mut begun = Vec::new();
            for slot in slots {
                // Also an endpoint of an earlier agent counts.
                let identity = words.load(u32::from(*slot), endpoint_words::IDENTITY)?;
                begun.extend((identity as u32 == 0 && self.slots.begin(*slot)).then_some(*slot));
            }
            let done: Vec<Result<()>> = thread::scope(|scope| {
                let threads: Vec<_> =
                    begun.iter().map(|slot| scope.spawn(|| self.make_one(*slot, six))).collect();
                let join = |thread: thread::ScopedJoinHandle<'_, _>| {
                    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                };
                threads.into_iter().map(join).collect()
            });
            for done in done {
                done?;
                made += 1;
            }
        }
        Ok(made)
    }

    fn make_one(&self, slot: u16, six: bool) -> Result<()> {
        let families = [Some((&self.flows4, MapId::Flows4)), six.then_some((&self.flows6, MapId::Flows6))];
        let done = install(slot, self.entries, families.into_iter().flatten(), &self.ledger);
        self.slots.set(slot, done.is_ok().then_some(Stage::Ready { six }));
        done
    }
}

/// Takes the flow map of a slot out.
pub(super) fn remove_flows(map: &Map, id: MapId, slot: u32, ledger: &Mutex<Ledger>) -> Result<()> {
    let note = || ledger.lock().unwrap_or_else(PoisonError::into_inner);
    note().begin_flows(id, slot);
    let done = gone(map, bytes_of(&slot));
    note().end_flows(id, slot, None);
    done
}

/// New flow maps for the slot. They enter their arrays at the same time: each waits for a grace period.
pub(super) fn install<'a>(
    slot: u16,
    entries: u32,
    families: impl Iterator<Item = (&'a Map, MapId)>,
    ledger: &Mutex<Ledger>,
) -> Result<()> {
    let install = |map: &Map, id: MapId| {
        let Some(inner) = id.inner() else { return Ok(()) };
        let failed = |source| Error::Map { action: "create", map: inner.name, source };
        let flows: OwnedFd = bpf::create_map(&inner, entries, None).map_err(failed)?;
        let (fd, made) = (flows.as_raw_fd() as u32, bpf::map_info(flows.as_fd()).map_err(failed)?.id);
        let slot = u32::from(slot);
        let note = || ledger.lock().unwrap_or_else(PoisonError::into_inner);
        note().begin_flows(id, slot);
        let done = map.insert(bytes_of(&slot), bytes_of(&fd), ANY).map_err(map.failed("insert into"));
        note().end_flows(id, slot, done.is_ok().then_some(made));
        done
    };
    let families: Vec<_> = families.collect();
    if let [(map, id)] = families[..] {
        return install(map, id);
    }
    thread::scope(|scope| {
        let threads: Vec<_> =
            families.into_iter().map(|(map, id)| scope.spawn(move || install(map, id))).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().try_for_each(join)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_the_makers_or_the_endpoints_never_both() {
        let slots = Slots::default();
        assert!(slots.begin(3) && !slots.begin(3));
        slots.set(3, Some(Stage::Ready { six: false }));
        assert_eq!(slots.ready(), BTreeSet::from([3]));
        assert_eq!(slots.take(3), There { four: true, six: false });
        assert!(slots.ready().is_empty() && !slots.begin(3));
        slots.free(3);
        assert_eq!(slots.take(3), There::default());
        assert!(!slots.begin(3), "an endpoint made its own maps there");
    }

    #[test]
    fn an_endpoint_waits_for_maps_that_are_being_made() {
        let slots = Slots::default();
        assert!(slots.begin(1));
        thread::scope(|scope| {
            let taken = scope.spawn(|| slots.take(1));
            slots.set(1, Some(Stage::Ready { six: true }));
            assert_eq!(taken.join().unwrap(), There { four: true, six: true });
        });
    }
}
