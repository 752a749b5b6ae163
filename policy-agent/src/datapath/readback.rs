//! Reading the tables back, as an agent that starts anew needs them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::Ordering;

use ipnet::IpNet;
use policy_common::abi::{EndpointWord, HostWord, ROW_CLOSED, RuleSet, limits, meta_words};
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
            self.endpoints()?.into_iter().map(|e| (e.slot, e.word)).collect();
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
        Ok(HostWord::unpack(self.hinfo.load(slot, 0)?))
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
        let word = |index| self.rule_sets.load(u32::from(id), index);
        Ok(rule_set_of([word(0)?, word(1)?, word(2)?]))
    }
}

fn interval_range(set: &RuleSet) -> std::ops::Range<u32> {
    let count = u32::from(set.n_tcp) + u32::from(set.n_udp) + u32::from(set.n_sctp);
    // A record that was damaged must not make us read outside the map.
    set.base.min(limits::INTERVALS)..set.base.saturating_add(count).min(limits::INTERVALS)
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
    IpNet::new(address, u8::try_from(u32::from_ne_bytes(*length)).ok()?).ok()
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
        assert_eq!(prefix(&[0; 7]), None);
        assert_eq!(prefix(&[33, 0, 0, 0, 1, 2, 3, 4]), None);
    }

    #[test]
    fn a_damaged_rule_set_reads_nothing_outside() {
        let set = RuleSet { base: u32::MAX, n_tcp: u16::MAX, ..RuleSet::default() };
        assert!(interval_range(&set).is_empty());
    }
}
