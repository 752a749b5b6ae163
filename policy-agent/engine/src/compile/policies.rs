//! Which policies judge which endpoint, and their rules in order of decision.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use policy_common::abi::{Direction, Outcome, action};

use super::atoms::{AtomId, Atoms, Target};
use super::tiers::{self, Stage};
use crate::desired::{DesiredEndpoint, Endpoint, RowChoice, RowSpec};
use crate::model::{
    ClusterPolicy, ContainerPort, ObjectKey, Pod, Policy, PortMatch, Ports, Protocol, Rule, TierRule,
};
use crate::rule_ids::{RuleIds, RuleKey};
use crate::world::World;

/// A port name of a protocol.
pub(crate) type PortName = (Protocol, Arc<str>);

/// Everything that depends on policies and local pods alone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selection {
    /// Endpoints with their rows.
    pub(crate) endpoints: Vec<DesiredEndpoint>,
    /// Rows.
    pub(crate) rows: Vec<Row>,
    /// Atoms that a rule names, sorted.
    pub(crate) live: Vec<AtomId>,
    /// Port names of egress rules by atom.
    pub(crate) names: HashMap<AtomId, BTreeSet<PortName>>,
    /// Port names of egress rules that match every address.
    pub(crate) names_of_all: BTreeSet<PortName>,
    /// Pods that rules of the cluster concern: what reaches them from themselves through a Service is judged.
    pub(crate) of_cluster: BTreeSet<ObjectKey>,
}

/// In what the rules of two selections tell addresses apart otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Apart {
    /// In nothing: an address stays in its class.
    AsBefore,
    /// By these atoms, which name pods alone.
    ByPods(BTreeSet<AtomId>),
    /// By more than that.
    Anyhow,
}

/// A row and its rules.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// Identity.
    pub(crate) spec: Arc<RowSpec>,
    /// Rules that can match, in order of decision.
    pub(crate) rules: Vec<RowRule>,
}

/// A rule of a row.
#[derive(Clone, Debug)]
pub(crate) struct RowRule {
    /// Whom it matches.
    pub(crate) target: Target,
    /// What it decides, in the words of its stage.
    pub(crate) outcome: Outcome,
    /// When it is asked.
    pub(crate) stage: Stage,
    /// Its policy and its index there.
    of: Of,
    index: usize,
}

/// A policy of either kind.
#[derive(Clone, Debug)]
enum Of {
    Namespace(Arc<Policy>),
    Cluster(Arc<ClusterPolicy>),
}

impl Row {
    /// Ports of one of the row's rules.
    pub(crate) fn ports<'a>(&self, rule: &'a RowRule) -> &'a Ports {
        rule.ports(self.spec.direction)
    }

    /// Whether port names take their numbers from the class (egress) instead of the row's own pod.
    pub(crate) fn names_of_class(&self) -> bool {
        self.spec.direction == Direction::Egress
    }
}

impl RowRule {
    fn ports(&self, direction: Direction) -> &Ports {
        let found = match (&self.of, direction) {
            (Of::Namespace(policy), Direction::Ingress) => ports_in(policy.ingress.as_deref(), self.index),
            (Of::Namespace(policy), Direction::Egress) => ports_in(policy.egress.as_deref(), self.index),
            (Of::Cluster(policy), _) => policy.rules(direction).get(self.index).map(|rule| &rule.ports),
        };
        found.unwrap_or(&NO_PORTS)
    }

    /// Whether another rule of a ClusterNetworkPolicy is of the same one.
    pub(crate) fn is_of_one_policy(&self, other: &Self) -> bool {
        match (&self.of, &other.of) {
            (Of::Cluster(a), Of::Cluster(b)) => Arc::ptr_eq(a, b),
            (Of::Namespace(_), _) | (_, Of::Namespace(_)) => false,
        }
    }

    /// Who answers for it: the namespace of its policy, the empty one for a policy of the cluster.
    pub(crate) fn owner(&self) -> Arc<str> {
        match &self.of {
            Of::Namespace(policy) => policy.key.namespace.clone(),
            Of::Cluster(_) => "".into(),
        }
    }
}

