//! The only writer of the kernel's maps: carries out plans, in order, and nothing else.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use ipnet::IpNet;
use policy_common::abi::{
    EndpointWord, Interval, ROW_CLOSED, RuleSet, TICK_SHIFT, endpoint_words, limits, meta_words,
};
use policy_engine::plan::{Op, Plan};

use super::bpf;
use super::error::{Error, Result};
use super::grace::Grace;
use super::ledger::Ledger;
use super::load::Maps;
use super::map::{Map, NO_EXIST, Words, bytes_of, from_bytes};
use super::pins::Pins;
use super::spare::Slots;
use super::spec::{FORMAT, MapId};

/// The maps of the kernel, open and memory-mapped.
///
/// Changes of single words are seen by packets at once and whole; hashes see inserts and removals only.
#[derive(Debug)]
pub struct Executor {
    pub(super) maps: Maps,
    pub(super) pins: Pins,
    pub(super) iface: Words,
    pub(super) ep: Words,
    pub(super) hinfo: Words,
    pub(super) policy: Words,
    pub(super) rule_sets: Words,
    pub(super) intervals: Words,
    meta: Words,
    tick: OwnedFd,
    pub(super) flow_entries: u32,
    pub(super) grace: Arc<Grace>,
    pub(super) slots: Slots,
    pub(super) ledger: Arc<Mutex<Ledger>>,
}

impl Executor {
    pub(super) fn new(maps: Vec<Map>, pins: Pins) -> Result<Self> {
        let maps = Maps::new(maps);
        let tick =
            tick_program().map_err(|e| Error::Map { action: "load program", map: "tick", source: e })?;
        let cpus = bpf::possible_cpus().map_err(|e| Error::path("read", "/sys/devices/system/cpu", e))?;
        let executor = Self {
            iface: maps[MapId::Iface].words()?,
            ep: maps[MapId::Ep].words()?,
            hinfo: maps[MapId::Hinfo].words()?,
            policy: maps[MapId::Policy].words()?,
            rule_sets: maps[MapId::RuleSet].words()?,
            intervals: maps[MapId::Interval].words()?,
            meta: maps[MapId::Meta].words()?,
            flow_entries: super::spec::flow_entries(cpus),
            maps,
            pins,
            tick,
            grace: Arc::default(),
            slots: Slots::default(),
            ledger: Arc::default(),
        };
        executor.empty_closed_row()?;
        executor.open_ledger()?;
        executor.set_meta(meta_words::FORMAT, FORMAT)?;
        executor.set_meta(meta_words::HZ, jiffies_per_second())?;
        Ok(executor)
    }

    /// Carries out the plan. What can be checked is checked before the first write.
    ///
    /// # Errors
    /// [`Error::Plan`] names the write. If the kernel refused it, the writes before it were carried out (every
    /// prefix of a plan is safe): read the tables back before the next plan.
    pub fn apply(&mut self, plan: &Plan) -> Result<()> {
        let at = |index: usize| {
            move |problem| Error::Plan { number: plan.number, index, problem: Box::new(problem) }
        };
        for (index, op) in plan.ops.iter().enumerate() {
            check(op).map_err(at(index))?;
        }
        for (index, op) in plan.ops.iter().enumerate() {
            self.write(op).map_err(at(index))?;
        }
        self.set_meta(meta_words::PLAN, plan.number)
    }

    /// A word of `META`, see [`meta_words`].
    ///
    /// # Errors
    /// There is no such word.
    pub fn meta(&self, word: u32) -> Result<u64> {
        self.meta.load(0, word)
    }

    /// Stores a word of `META`.
    ///
    /// # Errors
    /// There is no such word.
    pub fn set_meta(&self, word: u32, value: u64) -> Result<()> {
        self.note_meta(word, value);
        self.meta.store(0, word, value)
    }

    /// The pins.
    #[must_use]
    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// What waits until no program run that has begun is still going on. It blocks: use it on another thread.
    #[must_use]
    pub fn grace(&self) -> Arc<Grace> {
        self.grace.clone()
    }

    /// The open map.
    #[must_use]
    pub fn map(&self, id: MapId) -> &Map {
        &self.maps[id]
    }

