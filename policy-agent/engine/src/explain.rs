//! Why a flow may not open: the rule that came nearest and the one field that kept it from matching, and the verdict in
//! prose.

use std::fmt;
use std::net::IpAddr;

use policy_common::abi::Direction;
use policy_common::reason::Reason;

use crate::model::{
    NAMESPACE_NAME_LABEL, NamespaceScope, ObjectKey, Peer, Peers, Pod, Policy, PortMatch, Ports, Protocol,
    Requirement, Rule,
};
use crate::oracle::{self, Judges, pod_of_peer};
use crate::services;
use crate::verdict::{Evaluation, Field, Nearest, Query, RuleRef, Side};
use crate::words;
use crate::world::{Entity, World};

/// The rule of the isolating policies that came nearest to matching; `None` when they have no rules, when the pod is
/// not isolated, and when any rule decides.
///
/// Nearer is who fails in fewer of peer, protocol and port; then who has the right peer; then policy key and index.
#[must_use]
pub fn nearest(world: &World, direction: Direction, query: &Query) -> Option<Nearest> {
    let pod = oracle::subject(world, direction, query)?;
    let judges = Judges::of(world, &pod, direction);
    if direction == Direction::Egress
        && let Some(backends) = services::backends(world, &pod, query)
    {
        // The backend that is not allowed.
        let judged = backends.into_iter().filter(|backend| !world.is_node_of(&pod, backend.0));
        return judged
            .map(|backend| services::towards(query, backend))
            .find_map(|query| nearest_of(world, &judges, direction, &query));
    }
    nearest_of(world, &judges, direction, query)
}

fn nearest_of(world: &World, judges: &Judges<'_>, direction: Direction, query: &Query) -> Option<Nearest> {
    let decided = judges.decide(world, direction, query);
    if decided.passes || decided.rule.is_some() {
        return None;
    }
    let mut best: Option<(Distance, Candidate<'_>)> = None;
    for policy in &judges.isolating {
        for (index, rule) in oracle::rules(policy, direction)?.iter().enumerate() {
            let candidate = Candidate { world, policy, rule, direction, query, index };
            let distance = candidate.distance();
            if best.as_ref().is_none_or(|(least, _)| distance < *least) {
                best = Some((distance, candidate));
            }
        }
    }
    best.map(|(_, candidate)| candidate.into_nearest())
}

/// A rule as a person finds it: of a ClusterNetworkPolicy with the rule's name, tier and priority.
#[must_use]
pub fn rule(world: &World, rule: &RuleRef) -> String {
    let Some(policy) = world.cluster_policies.get(&rule.policy.name).filter(|_| rule.is_of_cluster()) else {
        return rule.to_string();
    };
    let name = policy.rules(rule.direction).get(rule.index as usize).map_or("", |rule| &*rule.name);
    let name = if name.is_empty() { String::new() } else { format!(" \"{name}\"") };
    format!("{rule}{name} ({} tier, priority {})", policy.tier, policy.priority)
}

/// ClusterNetworkPolicies with their tiers and priorities.
fn cluster_policies(world: &World, keys: &[ObjectKey]) -> String {
    words::list(keys.iter().map(|key| match world.cluster_policies.get(&key.name) {
        Some(policy) => format!("{key} ({} tier, priority {})", policy.tier, policy.priority),
        None => key.to_string(),
    }))
}

/// How far a rule is from matching; the smallest is nearest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Distance {
    failing: u8,
    wrong_peer: bool,
}

/// What the best port entry of a rule lacks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum PortMiss {
    None,
    Port,
    Protocol,
    Both,
}

impl PortMiss {
    fn failing(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Port | Self::Protocol => 1,
            Self::Both => 2,
        }
    }
}

/// A rule that may be the nearest.
struct Candidate<'a> {
    world: &'a World,
    policy: &'a Policy,
    rule: &'a Rule,
    direction: Direction,
    query: &'a Query,
    index: usize,
}

