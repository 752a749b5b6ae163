//! What the kernel holds, as far as this agent knows: every write goes through here, so that plan and mirror agree.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use policy_common::abi::{Direction, EndpointWord, HostWord, ROW_CLOSED};

use super::ids::Ids;
use super::sets::SetStore;
use crate::address;
use crate::desired::RowSpec;
use crate::limits::Limits;
use crate::plan::Op;

/// Something with a host word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    /// An address.
    Host(IpAddr),
    /// A prefix.
    Prefix(IpNet),
}

impl Key {
    /// Whether it is of IPv6.
    pub(crate) fn is_six(&self) -> bool {
        match self {
            Self::Host(address) => address.is_ipv6(),
            Self::Prefix(prefix) => prefix.addr().is_ipv6(),
        }
    }
}

/// A host word in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Host slot.
    pub(crate) slot: u32,
    /// Class.
    pub(crate) class: u16,
    /// Flags.
    pub(crate) flags: u16,
    /// Part of the world planned last; others wait to be collected.
    pub(crate) wanted: bool,
}

/// A row.
#[derive(Clone, Debug, Default)]
pub(crate) struct MirrorRow {
    /// Rule set by class; cells beyond are 0.
    pub(crate) cells: Vec<u16>,
    /// Endpoint directions that use it.
    pub(crate) users: u32,
    /// Where it comes from; `None` if it was read back and not yet recognised.
    pub(crate) spec: Option<Arc<RowSpec>>,
}

impl MirrorRow {
    /// Rule set of a class.
    pub(crate) fn cell(&self, class: u16) -> u16 {
        self.cells.get(usize::from(class)).copied().unwrap_or(0)
    }
}

/// The mirror.
#[derive(Clone, Debug)]
pub(crate) struct Mirror {
    /// Addresses.
    pub(crate) hosts: BTreeMap<IpAddr, Place>,
    /// Another one after each change of the addresses.
    pub(crate) version: u64,
    /// Prefixes.
    pub(crate) prefixes: BTreeMap<IpNet, Place>,
    /// Rows that are in use or in quarantine.
    pub(crate) rows: BTreeMap<u16, MirrorRow>,
    /// Rule sets.
    pub(crate) sets: SetStore,
    /// Endpoints.
    pub(crate) endpoints: BTreeMap<u16, EndpointWord>,
    /// Elements that were read back and cannot be of this agent: the next plan removes them first.
    pub(crate) junk: Vec<(Key, u32)>,
    /// Endpoints whose epoch must grow once more after the grace period, and the plan that touched them.
    pub(crate) touched: BTreeMap<u16, u64>,
    /// Free and retired numbers.
    pub(crate) class_ids: Ids,
    /// Free and retired numbers.
    pub(crate) row_ids: Ids,
    /// Free and retired numbers.
    pub(crate) slot_ids: Ids,
    /// Keys of each class.
    members: BTreeMap<u16, u32>,
    /// Prefixes of each length, by family.
    lengths: [BTreeMap<u8, u32>; 2],
    retiring_rows: BTreeSet<u16>,
    retiring_classes: BTreeSet<u16>,
}

