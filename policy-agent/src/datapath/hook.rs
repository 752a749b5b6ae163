//! Where on an interface a program is attached, and for whom.

use aya_obj::generated::bpf_attach_type::{self, BPF_TCX_EGRESS, BPF_TCX_INGRESS};

use crate::netlink::Parent;

/// A hook of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// From a pod: what arrives at the host's end of its interface.
    Out,
    /// Towards a pod: what leaves by the host's end of its interface.
    In,
    /// Out of the node: what leaves by a device that is not a pod's.
    Exit,
}

/// Hooks of a pod's interface. The first one judges while the second still waits for the kernel, some milliseconds: others
/// can send to a new pod before any process in it can.
pub(super) const POD: &[Hook] = &[Hook::In, Hook::Out];
/// Hooks of every other device.
pub(super) const EXIT: &[Hook] = &[Hook::Exit];

impl Hook {
    /// All hooks.
    pub const ALL: [Self; 3] = [Self::Out, Self::In, Self::Exit];

    /// Type of the link's attachment.
    pub(super) const fn attach_type(self) -> bpf_attach_type {
        match self {
            Self::Out => BPF_TCX_INGRESS,
            Self::In | Self::Exit => BPF_TCX_EGRESS,
        }
    }

    /// Side of a clsact qdisc.
    pub(super) const fn parent(self) -> Parent {
        match self {
            Self::Out => Parent::Ingress,
            Self::In | Self::Exit => Parent::Egress,
        }
    }

    /// How our filters are known, by whichever agent made them.
    pub(super) const fn filter(self) -> &'static str {
        match self {
            Self::Out => "policy-agent:out",
            Self::In => "policy-agent:in",
            Self::Exit => "policy-agent:exit",
        }
    }

    /// Name in pins and messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Out => "out",
            Self::In => "in",
            Self::Exit => "exit",
        }
    }
}
