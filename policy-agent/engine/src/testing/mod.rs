//! Random worlds and a simulated node: what tests of the compiler, the kernel programs and the datapath share.

pub mod node;
#[cfg(test)]
mod properties;
pub mod rng;
pub mod samples;
#[cfg(test)]
mod scale;
mod tiers;
pub mod worlds;