fn ports_in(rules: Option<&[Rule]>, index: usize) -> Option<&Ports> {
    Some(&rules?.get(index)?.ports)
}

/// Ports of a rule that does not exist: none match.
static NO_PORTS: Ports = Ports::Any(Vec::new());

/// Rules of a policy in one direction, resolved once per version of the policy.
type Resolved = Arc<[RowRule]>;

/// A policy with its resolved rules by direction.
type Cached<P> = (Arc<P>, [Option<Resolved>; 2]);

/// Resolved rules, kept while the policy stays the same object.
#[derive(Clone, Debug, Default)]
pub(crate) struct Policies {
    cache: BTreeMap<ObjectKey, Cached<Policy>>,
    cluster: BTreeMap<Arc<str>, Cached<ClusterPolicy>>,
}

impl Policies {
    /// Finds the rows of all endpoints. An endpoint whose pod is not known, or has ended, is closed.
    pub(crate) fn select(
        &mut self,
        world: &World,
        endpoints: &[Endpoint],
        closed_owners: &BTreeSet<Arc<str>>,
        atoms: &mut Atoms,
        ids: &mut RuleIds,
    ) -> Selection {
        let mut selection = Selection::default();
        let mut index: HashMap<Identity, usize> = HashMap::new();
        let mut used = BTreeSet::new();
        let mut namespaces: HashMap<&str, Vec<&Arc<Policy>>> = HashMap::new();
        let cluster = tiers::in_order(world);
        for endpoint in endpoints {
            let pod = world.pods.get(&endpoint.pod).filter(|p| p.is_subject());
            let Some(pod) = pod else {
                selection.endpoints.push(closed(endpoint));
                continue;
            };
            let namespace = &*pod.key.namespace;
            let policies =
                namespaces.entry(namespace).or_insert_with(|| world.policies_of(namespace).collect());
            let mine: Vec<_> =
                policies.iter().copied().filter(|p| p.pod_selector.matches(&pod.labels)).collect();
            let of_cluster = tiers::concerning(world, &cluster, pod);
            if !of_cluster.is_empty() {
                selection.of_cluster.insert(pod.key.clone());
            }
            let is_closed = closed_owners.contains(&pod.key.namespace)
                || closed_owners.contains("") && !of_cluster.is_empty();
            let mut choose = |direction| {
                let Some(spec) = spec(&mine, &of_cluster, pod, direction) else { return RowChoice::Open };
                if is_closed {
                    return RowChoice::Closed;
                }
                let row = *index.entry(Identity::of(&spec)).or_insert_with(|| {
                    let rules = self.rules(&spec, atoms, ids);
                    selection.rows.push(Row { spec: Arc::new(spec), rules });
                    selection.rows.len() - 1
                });
                RowChoice::Row(row)
            };
            let (ingress, egress) = (choose(Direction::Ingress), choose(Direction::Egress));
            selection.endpoints.push(DesiredEndpoint {
                slot: endpoint.slot,
                pod: endpoint.pod.clone(),
                ingress,
                egress,
            });
        }
        selection.endpoints.sort_unstable_by_key(|e| e.slot);
        self.forget_unused(&selection);
        selection.collect(&mut used);
        ids.retain(&used);
        selection
    }

    /// Numbers of rules that no row has may be given away, so their resolved form must not come back.
    fn forget_unused(&mut self, selection: &Selection) {
        let rows = || selection.rows.iter().map(|row| &row.spec);
        let in_use: HashSet<usize> = rows().flat_map(|spec| &spec.policies).map(address).collect();
        self.cache.retain(|_, (policy, _)| in_use.contains(&address(policy)));
        let in_use: HashSet<usize> = rows().flat_map(|spec| &spec.cluster).map(address).collect();
        self.cluster.retain(|_, (policy, _)| in_use.contains(&address(policy)));
    }

