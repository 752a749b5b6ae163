//! Which policies judge which endpoint, and their rules in order of decision.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use policy_common::abi::{Direction, Outcome, action};

use super::atoms::{AtomId, Atoms, Target};
use crate::desired::{DesiredEndpoint, Endpoint, RowChoice, RowSpec};
use crate::model::{ContainerPort, ObjectKey, Pod, Policy, PortMatch, Ports, Protocol, Rule};
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
    /// What it decides.
    pub(crate) outcome: Outcome,
    /// Its policy and its index there.
    policy: Arc<Policy>,
    index: usize,
}

impl Row {
    /// Ports of one of the row's rules.
    pub(crate) fn ports<'a>(&self, rule: &'a RowRule) -> &'a Ports {
        match self.spec.direction {
            Direction::Ingress => rule.ports(rule.policy.ingress.as_deref()),
            Direction::Egress => rule.ports(rule.policy.egress.as_deref()),
        }
    }

    /// Whether port names take their numbers from the class (egress) instead of the row's own pod.
    pub(crate) fn names_of_class(&self) -> bool {
        self.spec.direction == Direction::Egress
    }
}

impl RowRule {
    fn ports<'a>(&'a self, rules: Option<&'a [Rule]>) -> &'a Ports {
        rules.and_then(|r| r.get(self.index)).map_or(&NO_PORTS, |r| &r.ports)
    }
}

/// Ports of a rule that does not exist: none match.
static NO_PORTS: Ports = Ports::Any(Vec::new());

/// Rules of a policy in one direction, resolved once per version of the policy.
type Resolved = Arc<[RowRule]>;

/// Resolved rules, kept while the policy stays the same object.
#[derive(Clone, Debug, Default)]
pub(crate) struct Policies {
    cache: BTreeMap<ObjectKey, (Arc<Policy>, [Option<Resolved>; 2])>,
}

impl Policies {
    /// Finds the rows of all endpoints. An endpoint whose pod is not known, or has ended, is closed.
    pub(crate) fn select(
        &mut self,
        world: &World,
        endpoints: &[Endpoint],
        closed_namespaces: &BTreeSet<Arc<str>>,
        atoms: &mut Atoms,
        ids: &mut RuleIds,
    ) -> Selection {
        let mut selection = Selection::default();
        let mut index: HashMap<Identity, usize> = HashMap::new();
        self.cache.retain(|key, cached| world.policies.get(key).is_some_and(|p| Arc::ptr_eq(p, &cached.0)));
        let mut used = BTreeSet::new();
        let mut namespaces: HashMap<&str, Vec<&Arc<Policy>>> = HashMap::new();
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
            let is_closed = closed_namespaces.contains(&pod.key.namespace);
            let mut choose = |direction| {
                let Some(spec) = spec(&mine, pod, direction) else { return RowChoice::Open };
                if is_closed {
                    return RowChoice::Closed;
                }
                let row = *index.entry(Identity::of(&spec)).or_insert_with(|| {
                    let rules = spec.policies.iter().flat_map(|policy| {
                        self.resolve(policy, &spec, atoms, ids).iter().cloned().collect::<Vec<_>>()
                    });
                    let rules = rules.collect();
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
        // Numbers of rules that no row has may be given away, so their resolved form must not come back.
        let in_use: BTreeSet<&ObjectKey> =
            selection.rows.iter().flat_map(|r| &r.spec.policies).map(|p| &p.key).collect();
        self.cache.retain(|key, _| in_use.contains(key));
        selection.collect(&mut used);
        ids.retain(&used);
        selection
    }

    fn resolve(
        &mut self,
        policy: &Arc<Policy>,
        spec: &RowSpec,
        atoms: &mut Atoms,
        ids: &mut RuleIds,
    ) -> Resolved {
        let cached = self.cache.entry(policy.key.clone()).or_insert_with(|| (policy.clone(), [None, None]));
        let slot = &mut cached.1[spec.direction as usize - 1];
        slot.get_or_insert_with(|| {
            let rules = spec.rules(policy).iter().enumerate();
            rules.map(|(i, rule)| resolve(policy, spec, i, rule, atoms, ids)).collect()
        })
        .clone()
    }
}

impl Selection {
    /// Whether it was made from the same policies for the same endpoints, so that all that follows from it is the same.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.endpoints == other.endpoints
            && self.rows.len() == other.rows.len()
            && self.rows.iter().zip(&other.rows).all(|(a, b)| Identity::of(&a.spec) == Identity::of(&b.spec))
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
                    let rule = &row.spec.rules(&rule.policy)[rule.index];
                    names.extend(port_names(rule).map(|(p, n)| (*p, n.clone())));
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
    ports: Vec<ContainerPort>,
}

impl Identity {
    fn of(spec: &RowSpec) -> Self {
        Self {
            direction: spec.direction,
            policies: spec.policies.iter().map(|p| Arc::as_ptr(p).addr()).collect(),
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

/// Identity of the row that judges a pod; `None` if no policy isolates it in that direction.
fn spec(selecting: &[&Arc<Policy>], pod: &Pod, direction: Direction) -> Option<RowSpec> {
    let isolates = |p: &Policy| match direction {
        Direction::Ingress => p.ingress.is_some(),
        Direction::Egress => p.egress.is_some(),
    };
    let policies: Vec<_> = selecting.iter().filter(|p| isolates(p)).map(|p| Arc::clone(p)).collect();
    if policies.is_empty() {
        return None;
    }
    let mut spec = RowSpec { direction, policies, ports: Vec::new() };
    if direction == Direction::Ingress {
        let mut ports: Vec<ContainerPort> = Vec::new();
        for (protocol, name) in spec.policies.iter().flat_map(|p| spec.rules(p)).flat_map(port_names) {
            ports.extend(pod.ports.iter().filter(|p| p.protocol == *protocol && p.name == *name).cloned());
        }
        ports.sort_unstable();
        ports.dedup();
        spec.ports = ports;
    }
    Some(spec)
}

/// Port names of a rule.
fn port_names(rule: &Rule) -> impl Iterator<Item = (&Protocol, &Arc<str>)> {
    let ports: &[PortMatch] = match &rule.ports {
        Ports::All => &[],
        Ports::Any(ports) => ports,
    };
    ports.iter().filter_map(|port| match port {
        PortMatch::Named(protocol, name) => Some((protocol, name)),
        PortMatch::Protocol(_) | PortMatch::Range(..) | PortMatch::Nothing => None,
    })
}

fn resolve(
    policy: &Arc<Policy>,
    spec: &RowSpec,
    index: usize,
    rule: &Rule,
    atoms: &mut Atoms,
    ids: &mut RuleIds,
) -> RowRule {
    let key = RuleKey { rule: spec.rule_ref(policy, index), uid: policy.uid.clone() };
    // Without a number the rule still allows; its packets are counted under no rule.
    let id = ids.id(&key).unwrap_or(0);
    RowRule {
        target: atoms.target(&policy.key.namespace, &rule.peers),
        outcome: Outcome::new(action::ALLOW, id),
        policy: policy.clone(),
        index,
    }
}
