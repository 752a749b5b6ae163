//! The agent: everything with I/O.

pub mod proto;
pub mod source;
