//! The general plan: rows and prefixes change, perhaps together with addresses.
//!
//! Every distinct (class it has, class it shall have) becomes one class. Columns of fresh classes are copied from the
//! class their addresses come from, so moving addresses and inserting prefixes changes no verdict; then fresh rows are
//! filled for all of them, and one word per endpoint commits. Nothing is removed here.

use std::collections::{BTreeMap, BTreeSet};

use policy_common::abi::{EndpointWord, ROW_CLOSED, ROW_OPEN, host_flags};

use super::join::{Join, Joined};
use super::mirror::Mirror;
use super::reserve::{Needs, Reserved, reserve};
use super::{Judge, PlanError, current, judges};
use crate::desired::{Desired, RowChoice};
use crate::limits::Limits;
use crate::plan::Op;

/// Plans and applies to the mirror.
pub(crate) fn write(
    mirror: &mut Mirror,
    limits: &Limits,
    desired: &Desired,
    join: &Join<'_>,
    mut stored: Stored,
    number: u64,
) -> Result<Vec<Op>, PlanError> {
    let rows = Rows::choose(mirror, desired, join, &stored);
    let mut classes = Classes::split(join);
    let targets: BTreeSet<u32> = join.pairs.keys().map(|p| p.1).collect();
    let mut needs = Needs { classes: classes.fresh.len(), rows: rows.fresh.len(), sets: BTreeSet::new() };
    for row in &rows.fresh {
        needs.sets.extend(targets.iter().map(|t| desired.rows[*row].cells[*t as usize]));
    }
    needs.sets.retain(|s| stored.ids[*s as usize].is_none());
    let reserved = reserve(mirror, limits, desired, join, &needs)?;

    let mut ops = Vec::new();
    stored.store(mirror, &reserved, &mut ops);
    classes.copy_columns(mirror, &reserved.classes, &mut ops);
    let rejudge = move_keys(mirror, join, &classes, &reserved.slots, &mut ops);
    let mut numbers = BTreeMap::new();
    for (index, row) in rows.fresh.iter().zip(&reserved.rows) {
        let mut cells = Vec::new();
        for ((_, target), class) in &classes.of {
            let class = usize::from(*class);
            if cells.len() <= class {
                cells.resize(class + 1, 0);
            }
            cells[class] = stored.id(desired.rows[*index].cells[*target as usize]);
        }
        mirror.write_row(*row, cells, desired.rows[*index].spec.clone(), &mut ops);
        numbers.insert(*index, *row);
    }
    rows.name(mirror, desired);
    commit(mirror, &rows.judges, &rows.kept, &numbers, |_| rejudge, number, &mut ops);
    Ok(ops)
}

/// Stored ids of the desired rule sets.
#[derive(Clone)]
pub(crate) struct Stored {
    /// By index in the desired world.
    pub(crate) ids: Vec<Option<u16>>,
}

impl Stored {
    /// What is stored already.
    pub(crate) fn new(mirror: &Mirror, desired: &Desired) -> Self {
        Self { ids: desired.sets.iter().map(|s| mirror.sets.find(s)).collect() }
    }

    /// Stores the missing ones.
    pub(crate) fn store(&mut self, mirror: &mut Mirror, reserved: &Reserved, ops: &mut Vec<Op>) {
        for (index, content, id, base) in &reserved.sets {
            ops.extend(mirror.sets.store(*id, *base, content));
            self.ids[*index as usize] = Some(*id);
        }
    }

    /// Id of a rule set that is stored; 0 drops.
    pub(crate) fn id(&self, index: u32) -> u16 {
        self.ids[index as usize].unwrap_or(0)
    }
}

/// Rows of the endpoints.
struct Rows {
    judges: Vec<Judge>,
    /// Row in use that shall judge these desired rows.
    kept: BTreeMap<(u16, usize), u16>,
    /// Desired rows that need a fresh one.
    fresh: Vec<usize>,
}

impl Rows {
    fn choose(mirror: &Mirror, desired: &Desired, join: &Join<'_>, stored: &Stored) -> Self {
        let judges = judges(mirror, desired);
        let mut checked: BTreeMap<(u16, usize), bool> = BTreeMap::new();
        let mut owner: BTreeMap<u16, usize> = BTreeMap::new();
        let mut first: BTreeMap<usize, u16> = BTreeMap::new();
        for judge in judges.iter().filter(|j| j.row > ROW_CLOSED) {
            let RowChoice::Row(index) = judge.choice else { continue };
            let fits = *checked
                .entry((judge.row, index))
                .or_insert_with(|| fits(mirror, desired, join, stored, judge.row, index));
            if fits && *owner.entry(judge.row).or_insert(index) == index {
                first.entry(index).or_insert(judge.row);
            }
        }
        let mut kept = BTreeMap::new();
        let mut fresh = BTreeSet::new();
        for judge in &judges {
            let RowChoice::Row(index) = judge.choice else { continue };
            if owner.get(&judge.row) == Some(&index) {
                kept.insert((judge.row, index), judge.row);
            } else if let Some(row) = first.get(&index) {
                kept.insert((judge.row, index), *row);
            } else {
                fresh.insert(index);
            }
        }
        Self { judges, kept, fresh: fresh.into_iter().collect() }
    }

    /// Rows read back from the kernel learn where they come from.
    fn name(&self, mirror: &mut Mirror, desired: &Desired) {
        for ((_, index), row) in &self.kept {
            if let Some(row) = mirror.rows.get_mut(row) {
                row.spec = Some(desired.rows[*index].spec.clone());
            }
        }
    }
}

