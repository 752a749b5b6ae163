//! The one table of kernel maps: what user space creates, what a pin must be, what the kernel object must declare.

use aya_obj::generated::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, bpf_map_type};
use policy_common::abi::{
    Cgroup, Counter, EndpointStat, Flow, FlowKey4, FlowKey6, Fragment, FragmentKey, LocalKey, RuleSet,
    endpoint_words, limits, meta_words,
};

/// Format of the maps as a whole, kept in `META`.
pub const FORMAT: u64 = 1;

/// A kernel map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the kernel object names and documents its maps")]
pub enum MapId {
    Iface,
    IfaceX,
    Cgroups,
    Ep,
    Locals,
    Hosts4,
    Hosts6,
    Prefix4,
    Prefix6,
    Hinfo,
    Policy,
    RuleSet,
    Interval,
    Flows4,
    Flows6,
    Frags,
    EpStat,
    Counters,
    RuleHits,
    Events,
    Meta,
}

/// What a map is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Name in the kernel object, at most 15 characters.
    pub name: &'static str,
    /// Type.
    pub kind: bpf_map_type,
    /// Bytes of a key.
    pub key: u32,
    /// Bytes of a value, on one CPU.
    pub value: u32,
    /// Entries; bytes for a ring buffer.
    pub entries: u32,
    /// Creation flags.
    pub flags: u32,
    /// Raised when the meaning of the bytes changes and their sizes do not.
    pub revision: u32,
}

impl MapId {
    /// All maps, in the order in which they are created.
    pub const ALL: [Self; 21] = [
        Self::Iface,
        Self::IfaceX,
        Self::Cgroups,
        Self::Ep,
        Self::Locals,
        Self::Hosts4,
        Self::Hosts6,
        Self::Prefix4,
        Self::Prefix6,
        Self::Hinfo,
        Self::Policy,
        Self::RuleSet,
        Self::Interval,
        Self::Flows4,
        Self::Flows6,
        Self::Frags,
        Self::EpStat,
        Self::Counters,
        Self::RuleHits,
        Self::Events,
        Self::Meta,
    ];

    /// The map's row of the table.
    #[must_use]
    pub const fn spec(self) -> Spec {
        use bpf_map_type::{
            BPF_MAP_TYPE_ARRAY as ARRAY, BPF_MAP_TYPE_ARRAY_OF_MAPS as MAPS, BPF_MAP_TYPE_HASH as HASH,
            BPF_MAP_TYPE_LPM_TRIE as TRIE, BPF_MAP_TYPE_LRU_HASH as LRU,
            BPF_MAP_TYPE_PERCPU_ARRAY as PER_CPU, BPF_MAP_TYPE_RINGBUF as RING,
        };
        const WORD: u32 = 8;
        let cells = limits::CELLS_PER_VALUE * 2;
        let (name, kind, key, value, entries) = match self {
            Self::Iface => ("IFACE", ARRAY, 4, WORD, limits::INTERFACES),
            Self::IfaceX => ("IFACE_X", HASH, 4, WORD, limits::INTERFACES_EXTRA),
            Self::Cgroups => ("CGROUPS", HASH, 8, size_of::<Cgroup>() as u32, limits::CGROUPS),
            Self::Ep => ("EP", ARRAY, 4, endpoint_words::COUNT * WORD, limits::ENDPOINTS),
            Self::Locals => ("LOCALS", HASH, size_of::<LocalKey>() as u32, 4, limits::LOCALS),
            Self::Hosts4 => ("HOSTS4", HASH, 4, 4, limits::HOSTS),
            Self::Hosts6 => ("HOSTS6", HASH, 16, 4, limits::HOSTS),
            Self::Prefix4 => ("PREFIX4", TRIE, 8, 4, limits::PREFIXES),
            Self::Prefix6 => ("PREFIX6", TRIE, 20, 4, limits::PREFIXES),
            Self::Hinfo => ("HINFO", ARRAY, 4, WORD, limits::HOST_INFO),
            Self::Policy => ("POLICY", ARRAY, 4, cells, limits::POLICY_VALUES),
            Self::RuleSet => ("RULESET", ARRAY, 4, size_of::<RuleSet>() as u32, limits::RULE_SETS),
            Self::Interval => ("INTERVAL", ARRAY, 4, WORD, limits::INTERVALS),
            Self::Flows4 => ("FLOWS4", MAPS, 4, 4, limits::ENDPOINTS),
            Self::Flows6 => ("FLOWS6", MAPS, 4, 4, limits::ENDPOINTS),
            Self::Frags => (
                "FRAGS",
                LRU,
                size_of::<FragmentKey>() as u32,
                size_of::<Fragment>() as u32,
                limits::FRAGMENTS,
            ),
            Self::EpStat => ("EPSTAT", PER_CPU, 4, size_of::<EndpointStat>() as u32, limits::ENDPOINTS),
            Self::Counters => ("COUNTERS", PER_CPU, 4, size_of::<Counter>() as u32, limits::REASONS * 2),
            Self::RuleHits => ("RULE_HITS", PER_CPU, 4, size_of::<Counter>() as u32, limits::RULE_HITS),
            Self::Events => ("EVENTS", RING, 0, 0, limits::EVENT_RING),
            Self::Meta => ("META", ARRAY, 4, meta_words::COUNT * WORD, 1),
        };
        let flags = match kind {
            ARRAY => BPF_F_MMAPABLE,
            TRIE => BPF_F_NO_PREALLOC,
            // An element that is replaced keeps its value as long as a program may look at it.
            HASH if matches!(self, Self::Cgroups) => BPF_F_NO_PREALLOC,
            _ => 0,
        };
        Spec { name, kind, key, value, entries, flags, revision: 1 }
    }

