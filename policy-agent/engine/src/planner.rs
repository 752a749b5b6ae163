//! World in, plan out: compiles, plans, and holds back the namespaces whose policies do not fit.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::OrdMap;

use crate::compile::{Compiler, Share};
use crate::desired::{Desired, Endpoint};
use crate::limits::Limits;
use crate::model::{ClusterPolicy, ObjectKey, Pod, Policy};
use crate::plan::Plan;
use crate::rule_ids::RuleIds;
use crate::tables::{PlanError, Table, Tables};
use crate::world::World;

/// What happens to the policies of a namespace, or of the cluster, that do not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Held {
    /// The policies that were installed last stay; newer ones isolate and their rules match nothing. Of the cluster:
    /// what newer ones accept they do not match, and else they deny everything.
    LastGood,
    /// All policies isolate and their rules match nothing.
    Closed,
}

/// A namespace whose policies do not fit, and what is enforced instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Namespace; empty for the policies of the cluster.
    pub namespace: Arc<str>,
    /// What is enforced instead.
    pub held: Held,
    /// Table that was too small.
    pub table: Table,
    /// Entries needed.
    pub needed: u64,
    /// Entries there can be.
    pub limit: u64,
    /// Hooked pods of the namespace, or those that policies of the cluster are about.
    pub endpoints: Vec<ObjectKey>,
}

/// Result of [`Planner::plan`].
#[derive(Clone, Debug)]
pub struct Planned {
    /// Writes; empty if there is nothing to do or [`Planned::busy`].
    pub plan: Plan,
    /// Namespaces held back. Plan again after the next [`Planner::collect`]: there may be room then.
    pub refusals: Vec<Refusal>,
    /// Entries in quarantine are needed: nothing was planned. Collect after the grace period, then plan again.
    pub busy: Option<Table>,
}

/// The policies that are in force.
#[derive(Clone, Debug, Default)]
struct Installed {
    policies: OrdMap<ObjectKey, Arc<Policy>>,
    cluster: OrdMap<Arc<str>, Arc<ClusterPolicy>>,
}

impl Installed {
    /// Nothing of a closed owner is installed, so nothing of it is a last good version.
    fn forget(&mut self, owner: &str, world: &World) {
        if owner.is_empty() {
            self.cluster = OrdMap::new();
        }
        for policy in world.policies_of(owner) {
            self.policies.remove(&policy.key);
        }
    }

    /// Whether the policies of an owner are others than those of the world.
    fn differ(&self, owner: &str, world: &World) -> bool {
        !world.policies_of(owner).eq(policies_in(&self.policies, owner))
            || owner.is_empty() && world.cluster_policies != self.cluster
    }
}

/// Compiler, tables and what was last installed.
#[derive(Clone, Debug)]
pub struct Planner {
    compiler: Compiler,
    /// The tables.
    pub tables: Tables,
    /// Numbers of rules; saved across restarts.
    pub rules: RuleIds,
    installed: Installed,
    enforced: World,
}

impl Planner {
    /// Starts with these tables (new, or read back) and numbers of rules.
    #[must_use]
    pub fn new(limits: Limits, tables: Tables, rules: RuleIds) -> Self {
        Self {
            compiler: Compiler::new(limits),
            tables,
            rules,
            installed: Installed::default(),
            enforced: World::default(),
        }
    }

    /// Plans the writes that make the tables say what the world says of these endpoints, and takes them as done.
    pub fn plan(&mut self, world: &World, endpoints: &[Endpoint]) -> Planned {
        let mut held: BTreeMap<Arc<str>, Refusal> = BTreeMap::new();
        loop {
            let effective = self.effective(world, &held);
            let closed = held.values().filter(|r| r.held == Held::Closed).map(|r| r.namespace.clone());
            self.compiler.close(closed.collect());
            let desired = self.compiler.compile(&effective, endpoints, &mut self.rules);
            let error = match oversized(&desired) {
                Some((namespace, error)) => Err((Some(namespace), error)),
                None => self.tables.plan(&desired).map_err(|error| (None, error)),
            };
            match error {
                Ok(plan) => {
                    self.installed = Installed {
                        policies: effective.policies.clone(),
                        cluster: effective.cluster_policies.clone(),
                    };
                    self.enforced = effective;
                    for refusal in held.values().filter(|r| r.held == Held::Closed) {
                        self.installed.forget(&refusal.namespace, world);
                    }
                    return Planned { plan, refusals: held.into_values().collect(), busy: None };
                }
                Err((_, PlanError::Busy(table))) => return self.nothing(held, Some(table)),
                Err((namespace, PlanError::Full { table, needed, limit })) => {
                    let shares = self.compiler.shares(&desired);
                    let changed = |owner: &str| self.installed.differ(owner, world);
                    let victim = victim(&shares, &held, namespace, table, changed);
                    let Some((namespace, level)) = victim else {
                        // Nothing of this is due to policies; the tables stay as they are.
                        return self.nothing(held, Some(table));
                    };
                    let concerned = |pod: &&ObjectKey| match &*namespace {
                        "" => world.pods.get(*pod).is_some_and(|pod| of_cluster(world, pod)),
                        namespace => *pod.namespace == *namespace,
                    };
                    let endpoints = endpoints.iter().map(|e| &e.pod).filter(concerned).cloned().collect();
                    let refusal = Refusal {
                        namespace: namespace.clone(),
                        held: level,
                        table,
                        needed,
                        limit,
                        endpoints,
                    };
                    held.insert(namespace, refusal);
                }
            }
        }
    }

