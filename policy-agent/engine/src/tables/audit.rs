//! What the kernel should hold, held against what it does hold.

use std::collections::BTreeMap;
use std::fmt::{self, Display};

use policy_common::abi::{EndpointWord, HostWord, Interval, ROW_CLOSED, RuleSet};

use super::mirror::{Key, word};
use super::{Dump, Tables};

/// An entry that the kernel holds otherwise than it was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Difference {
    /// Name of the map.
    pub map: &'static str,
    /// Which entry.
    pub key: String,
    /// What the kernel holds.
    pub found: String,
    /// What it should hold.
    pub wanted: String,
}

impl Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { map, key, found, wanted } = self;
        write!(f, "{map}, {key}: {found}, should be {wanted}")
    }
}

impl Tables {
    /// Everything that the kernel holds if nobody else wrote to it: in the form in which it is read back.
    ///
    /// Row 1 is part of it: packets of closed endpoints read its cells, which are all 0. So are rule sets that no cell
    /// names at the moment: one that is wanted again is not written anew.
    #[must_use]
    pub fn expected(&self) -> Dump {
        let mirror = &self.mirror;
        let hosts = mirror.hosts.iter();
        let prefixes = mirror.prefixes.iter();
        let sets: Vec<(u16, RuleSet, Vec<Interval>)> = mirror.sets.records().collect();
        let intervals = sets.iter().flat_map(|(_, set, values)| (set.base..).zip(values.iter().copied()));
        let closed = std::iter::once((ROW_CLOSED, Vec::new()));
        Dump {
            number: self.number,
            hosts: hosts.map(|(a, p)| (*a, p.slot, word(Key::Host(*a), p.class, p.flags))).collect(),
            prefixes: prefixes
                .map(|(net, p)| (*net, p.slot, word(Key::Prefix(*net), p.class, p.flags)))
                .collect(),
            rows: closed.chain(mirror.live_rows().map(|(row, held)| (row, held.cells.clone()))).collect(),
            intervals: intervals.collect(),
            sets: sets.iter().map(|(id, set, _)| (*id, *set)).collect(),
            endpoints: mirror.endpoints.iter().map(|(slot, word)| (*slot, *word)).collect(),
        }
    }

    /// Goes on from what was read back while this agent runs, because somebody else wrote to the maps: the next plan
    /// puts right what differs, and behind it every flow is judged anew. Read a grace period after the last write.
    ///
    /// Epochs never go back, so that nothing that was judged meanwhile is current again.
    pub fn readopt(&mut self, dump: &Dump) {
        let endpoints = self.mirror.endpoints.iter().map(|(slot, ours)| {
            let held = dump.endpoints.iter().find(|(other, _)| other == slot);
            (
                *slot,
                held.map_or(*ours, |(_, held)| EndpointWord {
                    epoch: epoch_after(ours.epoch, held.epoch),
                    ..*held
                }),
            )
        });
        let dump = Dump { endpoints: endpoints.collect(), number: self.number, ..dump.clone() };
        *self = Self::adopt(self.limits, &dump);
        let number = self.number;
        self.mirror.touched.extend(dump.endpoints.iter().map(|(slot, _)| (*slot, number)));
    }
}

/// The later of two epochs, which wrap around.
#[must_use]
pub fn epoch_after(ours: u32, held: u32) -> u32 {
    if held.wrapping_sub(ours) as i32 > 0 { held } else { ours }
}

impl Dump {
    /// Entries of `found` that are not as in this one, which is what was expected. Of rows, rule sets and intervals
    /// those that are expected count: no packet meets the others.
    #[must_use]
    pub fn differences(&self, found: &Self) -> Vec<Difference> {
        let mut all = Vec::new();
        for six in [false, true] {
            let map = if six { "HOSTS6" } else { "HOSTS4" };
            let of = |dump: &Self| {
                let family = dump.hosts.iter().filter(|(address, ..)| address.is_ipv6() == six);
                family.map(|(address, slot, word)| (*address, (*slot, *word))).collect()
            };
            keyed(map, &of(self), &of(found), &mut all);
            let map = if six { "PREFIX6" } else { "PREFIX4" };
            let of = |dump: &Self| {
                let family = dump.prefixes.iter().filter(|(net, ..)| net.addr().is_ipv6() == six);
                family.map(|(net, slot, word)| (*net, (*slot, *word))).collect()
            };
            keyed(map, &of(self), &of(found), &mut all);
        }
        rows(&self.rows, &found.rows, &mut all);
        named("RULESET", "rule set", &self.sets, &found.sets, &mut all);
        named("INTERVAL", "interval", &self.intervals, &found.intervals, &mut all);
        named("EP", "rows and epoch of slot", &self.endpoints, &found.endpoints, &mut all);
        all
    }
}