impl Mirror {
    /// Nothing is held.
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            hosts: BTreeMap::new(),
            version: 0,
            prefixes: BTreeMap::new(),
            rows: BTreeMap::new(),
            sets: SetStore::new(limits),
            endpoints: BTreeMap::new(),
            junk: Vec::new(),
            touched: BTreeMap::new(),
            class_ids: Ids::new(1, limits.classes),
            row_ids: Ids::new(u32::from(ROW_CLOSED) + 1, limits.rows),
            slot_ids: Ids::new(1, limits.host_info),
            members: BTreeMap::new(),
            lengths: [BTreeMap::new(), BTreeMap::new()],
            retiring_rows: BTreeSet::new(),
            retiring_classes: BTreeSet::new(),
        }
    }

    /// Rows in use, with their numbers.
    pub(crate) fn live_rows(&self) -> impl Iterator<Item = (u16, &MirrorRow)> {
        self.rows.iter().filter(|(_, r)| r.users > 0).map(|(id, r)| (*id, r))
    }

    /// Classes in use: class 0 and those that have keys.
    pub(crate) fn classes(&self) -> impl Iterator<Item = u16> {
        std::iter::once(0).chain(self.members.keys().copied().filter(|c| *c != 0))
    }

    /// Keys of a class.
    pub(crate) fn members(&self, class: u16) -> u32 {
        self.members.get(&class).copied().unwrap_or(0)
    }

    /// Class of an address by its longest prefix.
    pub(crate) fn prefix_class(&self, address: IpAddr) -> u16 {
        let lengths = self.lengths[usize::from(address.is_ipv6())].keys().rev().copied();
        longest(address, lengths, |p| self.prefixes.get(p).map(|p| p.class)).unwrap_or(0)
    }

    /// Class of the longest prefix that strictly contains this one.
    pub(crate) fn parent_class(&self, prefix: IpNet) -> u16 {
        let lengths = self.lengths[usize::from(prefix.addr().is_ipv6())].range(..prefix.prefix_len()).rev();
        longest(prefix.addr(), lengths.map(|l| *l.0), |p| self.prefixes.get(p).map(|p| p.class)).unwrap_or(0)
    }

    /// Writes the word of a live key.
    pub(crate) fn move_key(&mut self, key: Key, class: u16, flags: u16, ops: &mut Vec<Op>) {
        let Some(place) = self.place(key) else { return };
        let old = std::mem::replace(&mut place.class, class);
        place.flags = flags;
        ops.push(Op::HostWord { slot: place.slot, word: word(key, class, flags) });
        self.join_class(class);
        self.leave_class(old);
    }

    /// The place of a key, to be changed.
    pub(crate) fn place(&mut self, key: Key) -> Option<&mut Place> {
        match key {
            Key::Host(address) => {
                self.version += 1;
                self.hosts.get_mut(&address)
            }
            Key::Prefix(prefix) => self.prefixes.get_mut(&prefix),
        }
    }

    /// Writes the word of a new key under a free slot, then inserts it.
    pub(crate) fn insert(&mut self, key: Key, slot: u32, class: u16, flags: u16, ops: &mut Vec<Op>) {
        ops.push(Op::HostWord { slot, word: word(key, class, flags) });
        ops.push(match key {
            Key::Host(address) => Op::HostInsert { address, slot },
            Key::Prefix(prefix) => Op::PrefixInsert { prefix, slot },
        });
        self.hold(key, Place { slot, class, flags, wanted: true });
    }

    /// Takes over a key that the kernel holds.
    pub(crate) fn hold(&mut self, key: Key, place: Place) {
        self.join_class(place.class);
        match key {
            Key::Host(address) => {
                self.version += 1;
                self.hosts.insert(address, place)
            }
            Key::Prefix(prefix) => {
                let lengths = &mut self.lengths[usize::from(prefix.addr().is_ipv6())];
                *lengths.entry(prefix.prefix_len()).or_default() += 1;
                self.prefixes.insert(prefix, place)
            }
        };
    }

    /// Removes what is not ours. A prefix may have been the longest of an address, so every flow is judged again.
    pub(crate) fn clear_junk(&mut self, plan: u64) -> Vec<Op> {
        let junk = std::mem::take(&mut self.junk);
        if junk.iter().any(|(key, _)| matches!(key, Key::Prefix(_))) {
            self.touched.extend(self.endpoints.keys().map(|slot| (*slot, plan)));
        }
        let places = self.hosts.values().chain(self.prefixes.values());
        let held: BTreeSet<u32> =
            if junk.is_empty() { BTreeSet::new() } else { places.map(|p| p.slot).collect() };
        let mut ops = Vec::with_capacity(junk.len());
        for (key, slot) in junk {
            ops.push(match key {
                Key::Host(address) => Op::HostRemove { address },
                Key::Prefix(prefix) => Op::PrefixRemove { prefix },
            });
            if self.slot_ids.holds(slot) && !held.contains(&slot) {
                self.slot_ids.retire(slot, plan);
            }
        }
        ops
    }

    /// Removes a key; its slot goes into quarantine.
    pub(crate) fn remove(&mut self, key: Key, plan: u64, ops: &mut Vec<Op>) {
        let place = match key {
            Key::Host(address) => {
                self.version += 1;
                ops.push(Op::HostRemove { address });
                self.hosts.remove(&address)
            }
            Key::Prefix(prefix) => {
                ops.push(Op::PrefixRemove { prefix });
                let lengths = &mut self.lengths[usize::from(prefix.addr().is_ipv6())];
                let count = lengths.entry(prefix.prefix_len()).or_default();
                *count = count.saturating_sub(1);
                if *count == 0 {
                    lengths.remove(&prefix.prefix_len());
                }
                self.prefixes.remove(&prefix)
            }
        };
        if let Some(place) = place {
            self.slot_ids.retire(place.slot, plan);
            self.leave_class(place.class);
        }
    }

    /// Stores a cell of a row in use.
    pub(crate) fn set_cell(&mut self, row: u16, class: u16, set: u16, ops: &mut Vec<Op>) {
        let Some(target) = self.rows.get_mut(&row) else { return };
        let old = target.cell(class);
        if old == set {
            return;
        }
        if target.cells.len() <= usize::from(class) {
            target.cells.resize(usize::from(class) + 1, 0);
        }
        target.cells[usize::from(class)] = set;
        if target.users > 0 {
            self.sets.add(set);
            self.sets.remove(old);
        }
        ops.push(Op::Cell { row, class, rule_set: set });
    }

    /// Writes a fresh row.
    pub(crate) fn write_row(&mut self, row: u16, mut cells: Vec<u16>, spec: Arc<RowSpec>, ops: &mut Vec<Op>) {
        while cells.last() == Some(&0) {
            cells.pop();
        }
        ops.push(Op::Row { row, cells: cells.clone() });
        self.rows.insert(row, MirrorRow { cells, users: 0, spec: Some(spec) });
        self.retiring_rows.insert(row);
    }

    /// Stores the word of an endpoint.
    pub(crate) fn commit(&mut self, slot: u16, word: EndpointWord, plan: u64, ops: &mut Vec<Op>) {
        ops.push(Op::Endpoint { slot, word });
        self.touched.insert(slot, plan);
        self.hold_endpoint(slot, word);
    }

    /// Takes over an endpoint's word that the kernel holds.
    pub(crate) fn hold_endpoint(&mut self, slot: u16, word: EndpointWord) {
        let old = self.endpoints.insert(slot, word);
        for direction in [Direction::Ingress, Direction::Egress] {
            self.use_row(word.row(direction));
        }
        if let Some(old) = old {
            self.leave_rows(old);
        }
    }

    /// Forgets an endpoint.
    pub(crate) fn drop_endpoint(&mut self, slot: u16) {
        self.touched.remove(&slot);
        if let Some(word) = self.endpoints.remove(&slot) {
            self.leave_rows(word);
        }
    }

    /// Puts into quarantine what this plan left without references.
    pub(crate) fn retire(&mut self, plan: u64) {
        for row in std::mem::take(&mut self.retiring_rows) {
            if self.rows.get(&row).is_some_and(|r| r.users == 0) && !self.row_ids.is_retired(u32::from(row)) {
                self.row_ids.retire(u32::from(row), plan);
            }
        }
        for class in std::mem::take(&mut self.retiring_classes) {
            if self.members(class) == 0 && !self.class_ids.is_retired(u32::from(class)) {
                self.class_ids.retire(u32::from(class), plan);
            }
        }
        self.sets.retire(plan);
    }

    /// A class whose column is not empty, perhaps without keys.
    pub(crate) fn adopt_class(&mut self, class: u16) {
        if class != 0 && self.members(class) == 0 {
            self.class_ids.occupy(u32::from(class));
            self.retiring_classes.insert(class);
        }
    }

    /// Addresses of each family.
    pub(crate) fn host_counts(&self) -> [usize; 2] {
        // They come last.
        let six = self.hosts.range(IpAddr::V6(Ipv6Addr::UNSPECIFIED)..).count();
        [self.hosts.len() - six, six]
    }

    /// Prefixes of each family.
    pub(crate) fn prefix_counts(&self) -> [usize; 2] {
        [0, 1].map(|f: usize| self.lengths[f].values().map(|n| *n as usize).sum())
    }

    fn use_row(&mut self, row: u16) {
        let Some(target) = self.rows.get_mut(&row) else { return };
        target.users += 1;
        if target.users == 1 {
            self.row_ids.revive(u32::from(row));
            for set in &target.cells {
                self.sets.add(*set);
            }
        }
    }

    fn leave_rows(&mut self, word: EndpointWord) {
        for direction in [Direction::Ingress, Direction::Egress] {
            let row = word.row(direction);
            let Some(target) = self.rows.get_mut(&row) else { continue };
            target.users -= 1;
            if target.users == 0 {
                self.retiring_rows.insert(row);
                for set in &target.cells {
                    self.sets.remove(*set);
                }
            }
        }
    }

    fn join_class(&mut self, class: u16) {
        *self.members.entry(class).or_default() += 1;
        self.class_ids.revive(u32::from(class));
    }

    fn leave_class(&mut self, class: u16) {
        let Some(count) = self.members.get_mut(&class) else { return };
        *count -= 1;
        if *count == 0 {
            self.members.remove(&class);
            if class != 0 {
                self.retiring_classes.insert(class);
            }
        }
    }
}

/// The host word of a key.
pub(crate) fn word(key: Key, class: u16, flags: u16) -> HostWord {
    let check = match key {
        Key::Host(address) => address::check(address),
        Key::Prefix(_) => 0,
    };
    HostWord { check, class, flags }
}

/// What the longest prefix of an address among those of these lengths (longest first) has.
pub(crate) fn longest<T>(
    address: IpAddr,
    lengths: impl Iterator<Item = u8>,
    get: impl Fn(&IpNet) -> Option<T>,
) -> Option<T> {
    lengths.filter_map(|length| IpNet::new(address, length).ok()).find_map(|prefix| get(&prefix.trunc()))
}
