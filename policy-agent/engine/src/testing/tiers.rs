//! Random ClusterNetworkPolicies: few names and priorities, so that they meet.

use super::rng::Rng;
use super::worlds::{block, ports, selector};
use crate::model::{
    Action, ClusterPolicy, NamespaceScope, Peer, Peers, PortMatch, Ports, Protocol, Selector, Tier, TierRule,
};
use crate::world::World;

/// A policy that may replace one of the world.
pub(super) fn cluster_policy(rng: &mut Rng, world: &World) -> ClusterPolicy {
    let name: std::sync::Arc<str> = rng.one(["t0", "t1", "t2", "t3", "t4", "t5"]).into();
    let old = world.cluster_policies.get(&name).filter(|_| rng.percent(50));
    let uid = old.map_or_else(|| format!("{:x}", rng.next()).into(), |old| old.uid.clone());
    let namespaces = if rng.percent(50) { Selector::default() } else { selector(rng) };
    let pods = if rng.percent(50) { Selector::default() } else { selector(rng) };
    let (ingress, egress) = (rules(rng, false), rules(rng, true));
    let tier = if rng.percent(70) { Tier::Admin } else { Tier::Baseline };
    ClusterPolicy { name, uid, tier, priority: rng.one([0, 0, 1]), namespaces, pods, ingress, egress }
}

fn rules(rng: &mut Rng, egress: bool) -> Vec<TierRule> {
    (0..rng.one([0, 1, 2, 3, 4])).map(|_| rule(rng, egress)).collect()
}

fn rule(rng: &mut Rng, egress: bool) -> TierRule {
    let peers = (0..rng.one([1, 1, 2, 3])).map(|_| peer(rng, egress)).collect();
    let rule = TierRule {
        name: "".into(),
        action: rng.one(Action::ALL),
        peers: Peers::Any(peers),
        ports: if rng.percent(20) { any_of_name(rng) } else { ports(rng) },
    };
    if rng.percent(5) { rule.closed() } else { rule }
}

/// A name whatever the protocol.
fn any_of_name(rng: &mut Rng) -> Ports {
    let name: std::sync::Arc<str> = rng.one(["http", "dns", "x"]).into();
    Ports::Any(Protocol::ALL.into_iter().map(|protocol| PortMatch::Named(protocol, name.clone())).collect())
}

fn peer(rng: &mut Rng, egress: bool) -> Peer {
    match rng.below(10) {
        0..=2 if egress => block(rng),
        3 if egress => Peer::Nodes(selector(rng)),
        4 => Peer::Pods {
            namespaces: NamespaceScope::Selector(Selector::default()),
            pods: Selector::default(),
        },
        _ => Peer::Pods { namespaces: NamespaceScope::Selector(selector(rng)), pods: selector(rng) },
    }
}
