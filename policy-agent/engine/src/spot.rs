//! Questions to a node that is running: flows of its endpoints with the evaluator's answer, which the kernel must share.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use policy_common::abi::Direction;

use crate::desired::Endpoint;
use crate::model::{Peer, Peers, PortMatch, Ports};
use crate::oracle;
use crate::verdict::Query;
use crate::world::World;

/// The first port that the opening side has in questions: what it opens to is never in this range.
const EPHEMERAL: u16 = 49_152;

/// The opening of a flow between an endpoint and a remote address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spot {
    /// Slot of the endpoint.
    pub slot: u16,
    /// Direction of the opening, seen from the endpoint.
    pub direction: Direction,
    /// The endpoint's address.
    pub local: IpAddr,
    /// The other end.
    pub remote: IpAddr,
    /// IP protocol: TCP, UDP or SCTP.
    pub protocol: u8,
    /// Port of the side that opens.
    pub from_port: u16,
    /// Port of the side that is opened to.
    pub port: u16,
    /// The evaluator's answer.
    pub passes: bool,
}

/// Where policies and pods make a difference: addresses and ports beside those that they name.
#[derive(Clone, Debug, Default)]
pub struct Corners {
    addresses: Vec<IpAddr>,
    ports: Vec<u16>,
}

impl Corners {
    /// Those of a world.
    #[must_use]
    pub fn of(world: &World) -> Self {
        let mut addresses: BTreeSet<IpAddr> =
            world.pods.values().flat_map(|pod| pod.addresses.iter().copied()).collect();
        let mut ports: BTreeSet<u16> = BTreeSet::from([80]);
        ports.extend(world.pods.values().flat_map(|pod| pod.ports.iter().map(|port| port.port)));
        for policy in world.policies.values() {
            for rule in policy.ingress.iter().chain(&policy.egress).flatten() {
                rule_corners(&rule.peers, &rule.ports, &mut addresses, &mut ports);
            }
        }
        for policy in world.cluster_policies.values() {
            for rule in policy.ingress.iter().chain(&policy.egress) {
                rule_corners(&rule.peers, &rule.ports, &mut addresses, &mut ports);
            }
        }
        addresses.extend(world.nodes.values().flat_map(|node| node.addresses.iter().copied()));
        ports.retain(|port| (1..EPHEMERAL).contains(port));
        Self { addresses: addresses.into_iter().collect(), ports: ports.into_iter().collect() }
    }
}

fn rule_corners(of: &Peers, at: &Ports, addresses: &mut BTreeSet<IpAddr>, ports: &mut BTreeSet<u16>) {
    if let Peers::Any(peers) = of {
        peers.iter().for_each(|peer| block_corners(peer, addresses));
    }
    if let Ports::Any(entries) = at {
        entries.iter().for_each(|entry| port_corners(entry, ports));
    }
}

fn block_corners(peer: &Peer, addresses: &mut BTreeSet<IpAddr>) {
    let Peer::Block { cidr, except } = peer else { return };
    for net in std::iter::once(cidr).chain(except) {
        addresses.extend([net.network(), net.broadcast()]);
        addresses.extend(beside(net));
    }
}

/// The addresses just outside.
fn beside(net: &IpNet) -> Vec<IpAddr> {
    match (net.network(), net.broadcast()) {
        (IpAddr::V4(first), IpAddr::V4(last)) => {
            let (before, behind) = (u32::from(first).checked_sub(1), u32::from(last).checked_add(1));
            before.into_iter().chain(behind).map(|bits| IpAddr::V4(bits.into())).collect()
        }
        (IpAddr::V6(first), IpAddr::V6(last)) => {
            let (before, behind) = (u128::from(first).checked_sub(1), u128::from(last).checked_add(1));
            before.into_iter().chain(behind).map(|bits| IpAddr::V6(bits.into())).collect()
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => Vec::new(),
    }
}

fn port_corners(entry: &PortMatch, ports: &mut BTreeSet<u16>) {
    match entry {
        PortMatch::Range(_, low, high) => {
            ports.extend([low.saturating_sub(1), *low, *high, high.saturating_add(1)]);
        }
        PortMatch::Protocol(_) | PortMatch::Named(..) | PortMatch::Nothing => {}
    }
}

/// Random questions about these endpoints, at most so many. `random` gives any numbers.
///
/// Left out is what a packet's path decides and not the tables: addresses of the host, of Services, the pod itself.
#[must_use]
pub fn spots(
    world: &World,
    corners: &Corners,
    endpoints: &[Endpoint],
    count: usize,
    mut random: impl FnMut() -> u64,
) -> Vec<Spot> {
    let frontends: BTreeSet<IpAddr> = world.frontends().map(|(address, _)| address).collect();
    let mut found = Vec::new();
    if endpoints.is_empty() || corners.addresses.is_empty() {
        return found;
    }
    for _ in 0..count {
        let mut below = |limit: usize| (random() % limit.max(1) as u64) as usize;
        let endpoint = &endpoints[below(endpoints.len())];
        let remote = corners.addresses[below(corners.addresses.len())];
        let direction = [Direction::Ingress, Direction::Egress][below(2)];
        let protocol = [6, 6, 17, 132][below(4)];
        let port = corners.ports.get(below(corners.ports.len())).copied().unwrap_or(80);
        let from_port = EPHEMERAL + (below(usize::from(u16::MAX - EPHEMERAL)) as u16);
        let Some(pod) = world.pods.get(&endpoint.pod).filter(|pod| pod.is_subject()) else { continue };
        let own = |address: &&IpAddr| {
            address.is_ipv4() == remote.is_ipv4()
                && !is_local(**address)
                && world.pod_at(**address).is_some_and(|at| at.key == pod.key)
        };
        let Some(local) = pod.addresses.iter().find(own).copied() else { continue };
        let by_path = pod.addresses.contains(&remote)
            || world.is_host_address(remote)
            || world.is_node_of(pod, remote)
            || frontends.contains(&remote)
            || is_local(remote);
        if by_path {
            continue;
        }
        let (source, destination) = match direction {
            Direction::Ingress => (remote, local),
            Direction::Egress => (local, remote),
        };
        let query = Query { source, destination, protocol, port, from_node_process: false };
        let passes = oracle::side(world, direction, &query).reason.passes();
        let slot = endpoint.slot;
        found.push(Spot { slot, direction, local, remote, protocol, from_port, port, passes });
    }
    found
}

/// Addresses that are never routed, or that several have at once.
fn is_local(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local() || address.to_ipv4_mapped().is_some(),
    };
    link_local || address.is_multicast() || address.is_loopback() || address.is_unspecified()
}
