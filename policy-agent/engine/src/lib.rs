//! The pure policy engine: no I/O, no clock, no randomness, no async.
//!
//! ```text
//! objects -> read -> model -> World -> compile -> Desired -> Tables::plan -> Plan -> (kernel | mem)
//!                               └-> oracle (the slow truth) -> explain, matrix
//! ```
//! The oracle and the compiler are two independent readings of the same model; tests hold them against each other.

pub mod address;
pub mod compile;
pub mod desired;
pub mod explain;
pub mod limits;
pub mod matrix;
pub mod mem;
pub mod model;
pub mod oracle;
pub mod plan;
pub mod planner;
pub mod read;
pub mod rule_ids;
pub mod select;
pub mod services;
pub mod spot;
pub mod tables;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod verdict;
mod words;
pub mod world;