impl Candidate<'_> {
    fn remote(&self) -> IpAddr {
        oracle::remote_address(self.direction, self.query)
    }

    fn distance(&self) -> Distance {
        let own = &self.policy.key.namespace;
        let wrong_peer = !oracle::peers_match(self.world, own, &self.rule.peers, self.remote());
        Distance { failing: u8::from(wrong_peer) + self.port_miss().failing(), wrong_peer }
    }

    fn into_nearest(self) -> Nearest {
        let index = u32::try_from(self.index).unwrap_or(u32::MAX);
        let rule = RuleRef { policy: self.policy.key.clone(), direction: self.direction, index };
        let (field, wanted, got) = match &self.rule.peers {
            Peers::Any(peers) if self.distance().wrong_peer => self.peer_difference(peers),
            Peers::Any(_) | Peers::All => self.port_difference(),
        };
        Nearest { rule, field, wanted, got }
    }

    fn port_miss(&self) -> PortMiss {
        if oracle::ports_match(self.world, &self.rule.ports, self.query) {
            return PortMiss::None;
        }
        let entries = match &self.rule.ports {
            Ports::All => return PortMiss::None,
            Ports::Any(entries) => entries,
        };
        // Without ports there is but the protocol to compare.
        let Some(protocol) = Protocol::from_number(self.query.protocol) else { return PortMiss::Protocol };
        entries.iter().map(|entry| self.entry_miss(entry, protocol)).min().unwrap_or(PortMiss::Both)
    }

    fn entry_miss(&self, entry: &PortMatch, protocol: Protocol) -> PortMiss {
        let (wanted, port_fits) = match entry {
            PortMatch::Protocol(wanted) => (*wanted, true),
            PortMatch::Range(wanted, low, high) => (*wanted, (*low..=*high).contains(&self.query.port)),
            PortMatch::Named(wanted, name) => {
                (*wanted, self.numbers(name, *wanted).contains(&self.query.port))
            }
            PortMatch::Nothing => return PortMiss::Both,
        };
        match (wanted == protocol, port_fits) {
            (true, true) => PortMiss::None,
            (true, false) => PortMiss::Port,
            (false, true) => PortMiss::Protocol,
            (false, false) => PortMiss::Both,
        }
    }

    /// The numbers that the destination pod gives to a port name.
    fn numbers(&self, name: &str, protocol: Protocol) -> Vec<u16> {
        let Some(pod) = self.world.pod_at(self.query.destination) else { return Vec::new() };
        let named = pod.ports.iter().filter(|port| *port.name == *name && port.protocol == protocol);
        named.map(|port| port.port).collect()
    }

    fn port_difference(&self) -> (Field, String, String) {
        let wanted = match &self.rule.ports {
            Ports::All => String::new(),
            Ports::Any(entries) => words::list(entries.iter().map(|entry| self.entry_in_words(entry))),
        };
        let field = match self.port_miss() {
            PortMiss::Protocol => Field::Protocol,
            PortMiss::None | PortMiss::Port | PortMiss::Both => Field::Port,
        };
        (field, wanted, words::port(self.query.protocol, self.query.port))
    }

    fn entry_in_words(&self, entry: &PortMatch) -> String {
        let PortMatch::Named(protocol, name) = entry else { return entry.to_string() };
        let numbers = self.numbers(name, *protocol);
        if numbers.is_empty() {
            return format!("{entry} (the destination has no port of this name)");
        }
        format!("{entry} (= {})", words::list(numbers))
    }

    fn peer_difference(&self, peers: &[Peer]) -> (Field, String, String) {
        let pod = pod_of_peer(self.world, self.remote());
        let Some(pod) = pod else {
            let got = format!("{}{}", self.remote(), self.what_no_pod_is());
            return (Field::Address, words::list(peers), got);
        };
        let misses = peers.iter().filter_map(|peer| self.selector_miss(peer, &pod));
        if let Some(nearest) = misses.min_by_key(|miss| (miss.labels, miss.field)) {
            return (nearest.field, nearest.wanted, nearest.got);
        }
        (Field::Address, words::list(peers), self.remote().to_string())
    }

    fn what_no_pod_is(&self) -> &'static str {
        match self.world.entity(self.remote()) {
            Entity::OwnNode => " (this node)",
            Entity::Node(_) => " (a node)",
            Entity::Service(_) => " (a Service)",
            Entity::Pod(_) | Entity::World => "",
        }
    }

    /// What keeps a peer's selectors from matching a pod; `None` if the peer has none.
    fn selector_miss(&self, peer: &Peer, pod: &Pod) -> Option<SelectorMiss> {
        let Peer::Pods { namespaces, pods } = peer else { return None };
        let namespace = &pod.key.namespace;
        let labels = self.world.namespace_labels(namespace);
        let own =
            Requirement::In(NAMESPACE_NAME_LABEL.to_owned(), vec![self.policy.key.namespace.to_string()]);
        let wrong_namespace = match namespaces {
            NamespaceScope::Own => (!own.holds(&labels)).then_some(&own),
            NamespaceScope::Selector(selector) => selector.first_failing(&labels),
        };
        let wrong_pod = pods.first_failing(&pod.labels);
        let labels_failing = u8::from(wrong_namespace.is_some()) + u8::from(wrong_pod.is_some());
        let (field, requirement, labels) = match (wrong_namespace, wrong_pod) {
            (Some(requirement), _) => (Field::NamespaceLabel, requirement, &labels),
            (None, Some(requirement)) => (Field::PodLabel, requirement, &pod.labels),
            (None, None) => return None,
        };
        let got = match requirement.key() {
            Some(key) => {
                labels.get(key).map_or_else(|| format!("(no {key})"), |value| format!("{key}={value}"))
            }
            None => pod.key.to_string(),
        };
        Some(SelectorMiss { labels: labels_failing, field, wanted: requirement.to_string(), got })
    }
}

