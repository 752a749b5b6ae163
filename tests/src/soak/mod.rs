//! Differential testing: random clusters, every pair of which the evaluator, the compiled tables and the kernel's
//! programs must judge alike, after every write of every plan. What differs becomes a small scenario file.

pub mod cluster;
pub mod compare;
mod drive;
pub mod malformed;
mod shrink;
mod story;
mod tiers;

pub use drive::{Amount, Summary, Trouble, drive, replay};
pub use shrink::shrink;