    /// Cleans up behind plans whose grace period is over. See [`Tables::collect`].
    pub fn collect(&mut self, grace: u64) -> Plan {
        self.tables.collect(grace)
    }

    /// The world as it was planned last: policies of namespaces held back at their last good version are those.
    #[must_use]
    pub const fn enforced(&self) -> &World {
        &self.enforced
    }

    fn nothing(&self, held: BTreeMap<Arc<str>, Refusal>, busy: Option<Table>) -> Planned {
        let plan = Plan { number: self.tables.number(), ops: Vec::new() };
        Planned { plan, refusals: held.into_values().collect(), busy }
    }

    /// The world with the policies of held namespaces replaced.
    fn effective(&self, world: &World, held: &BTreeMap<Arc<str>, Refusal>) -> World {
        let mut effective = world.clone();
        for (namespace, refusal) in held {
            if refusal.held == Held::Closed {
                continue;
            }
            for policy in world.policies_of(namespace) {
                effective.policies.insert(policy.key.clone(), Arc::new(isolating(policy)));
            }
            // Also those that are gone: taking one away from the others could open a pod half-way.
            for policy in policies_in(&self.installed.policies, namespace) {
                effective.policies.insert(policy.key.clone(), policy.clone());
            }
            if namespace.is_empty() {
                let closed = |(name, policy): (&Arc<str>, &Arc<ClusterPolicy>)| {
                    (name.clone(), Arc::new(policy.closed()))
                };
                let new = world.cluster_policies.iter().map(closed);
                effective.cluster_policies = self.installed.cluster.clone().union(new.collect());
            }
        }
        effective
    }
}

/// Whether policies of the cluster are about a pod.
fn of_cluster(world: &World, pod: &Pod) -> bool {
    let labels = world.namespace_labels(&pod.key.namespace);
    world.cluster_policies.values().any(|policy| policy.concerns(&labels, pod))
}

/// The policy without its rules.
fn isolating(policy: &Policy) -> Policy {
    Policy {
        ingress: policy.ingress.as_ref().map(|_| Vec::new()),
        egress: policy.egress.as_ref().map(|_| Vec::new()),
        ..policy.clone()
    }
}

fn oversized(desired: &Desired) -> Option<(Arc<str>, PlanError)> {
    let (namespace, needed) = desired.oversized.first()?;
    let (needed, limit) = (u64::from(*needed), u64::from(desired.intervals_per_set));
    Some((namespace.clone(), PlanError::Full { table: Table::IntervalsPerSet, needed, limit }))
}

fn policies_in<'a>(
    policies: &'a OrdMap<ObjectKey, Arc<Policy>>,
    namespace: &'a str,
) -> impl Iterator<Item = &'a Arc<Policy>> {
    policies
        .range(ObjectKey::new(namespace, "")..)
        .take_while(move |(key, _)| *key.namespace == *namespace)
        .map(|(_, policy)| policy)
}

/// The namespace to hold back (further): of those whose policies changed, else of all, the one that takes most of the
/// table.
fn victim(
    shares: &BTreeMap<Arc<str>, Share>,
    held: &BTreeMap<Arc<str>, Refusal>,
    named: Option<Arc<str>>,
    table: Table,
    changed: impl Fn(&str) -> bool,
) -> Option<(Arc<str>, Held)> {
    let next = |namespace: &Arc<str>| match held.get(namespace).map(|r| r.held) {
        None => Some(Held::LastGood),
        Some(Held::LastGood) => Some(Held::Closed),
        Some(Held::Closed) => None,
    };
    if let Some(namespace) = named {
        let level = next(&namespace)?;
        return Some((namespace, level));
    }
    let taken = |share: &Share| match table {
        Table::Rows => share.rows,
        Table::Classes => share.classes,
        Table::Hosts => share.hosts,
        Table::Prefixes => share.prefixes,
        Table::HostWords => share.hosts + share.prefixes,
        Table::RuleSets => share.rule_sets,
        Table::Intervals | Table::IntervalsPerSet => share.intervals,
    };
    let candidates: BTreeSet<_> = shares
        .iter()
        .filter(|(_, share)| taken(share) > 0)
        .filter_map(|(namespace, share)| {
            let level = next(namespace)?;
            let first = level == Held::LastGood && changed(namespace);
            Some((first, taken(share), namespace, level))
        })
        .collect();
    candidates.last().map(|(.., namespace, level)| (Arc::clone(namespace), *level))
}
