//! The agent: everything with I/O.

pub mod api;
pub mod ctl;
pub mod datapath;
pub mod events;
pub mod netlink;
pub mod preflight;
pub mod proto;
pub mod source;
