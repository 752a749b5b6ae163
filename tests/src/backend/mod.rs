//! Back ends run scenarios: the reference evaluator, the datapath in memory, real packets.

mod evaluator;
mod exchange;
mod memory;
mod objects;
mod run;
mod wire;

pub use evaluator::Evaluator;
pub use memory::Memory;
pub use objects::{Change, Id, Objects};
pub use run::{Backend, Places, Seen, run};
pub use wire::Wire;
