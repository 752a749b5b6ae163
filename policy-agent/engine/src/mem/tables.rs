//! The policy tables of the kernel, in memory, strict about what may be written while packets run.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;
use policy_common::abi::{
    Direction, EndpointWord, HostWord, Interval, Outcome, ROW_CLOSED, ROW_OPEN, RuleSet,
};
use policy_common::family::{V4, V6};
use policy_common::judge::{PolicyMaps, classify, look_up, opened_class};

use crate::address;
use crate::limits::Limits;
use crate::plan::Op;

/// A write that would not be safe while packets run, or that refers to nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadOp {
    /// The element is live: a hash or trie element is never updated.
    #[error("{0} is live already")]
    Live(String),
    /// The element is not there.
    #[error("{0} is not there")]
    Missing(String),
    /// The number is reserved or beyond the table.
    #[error("{0} is out of range")]
    Range(String),
    /// The map has no room.
    #[error("{0} is full")]
    Full(&'static str),
    /// The word under a slot is not that of its key.
    #[error("slot {0} holds another key's word")]
    Check(u32),
    /// Rows changed without a new epoch.
    #[error("endpoint {0} changes without a new epoch")]
    Epoch(u16),
}

/// Who a host slot belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Host(IpAddr),
    Prefix(IpNet),
}

/// One row and how often each rule set is named in it.
#[derive(Clone, Debug, Default)]
pub(super) struct MemRow {
    pub(super) cells: Vec<u16>,
    uses: HashMap<u16, u32>,
    pub(super) endpoints: u32,
}

/// The tables. Sizes are those of [`Limits`].
#[derive(Clone, Debug)]
pub struct MemTables {
    limits: Limits,
    pub(super) hosts: HashMap<IpAddr, u32>,
    pub(super) prefixes: BTreeMap<u8, HashMap<IpNet, u32>>,
    pub(super) counts: [[usize; 2]; 2],
    pub(super) words: HashMap<u32, u64>,
    owners: HashMap<u32, Owner>,
    pub(super) rows: Vec<MemRow>,
    pub(super) sets: BTreeMap<u16, RuleSet>,
    pub(super) intervals: HashMap<u32, u64>,
    pub(super) endpoints: BTreeMap<u16, EndpointWord>,
}

