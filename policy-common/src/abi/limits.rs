//! Map limits. They are part of the ABI: the kernel object and the agent are built from the same numbers.

/// Endpoint slots: local pods that can be hooked at the same time. Slot 0 is reserved for the node.
pub const ENDPOINTS: u32 = 1024;
/// Rows of the policy table: row 0 = not isolated, row 1 = closed, the rest are compiled.
pub const ROWS: u32 = 512;
/// Classes, hence columns of a row. Class 0 matches no atom.
pub const CLASSES: u32 = 4096;
/// Cells (u16) in one value of the policy array.
pub const CELLS_PER_VALUE: u32 = 32;
/// Values of the policy array.
pub const POLICY_VALUES: u32 = ROWS * CLASSES / CELLS_PER_VALUE;
/// Addresses known one by one, per family.
pub const HOSTS: u32 = 32_768;
/// Prefixes named by policies, per family.
pub const PREFIXES: u32 = 16_384;
/// Host words: one for each host and prefix slot of both families. Slot 0 is never used.
pub const HOST_INFO: u32 = 131_072;
/// Rule sets. 0 is reserved: isolated, nothing matched.
pub const RULE_SETS: u32 = 16_384;
/// Port intervals of all rule sets.
pub const INTERVALS: u32 = 131_072;
/// Intervals of one protocol in one rule set: what ten steps of a binary search can reach.
pub const INTERVALS_PER_SET: u32 = 1_023;
/// Local addresses of all endpoints (anti-spoofing, flow key).
pub const LOCALS: u32 = 4_096;
/// Datagrams in fragments whose ports are remembered.
pub const FRAGMENTS: u32 = 8_192;
/// Rules with a hit counter; higher rule ids share counter 0.
pub const RULE_HITS: u32 = 8_192;
/// Reasons with counters.
pub const REASONS: u32 = 64;
/// Bytes of the event ring.
pub const EVENT_RING: u32 = 1 << 20;
/// Values of the interface array; higher indexes go to the small hash.
pub const INTERFACES: u32 = 65_536;
/// Entries of the hash for interface indexes that collide in the array.
pub const INTERFACES_EXTRA: u32 = 1_024;
/// Control groups that are endpoints.
pub const CGROUPS: u32 = 1_024;
