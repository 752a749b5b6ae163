//! The kernel's side in memory: the same maps, refusing what the kernel's rules forbid.

pub mod datapath;
pub mod tables;
