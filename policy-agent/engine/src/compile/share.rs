//! Who takes how much of the shared tables: asked only when something does not fit.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use policy_common::abi::Direction;

use super::atoms::{AtomId, Target};
use super::hosts::Classes;
use super::policies::Selection;
use crate::desired::{Desired, DesiredRow};

/// What the policies of one namespace need, or those of the cluster. What several of them need counts for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Rows.
    pub rows: u32,
    /// Classes.
    pub classes: u32,
    /// Addresses of both families.
    pub hosts: u32,
    /// Prefixes of both families.
    pub prefixes: u32,
    /// Rule sets.
    pub rule_sets: u32,
    /// Intervals.
    pub intervals: u32,
}

/// Shares of all namespaces that have rows; of the empty one: those of the cluster's policies.
pub(crate) fn shares(
    desired: &Desired,
    selection: &Selection,
    classes: &Classes,
) -> BTreeMap<Arc<str>, Share> {
    let mut shares: BTreeMap<Arc<str>, Share> = BTreeMap::new();
    let mut sets: BTreeMap<Arc<str>, BTreeSet<u32>> = BTreeMap::new();
    let mut owners: HashMap<AtomId, BTreeSet<Arc<str>>> = HashMap::new();
    for (row, planned) in desired.rows.iter().zip(&selection.rows) {
        for owner in row.spec.owners() {
            shares.entry(owner.clone()).or_default().rows += 1;
            sets.entry(owner).or_default().extend(row.cells.iter().filter(|c| **c != 0));
        }
        for rule in &planned.rules {
            if let Target::Atom(id) = rule.target {
                owners.entry(id).or_default().insert(rule.owner());
            }
        }
    }
    let egress = |row: &&DesiredRow| row.spec.direction == Direction::Egress;
    let egress: BTreeSet<Arc<str>> =
        desired.rows.iter().filter(egress).flat_map(|row| row.spec.owners()).collect();
    let owners_of = |class: u32| -> BTreeSet<&Arc<str>> {
        let signature = &classes.list[class as usize];
        if signature.front.is_some() {
            // There for whoever opens to Services.
            return egress.iter().collect();
        }
        signature.atoms.iter().filter_map(|a| owners.get(a)).flatten().collect()
    };
    let mut used: BTreeMap<u32, (u32, u32)> = BTreeMap::new();
    for (_, target) in desired.hosts.iter() {
        used.entry(target.class).or_default().0 += 1;
    }
    for (_, class) in &desired.prefixes {
        used.entry(*class).or_default().1 += 1;
    }
    for (class, (hosts, prefixes)) in used {
        for namespace in owners_of(class) {
            let share = shares.entry(namespace.clone()).or_default();
            share.classes += 1;
            share.hosts += hosts;
            share.prefixes += prefixes;
        }
    }
    for (namespace, sets) in sets {
        let share = shares.entry(namespace).or_default();
        share.rule_sets = u32::try_from(sets.len()).unwrap_or(u32::MAX);
        let intervals: usize = sets.iter().map(|s| desired.sets[*s as usize].len()).sum();
        share.intervals = u32::try_from(intervals).unwrap_or(u32::MAX);
    }
    shares
}