/// Whether a row says to every class what the desired row says to those who are in it.
fn fits(
    mirror: &Mirror,
    desired: &Desired,
    join: &Join<'_>,
    stored: &Stored,
    row: u16,
    index: usize,
) -> bool {
    let (Some(row), wanted) = (mirror.rows.get(&row), &desired.rows[index]) else { return false };
    // A row of other policies stays apart even if it says the same: events name policies by row.
    row.spec.as_ref().is_none_or(|s| s == &wanted.spec)
        && join.pairs.keys().all(|(class, target)| {
            stored.ids[wanted.cells[*target as usize] as usize] == Some(row.cell(*class))
        })
}

/// Class of every pair.
struct Classes {
    of: BTreeMap<(u16, u32), u16>,
    fresh: Vec<(u16, u32)>,
}

impl Classes {
    /// Of the pairs with one class, the one with most keys keeps its number; class 0 stays with the addresses that
    /// have no key.
    fn split(join: &Join<'_>) -> Self {
        let mut keeper: BTreeMap<u16, (usize, u32)> = BTreeMap::new();
        for ((class, target), count) in &join.pairs {
            let count = if *class == 0 && *target != 0 { 0 } else { *count };
            let best = keeper.entry(*class).or_insert((count, *target));
            if count > best.0 {
                *best = (count, *target);
            }
        }
        let mut of = BTreeMap::new();
        let mut fresh = Vec::new();
        for (class, target) in join.pairs.keys() {
            if keeper.get(class).is_some_and(|k| k.1 == *target) {
                of.insert((*class, *target), *class);
            } else {
                fresh.push((*class, *target));
            }
        }
        Self { of, fresh }
    }

    fn copy_columns(&mut self, mirror: &mut Mirror, numbers: &[u16], ops: &mut Vec<Op>) {
        // Rows in quarantine too: a program in flight may still be judging by one.
        let rows: Vec<u16> = mirror.rows.keys().copied().collect();
        for (pair, number) in self.fresh.iter().zip(numbers) {
            for row in &rows {
                let cell = mirror.rows.get(row).map_or(0, |r| r.cell(pair.0));
                mirror.set_cell(*row, *number, cell, ops);
            }
            self.of.insert(*pair, *number);
        }
    }
}

/// Moves and inserts keys. Returns whether addresses of the node or of Services changed, which no row shows.
fn move_keys(
    mirror: &mut Mirror,
    join: &Join<'_>,
    classes: &Classes,
    slots: &[u32],
    ops: &mut Vec<Op>,
) -> bool {
    let mut slots = slots.iter();
    let mut rejudge = false;
    let keys = join.keys(mirror, |pair| classes.of.get(&pair).is_some_and(|class| *class != pair.0));
    for key in keys.iter() {
        let Some(class) = classes.of.get(&(key.class, key.target)) else { continue };
        match key.place {
            Some(place) => {
                if place.class != *class || place.flags != key.flags {
                    mirror.move_key(key.key, *class, key.flags, ops);
                }
            }
            None => {
                let Some(slot) = slots.next() else { continue };
                mirror.insert(key.key, *slot, *class, key.flags, ops);
            }
        }
        rejudge |= changes_owner(key);
    }
    rejudge
}

/// Whether the address becomes, or ceases to be, one of the node's own or a Service's.
pub(crate) fn changes_owner(key: &Joined) -> bool {
    let judging = host_flags::OWN_NODE | host_flags::FRONTEND | host_flags::NODE_PORTS;
    (key.place.map_or(0, |p| p.flags) ^ key.flags) & judging != 0
}

/// Whether an entry that is not wanted says something that its prefix does not: it cannot wait to be collected.
pub(crate) fn must_go(key: &Joined) -> bool {
    let itself = key.place.is_some_and(|place| place.flags & host_flags::JUDGES_ITSELF != 0);
    itself || changes_owner(key)
}

/// Stores the word of every endpoint whose rows change or whose flows must be judged again.
pub(crate) fn commit(
    mirror: &mut Mirror,
    judges: &[Judge],
    kept: &BTreeMap<(u16, usize), u16>,
    fresh: &BTreeMap<usize, u16>,
    rejudge: impl Fn(EndpointWord) -> bool,
    number: u64,
    ops: &mut Vec<Op>,
) {
    let mut words: BTreeMap<u16, EndpointWord> = BTreeMap::new();
    for judge in judges {
        let word = words.entry(judge.slot).or_insert_with(|| current(mirror, judge.slot));
        let row = match judge.choice {
            RowChoice::Open => ROW_OPEN,
            RowChoice::Closed => ROW_CLOSED,
            RowChoice::Row(index) => {
                kept.get(&(judge.row, index)).or_else(|| fresh.get(&index)).copied().unwrap_or(ROW_CLOSED)
            }
        };
        match judge.direction {
            policy_common::abi::Direction::Ingress => word.ingress_row = row,
            policy_common::abi::Direction::Egress => word.egress_row = row,
        }
    }
    for (slot, mut word) in words {
        let old = current(mirror, slot);
        let isolated = word.ingress_row > ROW_CLOSED || word.egress_row > ROW_CLOSED;
        if word != old || (isolated && rejudge(word)) {
            word.epoch = old.epoch.wrapping_add(1);
            mirror.commit(slot, word, number, ops);
        } else if !mirror.endpoints.contains_key(&slot) {
            mirror.hold_endpoint(slot, word);
        }
    }
}