struct SelectorMiss {
    labels: u8,
    field: Field,
    wanted: String,
    got: String,
}

/// Writes an evaluation as prose, one paragraph for each side.
///
/// # Errors
/// Those of the writer.
pub fn text(out: &mut impl fmt::Write, world: &World, query: &Query, evaluation: &Evaluation) -> fmt::Result {
    let verdict = if evaluation.allows() { "allowed" } else { "denied" };
    let (source, destination) = (end(world, query.source), end(world, query.destination));
    writeln!(out, "{source} -> {destination} {}: {verdict}", words::port(query.protocol, query.port))?;
    side_text(out, world, query, Direction::Egress, &source, &evaluation.egress)?;
    side_text(out, world, query, Direction::Ingress, &destination, &evaluation.ingress)
}

/// An address as a person knows it.
fn end(world: &World, address: IpAddr) -> String {
    match world.entity(address) {
        Entity::Pod(key) => format!("{key} ({address})"),
        Entity::OwnNode => format!("this node ({address})"),
        Entity::Node(name) => format!("node {name} ({address})"),
        Entity::Service(key) => format!("Service {key} ({address})"),
        Entity::World => address.to_string(),
    }
}

fn side_text(
    out: &mut impl fmt::Write,
    world: &World,
    query: &Query,
    direction: Direction,
    end: &str,
    side: &Side,
) -> fmt::Result {
    let verdict = if side.allows() { "allowed" } else { "denied" };
    let name = direction.name();
    writeln!(out, "  {name} of {end}: {verdict}, {}", why(world, query, side))?;
    if !side.isolated_by.is_empty() {
        writeln!(out, "    isolated by: {}", words::list(&side.isolated_by))?;
    }
    if !side.cluster_policies.is_empty() {
        writeln!(out, "    policies of the cluster: {}", cluster_policies(world, &side.cluster_policies))?;
    }
    let rules =
        [("passed on by", &side.passed_by), ("denied by", &side.denied_by), ("allowed by", &side.allowed_by)];
    for (what, found) in rules {
        if let Some(found) = found {
            writeln!(out, "    {what}: {}", rule(world, found))?;
        }
    }
    match &side.nearest {
        Some(nearest) => {
            writeln!(out, "    nearest rule: {}", nearest.rule)?;
            writeln!(out, "      {} wanted: {}", nearest.field.name(), nearest.wanted)?;
            writeln!(out, "      {} got: {}", nearest.field.name(), nearest.got)
        }
        None if side.denied_by.is_some() => Ok(()),
        None if !side.allows() && has_no_backend(world, query, direction) => {
            writeln!(out, "    nearest rule: none, the Service has no backend")
        }
        None if !side.allows() => {
            writeln!(out, "    nearest rule: none, these policies have no {name} rules")
        }
        None => Ok(()),
    }
}

fn has_no_backend(world: &World, query: &Query, direction: Direction) -> bool {
    let pod = oracle::subject(world, direction, query).filter(|_| direction == Direction::Egress);
    pod.and_then(|pod| services::backends(world, &pod, query)).is_some_and(|backends| backends.is_empty())
}

fn why(world: &World, query: &Query, side: &Side) -> &'static str {
    if side.pod.is_none() {
        return "policy judges pods only, and this is none";
    }
    if side.reason == Reason::Allowed && side.allowed_by.is_none() && oracle::is_to_itself(world, query) {
        return "traffic of a pod to itself never leaves the pod";
    }
    if side.reason == Reason::Allowed && side.allowed_by.is_none() && side.isolated_by.is_empty() {
        return "no rule decides it, and no NetworkPolicy isolates the pod in this direction";
    }
    side.reason.help()
}