impl MemTables {
    /// Empty tables.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            hosts: HashMap::new(),
            prefixes: BTreeMap::new(),
            counts: [[0; 2]; 2],
            words: HashMap::new(),
            owners: HashMap::new(),
            rows: vec![MemRow::default(); limits.rows as usize],
            sets: BTreeMap::new(),
            intervals: HashMap::new(),
            endpoints: BTreeMap::new(),
        }
    }

    /// Applies one write.
    ///
    /// # Errors
    /// What the kernel, or a packet in flight, would not survive.
    pub fn apply(&mut self, op: &Op) -> Result<(), BadOp> {
        match op {
            Op::Intervals { base, values } => self.write_intervals(*base, values),
            Op::RuleSet { id, value } => self.write_set(*id, *value),
            Op::Cell { row, class, rule_set } => self.write_cell(*row, *class, *rule_set),
            Op::Row { row, cells } => self.write_row(*row, cells),
            Op::HostWord { slot, word } => self.write_word(*slot, *word),
            Op::HostInsert { address, slot } => self.insert(Owner::Host(*address), *slot),
            Op::HostRemove { address } => {
                let slot = self.hosts.remove(address).ok_or_else(|| BadOp::Missing(address.to_string()))?;
                self.counts[0][usize::from(address.is_ipv6())] -= 1;
                self.disown(Owner::Host(*address), slot);
                Ok(())
            }
            Op::PrefixInsert { prefix, slot } => self.insert(Owner::Prefix(*prefix), *slot),
            Op::PrefixRemove { prefix } => {
                let of_length = self.prefixes.get_mut(&prefix.prefix_len());
                let slot = of_length
                    .and_then(|m| m.remove(prefix))
                    .ok_or_else(|| BadOp::Missing(prefix.to_string()))?;
                self.counts[1][usize::from(prefix.addr().is_ipv6())] -= 1;
                self.disown(Owner::Prefix(*prefix), slot);
                Ok(())
            }
            Op::Endpoint { slot, word } => self.write_endpoint(*slot, *word),
        }
    }

    /// Applies all writes.
    ///
    /// # Errors
    /// The first that is refused.
    pub fn apply_all(&mut self, ops: &[Op]) -> Result<(), BadOp> {
        ops.iter().try_for_each(|op| self.apply(op))
    }

    /// What the tables decide for a flow that opens between the endpoint and `remote`; `port` is the responder's.
    ///
    /// Facts that need the packet's path (own node, forged sources) are not part of it. An endpoint that does not
    /// exist drops.
    #[must_use]
    pub fn verdict(
        &self,
        slot: u16,
        direction: Direction,
        remote: IpAddr,
        protocol: u8,
        port: u16,
    ) -> Outcome {
        let word = self.endpoints.get(&slot);
        word.map_or(Outcome::DROP, |word| self.judge(*word, direction, remote, protocol, port))
    }

    /// [`MemTables::verdict`] for a program that has read this endpoint word, perhaps before it was replaced.
    #[must_use]
    pub fn judge(
        &self,
        word: EndpointWord,
        direction: Direction,
        remote: IpAddr,
        protocol: u8,
        port: u16,
    ) -> Outcome {
        let (row, host) = (word.row(direction), self.classify(remote));
        let class = if direction == Direction::Egress { opened_class(host) } else { host.class };
        match remote {
            IpAddr::V4(_) => look_up::<V4, _>(self, row, class, protocol, port).1,
            IpAddr::V6(_) => look_up::<V6, _>(self, row, class, protocol, port).1,
        }
    }

    /// Class and flags of an address.
    #[must_use]
    pub fn classify(&self, address: IpAddr) -> HostWord {
        match address {
            IpAddr::V4(a) => classify::<V4, _>(self, &address::word4(a)),
            IpAddr::V6(a) => classify::<V6, _>(self, &address::words6(a)),
        }
    }

    /// Word 0 of an endpoint.
    #[must_use]
    pub fn endpoint(&self, slot: u16) -> Option<EndpointWord> {
        self.endpoints.get(&slot).copied()
    }

    /// Forgets an endpoint, as the agent does when its interface is gone.
    pub fn forget_endpoint(&mut self, slot: u16) {
        if let Some(word) = self.endpoints.remove(&slot) {
            self.release(word);
        }
    }

    fn write_intervals(&mut self, base: u32, values: &[Interval]) -> Result<(), BadOp> {
        let end = base as usize + values.len();
        if end > self.limits.intervals as usize {
            return Err(BadOp::Range(format!("interval {end}")));
        }
        for (id, set) in &self.sets {
            let used = set.base as usize..set.base as usize + count(set);
            if used.start < end && (base as usize) < used.end && self.is_live_set(*id) {
                return Err(BadOp::Live(format!("rule set {id} whose intervals are written")));
            }
        }
        for (i, value) in (base..).zip(values) {
            self.intervals.insert(i, value.pack());
        }
        Ok(())
    }

    fn write_set(&mut self, id: u16, set: RuleSet) -> Result<(), BadOp> {
        if id == 0 || u32::from(id) >= self.limits.rule_sets {
            return Err(BadOp::Range(format!("rule set {id}")));
        }
        if self.is_live_set(id) {
            return Err(BadOp::Live(format!("rule set {id}")));
        }
        let end = set.base as usize + count(&set);
        if (set.base as usize..end)
            .any(|i| u32::try_from(i).map_or(true, |i| !self.intervals.contains_key(&i)))
        {
            return Err(BadOp::Missing(format!("an interval of rule set {id}")));
        }
        self.sets.insert(id, set);
        Ok(())
    }

    /// Whether a packet may reach the rule set: a row in use names it.
    fn is_live_set(&self, id: u16) -> bool {
        self.rows.iter().any(|r| r.endpoints > 0 && r.uses.contains_key(&id))
    }

    fn known_set(&self, id: u16) -> Result<(), BadOp> {
        if id == 0 || self.sets.contains_key(&id) {
            Ok(())
        } else {
            Err(BadOp::Missing(format!("rule set {id}")))
        }
    }

    fn check_row(&self, row: u16) -> Result<(), BadOp> {
        if row <= ROW_CLOSED || u32::from(row) >= self.limits.rows {
            return Err(BadOp::Range(format!("row {row}")));
        }
        Ok(())
    }

    fn write_cell(&mut self, row: u16, class: u16, rule_set: u16) -> Result<(), BadOp> {
        self.check_row(row)?;
        self.known_set(rule_set)?;
        if u32::from(class) >= self.limits.classes {
            return Err(BadOp::Range(format!("class {class}")));
        }
        let row = &mut self.rows[usize::from(row)];
        if row.cells.len() <= usize::from(class) {
            row.cells.resize(usize::from(class) + 1, 0);
        }
        let old = std::mem::replace(&mut row.cells[usize::from(class)], rule_set);
        if let Some(uses) = row.uses.get_mut(&old) {
            *uses -= 1;
            if *uses == 0 {
                row.uses.remove(&old);
            }
        }
        if rule_set != 0 {
            *row.uses.entry(rule_set).or_default() += 1;
        }
        Ok(())
    }

    fn write_row(&mut self, row: u16, cells: &[u16]) -> Result<(), BadOp> {
        self.check_row(row)?;
        if cells.len() > self.limits.classes as usize {
            return Err(BadOp::Range(format!("class {}", cells.len())));
        }
        cells.iter().try_for_each(|c| self.known_set(*c))?;
        let target = &mut self.rows[usize::from(row)];
        if target.endpoints > 0 {
            return Err(BadOp::Live(format!("row {row}")));
        }
        let mut uses = HashMap::new();
        for cell in cells.iter().filter(|c| **c != 0) {
            *uses.entry(*cell).or_default() += 1;
        }
        *target = MemRow { cells: cells.to_vec(), uses, endpoints: 0 };
        Ok(())
    }

    fn write_word(&mut self, slot: u32, word: HostWord) -> Result<(), BadOp> {
        if slot == 0 || slot >= self.limits.host_info {
            return Err(BadOp::Range(format!("host slot {slot}")));
        }
        if u32::from(word.class) >= self.limits.classes {
            return Err(BadOp::Range(format!("class {}", word.class)));
        }
        if self.owners.get(&slot).is_some_and(|o| check_of(*o) != word.check) {
            return Err(BadOp::Check(slot));
        }
        self.words.insert(slot, word.pack());
        Ok(())
    }

    fn insert(&mut self, key: Owner, slot: u32) -> Result<(), BadOp> {
        let (kind, family, limit) = match key {
            Owner::Host(a) => (0, usize::from(a.is_ipv6()), self.limits.hosts),
            Owner::Prefix(p) => (1, usize::from(p.addr().is_ipv6()), self.limits.prefixes),
        };
        let there = match key {
            Owner::Host(a) => self.hosts.contains_key(&a),
            Owner::Prefix(p) => self.prefixes.get(&p.prefix_len()).is_some_and(|m| m.contains_key(&p)),
        };
        if there || self.owners.contains_key(&slot) {
            return Err(BadOp::Live(format!("{key:?} or slot {slot}")));
        }
        if self.counts[kind][family] >= limit as usize {
            return Err(BadOp::Full(["hosts", "prefixes"][kind]));
        }
        let word = self.words.get(&slot).ok_or(BadOp::Missing(format!("word of slot {slot}")))?;
        if HostWord::unpack(*word).check != check_of(key) {
            return Err(BadOp::Check(slot));
        }
        match key {
            Owner::Host(a) => self.hosts.insert(a, slot),
            Owner::Prefix(p) => self.prefixes.entry(p.prefix_len()).or_default().insert(p, slot),
        };
        self.counts[kind][family] += 1;
        self.owners.insert(slot, key);
        Ok(())
    }

    pub(super) fn disown(&mut self, key: Owner, slot: u32) {
        if self.owners.get(&slot) == Some(&key) {
            self.owners.remove(&slot);
        }
    }

    fn write_endpoint(&mut self, slot: u16, word: EndpointWord) -> Result<(), BadOp> {
        if u32::from(slot) >= self.limits.endpoints || slot == 0 {
            return Err(BadOp::Range(format!("endpoint {slot}")));
        }
        for row in [word.ingress_row, word.egress_row] {
            if row > ROW_CLOSED && u32::from(row) >= self.limits.rows {
                return Err(BadOp::Range(format!("row {row}")));
            }
        }
        if self.endpoints.get(&slot).is_some_and(|old| old.epoch == word.epoch) {
            return Err(BadOp::Epoch(slot));
        }
        for row in [word.ingress_row, word.egress_row] {
            self.rows[usize::from(row)].endpoints += 1;
        }
        if let Some(old) = self.endpoints.insert(slot, word) {
            self.release(old);
        }
        Ok(())
    }

    fn release(&mut self, word: EndpointWord) {
        for row in [word.ingress_row, word.egress_row] {
            self.rows[usize::from(row)].endpoints -= 1;
        }
    }

    fn longest(&self, address: IpAddr) -> u32 {
        for (length, prefixes) in self.prefixes.iter().rev() {
            let Ok(prefix) = IpNet::new(address, *length) else { continue };
            if let Some(slot) = prefixes.get(&prefix.trunc()) {
                return *slot;
            }
        }
        0
    }

    fn read_cell(&self, row: u16, class: u16) -> u16 {
        debug_assert_ne!(row, ROW_OPEN);
        self.rows.get(usize::from(row)).and_then(|r| r.cells.get(usize::from(class))).copied().unwrap_or(0)
    }
}

