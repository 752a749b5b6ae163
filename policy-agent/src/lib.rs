//! The agent: everything with I/O.

pub mod datapath;
pub mod proto;
pub mod source;
