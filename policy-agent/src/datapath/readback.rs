//! Reading the tables back, as an agent that starts anew needs them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::Ordering;

use ipnet::IpNet;
use policy_common::abi::{EndpointWord, HostWord, ROW_CLOSED, RuleSet, endpoint_words, limits, meta_words};
use policy_engine::tables::Dump;

use super::error::Result;
use super::executor::{Executor, interval_of, rule_set_of};
use super::map::from_bytes;
use super::spec::MapId;

impl Executor {
    /// What the kernel holds: all addresses and prefixes, the rows that endpoints use, and every rule set and
    /// interval that these rows name.
    ///
    /// # Errors
    /// A map can't be read.
    pub fn dump(&self) -> Result<Dump> {
        let endpoints: Vec<(u16, EndpointWord)> =
            self.endpoints()?.into_iter().map(|e| (e.slot, known_rows(e.word))).collect();
        let used: BTreeSet<u16> = endpoints
            .iter()
            .flat_map(|(_, word)| [word.ingress_row, word.egress_row])
            .filter(|row| *row > ROW_CLOSED)
            .collect();
        let rows: Vec<(u16, Vec<u16>)> =
            used.into_iter().map(|row| Ok((row, self.row(row)?))).collect::<Result<_>>()?;
        let named: BTreeSet<u16> =
            rows.iter().flat_map(|(_, cells)| cells).copied().filter(|id| *id != 0).collect();
        let sets: Vec<(u16, RuleSet)> =
            named.into_iter().map(|id| Ok((id, self.rule_set(id)?))).collect::<Result<_>>()?;
        let indexes: BTreeSet<u32> = sets.iter().flat_map(|(_, set)| interval_range(set)).collect();
        let read = |index| Ok((index, interval_of(self.intervals.load(index, 0)?)));
        let intervals = indexes.into_iter().map(read).collect::<Result<_>>()?;
        Ok(Dump {
            number: self.meta(meta_words::PLAN)?,
            hosts: self.hosts()?,
            prefixes: self.prefixes()?,
            rows,
            sets,
            intervals,
            endpoints,
        })
    }

    /// What the kernel holds in the places of `expected`: all addresses and prefixes, and the rows, rule sets, intervals
    /// and endpoints' words that it names.
    ///
    /// # Errors
    /// A map can't be read.
    pub fn read_like(&self, expected: &Dump) -> Result<Dump> {
        let rows = expected.rows.iter().map(|(row, _)| Ok((*row, self.row(*row)?)));
        let sets = expected.sets.iter().map(|(id, _)| Ok((*id, self.rule_set(*id)?)));
        let interval = |index| Ok((index, interval_of(self.intervals.load(index, 0)?)));
        let word = |slot: u16| self.ep.load(u32::from(slot), endpoint_words::POLICY);
        let endpoints =
            expected.endpoints.iter().map(|(slot, _)| Ok((*slot, EndpointWord::unpack(word(*slot)?))));
        Ok(Dump {
            number: self.meta(meta_words::PLAN)?,
            hosts: self.hosts()?,
            prefixes: self.prefixes()?,
            rows: rows.collect::<Result<_>>()?,
            sets: sets.collect::<Result<_>>()?,
            intervals: expected.intervals.iter().map(|(i, _)| interval(*i)).collect::<Result<_>>()?,
            endpoints: endpoints.collect::<Result<_>>()?,
        })
    }

    /// Empties the row that closed endpoints are judged by; no plan ever writes it.
    ///
    /// # Errors
    /// There is no such row.
    pub fn empty_closed_row(&self) -> Result<()> {
        (0..limits::CLASSES).try_for_each(|class| self.write_cell(ROW_CLOSED, class, 0))
    }

    fn hosts(&self) -> Result<Vec<(IpAddr, u32, HostWord)>> {
        let mut found = Vec::new();
        for (key, slot) in self.slots(MapId::Hosts4)? {
            found.extend(four(&key).map(|ip| (ip, slot)));
        }
        for (key, slot) in self.slots(MapId::Hosts6)? {
            found.extend(six(&key).map(|ip| (ip, slot)));
        }
        found.sort_unstable();
        found.into_iter().map(|(ip, slot)| Ok((ip, slot, self.host_word(slot)?))).collect()
    }

