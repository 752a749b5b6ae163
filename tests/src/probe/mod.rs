//! Traffic between hosts of a node: who answers, who asks, and what became of the question.

mod ask;
pub mod pace;
mod respond;
mod session;
mod socket;

pub use ask::{Outcome, Probe, Want, ask_all, verdicts};
pub use respond::Responder;
pub use session::Link;
