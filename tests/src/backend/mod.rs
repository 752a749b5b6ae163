//! Back ends run scenarios: the reference evaluator, the datapath in memory, the kernel's programs, real packets, and
//! sockets in control groups.

mod evaluator;
mod exchange;
mod groups;
mod kernel;
mod kind;
mod memory;
mod objects;
mod run;
mod station;
mod wire;

pub use evaluator::Evaluator;
pub(crate) use evaluator::{deltas, new_world, query};
pub use groups::Groups;
pub use kernel::Kernel;
pub use kind::{Kind, run_all};
pub use memory::Memory;
pub use objects::{Change, Id, Objects};
pub use run::{Backend, Places, Seen, run};
pub use wire::Wire;
