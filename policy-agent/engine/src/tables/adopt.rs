//! Takes over maps that an earlier agent filled, whatever plan it was interrupted in.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;
use policy_common::abi::{EndpointWord, HostWord, Interval, ROW_CLOSED, RuleSet};

use super::Tables;
use super::mirror::{Key, MirrorRow, Place, word};
use crate::limits::Limits;

/// What an agent that starts anew reads back from the maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dump {
    /// Number of the last plan.
    pub number: u64,
    /// Addresses with their slots and words.
    pub hosts: Vec<(IpAddr, u32, HostWord)>,
    /// Prefixes with their slots and words.
    pub prefixes: Vec<(IpNet, u32, HostWord)>,
    /// Cells of the rows that endpoints use, from class 0 on; cells beyond are 0.
    pub rows: Vec<(u16, Vec<u16>)>,
    /// Rule sets: at least those that these rows name.
    pub sets: Vec<(u16, RuleSet)>,
    /// Intervals: at least those of these rule sets.
    pub intervals: Vec<(u32, Interval)>,
    /// Endpoints with word 0.
    pub endpoints: Vec<(u16, EndpointWord)>,
}

impl Tables {
    /// Tables that hold what was read back. What nothing refers to is free at once: read the maps a grace period after
    /// the earlier agent's last write.
    #[must_use]
    pub fn adopt(limits: Limits, dump: &Dump) -> Self {
        let mut tables = Self::new(limits);
        tables.number = dump.number + 1;
        let mirror = &mut tables.mirror;
        let hosts = dump.hosts.iter().map(|(a, slot, word)| (Key::Host(*a), *slot, *word));
        let prefixes = dump.prefixes.iter().map(|(p, slot, word)| (Key::Prefix(*p), *slot, *word));
        let mut taken = HashSet::new();
        for (key, slot, held) in hosts.chain(prefixes) {
            let known = u32::from(held.class) < limits.classes && slot < limits.host_info;
            // Every element has a slot of its own whose word says whose it is.
            if !known || slot == 0 || held.check != word(key, 0, 0).check || !taken.insert(slot) {
                mirror.junk.push((key, slot));
                continue;
            }
            mirror.slot_ids.occupy(slot);
            mirror.class_ids.occupy(u32::from(held.class));
            mirror.hold(key, Place { slot, class: held.class, flags: held.flags, wanted: true });
        }
        for (_, slot) in &mirror.junk {
            // A packet in flight may have met the element: its slot is given away after a grace period only.
            if mirror.slot_ids.holds(*slot) {
                mirror.slot_ids.occupy(*slot);
            }
        }
        let intervals: HashMap<u32, Interval> = dump.intervals.iter().copied().collect();
        let named: BTreeMap<u16, &RuleSet> = dump.sets.iter().map(|(id, set)| (*id, set)).collect();
        let mut used: Vec<u16> = dump.rows.iter().flat_map(|(_, cells)| cells).copied().collect();
        used.sort_unstable();
        used.dedup();
        for id in used.iter().filter(|id| **id != 0) {
            // An id without a record drops in the kernel; the empty record reads as not understood.
            let set = named.get(id).map_or_else(RuleSet::default, |set| **set);
            mirror.sets.adopt(*id, &set, &intervals);
        }
        for (row, cells) in dump.rows.iter().filter(|(row, _)| *row > ROW_CLOSED) {
            mirror.row_ids.occupy(u32::from(*row));
            for (class, cell) in (0..).zip(cells) {
                if *cell != 0 {
                    mirror.adopt_class(class);
                }
            }
            mirror.rows.insert(*row, MirrorRow { cells: cells.clone(), users: 0, spec: None });
        }
        for (slot, word) in &dump.endpoints {
            for row in [word.ingress_row, word.egress_row].into_iter().filter(|r| *r > ROW_CLOSED) {
                // Never given away while an endpoint names it, even if it was not read back.
                mirror.row_ids.occupy(u32::from(row));
                mirror.rows.entry(row).or_default();
            }
            mirror.hold_endpoint(*slot, *word);
        }
        mirror.retire(tables.number);
        tables
    }
}
