//! Which interface belongs to which pod, over netlink alone: no runtime, no CNI, no cgroups.
//!
//! ```text
//! links of the host namespace ── each says the id of its peer's namespace and the peer's index there
//!    └─ addresses inside that namespace ── one counts only if its interface *is* the peer
//! events of links and addresses in all namespaces ── "look again"
//! ```
//! Namespace ids are reused by the kernel within a second, so they live only inside one look.

mod discover;
mod events;
mod link;
mod message;
mod socket;
mod tc;

pub use discover::{Discovery, Interfaces};
pub use events::{Change, Events};
pub use link::{Device, HostLink};
pub(crate) use tc::{Filter, Parent, Tc};
