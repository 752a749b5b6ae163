//! Back ends run scenarios: the reference evaluator, the compiled tables in memory, real packets.

mod compiled;
mod evaluator;
mod objects;
mod run;
mod wire;

pub use compiled::Compiled;
pub use evaluator::Evaluator;
pub use objects::{Change, Id, Objects};
pub use run::{Backend, Places, Seen, run};
pub use wire::Wire;
