//! The reference evaluator: whether a flow may open, decided straight from the words of the API.
//!
//! It is slow and plain on purpose. The compiler must not use it (nor it the compiler): tests hold the two readings of
//! the same model against each other. What it answers where the API is silent is listed in `docs/semantics.md`.

mod tiers;

use std::net::IpAddr;
use std::sync::Arc;

use policy_common::abi::Direction;
use policy_common::reason::Reason;

use crate::address::is_identity;
use crate::explain;
use crate::model::{
    Action, ClusterPolicy, NamespaceScope, Peer, Peers, Pod, Policy, PortMatch, Ports, Protocol, Rule, Tier,
};
use crate::services;
use crate::verdict::{Evaluation, Query, RuleRef, Side};
use crate::world::World;

/// Judges both sides of an opening packet, and says of a denial which rule came nearest.
#[must_use]
pub fn evaluate(world: &World, query: &Query) -> Evaluation {
    let mut evaluation = verdicts(world, query);
    for (direction, side) in
        [(Direction::Egress, &mut evaluation.egress), (Direction::Ingress, &mut evaluation.ingress)]
    {
        if !side.allows() {
            side.nearest = explain::nearest(world, direction, query);
        }
    }
    evaluation
}

/// [`evaluate`] without the nearest rule.
#[must_use]
pub fn verdicts(world: &World, query: &Query) -> Evaluation {
    Evaluation {
        egress: side(world, Direction::Egress, query),
        ingress: side(world, Direction::Ingress, query),
    }
}

/// Judges one side: the egress of the source or the ingress of the destination. `nearest` stays empty.
#[must_use]
pub fn side(world: &World, direction: Direction, query: &Query) -> Side {
    let Some(pod) = subject(world, direction, query) else { return Side::open(None) };
    let judges = Judges::of(world, &pod, direction);
    judge(world, direction, query, &pod, &judges)
}

/// Judges both sides of an opening packet that reached its destination through a Service. Unlike what a pod sends to its
/// own address, that has left the pod: ClusterNetworkPolicies are about it, even if it comes back to where it began.
#[must_use]
pub fn through_service(world: &World, query: &Query) -> Evaluation {
    let one = |direction| {
        let Some(pod) = subject(world, direction, query) else { return Side::open(None) };
        let judges = Judges::of(world, &pod, direction);
        let itself = is_to_itself(world, query) && !is_of_cluster(world, &pod);
        judge_as(world, direction, query, &pod, &judges, itself)
    };
    Evaluation { egress: one(Direction::Egress), ingress: one(Direction::Ingress) }
}

/// Whether a ClusterNetworkPolicy has rules for the pod.
fn is_of_cluster(world: &World, pod: &Pod) -> bool {
    let labels = world.namespace_labels(&pod.key.namespace);
    world.cluster_policies.values().any(|policy| policy.concerns(&labels, pod))
}

/// The pod whose policies judge this side: the source for egress, the destination for ingress.
pub(crate) fn subject(world: &World, direction: Direction, query: &Query) -> Option<Arc<Pod>> {
    match direction {
        // A process of the node is no pod, whatever source address it uses.
        Direction::Egress if query.from_node_process => None,
        Direction::Egress => world.pod_at(query.source),
        Direction::Ingress => world.pod_at(query.destination),
    }
}

/// The policies that judge a pod in a direction.
pub(crate) struct Judges<'a> {
    /// Those of its namespace that select it and name the direction: they isolate it.
    pub(crate) isolating: Vec<&'a Arc<Policy>>,
    /// Those of the cluster that have rules for it, in the order in which they are asked: they isolate nobody.
    cluster: Vec<&'a Arc<ClusterPolicy>>,
}

impl<'a> Judges<'a> {
    /// Those of a pod.
    pub(crate) fn of(world: &'a World, pod: &'a Pod, direction: Direction) -> Self {
        let of_namespace = world.policies_of(&pod.key.namespace);
        let isolates = |policy: &&Arc<Policy>| {
            rules(policy, direction).is_some() && policy.pod_selector.matches(&pod.labels)
        };
        Self {
            isolating: of_namespace.filter(isolates).collect(),
            cluster: tiers::concerning(world, pod, direction),
        }
    }