    /// The kernel's current tick, in which flows, fragments and pick-up windows are dated.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn tick(&self) -> Result<u32> {
        bpf::run_tc(self.tick.as_fd()).map_err(|source| Error::Map {
            action: "run program",
            map: "tick",
            source,
        })
    }

    fn write(&self, op: &Op) -> Result<()> {
        match op {
            Op::Intervals { base, values } => values
                .iter()
                .zip(*base..)
                .try_for_each(|(value, index)| self.intervals.store(index, 0, value.pack())),
            Op::RuleSet { id, value } => self.write_rule_set(*id, value),
            Op::Cell { row, class, rule_set } => self.write_cell(*row, u32::from(*class), *rule_set),
            Op::Row { row, cells } => {
                let filled = cells.iter().copied().chain(std::iter::repeat(0));
                (0..limits::CLASSES)
                    .zip(filled)
                    .try_for_each(|(class, set)| self.write_cell(*row, class, set))
            }
            Op::HostWord { slot, word } => self.hinfo.store(*slot, 0, word.pack()),
            Op::HostInsert { address, slot } => {
                let (map, key) = host_key(*address);
                self.insert_slot(map, &key, *slot, || address.to_string())
            }
            Op::HostRemove { address } => {
                let (map, key) = host_key(*address);
                self.remove_key(map, &key)
            }
            Op::PrefixInsert { prefix, slot } => {
                let (map, key) = prefix_key(*prefix);
                self.insert_slot(map, &key, *slot, || prefix.to_string())
            }
            Op::PrefixRemove { prefix } => {
                let (map, key) = prefix_key(*prefix);
                self.remove_key(map, &key)
            }
            Op::Endpoint { slot, word } => self.store_endpoint(*slot, *word),
        }
    }

    /// Stores word 0 of an endpoint.
    pub(super) fn store_endpoint(&self, slot: u16, word: EndpointWord) -> Result<()> {
        self.store_ep(u32::from(slot), endpoint_words::POLICY, word.pack())
    }

    fn write_rule_set(&self, id: u16, value: &RuleSet) -> Result<()> {
        for (index, word) in (0..).zip(rule_set_words(value)) {
            self.rule_sets.store(u32::from(id), index, word)?;
        }
        Ok(())
    }

    pub(super) fn write_cell(&self, row: u16, class: u32, rule_set: u16) -> Result<()> {
        self.policy.cell(u32::from(row) * limits::CLASSES + class)?.store(rule_set, Ordering::Release);
        Ok(())
    }

    /// Inserts a slot under a key that is not there. The same element already there is fine: a plan may be carried
    /// out again after an agent was stopped in the middle of it.
    fn insert_slot(&self, id: MapId, key: &[u8], slot: u32, name: impl Fn() -> String) -> Result<()> {
        let map = &self.maps[id];
        match map.insert(key, bytes_of(&slot), NO_EXIST) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            other => return other.map_err(map.failed("insert into")),
        }
        let found = map.get(key).map_err(map.failed("read"))?.and_then(|v| from_bytes(&v)).unwrap_or(0);
        if found == slot {
            return Ok(());
        }
        Err(Error::Occupied { map: map.spec().name, key: name(), found, wanted: slot })
    }

    fn remove_key(&self, id: MapId, key: &[u8]) -> Result<()> {
        let map = &self.maps[id];
        match map.remove(key) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(map.failed("remove from")),
        }
    }
}

