//! The agent: everything with I/O.

pub mod agent;
pub mod api;
pub mod cgroup;
pub mod cli;
pub mod cni;
pub mod ctl;
pub mod datapath;
pub mod events;
mod memory;
pub mod metrics;
pub mod netlink;
pub mod notice;
pub mod preflight;
pub mod proto;
pub mod source;
pub mod state;
