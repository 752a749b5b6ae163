//! Nodes and pods made of network namespaces, without any program but this one.
//!
//! Nothing here has a name outside this process: a namespace lives as long as its descriptor, so a test that
//! panics, or is killed, leaves neither namespaces nor links behind.

mod echo;
mod frames;
mod maker;
mod netns;
mod node;
mod raw;
mod rtnl;

pub use echo::{Echo, answers, is_answered};
pub use frames::LinkSocket;
pub use maker::Maker;
pub use netns::{Netns, sysctl};
pub use node::{Attach, Host, Node, Topology};
pub use raw::RawSocket;
pub use rtnl::{Link, Rtnl};

/// IP family of an address, a probe or a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of `ip`.
    pub fn of(ip: std::net::IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}
