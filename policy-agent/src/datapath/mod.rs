//! The kernel side of the agent: the object, its maps, its links, and the one writer of all of them.
//!
//! ```text
//! spec ──> pins (create or adopt) ──> load (both programs verified) ──> Datapath
//!                                                                        ├─ executor: every write to a map
//!                                                                        ├─ hooks:    every attached program
//!                                                                        └─ ring:     every event
//! ```
//! Nothing is attached before all maps exist and both programs are verified.

pub mod bpf;
mod clsact;
mod endpoint;
mod error;
mod executor;
mod grace;
mod groups;
mod hook;
mod hooks;
mod interface;
mod ledger;
mod load;
mod map;
mod object;
mod pins;
mod readback;
mod ring;
mod spare;
pub mod spec;
mod stats;
mod tag_probe;
mod tcx;
mod trial;
mod trial_socket;

pub use endpoint::{Endpoint, LiveEndpoint, Retirement};
pub use error::{Error, Result};
pub use executor::Executor;
pub use grace::Grace;
pub use groups::{GROUP_IN_PROGRAM, GROUP_OUT_PROGRAM, GroupPrograms, Groups};
pub use hook::Hook;
pub use hooks::{Attach, Attached, HookState, Hooks, Mechanism, remove_all};
pub(crate) use load::raise_memory_limit;
pub use load::{
    Config, Datapath, EXIT_PROGRAM, IN_PROGRAM, LoadReport, OUT_PROGRAM, Program, Programs, load, open_maps,
};
pub use map::{Map, Words};
pub use object::OBJECT;
pub use pins::{DEFAULT_ROOT, Pins};
pub use ring::EventRing;
pub use spare::SpareMaker;
pub use stats::EndpointTotals;
pub use tag_probe::{Survival, TagProbe, probe_tags};
pub use tcx::supported as tcx_supported;
pub use trial::{Trial, TrialMaker};