/// What can be known to be wrong before anything is written.
fn check(op: &Op) -> Result<()> {
    let bound = |map: MapId, what, index: u64, limit: u32| {
        let limit = u64::from(limit);
        let map = map.spec().name;
        if index < limit { Ok(()) } else { Err(Error::Bounds { map, what, index, limit }) }
    };
    // Row 0 and 1, rule set 0 and host slot 0 have a fixed meaning and are never written.
    let reserved = |map: MapId, what, index: u32, first: u32| {
        let map = map.spec().name;
        if index >= first { Ok(()) } else { Err(Error::Reserved { map, what, index }) }
    };
    let row = |row: u16| {
        reserved(MapId::Policy, "row", u32::from(row), u32::from(ROW_CLOSED) + 1)?;
        bound(MapId::Policy, "row", u64::from(row), limits::ROWS)
    };
    let rule_set = |id: u16| bound(MapId::RuleSet, "rule set", u64::from(id), limits::RULE_SETS);
    let host = |slot: u32| {
        reserved(MapId::Hinfo, "host slot", slot, 1)?;
        bound(MapId::Hinfo, "host slot", u64::from(slot), limits::HOST_INFO)
    };
    let class = |class: u64| bound(MapId::Policy, "class", class, limits::CLASSES);
    match op {
        Op::Intervals { base, values } => {
            let last = u64::from(*base) + (values.len() as u64).saturating_sub(1);
            bound(MapId::Interval, "interval", last, limits::INTERVALS)
        }
        Op::RuleSet { id, value } => {
            reserved(MapId::RuleSet, "rule set", u32::from(*id), 1)?;
            rule_set(*id)?;
            let count = u64::from(value.n_tcp) + u64::from(value.n_udp) + u64::from(value.n_sctp);
            let last = u64::from(value.base) + count.saturating_sub(1);
            bound(MapId::Interval, "interval", last, limits::INTERVALS)
        }
        Op::Cell { row: r, class: c, rule_set: set } => {
            row(*r)?;
            class(u64::from(*c))?;
            rule_set(*set)
        }
        Op::Row { row: r, cells } => {
            row(*r)?;
            class((cells.len() as u64).saturating_sub(1))?;
            cells.iter().try_for_each(|set| rule_set(*set))
        }
        Op::HostWord { slot, word } => {
            class(u64::from(word.class))?;
            host(*slot)
        }
        Op::HostInsert { slot, .. } | Op::PrefixInsert { slot, .. } => host(*slot),
        Op::HostRemove { .. } | Op::PrefixRemove { .. } => Ok(()),
        Op::Endpoint { slot, word } => {
            for row in [word.ingress_row, word.egress_row] {
                bound(MapId::Policy, "row", u64::from(row), limits::ROWS)?;
            }
            bound(MapId::Ep, "endpoint slot", u64::from(*slot), limits::ENDPOINTS)
        }
    }
}

/// The map and key of an address: its bytes as they stand in packets.
pub(super) fn host_key(address: IpAddr) -> (MapId, Vec<u8>) {
    match address {
        IpAddr::V4(ip) => (MapId::Hosts4, ip.octets().to_vec()),
        IpAddr::V6(ip) => (MapId::Hosts6, ip.octets().to_vec()),
    }
}

/// The map and key of a prefix: its length, then the bytes of its address.
pub(super) fn prefix_key(prefix: IpNet) -> (MapId, Vec<u8>) {
    let mut key = u32::from(prefix.prefix_len()).to_ne_bytes().to_vec();
    match prefix.network() {
        IpAddr::V4(ip) => {
            key.extend_from_slice(&ip.octets());
            (MapId::Prefix4, key)
        }
        IpAddr::V6(ip) => {
            key.extend_from_slice(&ip.octets());
            (MapId::Prefix6, key)
        }
    }
}

/// A rule set as the three words of its record.
fn rule_set_words(set: &RuleSet) -> [u64; 3] {
    let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    let counts = |a: u16, b: u16| u32::from(a) | u32::from(b) << 16;
    [
        pair(set.base, counts(set.n_tcp, set.n_udp)),
        pair(counts(set.n_sctp, set.pad), set.other.0),
        pair(set.default.0, set.crc),
    ]
}

/// Inverse of [`rule_set_words`].
pub(super) fn rule_set_of(words: [u64; 3]) -> RuleSet {
    use policy_common::abi::Outcome;
    RuleSet {
        base: words[0] as u32,
        n_tcp: (words[0] >> 32) as u16,
        n_udp: (words[0] >> 48) as u16,
        n_sctp: words[1] as u16,
        pad: (words[1] >> 16) as u16,
        other: Outcome((words[1] >> 32) as u32),
        default: Outcome(words[2] as u32),
        crc: (words[2] >> 32) as u32,
    }
}

