//! Benchmarks: what a packet costs in the programs alone, and on a whole path beside other packet filters; what a large
//! cluster costs the agent.
//!
//! Costs are compared within one run, in rounds of shuffled order, and told as ratios: between machines, and between
//! two days on one machine, nothing else can be compared.

mod home;
mod layer;
mod meter;
mod micro;
mod path;
mod report;
mod scale;
mod stage;
mod traffic;

pub use micro::micro;
pub use path::path;
pub use scale::scale;
