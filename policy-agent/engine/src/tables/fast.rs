//! The fast plan: addresses come, go and change class; rows and prefixes stay.
//!
//! Each address commits by one write: its host word, its insertion or its removal. Columns of classes that no address is
//! in yet are written before. Endpoints that were open or closed may get rows at the end: their verdicts do not depend
//! on classes until then.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use policy_common::abi::ROW_CLOSED;

use super::general::{Stored, changes_owner, commit, must_go};
use super::join::{Join, Joined, Pair};
use super::mirror::{Key, Mirror};
use super::reserve::{Needs, reserve};
use super::{Judge, PlanError, judges};
use crate::desired::{Desired, RowChoice};
use crate::limits::Limits;
use crate::plan::Op;

/// A fast plan that is possible.
pub(crate) struct Fast {
    judges: Vec<Judge>,
    stored: Stored,
    /// Rows in use and the desired rows that they are.
    live: BTreeMap<u16, usize>,
    /// Pairs whose class is not what their addresses shall have.
    wrong: BTreeSet<Pair>,
    /// Class in use that is right for a target.
    existing: BTreeMap<u32, u16>,
    /// Targets that need a fresh class.
    fresh_classes: Vec<u32>,
    /// Desired rows that need a fresh one.
    fresh_rows: Vec<usize>,
    /// Row for each choice of the judges.
    kept: BTreeMap<(u16, usize), u16>,
}

impl Fast {
    /// `None` if only the general plan is safe.
    pub(crate) fn find(mirror: &Mirror, desired: &Desired, join: &Join<'_>, stored: &Stored) -> Option<Self> {
        let judges = judges(mirror, desired);
        let live = live_rows(mirror, desired, &judges)?;
        let mut fast = Self {
            judges,
            stored: stored.clone(),
            live,
            wrong: BTreeSet::new(),
            existing: BTreeMap::new(),
            fresh_classes: Vec::new(),
            fresh_rows: Vec::new(),
            kept: BTreeMap::new(),
        };
        fast.wrong = fast.find_wrong(mirror, desired, join);
        if fast.wrong.contains(&(0, 0)) || !fast.prefixes_stay(join) {
            return None;
        }
        fast.find_classes(mirror, desired, join);
        fast.find_rows(desired, join).then_some(fast)
    }

    /// Plans and applies to the mirror.
    pub(crate) fn write(
        mut self,
        mirror: &mut Mirror,
        limits: &Limits,
        desired: &Desired,
        join: &Join<'_>,
        number: u64,
    ) -> Result<Vec<Op>, PlanError> {
        let reserved = reserve(mirror, limits, desired, join, &self.needs(desired, join))?;
        let mut ops = Vec::new();
        self.stored.store(mirror, &reserved, &mut ops);
        for (target, class) in self.fresh_classes.iter().zip(&reserved.classes) {
            for (row, index) in &self.live {
                let cell = self.stored.id(desired.rows[*index].cells[*target as usize]);
                mirror.set_cell(*row, *class, cell, &mut ops);
            }
            self.existing.insert(*target, *class);
        }
        let mut fresh = BTreeMap::new();
        for (index, row) in self.fresh_rows.iter().zip(&reserved.rows) {
            let cells = self.cells(desired, join, *index);
            mirror.write_row(*row, cells, desired.rows[*index].spec.clone(), &mut ops);
            fresh.insert(*index, *row);
        }
        let (changed, rejudge) = self.move_hosts(mirror, join, &reserved.slots, number, &mut ops);
        let rejudge = |word: policy_common::abi::EndpointWord| {
            rejudge || changed.contains(&word.ingress_row) || changed.contains(&word.egress_row)
        };
        commit(mirror, &self.judges, &self.kept, &fresh, rejudge, number, &mut ops);
        Ok(ops)
    }

    fn find_wrong(&self, mirror: &Mirror, desired: &Desired, join: &Join<'_>) -> BTreeSet<Pair> {
        let rows = self.live.iter().map(|(row, index)| (mirror.rows.get(row), &desired.rows[*index].cells));
        let rows: Vec<_> = rows.collect();
        let is_right = |(class, target): &Pair| {
            rows.iter().all(|(row, cells)| {
                let wanted = self.stored.ids[cells[*target as usize] as usize];
                row.map(|row| row.cell(*class)) == wanted
            })
        };
        join.pairs.keys().filter(|pair| !is_right(pair)).copied().collect()
    }

    fn is_wrong(&self, key: &Joined) -> bool {
        self.wrong.contains(&(key.class, key.target))
    }

    fn prefixes_stay(&self, join: &Join<'_>) -> bool {
        let special = join.special.iter().filter(|k| matches!(k.key, Key::Prefix(_)));
        special.clone().all(|key| key.place.is_some() && !self.is_wrong(key))
            && join.of_prefixes.is_disjoint(&self.wrong)
    }

    fn find_classes(&mut self, mirror: &Mirror, desired: &Desired, join: &Join<'_>) {
        let targets: BTreeSet<u32> =
            join.wanted.intersection(&self.wrong).map(|(_, target)| *target).collect();
        if targets.is_empty() {
            return;
        }
        let column = |class| self.live.keys().map(|r| mirror.rows.get(r).map(|r| r.cell(class))).collect();
        let mut by_column: HashMap<Vec<Option<u16>>, u16> = HashMap::new();
        for class in mirror.classes() {
            by_column.entry(column(class)).or_insert(class);
        }
        for target in targets {
            let column: Vec<Option<u16>> = self
                .live
                .values()
                .map(|i| self.stored.ids[desired.rows[*i].cells[target as usize] as usize])
                .collect();
            match by_column.get(&column) {
                Some(class) => {
                    self.existing.insert(target, *class);
                }
                None => self.fresh_classes.push(target),
            }
        }
    }