    /// The rules of a row.
    fn rules(&mut self, spec: &RowSpec, atoms: &mut Atoms, ids: &mut RuleIds) -> Vec<RowRule> {
        let mut rules: Vec<RowRule> = Vec::new();
        for policy in &spec.cluster {
            let cached = of(self.cluster.entry(policy.name.clone()), policy);
            let slot = &mut cached.1[spec.direction as usize - 1];
            let found = slot.get_or_insert_with(|| resolve_cluster(policy, spec, atoms, ids));
            rules.extend(found.iter().cloned());
        }
        for policy in &spec.policies {
            let cached = of(self.cache.entry(policy.key.clone()), policy);
            let slot = &mut cached.1[spec.direction as usize - 1];
            let found = slot.get_or_insert_with(|| resolve(policy, spec, atoms, ids));
            rules.extend(found.iter().cloned());
        }
        rules
    }
}

/// What is resolved of this very version of a policy.
fn of<'a, K: Ord, P>(entry: Entry<'a, K, Cached<P>>, policy: &Arc<P>) -> &'a mut Cached<P> {
    let nothing = || (policy.clone(), [None, None]);
    let cached = entry.or_insert_with(nothing);
    if !Arc::ptr_eq(&cached.0, policy) {
        *cached = nothing();
    }
    cached
}

/// What tells a version of a policy from others, as long as it is held.
fn address<P>(policy: &Arc<P>) -> usize {
    Arc::as_ptr(policy).addr()
}

impl Selection {
    /// Whether it was made from the same policies for the same endpoints, so that all that follows from it is the same.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.endpoints == other.endpoints
            && self.of_cluster == other.of_cluster
            && self.rows.len() == other.rows.len()
            && self.rows.iter().zip(&other.rows).all(|(a, b)| Identity::of(&a.spec) == Identity::of(&b.spec))
    }

    /// In what the rules of the next selection tell addresses apart otherwise.
    pub(crate) fn apart(&self, next: &Self, atoms: &Atoms) -> Apart {
        if self.names_of_all != next.names_of_all
            || self.names.is_empty() != next.names.is_empty()
            || self.of_cluster != next.of_cluster
        {
            return Apart::Anyhow;
        }
        let [old, new] = [&self.live, &next.live].map(|live| live.iter().copied().collect::<BTreeSet<_>>());
        let mut changed: BTreeSet<AtomId> = old.symmetric_difference(&new).copied().collect();
        let named = self.names.keys().chain(next.names.keys());
        changed.extend(named.filter(|id| self.names.get(id) != next.names.get(id)));
        let only_pods = |id: &AtomId| atoms.get(*id).blocks.is_empty() && atoms.get(*id).nodes.is_empty();
        match changed.iter().all(only_pods) {
            _ if changed.is_empty() => Apart::AsBefore,
            true => Apart::ByPods(changed),
            false => Apart::Anyhow,
        }
    }

    /// Hands what belongs to each row on to the same row of the next selection.
    pub(crate) fn carry<T: Default>(&self, of_rows: Vec<T>, next: &Self) -> Vec<T> {
        let identities = self.rows.iter().map(|row| Identity::of(&row.spec));
        let mut there: HashMap<Identity, T> = identities.zip(of_rows).collect();
        next.rows.iter().map(|row| there.remove(&Identity::of(&row.spec)).unwrap_or_default()).collect()
    }

    fn collect(&mut self, used: &mut BTreeSet<u32>) {
        let mut live = BTreeSet::new();
        for row in &mut self.rows {
            used.extend(row.rules.iter().map(|r| r.outcome.rule()));
            row.rules.retain(|r| r.target != Target::Nothing);
            for rule in &row.rules {
                let names = match rule.target {
                    Target::All => &mut self.names_of_all,
                    Target::Atom(id) => {
                        live.insert(id);
                        self.names.entry(id).or_default()
                    }
                    Target::Nothing => continue,
                };
                if row.spec.direction == Direction::Egress {
                    let ports = rule.ports(row.spec.direction);
                    names.extend(port_names(ports).map(|(p, n)| (*p, n.clone())));
                }
            }
        }
        self.names.retain(|_, names| !names.is_empty());
        self.live = live.into_iter().collect();
    }
}

/// What makes two rows the same, cheap to hash: the policy objects themselves.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Identity {
    direction: Direction,
    policies: Vec<usize>,
    cluster: Vec<usize>,
    ports: Vec<ContainerPort>,
}

