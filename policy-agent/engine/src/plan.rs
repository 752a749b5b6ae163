//! A plan: the ordered writes that turn what the kernel holds into what the compiled world asks for.
//!
//! After every prefix of a plan each verdict equals the old or the new world's.

use std::net::IpAddr;

use ipnet::IpNet;
use policy_common::abi::{EndpointWord, HostWord, Interval, RuleSet};

/// One write. Executors apply writes in order and do nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Writes intervals from `base` on (no live rule set refers to them).
    Intervals {
        /// First index.
        base: u32,
        /// Values.
        values: Vec<Interval>,
    },
    /// Writes a rule set under an id that no live cell names.
    RuleSet {
        /// Id, not 0.
        id: u16,
        /// Record.
        value: RuleSet,
    },
    /// Stores one cell.
    Cell {
        /// Row.
        row: u16,
        /// Class.
        class: u16,
        /// Rule set id, 0 = nothing matched.
        rule_set: u16,
    },
    /// Writes a row that no live endpoint uses, from class 0 on; classes beyond `cells` become 0.
    Row {
        /// Row.
        row: u16,
        /// Rule set ids by class.
        cells: Vec<u16>,
    },
    /// Stores a host word.
    HostWord {
        /// Host slot.
        slot: u32,
        /// Word.
        word: HostWord,
    },
    /// Inserts an address (never an update of a live element).
    HostInsert {
        /// Address.
        address: IpAddr,
        /// Host slot, its word already written.
        slot: u32,
    },
    /// Removes an address.
    HostRemove {
        /// Address.
        address: IpAddr,
    },
    /// Inserts a prefix (never an update of a live element).
    PrefixInsert {
        /// Prefix.
        prefix: IpNet,
        /// Host slot, its word already written.
        slot: u32,
    },
    /// Removes a prefix.
    PrefixRemove {
        /// Prefix.
        prefix: IpNet,
    },
    /// Stores word 0 of an endpoint: commits both rows and the epoch.
    Endpoint {
        /// Endpoint slot.
        slot: u16,
        /// Word.
        word: EndpointWord,
    },
}

/// Writes in order. `number` grows by one with each plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Number of the plan.
    pub number: u64,
    /// Writes.
    pub ops: Vec<Op>,
}

impl Plan {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }
}