    /// What they say of a flow.
    pub(crate) fn decide(&self, world: &World, direction: Direction, query: &Query) -> Decided {
        let mut passed_on = None;
        for tier in Tier::ALL {
            match tiers::ask(world, tier, &self.cluster, direction, query) {
                Some((Action::Accept, rule)) => return Decided { passes: true, rule: Some(rule), passed_on },
                Some((Action::Deny, rule)) => return Decided { passes: false, rule: Some(rule), passed_on },
                Some((Action::Pass, rule)) => passed_on = Some(rule),
                None => {}
            }
            if tier == Tier::Admin && !self.isolating.is_empty() {
                // Who is isolated is judged to the end here.
                let rule = first_match(world, direction, query, &self.isolating);
                return Decided { passes: rule.is_some(), rule, passed_on };
            }
        }
        Decided { passes: true, rule: None, passed_on }
    }
}

/// A decision: denied without a rule = isolated, and none matches.
pub(crate) struct Decided {
    pub(crate) passes: bool,
    pub(crate) rule: Option<RuleRef>,
    passed_on: Option<RuleRef>,
}

/// Judges a side whose pod and policies are known.
pub(crate) fn judge(
    world: &World,
    direction: Direction,
    query: &Query,
    pod: &Pod,
    judges: &Judges<'_>,
) -> Side {
    judge_as(world, direction, query, pod, judges, is_to_itself(world, query))
}

/// The same. `exempt`: it is the pod's traffic to itself, that no policy can stop.
fn judge_as(
    world: &World,
    direction: Direction,
    query: &Query,
    pod: &Pod,
    judges: &Judges<'_>,
    exempt: bool,
) -> Side {
    if judges.isolating.is_empty() && judges.cluster.is_empty() {
        return Side::open(Some(pod.key.clone()));
    }
    let backends = if direction == Direction::Egress { services::backends(world, pod, query) } else { None };
    let decided = match &backends {
        Some(backends) => every_backend(world, pod, query, judges, backends),
        None => judges.decide(world, direction, query),
    };
    let reason = if backends.is_none() && is_own_node_traffic(world, direction, query, pod) {
        Reason::OwnNode
    } else if decided.passes || exempt {
        Reason::Allowed
    } else if decided.rule.is_some() {
        Reason::DeniedByRule
    } else {
        Reason::NoRuleMatched
    };
    let Decided { passes, rule, passed_on } = decided;
    let (allowed_by, denied_by) = if passes { (rule, None) } else { (None, rule) };
    Side {
        reason,
        pod: Some(pod.key.clone()),
        isolated_by: judges.isolating.iter().map(|policy| policy.key.clone()).collect(),
        cluster_policies: judges.cluster.iter().map(|policy| policy.key()).collect(),
        passed_by: passed_on,
        allowed_by: allowed_by.filter(|_| reason == Reason::Allowed),
        denied_by: denied_by.filter(|_| reason == Reason::DeniedByRule),
        nearest: None,
    }
}

/// The first rule that matches, in order of policy key and rule index.
fn first_match(
    world: &World,
    direction: Direction,
    query: &Query,
    isolating: &[&Arc<Policy>],
) -> Option<RuleRef> {
    isolating.iter().find_map(|policy| {
        let rules = rules(policy, direction)?;
        let index = rules.iter().position(|rule| rule_matches(world, policy, rule, direction, query))?;
        Some(RuleRef {
            policy: policy.key.clone(),
            direction,
            index: u32::try_from(index).unwrap_or(u32::MAX),
        })
    })
}

/// Whether a pod may open to everything that the node may choose, of which there must be something: by the first
/// backend's rule if it may, else as the first says that it may not open to.
fn every_backend(
    world: &World,
    pod: &Pod,
    query: &Query,
    judges: &Judges<'_>,
    backends: &[(IpAddr, u16)],
) -> Decided {
    let mut first = None;
    for backend in backends {
        let query = services::towards(query, *backend);
        let decided = if world.is_node_of(pod, query.destination) {
            // What the node delivers to itself is allowed, whether it was translated or not.
            Decided { passes: true, rule: None, passed_on: None }
        } else {
            judges.decide(world, Direction::Egress, &query)
        };
        if !decided.passes {
            return decided;
        }
        first.get_or_insert(decided);
    }
    first.unwrap_or(Decided { passes: false, rule: None, passed_on: None })
}

