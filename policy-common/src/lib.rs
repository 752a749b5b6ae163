//! The ABI between kernel and user space, and the code that both sides run.
//!
//! Nothing here does I/O, reads a clock or panics: the same functions compile into the kernel object, into the
//! in-memory datapath and into tests.
#![cfg_attr(not(test), no_std)]

pub mod abi;
mod case;
pub mod decide;
pub mod event;
pub mod exit;
pub mod family;
pub mod flow;
pub mod judge;
pub mod packet;
pub mod reason;
pub mod seen;
pub mod side;
pub mod tagged;
pub mod verdict;