/// The interval of a word.
pub(super) fn interval_of(word: u64) -> Interval {
    Interval::unpack(word)
}

/// Returns the current tick, which user space has no other way to read: `r0 = bpf_jiffies64(); r0 >>= 8; exit`.
fn tick_program() -> io::Result<OwnedFd> {
    let shift = i32::try_from(TICK_SHIFT).unwrap_or_default();
    bpf::load_tc(
        "policy_tick",
        &[
            bpf::instruction(0x85, 0, 0, 118),
            bpf::instruction(0x77, 0, 0, shift),
            bpf::instruction(0x95, 0, 0, 0),
        ],
    )
}

/// `CONFIG_HZ`: the coarse clock advances once per jiffy, and says so. 0 = unknown.
fn jiffies_per_second() -> u64 {
    let mut resolution = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is valid for the call.
    let result = unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC_COARSE, &raw mut resolution) };
    match u64::try_from(resolution.tv_nsec) {
        Ok(jiffy) if result == 0 && resolution.tv_sec == 0 && jiffy > 0 => {
            (1_000_000_000 + jiffy / 2) / jiffy
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use policy_common::abi::{HostWord, Outcome};

    #[test]
    fn a_rule_set_has_the_bytes_that_the_kernel_reads() {
        let set = RuleSet {
            base: 0x0102_0304,
            n_tcp: 5,
            n_udp: 6,
            n_sctp: 7,
            pad: 0,
            other: Outcome(8),
            default: Outcome(9),
            crc: 10,
        };
        let words = rule_set_words(&set);
        assert_eq!(rule_set_of(words), set);
        // SAFETY: both have 24 bytes, and the type has no padding.
        let bytes: [u64; 3] = unsafe { std::mem::transmute(set) };
        assert_eq!(bytes, words);
    }

    #[test]
    fn keys_are_the_bytes_of_packets() {
        assert_eq!(host_key("10.1.2.3".parse().unwrap()), (MapId::Hosts4, vec![10, 1, 2, 3]));
        let (map, key) = prefix_key("10.1.2.3/16".parse().unwrap());
        assert_eq!(
            (map, &key[..4], &key[4..]),
            (MapId::Prefix4, &16u32.to_ne_bytes()[..], &[10, 1, 0, 0][..])
        );
        let (map, key) = prefix_key("2001:db8::/32".parse().unwrap());
        assert_eq!((map, key.len()), (MapId::Prefix6, 20));
    }

    #[test]
    fn what_the_maps_cannot_hold_is_refused_before_anything_is_written() {
        let bad = [
            Op::Intervals { base: limits::INTERVALS - 1, values: vec![Interval::default(); 2] },
            Op::RuleSet { id: 0, value: RuleSet::default() },
            Op::RuleSet {
                id: 1,
                value: RuleSet { base: limits::INTERVALS, n_sctp: 1, ..RuleSet::default() },
            },
            Op::Cell { row: 1, class: 0, rule_set: 1 },
            Op::Cell { row: 2, class: limits::CLASSES as u16, rule_set: 1 },
            Op::Cell { row: 2, class: 0, rule_set: limits::RULE_SETS as u16 },
            Op::Row { row: limits::ROWS as u16, cells: vec![] },
            Op::Row { row: 2, cells: vec![0; limits::CLASSES as usize + 1] },
            Op::HostWord { slot: 0, word: HostWord::default() },
            Op::HostInsert { address: "::1".parse().unwrap(), slot: limits::HOST_INFO },
            Op::Endpoint { slot: limits::ENDPOINTS as u16, word: EndpointWord::default() },
            Op::Endpoint {
                slot: 1,
                word: EndpointWord { egress_row: limits::ROWS as u16, ..Default::default() },
            },
        ];
        for op in bad {
            assert!(check(&op).is_err(), "{op:?}");
        }
        assert!(check(&Op::Row { row: 2, cells: vec![1; limits::CLASSES as usize] }).is_ok());
    }

    #[test]
    fn jiffies_are_one_of_the_kernels_choices() {
        assert!([100, 250, 300, 1000].contains(&jiffies_per_second()));
    }
}