    /// Finds rows for endpoints that get their first. False if addresses that they tell apart share a class.
    fn find_rows(&mut self, desired: &Desired, join: &Join<'_>) -> bool {
        let by_index: BTreeMap<usize, u16> = self.live.iter().map(|(row, index)| (*index, *row)).collect();
        let mut fresh = BTreeSet::new();
        for judge in &self.judges {
            let RowChoice::Row(index) = judge.choice else { continue };
            if judge.row > ROW_CLOSED {
                self.kept.insert((judge.row, index), judge.row);
            } else if let Some(row) = by_index.get(&index) {
                self.kept.insert((judge.row, index), *row);
            } else {
                fresh.insert(index);
            }
        }
        self.fresh_rows = fresh.into_iter().collect();
        self.fresh_rows.iter().all(|index| {
            let mut cells: HashMap<Class, u32> = HashMap::new();
            join.pairs.keys().all(|(class, target)| {
                let cell = desired.rows[*index].cells[*target as usize];
                *cells.entry(self.class_of(*class, *target)).or_insert(cell) == cell
            })
        })
    }

    /// Class of a pair after the plan.
    fn class_of(&self, class: u16, target: u32) -> Class {
        if !self.wrong.contains(&(class, target)) {
            return Class::Number(class);
        }
        self.existing.get(&target).map_or(Class::Fresh(target), |class| Class::Number(*class))
    }

    fn needs(&self, desired: &Desired, join: &Join<'_>) -> Needs {
        let mut sets = BTreeSet::new();
        for target in &self.fresh_classes {
            sets.extend(self.live.values().map(|i| desired.rows[*i].cells[*target as usize]));
        }
        for index in &self.fresh_rows {
            sets.extend(join.pairs.keys().map(|(_, t)| desired.rows[*index].cells[*t as usize]));
        }
        sets.retain(|s| self.stored.ids[*s as usize].is_none());
        Needs { classes: self.fresh_classes.len(), rows: self.fresh_rows.len(), sets }
    }

    fn cells(&self, desired: &Desired, join: &Join<'_>, index: usize) -> Vec<u16> {
        let mut cells = Vec::new();
        for (class, target) in join.pairs.keys() {
            let Class::Number(class) = self.class_of(*class, *target) else { continue };
            let class = usize::from(class);
            if cells.len() <= class {
                cells.resize(class + 1, 0);
            }
            cells[class] = self.stored.id(desired.rows[index].cells[*target as usize]);
        }
        cells
    }

    /// Returns the rows for which a verdict changed, and whether addresses of the node or of Services did.
    fn move_hosts(
        &self,
        mirror: &mut Mirror,
        join: &Join<'_>,
        slots: &[u32],
        number: u64,
        ops: &mut Vec<Op>,
    ) -> (BTreeSet<u16>, bool) {
        let mut slots = slots.iter();
        let mut moves: BTreeSet<(u16, u16)> = BTreeSet::new();
        let mut rejudge = false;
        let keys = join.keys(mirror, |pair| self.wrong.contains(&pair));
        for key in keys.iter() {
            let Key::Host(address) = key.key else { continue };
            let class = match self.class_of(key.class, key.target) {
                Class::Number(class) => class,
                // On its way out: from here on its prefix judges it.
                Class::Fresh(_) => mirror.prefix_class(address),
            };
            match key.place {
                Some(_) if !key.wanted => {
                    // Neutral ones wait to be collected.
                    if self.is_wrong(key) || must_go(key) {
                        mirror.remove(key.key, number, ops);
                        moves.insert((key.class, mirror.prefix_class(address)));
                    }
                }
                Some(_) => {
                    if self.is_wrong(key) || !key.same_flags() {
                        mirror.move_key(key.key, class, key.flags, ops);
                        moves.insert((key.class, class));
                    }
                }
                None => {
                    let Some(slot) = slots.next() else { continue };
                    mirror.insert(key.key, *slot, class, key.flags, ops);
                    moves.insert((key.class, class));
                }
            }
            rejudge |= changes_owner(key);
        }
        let changed = |row: &u16| {
            let Some(row) = mirror.rows.get(row) else { return false };
            moves.iter().any(|(from, to)| row.cell(*from) != row.cell(*to))
        };
        (self.live.keys().copied().filter(changed).collect(), rejudge)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Class {
    Number(u16),
    Fresh(u32),
}

/// Rows in use, each with the one desired row that it is; `None` if rows change.
fn live_rows(mirror: &Mirror, desired: &Desired, judges: &[Judge]) -> Option<BTreeMap<u16, usize>> {
    let mut live = BTreeMap::new();
    for judge in judges.iter().filter(|j| j.row > ROW_CLOSED) {
        let RowChoice::Row(index) = judge.choice else { return None };
        let row = mirror.rows.get(&judge.row)?;
        if row.spec.as_ref() != Some(&desired.rows[index].spec) {
            return None;
        }
        if *live.entry(judge.row).or_insert(index) != index {
            return None;
        }
    }
    Some(live)
}
