//! ClusterNetworkPolicy: rules of the whole cluster that are asked before the NetworkPolicies, or after them.

use std::fmt;
use std::sync::Arc;

use policy_common::abi::Direction;

use super::{ObjectKey, Peer, Peers, PortMatch, Ports, Selector};

/// Where the rules of a policy stand towards NetworkPolicies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// Before them.
    Admin,
    /// After them, for pods that none of them isolates.
    Baseline,
}

impl Tier {
    /// In the order in which they are asked.
    pub const ALL: [Self; 2] = [Self::Admin, Self::Baseline];
    /// Name as the API spells it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Admin => "Admin",
            Self::Baseline => "Baseline",
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a rule does with the flows that it matches. Of policies of one tier and priority the first here wins: the API
/// leaves that open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Drops them.
    Deny,
    /// Lets them open, whatever other policies say.
    Accept,
    /// Leaves them to the next tier.
    Pass,
}

impl Action {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Deny, Self::Accept, Self::Pass];
    /// Name as the API spells it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Deny => "Deny",
            Self::Accept => "Accept",
            Self::Pass => "Pass",
        }
    }
}

/// A rule: peers AND ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TierRule {
    /// Name for people; empty when it has none.
    pub name: Arc<str>,
    /// What it does.
    pub action: Action,
    /// `from` or `to`.
    pub peers: Peers,
    /// `protocols`.
    pub ports: Ports,
}

impl TierRule {
    /// What becomes of a rule that cannot be honoured: an Accept matches nothing, any other denies everything.
    #[must_use]
    pub fn closed(self) -> Self {
        let Self { name, action, .. } = self;
        match action {
            Action::Accept => {
                let (peers, ports) = (Peers::Any(vec![Peer::Nothing]), Ports::Any(vec![PortMatch::Nothing]));
                Self { name, action, peers, ports }
            }
            Action::Deny | Action::Pass => {
                Self { name, action: Action::Deny, peers: Peers::All, ports: Ports::All }
            }
        }
    }
}

/// A ClusterNetworkPolicy. It isolates nobody: what none of its rules matches is left to others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterPolicy {
    /// Name.
    pub name: Arc<str>,
    /// UID; empty when the object has none.
    pub uid: Arc<str>,
    /// Tier.
    pub tier: Tier,
    /// Place in the tier, the lowest first.
    pub priority: u16,
    /// Namespaces of the pods that it is about.
    pub namespaces: Selector,
    /// Pods in them.
    pub pods: Selector,
    /// Ingress rules; positions are those of the object.
    pub ingress: Vec<TierRule>,
    /// Egress rules; positions are those of the object.
    pub egress: Vec<TierRule>,
}

impl ClusterPolicy {
    /// Its key among all objects: it has no namespace.
    #[must_use]
    pub fn key(&self) -> ObjectKey {
        ObjectKey { namespace: "".into(), name: self.name.clone() }
    }

    /// Rules of a direction.
    #[must_use]
    pub fn rules(&self, direction: Direction) -> &[TierRule] {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }

    /// The policy without what its rules allow: each of them as [`TierRule::closed`].
    #[must_use]
    pub fn closed(&self) -> Self {
        let closed = |rules: &[TierRule]| rules.iter().cloned().map(TierRule::closed).collect();
        Self { ingress: closed(&self.ingress), egress: closed(&self.egress), ..self.clone() }
    }
}
