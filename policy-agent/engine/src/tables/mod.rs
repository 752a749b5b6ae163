//! From what the kernel holds to what the compiled world asks for, by writes of which every prefix is safe.
//!
//! ```text
//! Desired ─┐
//!          ├─> Join (class it has, class it shall have) ─> fast plan (addresses move) or general plan (rows change)
//! Mirror ──┘                                               collect: merge, remove, free, after the grace period
//! ```
//! All of it works on the mirror alone, so an agent that read the maps back goes on as if it had written them.

mod adopt;
mod audit;
mod collect;
mod fast;
mod general;
mod ids;
mod join;
mod mirror;
mod reserve;
mod sets;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use policy_common::abi::{Direction, EndpointWord, ROW_CLOSED};

pub use self::adopt::Dump;
pub use self::audit::{Difference, epoch_after};
use self::join::{Join, Settled};
use self::mirror::Mirror;
pub use self::sets::checksum;
use crate::desired::{Desired, RowChoice, RowSpec, SetContent};
use crate::limits::Limits;
use crate::plan::{Op, Plan};

/// A table that can be full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Rows.
    Rows,
    /// Classes.
    Classes,
    /// Addresses of one family.
    Hosts,
    /// Prefixes of one family.
    Prefixes,
    /// Host words.
    HostWords,
    /// Rule sets.
    RuleSets,
    /// Intervals of all rule sets.
    Intervals,
    /// Intervals of one rule set.
    IntervalsPerSet,
}

impl Table {
    /// Name in messages and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rows => "rows",
            Self::Classes => "classes",
            Self::Hosts => "hosts",
            Self::Prefixes => "prefixes",
            Self::HostWords => "host words",
            Self::RuleSets => "rule sets",
            Self::Intervals => "intervals",
            Self::IntervalsPerSet => "intervals of one rule set",
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why there is no plan. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// It fits once quarantined entries are free: collect after the grace period, then plan again.
    #[error("{0} in quarantine are needed again")]
    Busy(Table),
    /// It does not fit.
    #[error("{table}: {needed} needed, {limit} is the limit")]
    Full {
        /// The table.
        table: Table,
        /// Entries needed.
        needed: u64,
        /// Entries there can be.
        limit: u64,
    },
}

/// How much of a table is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Which.
    pub table: Table,
    /// Entries in use or in quarantine; of families with a table each, the fuller.
    pub used: u64,
    /// Entries there can be.
    pub limit: u64,
}

/// The tables.
#[derive(Clone, Debug)]
pub struct Tables {
    limits: Limits,
    mirror: Mirror,
    settled: Option<Settled>,
    number: u64,
}