/// Addresses or prefixes: which slot each has, and the word there.
fn keyed<K: Ord + Display>(
    map: &'static str,
    wanted: &BTreeMap<K, (u32, HostWord)>,
    found: &BTreeMap<K, (u32, HostWord)>,
    all: &mut Vec<Difference>,
) {
    let slot = |slot: u32| format!("slot {slot}");
    let nothing = || "nothing".to_owned();
    let foreign = found.iter().filter(|(key, _)| !wanted.contains_key(key));
    all.extend(foreign.map(|(key, (held, _))| Difference {
        map,
        key: key.to_string(),
        found: slot(*held),
        wanted: nothing(),
    }));
    for (key, (ours, word)) in wanted {
        let held = found.get(key);
        if held.is_none_or(|(held, _)| held != ours) {
            let found = held.map_or_else(nothing, |(held, _)| slot(*held));
            all.push(Difference { map, key: key.to_string(), found, wanted: slot(*ours) });
        } else if let Some((_, held)) = held.filter(|(_, held)| held != word) {
            all.push(Difference {
                map: "HINFO",
                key: format!("slot {ours} of {key}"),
                found: host_word(*held),
                wanted: host_word(*word),
            });
        }
    }
}

fn rows(wanted: &[(u16, Vec<u16>)], found: &[(u16, Vec<u16>)], all: &mut Vec<Difference>) {
    let held: BTreeMap<u16, &Vec<u16>> = found.iter().map(|(row, cells)| (*row, cells)).collect();
    for (row, ours) in wanted {
        let Some(held) = held.get(row) else { continue };
        for class in 0..ours.len().max(held.len()) {
            let cell = |cells: &[u16]| cells.get(class).copied().unwrap_or(0);
            let (found, wanted) = (cell(held), cell(ours));
            if found != wanted {
                all.push(Difference {
                    map: "POLICY",
                    key: format!("row {row} class {class}"),
                    found: format!("rule set {found}"),
                    wanted: format!("rule set {wanted}"),
                });
            }
        }
    }
}

fn named<K: Ord + Display, V: PartialEq + Words>(
    map: &'static str,
    what: &str,
    wanted: &[(K, V)],
    found: &[(K, V)],
    all: &mut Vec<Difference>,
) {
    let held: BTreeMap<&K, &V> = found.iter().map(|(key, value)| (key, value)).collect();
    for (key, ours) in wanted {
        let held = held.get(key).copied();
        if held != Some(ours) {
            let found = held.map_or_else(|| "nothing".to_owned(), Words::words);
            all.push(Difference { map, key: format!("{what} {key}"), found, wanted: ours.words() });
        }
    }
}

fn host_word(word: HostWord) -> String {
    let HostWord { check, class, flags } = word;
    format!("class {class} flags {flags:#x} check {check:#x}")
}

/// A value in words.
trait Words {
    fn words(&self) -> String;
}

impl Words for RuleSet {
    fn words(&self) -> String {
        let Self { base, n_tcp, n_udp, n_sctp, other, default, crc, pad } = self;
        let (other, default) = (other.0, default.0);
        format!(
            "{n_tcp}+{n_udp}+{n_sctp} intervals at {base}, other {other:#x}, default {default:#x}, checksum {crc:#x}, {pad}"
        )
    }
}

impl Words for Interval {
    fn words(&self) -> String {
        format!("{}-{} {:#x}", self.low, self.high, self.outcome.0)
    }
}

impl Words for EndpointWord {
    fn words(&self) -> String {
        format!("epoch {} rows {}/{}", self.epoch, self.ingress_row, self.egress_row)
    }
}
