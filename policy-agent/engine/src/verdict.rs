//! Questions to the evaluator and its answers, shared by explain, matrix, events and tests.

use std::fmt;
use std::net::IpAddr;

use policy_common::abi::Direction;
use policy_common::reason::Reason;

use crate::model::ObjectKey;

/// The opening packet of a flow, as the destination pod would see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Query {
    /// Who opens.
    pub source: IpAddr,
    /// Towards whom.
    pub destination: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port; 0 for protocols without ports.
    pub port: u16,
    /// The packet was made by a process of this node (not forwarded).
    pub from_node_process: bool,
}

/// Position of a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleRef {
    /// Policy.
    pub policy: ObjectKey,
    /// Direction of the rule list.
    pub direction: Direction,
    /// Index in `spec.ingress` or `spec.egress`.
    pub index: u32,
}

impl RuleRef {
    /// Whether it is a rule of a ClusterNetworkPolicy: those have no namespace.
    #[must_use]
    pub fn is_of_cluster(&self) -> bool {
        self.policy.namespace.is_empty()
    }
}

impl fmt::Display for RuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}[{}]", self.policy, self.direction.name(), self.index)
    }
}

/// The one field that kept a rule from matching.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    /// The port.
    Port,
    /// The protocol.
    Protocol,
    /// A label of the peer pod.
    PodLabel,
    /// A label of the peer's namespace.
    NamespaceLabel,
    /// The peer's address.
    Address,
}

impl Field {
    /// Name in output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Port => "port",
            Self::Protocol => "protocol",
            Self::PodLabel => "pod label",
            Self::NamespaceLabel => "namespace label",
            Self::Address => "address",
        }
    }
}

/// The rule that came nearest to matching.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nearest {
    /// The rule.
    pub rule: RuleRef,
    /// What differed.
    pub field: Field,
    /// What the rule wants, for example `5432/TCP`, `app=web`, `10.0.0.0/8 except 10.1.0.0/16`.
    pub wanted: String,
    /// What the packet has, for example `9999/TCP`, `app=client`, `(no label app)`, `192.0.2.7`.
    pub got: String,
}

impl fmt::Display for Nearest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} {}, got {}", self.rule, self.field.name(), self.wanted, self.got)
    }
}

/// The verdict of one side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Side {
    /// Why. [`Reason::passes`] tells the verdict.
    pub reason: Reason,
    /// The pod that is judged; `None` when that end is not a pod that policy selects.
    pub pod: Option<ObjectKey>,
    /// NetworkPolicies that isolate the pod in this direction, sorted.
    pub isolated_by: Vec<ObjectKey>,
    /// ClusterNetworkPolicies with rules for the pod in this direction, in the order in which they are asked.
    pub cluster_policies: Vec<ObjectKey>,
    /// The last rule that passed the flow on to the next tier.
    pub passed_by: Option<RuleRef>,
    /// The rule that allows: of NetworkPolicies the first, in order of policy key and rule index. `None` also where no
    /// rule says anything and the pod is not isolated.
    pub allowed_by: Option<RuleRef>,
    /// The rule that denies.
    pub denied_by: Option<RuleRef>,
    /// When no rule matched: the rule of the isolating policies that came nearest. `None` when they have no rules.
    pub nearest: Option<Nearest>,
}

impl Side {
    /// No policy has anything to say.
    pub(crate) fn open(pod: Option<ObjectKey>) -> Self {
        Self {
            reason: Reason::NotIsolated,
            pod,
            isolated_by: Vec::new(),
            cluster_policies: Vec::new(),
            passed_by: None,
            allowed_by: None,
            denied_by: None,
            nearest: None,
        }
    }

    /// Whether this side lets the flow open.
    #[must_use]
    pub fn allows(&self) -> bool {
        self.reason.passes()
    }
}

/// The evaluator's answer: a flow opens when both sides allow it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evaluation {
    /// Egress of the source.
    pub egress: Side,
    /// Ingress of the destination.
    pub ingress: Side,
}

impl Evaluation {
    /// Whether both sides allow.
    #[must_use]
    pub fn allows(&self) -> bool {
        self.egress.allows() && self.ingress.allows()
    }
}