fn count(set: &RuleSet) -> usize {
    usize::from(set.n_tcp) + usize::from(set.n_udp) + usize::from(set.n_sctp)
}

fn check_of(owner: Owner) -> u32 {
    match owner {
        Owner::Host(a) => address::check(a),
        Owner::Prefix(_) => 0,
    }
}

macro_rules! policy_maps {
    ($family:ty, $address:ty, $to_address:path) => {
        impl PolicyMaps<$family> for MemTables {
            fn host(&self, address: &$address) -> u32 {
                self.hosts.get(&IpAddr::from($to_address(*address))).copied().unwrap_or(0)
            }
            fn prefix(&self, address: &$address) -> u32 {
                self.longest(IpAddr::from($to_address(*address)))
            }
            fn host_word(&self, slot: u32) -> u64 {
                self.words.get(&slot).copied().unwrap_or(0)
            }
            fn cell(&self, row: u16, class: u16) -> u16 {
                self.read_cell(row, class)
            }
            fn rule_set(&self, id: u16) -> Option<RuleSet> {
                self.sets.get(&id).copied()
            }
            fn interval(&self, index: u32) -> u64 {
                self.intervals.get(&index).copied().unwrap_or(0)
            }
        }
    };
}

policy_maps!(V4, u32, address::address4);
policy_maps!(V6, [u32; 4], address::address6);

