//! What does not fit is refused for its namespace alone: all others get their policies.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use policy_engine::compile::{Compiler, Share};
use policy_engine::desired::{Desired, Endpoint};
use policy_engine::model::{ObjectKey, Policy};
use policy_engine::plan::Plan;
use policy_engine::rule_ids::RuleIds;
use policy_engine::tables::{PlanError, Table, Tables};
use policy_engine::world::World;

/// Why a namespace's policies are not the newest ones.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refusal {
    /// What does not fit.
    pub reason: String,
    /// What is in force instead.
    pub instead: &'static str,
}

/// A world that fits, and the plan that leads to it.
#[derive(Debug)]
pub(super) struct Admitted {
    /// The plan.
    pub plan: Plan,
    /// The world that it enforces.
    pub world: World,
    /// Namespaces that were refused.
    pub refused: BTreeMap<Arc<str>, Refusal>,
}

/// Compiles and plans. `last` is the world in force.
///
/// # Errors
/// `Busy` = again after the grace period; `Full` = not even without new policies: pods or nodes are too many.
pub(super) fn admit(
    compiler: &mut Compiler,
    tables: &mut Tables,
    ids: &mut RuleIds,
    world: &World,
    endpoints: &[Endpoint],
    last: &World,
) -> Result<Admitted, PlanError> {
    let mut world = world.clone();
    let mut refused: BTreeMap<Arc<str>, Refusal> = BTreeMap::new();
    loop {
        let desired = compiler.compile(&world, endpoints, ids);
        let trouble = match oversized(&desired, &refused) {
            Some((namespace, reason)) => (namespace, reason),
            None => match tables.plan(&desired) {
                Ok(plan) => return Ok(Admitted { plan, world, refused }),
                Err(error @ PlanError::Full { table, .. }) => {
                    let shares = compiler.shares(&desired);
                    (greediest(&shares, table, &world, last, &refused).ok_or(error)?, error.to_string())
                }
                Err(error @ PlanError::Busy(_)) => return Err(error),
            },
        };
        let (namespace, reason) = trouble;
        let instead = hold_back(&mut world, &namespace, last, refused.contains_key(&namespace));
        refused.insert(namespace, Refusal { reason, instead });
    }
}

/// The first namespace with a rule set that no table could hold.
fn oversized(desired: &Desired, refused: &BTreeMap<Arc<str>, Refusal>) -> Option<(Arc<str>, String)> {
    let closed = |namespace: &Arc<str>| refused.get(namespace).is_some_and(|r| r.instead == CLOSED);
    let (namespace, needed) = desired.oversized.iter().find(|(namespace, _)| !closed(namespace))?;
    let limit = policy_common::abi::limits::INTERVALS_PER_SET;
    Some((namespace.clone(), format!("port ranges of one peer: {needed} needed, {limit} is the limit")))
}

const KEPT: &str = "its last policies that fitted stay in force";
const CLOSED: &str = "its isolated pods are closed";

/// Puts a namespace's policies back to what is in force; when that was tried, lets them isolate and allow nothing.
fn hold_back(world: &mut World, namespace: &Arc<str>, last: &World, tried: bool) -> &'static str {
    let old: Vec<_> = of(last, namespace).map(|(key, policy)| (key.clone(), policy.clone())).collect();
    if !tried && !old.is_empty() {
        let isolating = of(world, namespace).map(|(key, policy)| (key.clone(), closed(policy)));
        // A policy that is new isolates; one that was taken away must not open a pod half-way.
        let new: Vec<_> = isolating.filter(|(key, _)| !old.iter().any(|(k, _)| k == key)).collect();
        for (key, policy) in old.into_iter().chain(new) {
            world.policies.insert(key, policy);
        }
        return KEPT;
    }
    let all: Vec<_> = of(world, namespace).map(|(key, policy)| (key.clone(), closed(policy))).collect();
    for (key, policy) in all {
        world.policies.insert(key, policy);
    }
    CLOSED
}

fn of<'a>(world: &'a World, namespace: &'a str) -> impl Iterator<Item = (&'a ObjectKey, &'a Arc<Policy>)> {
    world
        .policies
        .range(ObjectKey::new(namespace, "")..)
        .take_while(move |(key, _)| *key.namespace == *namespace)
}

/// The policy as one that isolates and allows nothing.
fn closed(policy: &Arc<Policy>) -> Arc<Policy> {
    Arc::new(Policy {
        ingress: policy.ingress.as_ref().map(|_| Vec::new()),
        egress: policy.egress.as_ref().map(|_| Vec::new()),
        ..(**policy).clone()
    })
}

