//! Questions about a node's endpoints, and the evaluator's answers in the words of the tables.

use std::collections::BTreeSet;
use std::net::IpAddr;

use policy_common::abi::{Direction, Outcome, action};
use policy_common::reason::Reason;

use super::rng::Rng;
use super::worlds;
use crate::desired::Endpoint;
use crate::model::Protocol;
use crate::oracle;
use crate::rule_ids::{RuleIds, RuleKey};
use crate::verdict::{Query, RuleRef};
use crate::world::World;

/// A flow that opens between an endpoint and a remote address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sample {
    /// Slot.
    pub slot: u16,
    /// Direction of the opening, seen from the endpoint.
    pub direction: Direction,
    /// The other end.
    pub remote: IpAddr,
    /// IP protocol.
    pub protocol: u8,
    /// Port of the side that is opened to.
    pub port: u16,
}

/// The evaluator's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// The tables decide this.
    Tables(Outcome),
    /// Decided by the packet's path (own node, the pod itself): the tables need not say.
    Path,
}

/// Random samples for these endpoints.
#[must_use]
pub fn samples(rng: &mut Rng, world: &World, endpoints: &[Endpoint], count: usize) -> Vec<Sample> {
    let mut addresses: BTreeSet<IpAddr> = world.pods.values().flat_map(|p| p.addresses.clone()).collect();
    addresses.extend(world.frontends().map(|(address, _)| address));
    addresses.extend((0..8).map(|_| worlds::address(rng)));
    let addresses: Vec<IpAddr> = addresses.into_iter().collect();
    let mut samples = Vec::new();
    for _ in 0..count {
        let (Some(endpoint), Some(remote)) = (rng.pick(endpoints), rng.pick(&addresses)) else { break };
        let port = rng.one([0, 52, 53, 79, 80, 81, 82, 443, 8080, 65_535]);
        samples.push(Sample {
            slot: endpoint.slot,
            direction: rng.one([Direction::Ingress, Direction::Egress]),
            remote: *remote,
            protocol: rng.one([6, 6, 17, 132, 1]),
            port,
        });
    }
    samples
}

/// Random samples of what endpoints open to ports that lead to Services.
#[must_use]
pub fn front_samples(rng: &mut Rng, world: &World, endpoints: &[Endpoint], count: usize) -> Vec<Sample> {
    let own = world.host_addresses.iter().copied();
    let addresses = world.frontends().map(|(address, _)| address).chain(own);
    let fronts: Vec<(IpAddr, Protocol, u16)> = addresses
        .flat_map(|address| {
            world.front_ports(address).into_iter().map(move |f| (address, f.protocol, f.port))
        })
        .collect();
    let mut samples = Vec::new();
    for _ in 0..count {
        let (Some(endpoint), Some(front)) = (rng.pick(endpoints), rng.pick(&fronts)) else { break };
        let (remote, protocol, port) = *front;
        let slot = endpoint.slot;
        let port = if rng.percent(90) { port } else { port + 1 };
        samples.push(Sample {
            slot,
            direction: Direction::Egress,
            remote,
            protocol: protocol.number(),
            port,
        });
    }
    samples
}

/// What the evaluator says. `None` if the world knows no address by which the endpoint could be asked about.
#[must_use]
pub fn expected(world: &World, endpoints: &[Endpoint], ids: &RuleIds, sample: &Sample) -> Option<Expected> {
    let endpoint = endpoints.iter().find(|e| e.slot == sample.slot)?;
    let Some(pod) = world.pods.get(&endpoint.pod).filter(|p| p.is_subject()) else {
        return Some(Expected::Tables(Outcome::DROP));
    };
    let own = |a: &&IpAddr| world.pod_at(**a).is_some_and(|p| p.key == pod.key);
    let address = *pod.addresses.iter().find(own)?;
    let (source, destination) = match sample.direction {
        Direction::Ingress => (sample.remote, address),
        Direction::Egress => (address, sample.remote),
    };
    let query =
        Query { source, destination, protocol: sample.protocol, port: sample.port, from_node_process: false };
    let side = oracle::side(world, sample.direction, &query);
    let itself = world.pod_at(sample.remote).is_some_and(|p| p.key == pod.key);
    let outcome = match side.reason {
        Reason::OwnNode => return Some(Expected::Path),
        Reason::Allowed if itself => return Some(Expected::Path),
        reason if !reason.passes() => Outcome::new(action::DROP, number(world, ids, side.denied_by)),
        _ => Outcome::new(action::ALLOW, number(world, ids, side.allowed_by)),
    };
    Some(Expected::Tables(outcome))
}

/// Number of the rule that decides; 0 = none does.
fn number(world: &World, ids: &RuleIds, rule: Option<RuleRef>) -> u32 {
    let key = rule.and_then(|rule| {
        let uid = if rule.is_of_cluster() {
            world.cluster_policies.get(&rule.policy.name)?.uid.clone()
        } else {
            world.policies.get(&rule.policy)?.uid.clone()
        };
        Some(RuleKey { rule, uid })
    });
    key.and_then(|key| ids.find(&key)).unwrap_or(0)
}
