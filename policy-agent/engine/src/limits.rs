//! Sizes of the tables, as values: tests use tiny ones.

use policy_common::abi::limits;

/// Sizes of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Endpoint slots.
    pub endpoints: u32,
    /// Rows, the two reserved ones included.
    pub rows: u32,
    /// Classes, class 0 included.
    pub classes: u32,
    /// Addresses per family.
    pub hosts: u32,
    /// Prefixes per family.
    pub prefixes: u32,
    /// Host words; slot 0 is never used.
    pub host_info: u32,
    /// Rule sets, id 0 included.
    pub rule_sets: u32,
    /// Intervals of all rule sets.
    pub intervals: u32,
    /// Intervals of one protocol in one rule set.
    pub intervals_per_set: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            endpoints: limits::ENDPOINTS,
            rows: limits::ROWS,
            classes: limits::CLASSES,
            hosts: limits::HOSTS,
            prefixes: limits::PREFIXES,
            host_info: limits::HOST_INFO,
            rule_sets: limits::RULE_SETS,
            intervals: limits::INTERVALS,
            intervals_per_set: limits::INTERVALS_PER_SET,
        }
    }
}