/// The rules of a policy in a direction; `None` if it does not isolate in that direction.
pub(crate) fn rules(policy: &Policy, direction: Direction) -> Option<&[Rule]> {
    match direction {
        Direction::Ingress => policy.ingress.as_deref(),
        Direction::Egress => policy.egress.as_deref(),
    }
}

/// Processes of a node always reach its pods, and pods always reach their own node. Packets that the node merely
/// forwards under its own address are not its traffic.
fn is_own_node_traffic(world: &World, direction: Direction, query: &Query, pod: &Pod) -> bool {
    match direction {
        Direction::Ingress => query.from_node_process && world.is_node_of(pod, query.source),
        Direction::Egress => world.is_node_of(pod, query.destination),
    }
}

/// Traffic of a pod to itself never leaves the pod, so no policy can stop it.
pub(crate) fn is_to_itself(world: &World, query: &Query) -> bool {
    let (source, destination) =
        (subject(world, Direction::Egress, query), subject(world, Direction::Ingress, query));
    matches!((source, destination), (Some(a), Some(b)) if a.key == b.key)
}

/// A rule matches if one of its peers and one of its ports do.
fn rule_matches(world: &World, policy: &Policy, rule: &Rule, direction: Direction, query: &Query) -> bool {
    let Rule { peers, ports } = rule;
    let remote = remote_address(direction, query);
    peers_match(world, &policy.key.namespace, peers, remote) && ports_match(world, ports, query)
}

/// The address of the other end.
pub(crate) fn remote_address(direction: Direction, query: &Query) -> IpAddr {
    match direction {
        Direction::Ingress => query.source,
        Direction::Egress => query.destination,
    }
}

/// The pod that selectors see at an address. An address of the host is never a pod: what comes from it was made or
/// forwarded by the node.
pub(crate) fn pod_of_peer(world: &World, address: IpAddr) -> Option<Arc<Pod>> {
    if world.is_host_address(address) { None } else { world.pod_at(address) }
}

/// Whether a rule of a policy of namespace `own` is about an address.
pub(crate) fn peers_match(world: &World, own: &str, peers: &Peers, remote: IpAddr) -> bool {
    match peers {
        Peers::All => true,
        Peers::Any(peers) => peers.iter().any(|peer| peer_matches(world, own, peer, remote)),
    }
}

fn peer_matches(world: &World, own: &str, peer: &Peer, remote: IpAddr) -> bool {
    match peer {
        // By address alone: pods and nodes inside the block match too. What stands for a workload is no address.
        Peer::Block { cidr, except } => {
            !is_identity(&remote)
                && cidr.contains(&remote)
                && !except.iter().any(|except| except.contains(&remote))
        }
        Peer::Pods { namespaces, pods } => {
            let Some(pod) = pod_of_peer(world, remote) else { return false };
            let namespace = &pod.key.namespace;
            let in_scope = match namespaces {
                NamespaceScope::Own => **namespace == *own,
                NamespaceScope::Selector(selector) => selector.matches(&world.namespace_labels(namespace)),
            };
            in_scope && pods.matches(&pod.labels)
        }
        // By address alone too.
        Peer::Nodes(selector) => world
            .nodes
            .values()
            .any(|node| node.addresses.contains(&remote) && selector.matches(&node.labels)),
        Peer::Nothing => false,
    }
}

pub(crate) fn ports_match(world: &World, ports: &Ports, query: &Query) -> bool {
    match ports {
        Ports::All => true,
        Ports::Any(ports) => {
            // A rule that names ports speaks of TCP, UDP and SCTP only; ICMP and the rest need one without.
            let Some(protocol) = Protocol::from_number(query.protocol) else { return false };
            ports.iter().any(|entry| port_matches(world, entry, protocol, query))
        }
    }
}

fn port_matches(world: &World, entry: &PortMatch, protocol: Protocol, query: &Query) -> bool {
    match entry {
        PortMatch::Protocol(wanted) => *wanted == protocol,
        PortMatch::Range(wanted, low, high) => *wanted == protocol && (*low..=*high).contains(&query.port),
        // The destination gives the name its number, whichever side is judged. Who is no pod has no names.
        PortMatch::Named(wanted, name) => {
            *wanted == protocol
                && world.pod_at(query.destination).is_some_and(|pod| {
                    pod.ports.iter().any(|port| {
                        port.name == *name && port.protocol == protocol && port.port == query.port
                    })
                })
        }
        PortMatch::Nothing => false,
    }
}
