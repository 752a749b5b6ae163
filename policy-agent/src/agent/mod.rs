//! The running agent: one synchronous core, one thread that owns it, one runtime around both.
//!
//! ```text
//! source ─────────────────────┐                                   ┌─> kernel maps
//! netlink thread              ├─> inputs ─> writer thread (Core) ─┼─> view ──> API, metrics
//! grace, spares, hooks, tags ─┘      ^  (and back to these four)  └─> history ─┐
//!                              API: wait               ring ─> drain (tokio) ──┴─> bus ─> subscribers
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
