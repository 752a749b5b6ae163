//! Room for a plan, taken before its first write: either all of it or none.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::collect::mergeable;
use super::join::{Count, Join};
use super::mirror::Mirror;
use super::{PlanError, Table};
use crate::desired::{Desired, SetContent};
use crate::limits::Limits;

/// Entries that a plan will write.
#[derive(Debug, Default)]
pub(crate) struct Needs {
    /// Fresh classes.
    pub(crate) classes: usize,
    /// Fresh rows.
    pub(crate) rows: usize,
    /// Rule sets not yet stored, by index in the desired world.
    pub(crate) sets: BTreeSet<u32>,
}

/// Numbers taken for them.
#[derive(Debug, Default)]
pub(crate) struct Reserved {
    /// Classes.
    pub(crate) classes: Vec<u16>,
    /// Rows.
    pub(crate) rows: Vec<u16>,
    /// Host slots, one for each new key.
    pub(crate) slots: Vec<u32>,
    /// Rule sets with content and base.
    pub(crate) sets: Vec<(u32, Arc<SetContent>, u16, u32)>,
}

/// Takes the numbers.
pub(crate) fn reserve(
    mirror: &mut Mirror,
    limits: &Limits,
    desired: &Desired,
    join: &Join<'_>,
    needs: &Needs,
) -> Result<Reserved, PlanError> {
    let demand = Demand::of(desired, join);
    for (table, counts, limit) in
        [(Table::Hosts, demand.hosts, limits.hosts), (Table::Prefixes, demand.prefixes, limits.prefixes)]
    {
        let most = counts.iter().map(|c| c.during).max().unwrap_or(0);
        if most > limit as usize {
            let after = counts.iter().map(|c| c.after).max().unwrap_or(0);
            let waiting = counts.iter().any(|c| c.waiting > 0);
            return Err(shortage(table, after, most, limit as usize, waiting));
        }
    }
    let mut taken = Reserved::default();
    let contents: Vec<_> = needs.sets.iter().map(|i| (*i, desired.sets[*i as usize].clone())).collect();
    match take(mirror, needs, demand.new_keys, &contents, &mut taken) {
        Ok(()) => Ok(taken),
        Err(table) => {
            give_back(mirror, &taken);
            Err(demand.refuse(mirror, limits, desired, needs, table))
        }
    }
}

fn take(
    mirror: &mut Mirror,
    needs: &Needs,
    slots: usize,
    contents: &[(u32, Arc<SetContent>)],
    taken: &mut Reserved,
) -> Result<(), Table> {
    let narrow = |ids: Vec<u32>| ids.into_iter().filter_map(|id| u16::try_from(id).ok()).collect();
    taken.classes = narrow(mirror.class_ids.take(needs.classes).ok_or(Table::Classes)?);
    taken.rows = narrow(mirror.row_ids.take(needs.rows).ok_or(Table::Rows)?);
    taken.slots = mirror.slot_ids.take(slots).ok_or(Table::HostWords)?;
    let values: Vec<_> = contents.iter().map(|c| c.1.clone()).collect();
    let ids = mirror.sets.reserve(&values)?;
    taken.sets = contents
        .iter()
        .zip(ids)
        .map(|((index, content), (id, base))| (*index, content.clone(), id, base))
        .collect();
    Ok(())
}

fn give_back(mirror: &mut Mirror, taken: &Reserved) {
    mirror.class_ids.give_back(taken.classes.iter().map(|c| u32::from(*c)));
    mirror.row_ids.give_back(taken.rows.iter().map(|r| u32::from(*r)));
    mirror.slot_ids.give_back(taken.slots.iter().copied());
}

/// What the desired world takes, during the plan and after it.
#[derive(Debug)]
struct Demand {
    hosts: [Count; 2],
    prefixes: [Count; 2],
    new_keys: usize,
    classes: usize,
}

impl Demand {
    fn of(desired: &Desired, join: &Join<'_>) -> Self {
        let mut classes: BTreeSet<u32> = join.wanted.iter().map(|pair| pair.1).collect();
        classes.remove(&0);
        debug_assert!(classes.last().is_none_or(|c| *c < desired.classes));
        let Join { hosts, prefixes, .. } = *join;
        Self { hosts, prefixes, new_keys: join.new_keys(), classes: classes.len() }
    }

    fn refuse(
        &self,
        mirror: &Mirror,
        limits: &Limits,
        desired: &Desired,
        needs: &Needs,
        table: Table,
    ) -> PlanError {
        let keys = |counts: [Count; 2]| counts.iter().map(|c| c.after).sum::<usize>();
        let waiting_keys = || mirror.hosts.values().chain(mirror.prefixes.values()).any(|p| !p.wanted);
        let used: BTreeSet<u32> =
            desired.rows.iter().flat_map(|r| &r.cells).copied().filter(|s| *s != 0).collect();
        let length = |sets: &BTreeSet<u32>| sets.iter().map(|s| desired.sets[*s as usize].len()).sum();
        let (free_sets, free_intervals) = mirror.sets.available();
        let (after, more, free, limit, waiting) = match table {
            Table::Classes => {
                let waiting = mirror.class_ids.retired() > 0 || waiting_keys() || mergeable(mirror);
                let free = mirror.class_ids.available();
                (self.classes, needs.classes, free, limits.classes - 1, waiting)
            }
            Table::Rows => {
                let (free, waiting) = (mirror.row_ids.available(), mirror.row_ids.retired() > 0);
                (desired.rows.len(), needs.rows, free, limits.rows - 2, waiting)
            }
            Table::HostWords => {
                let after = keys(self.hosts) + keys(self.prefixes);
                let waiting = mirror.slot_ids.retired() > 0 || waiting_keys();
                (after, self.new_keys, mirror.slot_ids.available(), limits.host_info - 1, waiting)
            }
            Table::RuleSets => {
                let waiting = mirror.sets.retired() > 0;
                (used.len(), needs.sets.len(), free_sets, limits.rule_sets - 1, waiting)
            }
            Table::Intervals => {
                let waiting = mirror.sets.retired() > 0;
                (length(&used), length(&needs.sets), free_intervals as usize, limits.intervals, waiting)
            }
            Table::Hosts | Table::Prefixes | Table::IntervalsPerSet => (0, 0, 0, 0, false),
        };
        let limit = limit as usize;
        shortage(table, after, limit.saturating_sub(free) + more, limit, waiting)
    }
}

/// `after`: entries of the desired world; `during`: while old and new stand side by side.
fn shortage(table: Table, after: usize, during: usize, limit: usize, waiting: bool) -> PlanError {
    if after <= limit && waiting {
        return PlanError::Busy(table);
    }
    let needed = if after > limit { after } else { during };
    PlanError::Full { table, needed: needed as u64, limit: limit as u64 }
}
