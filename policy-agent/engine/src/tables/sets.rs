//! Rule sets that the kernel holds: stored once by content, immutable, freed as a block.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use policy_common::abi::{Interval, RuleSet};

use super::ids::{Ids, Stretches};
use crate::desired::SetContent;
use crate::limits::Limits;
use crate::plan::Op;

/// The store.
#[derive(Clone, Debug)]
pub(crate) struct SetStore {
    ids: Ids,
    stretches: Stretches,
    stored: BTreeMap<u16, Stored>,
    by_content: HashMap<Arc<SetContent>, u16>,
    /// Sets whose last reference may be gone.
    touched: BTreeSet<u16>,
}

#[derive(Clone, Debug)]
struct Stored {
    /// `None`: read back and not understood; it never equals anything wanted.
    content: Option<Arc<SetContent>>,
    base: u32,
    length: u32,
    /// Cells of rows in use that name it.
    references: u32,
}

impl SetStore {
    /// An empty store.
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            ids: Ids::new(1, limits.rule_sets),
            stretches: Stretches::new(limits.intervals),
            stored: BTreeMap::new(),
            by_content: HashMap::new(),
            touched: BTreeSet::new(),
        }
    }

    /// Id of a stored content, 0 for the empty one.
    pub(crate) fn find(&self, content: &Arc<SetContent>) -> Option<u16> {
        if content.is_empty() { Some(0) } else { self.by_content.get(content).copied() }
    }

    /// Content of a stored set.
    pub(crate) fn content(&self, id: u16) -> Option<&Arc<SetContent>> {
        self.stored.get(&id)?.content.as_ref()
    }

    /// Takes room for new contents, or none at all: which table is full.
    pub(crate) fn reserve(&mut self, contents: &[Arc<SetContent>]) -> Result<Vec<(u16, u32)>, super::Table> {
        let ids = self.ids.take(contents.len()).ok_or(super::Table::RuleSets)?;
        let mut bases: Vec<(u16, u32)> = Vec::with_capacity(ids.len());
        for (id, content) in ids.iter().zip(contents) {
            let Some(base) = self.stretches.take(length(content)) else {
                for ((_, base), content) in bases.iter().zip(contents) {
                    self.stretches.put(*base, length(content));
                }
                self.ids.give_back(ids);
                return Err(super::Table::Intervals);
            };
            bases.push((u16::try_from(*id).unwrap_or(u16::MAX), base));
        }
        Ok(bases)
    }

    /// Stores a content under a reserved id; returns the writes.
    pub(crate) fn store(&mut self, id: u16, base: u32, content: &Arc<SetContent>) -> Vec<Op> {
        let length = length(content);
        self.stored.insert(id, Stored { content: Some(content.clone()), base, length, references: 0 });
        self.by_content.insert(content.clone(), id);
        self.touched.insert(id);
        let mut ops = Vec::new();
        if length > 0 {
            ops.push(Op::Intervals { base, values: content.intervals.concat() });
        }
        ops.push(Op::RuleSet { id, value: record(content, base) });
        ops
    }

    /// Counts cells that name a set.
    pub(crate) fn add(&mut self, id: u16) {
        if let Some(stored) = self.stored.get_mut(&id) {
            stored.references += 1;
            self.ids.revive(u32::from(id));
        }
    }

    /// Counts cells that no longer name a set.
    pub(crate) fn remove(&mut self, id: u16) {
        if let Some(stored) = self.stored.get_mut(&id) {
            stored.references = stored.references.saturating_sub(1);
            self.touched.insert(id);
        }
    }

    /// Puts sets in quarantine that this plan left without references.
    pub(crate) fn retire(&mut self, plan: u64) {
        for id in std::mem::take(&mut self.touched) {
            let unused = self.stored.get(&id).is_some_and(|s| s.references == 0);
            if unused && !self.ids.is_retired(u32::from(id)) {
                self.ids.retire(u32::from(id), plan);
            }
        }
    }

    /// Frees sets whose quarantine is over.
    pub(crate) fn release(&mut self, grace: u64) {
        for id in self.ids.release(grace) {
            let Ok(id) = u16::try_from(id) else { continue };
            let Some(stored) = self.stored.remove(&id) else { continue };
            self.stretches.put(stored.base, stored.length);
            if let Some(content) = stored.content
                && self.by_content.get(&content) == Some(&id)
            {
                self.by_content.remove(&content);
            }
        }
    }

    /// Takes over a set read back from the kernel. Returns false if it contradicts the others.
    pub(crate) fn adopt(&mut self, id: u16, set: &RuleSet, intervals: &HashMap<u32, Interval>) {
        self.ids.occupy(u32::from(id));
        let length = u32::from(set.n_tcp) + u32::from(set.n_udp) + u32::from(set.n_sctp);
        let content = read(set, intervals).filter(|_| self.stretches.occupy(set.base, length)).map(Arc::new);
        let length = if content.is_some() { length } else { 0 };
        if let Some(content) = &content {
            self.by_content.entry(content.clone()).or_insert(id);
        }
        self.stored.insert(id, Stored { content, base: set.base, length, references: 0 });
        self.touched.insert(id);
    }

    /// Records that the kernel holds, in use or not, with their intervals; what was not understood is left out.
    pub(crate) fn records(&self) -> impl Iterator<Item = (u16, RuleSet, Vec<Interval>)> {
        self.stored.iter().filter_map(|(id, stored)| {
            let content = stored.content.as_ref()?;
            Some((*id, record(content, stored.base), content.intervals.concat()))
        })
    }

    /// Sets and intervals that can be taken.
    pub(crate) fn available(&self) -> (usize, u32) {
        (self.ids.available(), self.stretches.available())
    }

    /// Sets in quarantine.
    pub(crate) fn retired(&self) -> usize {
        self.ids.retired()
    }
}

/// Checksum of a rule set and its intervals (CRC-32, reflected 0x04C11DB7), what [`RuleSet::crc`] holds.
#[must_use]
pub fn checksum(set: &RuleSet, intervals: impl IntoIterator<Item = Interval>) -> u32 {
    let mut crc = !0u32;
    let counts = [set.n_tcp, set.n_udp, set.n_sctp].map(u64::from);
    let words =
        [counts[0] | counts[1] << 16 | counts[2] << 32, u64::from(set.other.0), u64::from(set.default.0)];
    for byte in words.into_iter().chain(intervals.into_iter().map(Interval::pack)).flat_map(u64::to_le_bytes)
    {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

fn length(content: &SetContent) -> u32 {
    u32::try_from(content.len()).unwrap_or(u32::MAX)
}

fn record(content: &SetContent, base: u32) -> RuleSet {
    let count = |i: usize| u16::try_from(content.intervals[i].len()).unwrap_or(u16::MAX);
    let mut set = RuleSet {
        base,
        n_tcp: count(0),
        n_udp: count(1),
        n_sctp: count(2),
        pad: 0,
        other: content.other,
        default: content.default,
        crc: 0,
    };
    set.crc = checksum(&set, content.intervals.iter().flatten().copied());
    set
}

/// Content of a record; `None` if an interval is missing or the checksum is wrong.
fn read(set: &RuleSet, intervals: &HashMap<u32, Interval>) -> Option<SetContent> {
    let mut content = SetContent { other: set.other, default: set.default, ..SetContent::default() };
    let mut index = set.base;
    for (list, count) in content.intervals.iter_mut().zip([set.n_tcp, set.n_udp, set.n_sctp]) {
        for _ in 0..count {
            list.push(*intervals.get(&index)?);
            index = index.checked_add(1)?;
        }
    }
    (record(&content, set.base) == *set).then_some(content)
}
