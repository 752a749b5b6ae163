//! The kernel's side in memory: the same maps, refusing what the kernel's rules forbid.

mod contents;
pub mod datapath;
pub mod tables;
