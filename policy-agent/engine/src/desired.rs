//! What the compiled world asks of the tables, in numbers of its own: no slot, row or class of the kernel appears here.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use policy_common::abi::{Direction, Interval, Outcome, action};

use crate::model::{ClusterPolicy, ContainerPort, ObjectKey, Policy, Protocol, Rule};
use crate::verdict::RuleRef;

/// A hooked local pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Slot in the kernel's endpoint table.
    pub slot: u16,
    /// Number that is never reused.
    pub id: u32,
    /// The pod.
    pub pod: ObjectKey,
}

/// The compiled world.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    /// Addresses that need a word of their own, sorted.
    pub hosts: Arc<Vec<(IpAddr, HostTarget)>>,
    /// Prefixes that policies name and the class of the addresses for which they are the longest; sorted.
    pub prefixes: Vec<(IpNet, u32)>,
    /// Rows, each for a distinct set of policies in one direction.
    pub rows: Vec<DesiredRow>,
    /// Rule sets; index 0 is the empty one (nothing matched).
    pub sets: Vec<Arc<SetContent>>,
    /// Endpoints, by slot.
    pub endpoints: Vec<DesiredEndpoint>,
    /// Number of classes, class 0 included.
    pub classes: u32,
    /// Rule sets with more intervals than one can have: namespace and intervals needed.
    pub oversized: Vec<(Arc<str>, u32)>,
    /// Intervals that one can have for each protocol.
    pub intervals_per_set: u32,
}

/// What the word of an address says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostTarget {
    /// Class.
    pub class: u32,
    /// Bits of [`policy_common::abi::host_flags`].
    pub flags: u16,
}

/// A row: what the policies of one endpoint and direction say to each class.
#[derive(Clone, Debug)]
pub struct DesiredRow {
    /// Where it comes from.
    pub spec: Arc<RowSpec>,
    /// Index into [`Desired::sets`] by class.
    pub cells: Vec<u32>,
}

/// An endpoint and the rows that judge it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredEndpoint {
    /// Slot.
    pub slot: u16,
    /// The pod.
    pub pod: ObjectKey,
    /// What others open towards it.
    pub ingress: RowChoice,
    /// What it opens.
    pub egress: RowChoice,
}

impl DesiredEndpoint {
    /// Choice of the direction.
    #[must_use]
    pub const fn row(&self, direction: Direction) -> RowChoice {
        match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        }
    }
}

/// What judges one direction of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RowChoice {
    /// No policy has anything to say.
    Open,
    /// Nothing passes.
    Closed,
    /// Index into [`Desired::rows`].
    Row(usize),
}

/// Identity of a row: equal specs give equal verdicts and name the same policies.
#[derive(Clone, Debug)]
pub struct RowSpec {
    /// Direction.
    pub direction: Direction,
    /// Policies that isolate in that direction, by key.
    pub policies: Vec<Arc<Policy>>,
    /// Policies of the cluster with rules in that direction, in the order in which they are asked.
    pub cluster: Vec<Arc<ClusterPolicy>>,
    /// Ports of the pod that ingress rules call by name, sorted.
    pub ports: Vec<ContainerPort>,
}

impl RowSpec {
    /// Rules of a policy in the row's direction.
    #[must_use]
    pub fn rules<'a>(&self, policy: &'a Policy) -> &'a [Rule] {
        let rules = match self.direction {
            Direction::Ingress => &policy.ingress,
            Direction::Egress => &policy.egress,
        };
        rules.as_deref().unwrap_or_default()
    }

    /// Who answers for the row: the namespace of its policies, and the empty one for those of the cluster.
    pub fn owners(&self) -> impl Iterator<Item = Arc<str>> {
        let own = self.policies.first().map(|p| p.key.namespace.clone());
        own.into_iter().chain((!self.cluster.is_empty()).then(|| Arc::from("")))
    }

    /// Position of a rule of one of the row's policies.
    #[must_use]
    pub fn rule_ref(&self, policy: ObjectKey, index: usize) -> RuleRef {
        RuleRef { policy, direction: self.direction, index: u32::try_from(index).unwrap_or(u32::MAX) }
    }

    /// Keys of all policies: first those that isolate.
    pub fn keys(&self) -> impl Iterator<Item = ObjectKey> {
        self.policies.iter().map(|policy| policy.key.clone()).chain(self.cluster.iter().map(|p| p.key()))
    }

    fn is_like(&self, a: &ClusterPolicy, b: &ClusterPolicy) -> bool {
        (&a.name, &a.uid, a.tier, a.priority) == (&b.name, &b.uid, b.tier, b.priority)
            && a.rules(self.direction) == b.rules(self.direction)
    }
}

impl PartialEq for RowSpec {
    fn eq(&self, other: &Self) -> bool {
        let same = |a: &Arc<Policy>, b: &Arc<Policy>| {
            Arc::ptr_eq(a, b) || (a.key == b.key && a.uid == b.uid && self.rules(a) == other.rules(b))
        };
        self.direction == other.direction
            && self.ports == other.ports
            && self.policies.len() == other.policies.len()
            && self.cluster.len() == other.cluster.len()
            && self.policies.iter().zip(&other.policies).all(|(a, b)| same(a, b))
            && self.cluster.iter().zip(&other.cluster).all(|(a, b)| Arc::ptr_eq(a, b) || self.is_like(a, b))
    }
}

impl Eq for RowSpec {}

/// Content of a rule set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct SetContent {
    /// Disjoint sorted intervals of TCP, UDP and SCTP.
    pub intervals: [Vec<Interval>; 3],
    /// Outcome of every other protocol.
    pub other: Outcome,
    /// Outcome of ports outside all intervals.
    pub default: Outcome,
}

impl SetContent {
    /// Intervals of all protocols.
    #[must_use]
    pub fn len(&self) -> usize {
        self.intervals.iter().map(Vec::len).sum()
    }

    /// Everything passes, by no rule.
    #[must_use]
    pub fn open() -> Self {
        let allow = Outcome::new(action::ALLOW, 0);
        Self { intervals: Default::default(), other: allow, default: allow }
    }

    /// What happens to a packet to this port.
    #[must_use]
    pub fn outcome(&self, protocol: Protocol, port: u16) -> Outcome {
        let intervals = &self.intervals[protocol as usize];
        let at = intervals.partition_point(|interval| interval.high < port);
        intervals.get(at).filter(|interval| interval.low <= port).map_or(self.default, |i| i.outcome)
    }

    /// Decides one port anew.
    pub fn put(&mut self, protocol: Protocol, port: u16, outcome: Outcome) {
        if self.outcome(protocol, port) == outcome {
            return;
        }
        let intervals = &mut self.intervals[protocol as usize];
        let at = intervals.partition_point(|interval| interval.high < port);
        let mut parts = Vec::new();
        let old = intervals.get(at).filter(|interval| interval.low <= port).copied();
        parts.extend(old.filter(|o| o.low < port).map(|o| Interval { high: port - 1, ..o }));
        parts.push(Interval { low: port, high: port, outcome });
        parts.extend(old.filter(|o| o.high > port).map(|o| Interval { low: port + 1, ..o }));
        intervals.splice(at..at + usize::from(old.is_some()), parts);
    }

    /// Whether nothing matches: such a cell is 0.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0 && self.other == Outcome::DROP && self.default == Outcome::DROP
    }
}