/// Of the namespaces whose policies changed, the one that needs most of a table; if none changed, of all.
fn greediest(
    shares: &BTreeMap<Arc<str>, Share>,
    table: Table,
    now: &World,
    last: &World,
    refused: &BTreeMap<Arc<str>, Refusal>,
) -> Option<Arc<str>> {
    let changed: BTreeSet<Arc<str>> =
        shares.keys().filter(|n| !of(now, n).eq(of(last, n))).cloned().collect();
    let closed = |n: &&Arc<str>| refused.get(*n).is_some_and(|r| r.instead == CLOSED);
    let most = |names: &mut dyn Iterator<Item = &Arc<str>>| {
        names
            .filter(|n| !closed(n))
            .map(|n| (shares.get(n).map_or(0, |s| need(s, table)), n.clone()))
            .filter(|(need, _)| *need > 0)
            .max()
            .map(|(_, n)| n)
    };
    most(&mut changed.iter()).or_else(|| most(&mut shares.keys()))
}

fn need(share: &Share, table: Table) -> u32 {
    match table {
        Table::Rows => share.rows,
        Table::Classes => share.classes,
        Table::Hosts => share.hosts,
        Table::Prefixes => share.prefixes,
        Table::HostWords => share.hosts + share.prefixes,
        Table::RuleSets => share.rule_sets,
        Table::Intervals | Table::IntervalsPerSet => share.intervals,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use policy_engine::limits::Limits;
    use policy_engine::model::{Labels, Peer, Peers, Phase, Pod, Ports, Rule, Selector};
    use policy_engine::world::Delta;

    fn pod(namespace: &str, address: &str) -> Pod {
        Pod {
            key: ObjectKey::new(namespace, "p"),
            uid: "".into(),
            labels: Labels::default(),
            node: Some("n".into()),
            host_network: false,
            phase: Phase::Running,
            terminating: false,
            addresses: vec![address.parse().unwrap()],
            ports: Vec::new(),
            created: "".into(),
            interface: None,
        }
    }

    fn policy(namespace: &str, blocks: u8) -> Policy {
        let block = |i| Peer::Block { cidr: format!("10.{i}.0.0/16").parse().unwrap(), except: Vec::new() };
        let rule = |i| Rule { peers: Peers::Any(vec![block(i)]), ports: Ports::All };
        Policy {
            key: ObjectKey::new(namespace, "np"),
            uid: "".into(),
            pod_selector: Selector::default(),
            ingress: Some((0..blocks).map(rule).collect()),
            egress: None,
        }
    }

    #[test]
    fn a_greedy_namespace_keeps_its_last_policies_and_the_others_get_theirs() {
        let limits = Limits { prefixes: 4, ..Limits::default() };
        let (mut compiler, mut tables) = (Compiler::new(limits), Tables::new(limits));
        let mut ids = RuleIds::default();
        let mut world = World::new("n");
        for (namespace, address) in [("a", "10.0.0.1"), ("b", "10.0.0.2")] {
            world.apply(Delta::Pod(pod(namespace, address)));
        }
        let endpoint =
            |slot, namespace| Endpoint { slot, id: u32::from(slot), pod: ObjectKey::new(namespace, "p") };
        let endpoints = [endpoint(1, "a"), endpoint(2, "b")];
        world.apply(Delta::Policy(policy("a", 2)));
        let mut admit_ = |world: &World, last: &World| {
            admit(&mut compiler, &mut tables, &mut ids, world, &endpoints, last).unwrap()
        };
        let first = admit_(&world, &World::default());
        assert!(first.refused.is_empty());
        world.apply(Delta::Policy(policy("a", 9)));
        world.apply(Delta::Policy(policy("b", 1)));
        let second = admit_(&world, &first.world);
        assert_eq!(second.refused.keys().map(|n| &**n).collect::<Vec<_>>(), ["a"]);
        assert_eq!(second.refused.values().next().unwrap().instead, KEPT);
        let rules = |world: &World, namespace| {
            world.policies[&ObjectKey::new(namespace, "np")].ingress.as_ref().unwrap().len()
        };
        assert_eq!((rules(&second.world, "a"), rules(&second.world, "b")), (2, 1));
    }

    #[test]
    fn a_namespace_that_never_fitted_is_closed() {
        let limits = Limits { prefixes: 4, ..Limits::default() };
        let mut world = World::new("n");
        world.apply(Delta::Pod(pod("a", "10.0.0.1")));
        world.apply(Delta::Policy(policy("a", 9)));
        let endpoints = [Endpoint { slot: 1, id: 1, pod: ObjectKey::new("a", "p") }];
        let admitted = admit(
            &mut Compiler::new(limits),
            &mut Tables::new(limits),
            &mut RuleIds::default(),
            &world,
            &endpoints,
            &World::default(),
        )
        .unwrap();
        assert_eq!(admitted.refused.values().next().unwrap().instead, CLOSED);
        let policy = &admitted.world.policies[&ObjectKey::new("a", "np")];
        assert_eq!(policy.ingress, Some(Vec::new()), "still isolated, nothing matches");
    }
}
