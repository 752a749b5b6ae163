//! The local API: Hubble's observer service and our own, over gRPC on a unix socket.

pub mod agent;
#[cfg(test)]
pub(crate) mod fake;
pub mod filter;
#[cfg(test)]
mod hubble;
pub mod json;
pub mod observer;
pub mod serve;
pub mod view;

pub use serve::{Socket, serve};
pub use view::{AgentView, Verifying, Waiting};
