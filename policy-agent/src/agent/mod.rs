//! The running agent: one synchronous core, one thread that owns it, one runtime around both.
//!
//! ```text
//! source, netlink events ────────────┐                                   ┌─> kernel maps
//! grace, spares, hooks, tags, looks ─┴─> inputs ─> writer thread (Core) ─┼─> view ──> API, metrics
//!   ^                                      ^               │             └─> history ─┐
//!   └──────────────────────────────────────┼───────────────┘                          │
//!                                      API: wait           ring ─> drain (tokio) ─────┴─> bus ─> subscribers
//! ```

mod background;
mod batch;
mod check;
mod claims;
mod core;
mod drain;
mod endpoints;
mod exits;
#[cfg(test)]
mod fixture;
mod guard;
mod handle;
mod hooking;
mod kernel;
mod listed;
mod looking;
mod origin;
mod placement;
mod retry;
mod run;
mod settings;
mod spares;
mod table;
mod tags;
mod told;
mod view;
mod workloads;
mod writer;

pub use self::check::{Checked, Drift};
pub use self::exits::Exit;
pub use self::kernel::Kernel;
pub use self::run::run;
pub use self::tags::TagsView;
pub use self::view::{EndpointView, Latencies, Published, State, Tally, View, refusal_text};