impl Identity {
    fn of(spec: &RowSpec) -> Self {
        Self {
            direction: spec.direction,
            policies: spec.policies.iter().map(address).collect(),
            cluster: spec.cluster.iter().map(address).collect(),
            ports: spec.ports.clone(),
        }
    }
}

fn closed(endpoint: &Endpoint) -> DesiredEndpoint {
    DesiredEndpoint {
        slot: endpoint.slot,
        pod: endpoint.pod.clone(),
        ingress: RowChoice::Closed,
        egress: RowChoice::Closed,
    }
}

/// Identity of the row that judges a pod; `None` if no policy has anything to say in that direction.
fn spec(
    selecting: &[&Arc<Policy>],
    of_cluster: &[&Arc<ClusterPolicy>],
    pod: &Pod,
    direction: Direction,
) -> Option<RowSpec> {
    let isolates = |p: &Policy| match direction {
        Direction::Ingress => p.ingress.is_some(),
        Direction::Egress => p.egress.is_some(),
    };
    let policies: Vec<_> = selecting.iter().filter(|p| isolates(p)).map(|p| Arc::clone(p)).collect();
    let cluster = of_cluster.iter().filter(|p| !p.rules(direction).is_empty());
    let cluster: Vec<_> = cluster.map(|p| Arc::clone(p)).collect();
    if policies.is_empty() && cluster.is_empty() {
        return None;
    }
    let mut spec = RowSpec { direction, policies, cluster, ports: Vec::new() };
    if direction == Direction::Ingress {
        let mut ports: Vec<ContainerPort> = Vec::new();
        let of_namespace = spec.policies.iter().flat_map(|p| spec.rules(p)).map(|rule| &rule.ports);
        let of_cluster = spec.cluster.iter().flat_map(|p| p.rules(direction)).map(|rule| &rule.ports);
        for (protocol, name) in of_namespace.chain(of_cluster).flat_map(port_names) {
            ports.extend(pod.ports.iter().filter(|p| p.protocol == *protocol && p.name == *name).cloned());
        }
        ports.sort_unstable();
        ports.dedup();
        spec.ports = ports;
    }
    Some(spec)
}

/// Port names of a rule.
fn port_names(ports: &Ports) -> impl Iterator<Item = (&Protocol, &Arc<str>)> {
    let ports: &[PortMatch] = match ports {
        Ports::All => &[],
        Ports::Any(ports) => ports,
    };
    ports.iter().filter_map(|port| match port {
        PortMatch::Named(protocol, name) => Some((protocol, name)),
        PortMatch::Protocol(_) | PortMatch::Range(..) | PortMatch::Nothing => None,
    })
}

fn resolve(policy: &Arc<Policy>, spec: &RowSpec, atoms: &mut Atoms, ids: &mut RuleIds) -> Resolved {
    let one = |(index, rule): (usize, &Rule)| {
        let key = RuleKey { rule: spec.rule_ref(policy.key.clone(), index), uid: policy.uid.clone() };
        RowRule {
            target: atoms.target(&policy.key.namespace, &rule.peers),
            // Without a number the rule still allows; its packets are counted under no rule.
            outcome: Outcome::new(action::ALLOW, ids.id(&key).unwrap_or(0)),
            stage: Stage::Namespace,
            of: Of::Namespace(policy.clone()),
            index,
        }
    };
    spec.rules(policy).iter().enumerate().map(one).collect()
}

fn resolve_cluster(
    policy: &Arc<ClusterPolicy>,
    spec: &RowSpec,
    atoms: &mut Atoms,
    ids: &mut RuleIds,
) -> Resolved {
    let one = |(index, rule): (usize, &TierRule)| {
        let key = RuleKey { rule: spec.rule_ref(policy.key(), index), uid: policy.uid.clone() };
        RowRule {
            target: atoms.target(&Arc::from(""), &rule.peers),
            outcome: tiers::word(rule.action, || ids.id(&key).unwrap_or(0)),
            stage: Stage::of(policy),
            of: Of::Cluster(policy.clone()),
            index,
        }
    };
    policy.rules(spec.direction).iter().enumerate().map(one).collect()
}