impl Tables {
    /// Empty tables of these sizes.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, mirror: Mirror::new(&limits), settled: None, number: 0 }
    }

    /// Plans the writes that lead to the desired world, and takes them as done.
    ///
    /// An endpoint seen for the first time has been created closed in both directions with epoch 1 (see
    /// [`Tables::new_endpoint_word`]); one that is no longer desired is closed.
    ///
    /// # Errors
    /// What does not fit; then nothing has changed.
    pub fn plan(&mut self, desired: &Desired) -> Result<Plan, PlanError> {
        let join = Join::new(&self.mirror, desired, &mut self.settled);
        let number = self.number + 1;
        let stored = general::Stored::new(&self.mirror, desired);
        let fast = fast::Fast::find(&self.mirror, desired, &join, &stored);
        let planned = match fast {
            Some(fast) => fast.write(&mut self.mirror, &self.limits, desired, &join, number)?,
            None => general::write(&mut self.mirror, &self.limits, desired, &join, stored, number)?,
        };
        // First of all, for the others may need the room.
        let mut ops = self.mirror.clear_junk(number);
        ops.extend(planned);
        // New ones are wanted from their insertion; of the rest, few change between two plans.
        for key in join.special.iter().filter(|k| k.place.is_some_and(|p| p.wanted != k.wanted)) {
            if let Some(place) = self.mirror.place(key.key) {
                place.wanted = key.wanted;
            }
        }
        self.mirror.retire(number);
        Ok(self.number_plan(ops))
    }

    /// Cleans up behind plans whose grace period is over: all numbered up to `grace`. Changes no verdict.
    ///
    /// An empty plan means that nothing can be done now; see [`Tables::is_settled`].
    pub fn collect(&mut self, grace: u64) -> Plan {
        let ops = collect::write(&mut self.mirror, grace, self.number + 1);
        self.mirror.retire(self.number + 1);
        self.number_plan(ops)
    }

    /// Whether nothing waits for [`Tables::collect`].
    #[must_use]
    pub fn is_settled(&self) -> bool {
        let mirror = &self.mirror;
        mirror.touched.is_empty()
            && mirror.junk.is_empty()
            && mirror.row_ids.retired() + mirror.class_ids.retired() + mirror.slot_ids.retired() == 0
            && mirror.sets.retired() == 0
            && mirror.hosts.values().chain(mirror.prefixes.values()).all(|p| p.wanted)
            && !collect::mergeable(mirror)
    }

    /// Word 0 that the agent gives a new endpoint before its first plan.
    #[must_use]
    pub const fn new_endpoint_word() -> EndpointWord {
        EndpointWord { epoch: 1, ingress_row: ROW_CLOSED, egress_row: ROW_CLOSED }
    }

    /// The endpoint's programs are gone from its interface: its rows are free after the grace period of the returned
    /// plan number.
    pub fn forget_endpoint(&mut self, slot: u16) -> u64 {
        self.number += 1;
        self.mirror.drop_endpoint(slot);
        self.mirror.retire(self.number);
        self.number
    }

    /// Number of the last plan.
    #[must_use]
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// Slots of the endpoints that plans write.
    pub fn slots(&self) -> impl Iterator<Item = u16> {
        self.mirror.endpoints.keys().copied()
    }

    /// Word 0 of an endpoint.
    #[must_use]
    pub fn endpoint(&self, slot: u16) -> Option<EndpointWord> {
        self.mirror.endpoints.get(&slot).copied()
    }

    /// Where a row comes from: policies and direction. Known until the row is free, so events that name it can be
    /// explained.
    #[must_use]
    pub fn row(&self, row: u16) -> Option<&Arc<RowSpec>> {
        self.mirror.rows.get(&row)?.spec.as_ref()
    }

    /// A rule set by id, until it is free.
    #[must_use]
    pub fn rule_set(&self, id: u16) -> Option<&Arc<SetContent>> {
        self.mirror.sets.content(id)
    }

    /// How full the tables are.
    #[must_use]
    pub fn usage(&self) -> Vec<Usage> {
        let mirror = &self.mirror;
        let (sets, intervals) = mirror.sets.available();
        let usage = |table, limit: u32, free: usize| Usage {
            table,
            used: u64::from(limit).saturating_sub(free as u64),
            limit: u64::from(limit),
        };
        let fullest = |count: [usize; 2], limit: u32| (limit as usize).saturating_sub(count[0].max(count[1]));
        let (hosts, prefixes) = (fullest(mirror.host_counts(), self.limits.hosts), self.limits.prefixes);
        vec![
            usage(Table::Rows, self.limits.rows - 2, mirror.row_ids.available()),
            usage(Table::Classes, self.limits.classes - 1, mirror.class_ids.available()),
            usage(Table::Hosts, self.limits.hosts, hosts),
            usage(Table::Prefixes, prefixes, fullest(mirror.prefix_counts(), prefixes)),
            usage(Table::HostWords, self.limits.host_info - 1, mirror.slot_ids.available()),
            usage(Table::RuleSets, self.limits.rule_sets - 1, sets),
            usage(Table::Intervals, self.limits.intervals, intervals as usize),
        ]
    }

    fn number_plan(&mut self, ops: Vec<Op>) -> Plan {
        if !ops.is_empty() {
            self.number += 1;
        }
        Plan { number: self.number, ops }
    }
}

/// One direction of an endpoint: the row that judges it and the one that shall.
#[derive(Clone, Copy, Debug)]
struct Judge {
    slot: u16,
    direction: Direction,
    row: u16,
    choice: RowChoice,
}

/// All directions of all endpoints, those no longer desired included.
fn judges(mirror: &Mirror, desired: &Desired) -> Vec<Judge> {
    let both = [Direction::Ingress, Direction::Egress];
    let mut judges = Vec::new();
    let mut wanted = BTreeSet::new();
    for endpoint in &desired.endpoints {
        wanted.insert(endpoint.slot);
        let word = current(mirror, endpoint.slot);
        judges.extend(both.map(|direction| Judge {
            slot: endpoint.slot,
            direction,
            row: word.row(direction),
            choice: endpoint.row(direction),
        }));
    }
    for (slot, word) in mirror.endpoints.iter().filter(|(slot, _)| !wanted.contains(slot)) {
        judges.extend(both.map(|direction| Judge {
            slot: *slot,
            direction,
            row: word.row(direction),
            choice: RowChoice::Closed,
        }));
    }
    judges
}

fn current(mirror: &Mirror, slot: u16) -> EndpointWord {
    mirror.endpoints.get(&slot).copied().unwrap_or(Tables::new_endpoint_word())
}
