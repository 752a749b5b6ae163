//! Control groups of version 2: where the hierarchy is, which group a workload names, and what to watch so that a group
//! which appears is seen.

mod hierarchy;
mod watch;

pub use hierarchy::{Found, Group, Hierarchy, Missing};
pub use watch::Watch;
