//! What outlives the agent beside the kernel's maps: numbers of rules, and proof that there is one agent.

mod lock;
mod store;

pub use lock::{Lock, LockError};
pub use store::{Saved, Store};