#[cfg(test)]
mod tests {
    use policy_common::abi::{action, host_flags};

    use super::*;

    fn host(class: u16, address: &str) -> HostWord {
        HostWord { check: address::check(address.parse().unwrap()), class, flags: host_flags::POD }
    }

    fn endpoint(epoch: u32, ingress_row: u16) -> Op {
        Op::Endpoint { slot: 1, word: EndpointWord { epoch, ingress_row, egress_row: ROW_OPEN } }
    }

    fn filled() -> MemTables {
        let mut tables = MemTables::new(Limits::default());
        let allow = Outcome::new(action::ALLOW, 7);
        let set = RuleSet { base: 4, n_tcp: 1, ..RuleSet::default() };
        let ops = [
            Op::Intervals { base: 4, values: vec![Interval { low: 80, high: 81, outcome: allow }] },
            Op::RuleSet { id: 3, value: set },
            Op::Row { row: 2, cells: vec![0, 3] },
            Op::HostWord { slot: 9, word: host(1, "10.0.0.1") },
            Op::HostInsert { address: "10.0.0.1".parse().unwrap(), slot: 9 },
            Op::HostWord { slot: 10, word: HostWord { check: 0, class: 1, flags: 0 } },
            Op::PrefixInsert { prefix: "2001:db8::/32".parse().unwrap(), slot: 10 },
            endpoint(1, 2),
        ];
        tables.apply_all(&ops).unwrap();
        tables
    }

    #[test]
    fn judges_by_host_and_by_prefix() {
        let tables = filled();
        let action =
            |a: &str, port| tables.verdict(1, Direction::Ingress, a.parse().unwrap(), 6, port).action();
        assert_eq!(action("10.0.0.1", 80), action::ALLOW);
        assert_eq!(action("10.0.0.1", 82), action::DROP);
        assert_eq!(action("10.0.0.2", 80), action::DROP);
        assert_eq!(action("2001:db8::5", 81), action::ALLOW);
        let out = tables.verdict(1, Direction::Egress, "10.0.0.2".parse().unwrap(), 6, 1);
        assert_eq!(out.action(), action::ALLOW);
        assert_eq!(tables.verdict(2, Direction::Egress, "10.0.0.2".parse().unwrap(), 6, 1), Outcome::DROP);
    }

    #[test]
    fn refuses_to_touch_what_packets_read() {
        let mut tables = filled();
        let live = |r: Result<(), BadOp>| assert!(matches!(r, Err(BadOp::Live(_))), "{r:?}");
        live(tables.apply(&Op::HostInsert { address: "10.0.0.1".parse().unwrap(), slot: 9 }));
        live(tables.apply(&Op::PrefixInsert { prefix: "2001:db8::/32".parse().unwrap(), slot: 12 }));
        live(tables.apply(&Op::RuleSet { id: 3, value: RuleSet::default() }));
        live(tables.apply(&Op::Intervals { base: 0, values: vec![Interval::default(); 5] }));
        live(tables.apply(&Op::Row { row: 2, cells: vec![] }));
        assert_eq!(tables.apply(&endpoint(1, 0)), Err(BadOp::Epoch(1)));
        assert_eq!(tables.apply(&Op::HostWord { slot: 9, word: host(1, "10.0.0.9") }), Err(BadOp::Check(9)));
        let missing = tables.apply(&Op::Cell { row: 2, class: 5, rule_set: 44 });
        assert!(matches!(missing, Err(BadOp::Missing(_))));
        tables.apply(&endpoint(2, ROW_CLOSED)).unwrap();
        tables.apply(&Op::Row { row: 2, cells: vec![] }).unwrap();
        tables.apply(&Op::RuleSet { id: 3, value: RuleSet::default() }).unwrap();
    }
}
