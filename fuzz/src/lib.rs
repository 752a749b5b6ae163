//! Fuzzing of everything that reads bytes from outside, with a corpus in this crate. A target is a function of bytes
//! that panics when something is wrong; the driver keeps what reaches code that nothing before reached.

pub mod corpus;
pub mod coverage;
pub mod drive;
pub mod mutate;
pub mod target;

pub use drive::{Budget, Crash, Told, drive};
pub use target::Target;
