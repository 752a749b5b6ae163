//! What the tables in memory hold as a whole: read back by an agent that starts anew, changed behind an agent's back.

use ipnet::IpNet;
use policy_common::abi::{HostWord, Interval, ROW_CLOSED};

use super::tables::{MemTables, Owner};
use crate::tables::Dump;

impl MemTables {
    /// Prefixes and addresses (prefixes of full length) that somebody else inserts under slots that are not theirs.
    pub fn meddle(&mut self, keys: &[(IpNet, u32)]) {
        for (prefix, slot) in keys {
            let family = usize::from(prefix.addr().is_ipv6());
            let (kind, key, old) = if prefix.prefix_len() == prefix.max_prefix_len() {
                (0, Owner::Host(prefix.addr()), self.hosts.insert(prefix.addr(), *slot))
            } else {
                let of_length = self.prefixes.entry(prefix.prefix_len()).or_default();
                (1, Owner::Prefix(*prefix), of_length.insert(*prefix, *slot))
            };
            match old {
                Some(old) => self.disown(key, old),
                None => self.counts[kind][family] += 1,
            }
        }
    }

    /// Everything, as an agent that starts anew reads it back; `number` is that of the last plan.
    #[must_use]
    pub fn dump(&self, number: u64) -> Dump {
        let word = |slot: u32| HostWord::unpack(self.words.get(&slot).copied().unwrap_or(0));
        let mut hosts: Vec<_> = self.hosts.iter().map(|(a, s)| (*a, *s, word(*s))).collect();
        hosts.sort_unstable_by_key(|h| h.0);
        let mut prefixes: Vec<_> =
            self.prefixes.values().flatten().map(|(p, s)| (*p, *s, word(*s))).collect();
        prefixes.sort_unstable_by_key(|p| p.0);
        let mut intervals: Vec<_> = self.intervals.iter().map(|(i, v)| (*i, Interval::unpack(*v))).collect();
        intervals.sort_unstable_by_key(|i| i.0);
        Dump {
            number,
            hosts,
            prefixes,
            rows: self
                .rows
                .iter()
                .enumerate()
                .filter(|(_, r)| r.endpoints > 0)
                .filter_map(|(i, r)| Some((u16::try_from(i).ok()?, r.cells.clone())))
                .filter(|(i, _)| *i > ROW_CLOSED)
                .collect(),
            sets: self.sets.iter().map(|(i, s)| (*i, *s)).collect(),
            intervals,
            endpoints: self.endpoints.iter().map(|(s, w)| (*s, *w)).collect(),
        }
    }
}