    fn prefixes(&self) -> Result<Vec<(IpNet, u32, HostWord)>> {
        let mut found = Vec::new();
        for map in [MapId::Prefix4, MapId::Prefix6] {
            for (key, slot) in self.slots(map)? {
                found.extend(prefix(&key).map(|prefix| (prefix, slot)));
            }
        }
        found.sort_unstable();
        found.into_iter().map(|(prefix, slot)| Ok((prefix, slot, self.host_word(slot)?))).collect()
    }

    fn slots(&self, id: MapId) -> Result<Vec<(Vec<u8>, u32)>> {
        let map = &self.maps[id];
        let elements = map.elements().map_err(map.failed("read"))?;
        Ok(elements.into_iter().filter_map(|(key, value)| Some((key, from_bytes(&value)?))).collect())
    }

    fn host_word(&self, slot: u32) -> Result<HostWord> {
        // Somebody else may have named a slot that there is not: it means nothing, to programs as well.
        let word = if slot < limits::HOST_INFO { self.hinfo.load(slot, 0)? } else { 0 };
        Ok(HostWord::unpack(word))
    }

    /// Cells of a row up to the last that is not 0.
    fn row(&self, row: u16) -> Result<Vec<u16>> {
        let first = u32::from(row) * limits::CLASSES;
        let read = |class| Ok(self.policy.cell(first + class)?.load(Ordering::Acquire));
        let mut cells: Vec<u16> = (0..limits::CLASSES).map(read).collect::<Result<_>>()?;
        let used = cells.iter().rposition(|cell| *cell != 0).map_or(0, |last| last + 1);
        cells.truncate(used);
        Ok(cells)
    }

    fn rule_set(&self, id: u16) -> Result<RuleSet> {
        if u32::from(id) >= limits::RULE_SETS {
            // Packets that meet it are dropped; the empty record reads as not understood.
            return Ok(RuleSet::default());
        }
        let word = |index| self.rule_sets.load(u32::from(id), index);
        Ok(rule_set_of([word(0)?, word(1)?, word(2)?]))
    }
}

fn interval_range(set: &RuleSet) -> std::ops::Range<u32> {
    let count = u32::from(set.n_tcp) + u32::from(set.n_udp) + u32::from(set.n_sctp);
    // A record that was damaged must not make us read outside the map.
    set.base.min(limits::INTERVALS)..set.base.saturating_add(count).min(limits::INTERVALS)
}

/// Rows that there are not drop what policy decides, as the closed one does.
fn known_rows(word: EndpointWord) -> EndpointWord {
    let row = |row: u16| if u32::from(row) < limits::ROWS { row } else { ROW_CLOSED };
    EndpointWord { ingress_row: row(word.ingress_row), egress_row: row(word.egress_row), ..word }
}

fn four(bytes: &[u8]) -> Option<IpAddr> {
    Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?))
}

fn six(bytes: &[u8]) -> Option<IpAddr> {
    Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?))
}

fn prefix(key: &[u8]) -> Option<IpNet> {
    let (length, address) = key.split_first_chunk()?;
    let address = four(address).or_else(|| six(address))?;
    // The trie looks at the prefix alone: what stands behind it in a stranger's key means nothing.
    Some(IpNet::new(address, u8::try_from(u32::from_ne_bytes(*length)).ok()?).ok()?.trunc())
}

#[cfg(test)]
mod tests {
    use super::super::executor::prefix_key;
    use super::*;

    #[test]
    fn keys_of_prefixes_are_read_back() {
        for text in ["0.0.0.0/0", "10.1.0.0/16", "192.0.2.7/32", "::/0", "2001:db8::/33"] {
            let net: IpNet = text.parse().unwrap();
            assert_eq!(prefix(&prefix_key(net).1), Some(net));
        }
        assert_eq!(prefix(&[8, 0, 0, 0, 10, 1, 2, 3]), Some("10.0.0.0/8".parse().unwrap()));
        assert_eq!(prefix(&[0; 7]), None);
        assert_eq!(prefix(&[33, 0, 0, 0, 1, 2, 3, 4]), None);
    }

    #[test]
    fn a_row_that_there_is_not_is_a_closed_one() {
        let word = EndpointWord { epoch: 7, ingress_row: u16::MAX, egress_row: 3 };
        assert_eq!(known_rows(word), EndpointWord { ingress_row: ROW_CLOSED, ..word });
    }

    #[test]
    fn a_damaged_rule_set_reads_nothing_outside() {
        let set = RuleSet { base: u32::MAX, n_tcp: u16::MAX, ..RuleSet::default() };
        assert!(interval_range(&set).is_empty());
    }
}