    /// Template of the inner maps, for arrays of maps. Inner maps may have any number of entries.
    #[must_use]
    pub const fn inner(self) -> Option<Spec> {
        let (name, key) = match self {
            Self::Flows4 => ("flows4", size_of::<FlowKey4>() as u32),
            Self::Flows6 => ("flows6", size_of::<FlowKey6>() as u32),
            Self::Iface
            | Self::IfaceX
            | Self::Cgroups
            | Self::Ep
            | Self::Locals
            | Self::Hosts4
            | Self::Hosts6
            | Self::Prefix4
            | Self::Prefix6
            | Self::Hinfo
            | Self::Policy
            | Self::RuleSet
            | Self::Interval
            | Self::Frags
            | Self::EpStat
            | Self::Counters
            | Self::RuleHits
            | Self::Events
            | Self::Meta => return None,
        };
        let kind = bpf_map_type::BPF_MAP_TYPE_LRU_HASH;
        Some(Spec { name, kind, key, value: size_of::<Flow>() as u32, entries: 1, flags: 0, revision: 1 })
    }

    /// Name of the map's pin. The layout is part of it, so that the change of one map keeps the content of others.
    /// Names on the BPF file system must not contain a dot.
    #[must_use]
    pub fn pin_name(self) -> String {
        format!("{}@{:08x}", self.spec().name, self.layout())
    }

    /// Hash of everything that two builds must agree on to share the map.
    ///
    /// Tables that name each other's entries (slots, rows, classes, rule sets) are of one piece: if one of them is new
    /// and empty, all are, so that the programs of an earlier agent keep a whole set until they are replaced.
    #[must_use]
    pub fn layout(self) -> u32 {
        const START: u32 = 0x811c_9dc5;
        if !self.is_table() {
            return self.hash(START);
        }
        Self::ALL.into_iter().filter(|map| map.is_table()).fold(START, |hash, map| map.hash(hash))
    }

    const fn is_table(self) -> bool {
        match self {
            Self::Iface
            | Self::IfaceX
            | Self::Cgroups
            | Self::Ep
            | Self::Locals
            | Self::Hosts4
            | Self::Hosts6
            | Self::Prefix4
            | Self::Prefix6
            | Self::Hinfo
            | Self::Policy
            | Self::RuleSet
            | Self::Interval
            | Self::Flows4
            | Self::Flows6 => true,
            Self::Frags | Self::EpStat | Self::Counters | Self::RuleHits | Self::Events | Self::Meta => false,
        }
    }

    fn hash(self, start: u32) -> u32 {
        let fields = |s: Spec| [s.kind as u32, s.key, s.value, s.entries, s.flags, s.revision];
        let inner = self.inner().map_or([0; 6], fields);
        fields(self.spec()).iter().chain(&inner).fold(start, |hash, field| {
            field.to_le_bytes().iter().fold(hash, |h: u32, b| (h ^ u32::from(*b)).wrapping_mul(0x0100_0193))
        })
    }
}

impl Spec {
    /// The map's shape in words, for messages.
    #[must_use]
    pub fn describe(&self) -> String {
        let Self { kind, key, value, entries, flags, .. } = self;
        format!("{kind:?} key {key} value {value} entries {entries} flags {flags:#x}")
    }
}

/// Entries of an endpoint's flow map on a machine with so many CPUs: a power of two, because kernels keep free
/// entries of an LRU back in lists per CPU.
#[must_use]
pub const fn flow_entries(cpus: usize) -> u32 {
    let wanted = if cpus > 64 { 16_384 } else { cpus as u32 * 256 };
    let wanted = if wanted < 2_048 { 2_048 } else { wanted };
    wanted.next_power_of_two()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_map_is_listed_once_and_fits_the_kernels_names() {
        let names: BTreeSet<_> = MapId::ALL.iter().map(|m| m.spec().name).collect();
        assert_eq!(names.len(), MapId::ALL.len());
        for (position, map) in MapId::ALL.into_iter().enumerate() {
            assert_eq!(map as usize, position, "maps are indexed by their position");
            assert!(map.spec().name.len() <= 15);
            assert!(!map.pin_name().contains('.'), "the BPF file system refuses dots");
        }
    }

    #[test]
    fn tables_have_one_layout_and_the_rest_their_own() {
        let tables: BTreeSet<u32> = MapId::ALL.iter().filter(|m| m.is_table()).map(|m| m.layout()).collect();
        assert_eq!(tables.len(), 1);
        let rest: BTreeSet<u32> = MapId::ALL.iter().filter(|m| !m.is_table()).map(|m| m.layout()).collect();
        assert_eq!((rest.len(), rest.is_disjoint(&tables)), (6, true));
        assert_ne!(MapId::Flows4.hash(0), MapId::Flows6.hash(0), "inner maps count");
    }

    #[test]
    fn flow_maps_have_a_bounded_power_of_two() {
        assert_eq!([1, 8, 9, 24, 64, 1000].map(flow_entries), [2048, 2048, 4096, 8192, 16384, 16384]);
    }
}
