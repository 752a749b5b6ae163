//! The maps. The agent creates and pins them from its own table; the declarations here must say the same.

use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{
    Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, RingBuf,
};
use aya_ebpf::macros::btf_map;
use policy_common::abi::{
    Cgroup, Counter, EndpointStat, Flow, FlowKey4, FlowKey6, Fragment, FragmentKey, LocalKey, RuleSet,
    endpoint_words, limits, meta_words,
};
use policy_common::event::Event;
use policy_common::packet::Packet;

/// `BPF_F_MMAPABLE`: user space stores words through a mapping, the only update that no reader can see in halves.
const MMAP: usize = 1024;
/// `BPF_F_NO_PREALLOC`: an element that is replaced keeps its value as long as a program may look at it.
const NO_PREALLOC: usize = 1;
/// Entries of the filter of repeated events.
pub(crate) const RECENT_EVENTS: u32 = 1024;

#[btf_map]
pub(crate) static IFACE: Array<u64, { limits::INTERFACES as usize }, MMAP> = Array::new();
#[btf_map]
pub(crate) static IFACE_X: HashMap<u32, u64, { limits::INTERFACES_EXTRA as usize }> = HashMap::new();
#[btf_map]
pub(crate) static CGROUPS: HashMap<u64, Cgroup, { limits::CGROUPS as usize }, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub(crate) static EP: Array<[u64; endpoint_words::COUNT as usize], { limits::ENDPOINTS as usize }, MMAP> =
    Array::new();
#[btf_map]
pub(crate) static LOCALS: HashMap<LocalKey, u32, { limits::LOCALS as usize }> = HashMap::new();
#[btf_map]
pub(crate) static HOSTS4: HashMap<u32, u32, { limits::HOSTS as usize }> = HashMap::new();
#[btf_map]
pub(crate) static HOSTS6: HashMap<[u32; 4], u32, { limits::HOSTS as usize }> = HashMap::new();
#[btf_map]
pub(crate) static PREFIX4: LpmTrie<u32, u32, { limits::PREFIXES as usize }> = LpmTrie::new();
#[btf_map]
pub(crate) static PREFIX6: LpmTrie<[u32; 4], u32, { limits::PREFIXES as usize }> = LpmTrie::new();
#[btf_map]
pub(crate) static HINFO: Array<u64, { limits::HOST_INFO as usize }, MMAP> = Array::new();
#[btf_map]
pub(crate) static POLICY: Array<
    [u16; limits::CELLS_PER_VALUE as usize],
    { limits::POLICY_VALUES as usize },
    MMAP,
> = Array::new();
#[btf_map]
pub(crate) static RULESET: Array<RuleSet, { limits::RULE_SETS as usize }, MMAP> = Array::new();
#[btf_map]
pub(crate) static INTERVAL: Array<u64, { limits::INTERVALS as usize }, MMAP> = Array::new();
// The size of the template does not bind: each endpoint's own map is created with the endpoint.
#[btf_map]
pub(crate) static FLOWS4: ArrayOfMaps<LruHashMap<FlowKey4, Flow, 1>, { limits::ENDPOINTS as usize }> =
    ArrayOfMaps::new();
#[btf_map]
pub(crate) static FLOWS6: ArrayOfMaps<LruHashMap<FlowKey6, Flow, 1>, { limits::ENDPOINTS as usize }> =
    ArrayOfMaps::new();
#[btf_map]
pub(crate) static FRAGS: LruHashMap<FragmentKey, Fragment, { limits::FRAGMENTS as usize }> =
    LruHashMap::new();
#[btf_map]
pub(crate) static EPSTAT: PerCpuArray<EndpointStat, { limits::ENDPOINTS as usize }> = PerCpuArray::new();
#[btf_map]
pub(crate) static COUNTERS: PerCpuArray<Counter, { limits::REASONS as usize * 2 }> = PerCpuArray::new();
#[btf_map]
pub(crate) static RULE_HITS: PerCpuArray<Counter, { limits::RULE_HITS as usize }> = PerCpuArray::new();
#[btf_map]
pub(crate) static EVENTS: RingBuf<Event, { limits::EVENT_RING as usize }> = RingBuf::new();
#[btf_map]
pub(crate) static META: Array<[u64; meta_words::COUNT as usize], 1, MMAP> = Array::new();

// Below: private to one loaded object, never pinned.

/// Keys and values on their way to a rare helper call: the stack has no room for them.
#[repr(C)]
pub(crate) struct Scratch {
    pub(crate) local: LocalKey,
    pub(crate) fragment_key: FragmentKey,
    pub(crate) fragment: Fragment,
    pub(crate) prefix4: Key<u32>,
    pub(crate) prefix6: Key<[u32; 4]>,
    pub(crate) flow: Flow,
}

/// The packet on its way from the function that parses it to those that judge and report it. Apart from [`Scratch`],
/// which is filled anew while the packet is judged.
#[repr(C)]
pub(crate) struct Parsed {
    pub(crate) packet4: Packet<u32>,
    pub(crate) packet6: Packet<[u32; 4]>,
}

#[btf_map]
pub(crate) static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();
#[btf_map]
pub(crate) static PARSED: PerCpuArray<Parsed, 1> = PerCpuArray::new();
/// Signatures of the last events, per CPU: {tick 32, hash 32}.
#[btf_map]
pub(crate) static RECENT: PerCpuArray<u64, { RECENT_EVENTS as usize }> = PerCpuArray::new();
/// Programs that tests call through `retag`.
#[btf_map]
pub(crate) static PROGS: ProgramArray<3> = ProgramArray::new();
