//! Random worlds, small and biased to hard corners: addresses and labels that collide, blocks inside blocks, port names
//! that differ per pod, parts that match nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;

use super::rng::Rng;
use super::tiers;
use crate::model::{
    ContainerPort, EndpointSlice, NAMESPACE_NAME_LABEL, Namespace, NamespaceScope, Node, ObjectKey, Peer,
    Peers, Phase, Pod, Policy, PortMatch, Ports, Protocol, Requirement, Rule, Selector, Service, ServiceMode,
    ServicePort, SlicePort, TargetPort,
};
use crate::world::{Delta, World};

/// Name of the node from which random worlds are seen.
pub const NODE: &str = "n1";
/// Blocks and excepts that random policies name.
const BLOCKS: [&str; 14] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.0.0.0/22",
    "10.0.1.0/24",
    "10.0.1.0/29",
    "10.0.1.4/30",
    "10.0.1.5/32",
    "192.168.0.0/16",
    "255.255.255.255/32",
    "::/0",
    "fd00::/16",
    "fd00::/124",
    "fd00::8/125",
    "fd00::9/128",
];
const NAMESPACES: [&str; 3] = ["a", "b", "c"];
const NAMES: [&str; 3] = ["http", "dns", "x"];

/// A random world.
#[must_use]
pub fn world(rng: &mut Rng) -> World {
    let mut world = World::new(NODE);
    for _ in 0..8 + rng.below(24) {
        let delta = delta(rng, &world);
        world.apply(delta);
    }
    if rng.percent(30) {
        // So many that those of one tier and priority meet, before others that come later.
        for _ in 0..5 {
            let policy = tiers::cluster_policy(rng, &world);
            world.apply(Delta::ClusterPolicy(policy));
        }
    }
    world
}

/// A batch of random changes, most of them small.
pub fn mutate(rng: &mut Rng, world: &mut World) {
    for _ in 0..rng.one([1, 1, 1, 2, 3, 6]) {
        let delta = delta(rng, world);
        world.apply(delta);
    }
}

/// Some changes of Services and of their backends.
pub fn add_services(rng: &mut Rng, world: &mut World) {
    for _ in 0..4 {
        let delta = if rng.percent(40) {
            Delta::Service(service(rng))
        } else {
            Delta::EndpointSlice(slice(rng, world))
        };
        world.apply(delta);
    }
}

/// Changes that leave neither policies nor pods.
pub fn clear(world: &mut World) {
    let policies: Vec<_> = world.policies.keys().cloned().collect();
    let pods: Vec<_> = world.pods.keys().cloned().collect();
    for key in policies {
        world.apply(Delta::PolicyGone(key));
    }
    let cluster: Vec<_> = world.cluster_policies.keys().cloned().collect();
    for name in cluster {
        world.apply(Delta::ClusterPolicyGone(name));
    }
    for key in pods {
        world.apply(Delta::PodGone { key, uid: "".into() });
    }
    world.apply(Delta::HostAddresses(BTreeSet::new()));
}

/// A random change of a world.
pub fn delta(rng: &mut Rng, world: &World) -> Delta {
    match rng.below(30) {
        0 => Delta::Namespace(namespace(rng)),
        1 => Delta::NamespaceGone(rng.one(NAMESPACES).into()),
        2..=8 => Delta::Pod(pod(rng, world)),
        9 | 10 => {
            let pods: Vec<_> = world.pods.keys().cloned().collect();
            let key = rng.pick(&pods).cloned().unwrap_or_else(|| ObjectKey::new("a", "none"));
            Delta::PodGone { key, uid: "".into() }
        }
        11 => {
            let name = rng.one([NODE, "n2"]);
            let addresses = vec![IpAddr::V4(Ipv4Addr::new(192, 168, 0, byte(rng, 3)))];
            Delta::Node(Node { name: name.into(), labels: Arc::new(labels(rng)), addresses })
        }
        12 => Delta::HostAddresses((0..rng.below(4)).map(|_| host_address(rng)).collect()),
        20 => Delta::Service(service(rng)),
        21 => Delta::ServiceGone(ObjectKey::new("a", rng.one(["s1", "s2"]))),
        22 | 23 => Delta::EndpointSlice(slice(rng, world)),
        24 => Delta::EndpointSliceGone(ObjectKey::new("a", rng.one(["e1", "e2", "e3"]))),
        25 => Delta::ServiceMode(rng.one([ServiceMode::Tag, ServiceMode::Backends, ServiceMode::Backends])),
        26..=28 => Delta::ClusterPolicy(tiers::cluster_policy(rng, world)),
        29 => Delta::ClusterPolicyGone(rng.one(["t0", "t1", "t2", "t3", "t4", "t5"]).into()),
        13 | 14 => {
            let policies: Vec<_> = world.policies.keys().cloned().collect();
            Delta::PolicyGone(rng.pick(&policies).cloned().unwrap_or_else(|| ObjectKey::new("a", "none")))
        }
        _ => Delta::Policy(policy(rng, world)),
    }
}

/// An address that something in random worlds is likely to name.
pub fn address(rng: &mut Rng) -> IpAddr {
    match rng.below(10) {
        0..=4 => IpAddr::V4(Ipv4Addr::new(10, 0, byte(rng, 3), byte(rng, 8))),
        5..=7 => IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, u16::from(byte(rng, 20)))),
        8 => host_address(rng),
        _ => rng.one([
            IpAddr::V4(Ipv4Addr::new(255, 255, 255, 255)),
            IpAddr::V4(Ipv4Addr::new(8, 8, 8, 8)),
            IpAddr::V4(Ipv4Addr::new(10, 0, 4, 0)),
            IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        ]),
    }
}

fn byte(rng: &mut Rng, bound: usize) -> u8 {
    u8::try_from(rng.below(bound)).unwrap_or(0)
}

/// Mostly an address of its own, now and then one that a pod, the node or a block has too.
fn service(rng: &mut Rng) -> Service {
    let own = IpAddr::V4(Ipv4Addr::new(10, 0, 3, byte(rng, 4)));
    let addresses = (0..1 + rng.below(2)).map(|_| if rng.percent(60) { own } else { address(rng) }).collect();
    let ports = (0..rng.below(4)).map(|_| service_port(rng)).collect();
    Service { key: ObjectKey::new("a", rng.one(["s1", "s2"])), addresses, ports, ..Service::default() }
}

fn service_port(rng: &mut Rng) -> ServicePort {
    ServicePort {
        name: rng.one(["", "p"]).into(),
        protocol: protocol(rng),
        port: rng.one([53, 80, 81, 443]),
        node_port: rng.percent(40).then(|| rng.one([80, 443, 8080])),
        target: TargetPort::Number(80),
    }
}

/// Backends that are pods, mostly, and now and then something else.
fn slice(rng: &mut Rng, world: &World) -> EndpointSlice {
    let pods: Vec<IpAddr> = world.pods.values().flat_map(|pod| pod.addresses.clone()).collect();
    let ports = (0..rng.one([1, 1, 2])).map(|_| SlicePort {
        name: rng.one(["", "p"]).into(),
        protocol: protocol(rng),
        port: rng.one([53, 80, 81, 443, 8080]),
    });
    let ports = ports.collect();
    let mut serving: Vec<IpAddr> = Vec::new();
    for _ in 0..rng.one([0, 1, 1, 2, 3]) {
        let address = rng.pick(&pods).copied().filter(|_| rng.percent(70)).unwrap_or_else(|| address(rng));
        if !serving.contains(&address) {
            serving.push(address);
        }
    }
    let key = ObjectKey::new("a", rng.one(["e1", "e2", "e3"]));
    EndpointSlice { key, service: rng.one(["s1", "s2"]).into(), ports, serving }
}

fn host_address(rng: &mut Rng) -> IpAddr {
    rng.one([
        IpAddr::V4(Ipv4Addr::new(192, 168, 0, 1)),
        IpAddr::V4(Ipv4Addr::new(10, 0, 1, 1)),
        IpAddr::V4(Ipv4Addr::new(10, 0, 1, 5)),
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1)),
    ])
}

fn labels(rng: &mut Rng) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    for (key, values) in [("app", ["web", "db", "api"]), ("tier", ["0", "1", ""])] {
        if rng.percent(80) {
            labels.insert(key.to_owned(), rng.one(values).to_owned());
        }
    }
    labels
}

fn namespace(rng: &mut Rng) -> Namespace {
    let name: Arc<str> = rng.one(NAMESPACES).into();
    let mut labels = labels(rng);
    labels.insert(NAMESPACE_NAME_LABEL.to_owned(), name.to_string());
    Namespace { name, labels: Arc::new(labels) }
}

fn pod(rng: &mut Rng, world: &World) -> Pod {
    let name = rng.one(["p0", "p1", "p2", "p3", "p4"]);
    let key = ObjectKey::new(rng.one(NAMESPACES), name);
    let serial = rng.next();
    let mut ports: Vec<ContainerPort> = (0..rng.below(4)).map(|_| container_port(rng)).collect();
    ports.sort_unstable();
    ports.dedup();
    let old = world.pods.get(&key).filter(|_| rng.percent(60));
    let mut pod = Pod {
        key,
        uid: format!("{serial:x}").into(),
        labels: Arc::new(labels(rng)),
        node: Some(rng.one([NODE, NODE, "n2"]).into()),
        mirror_of: None,
        host_network: rng.percent(5),
        phase: rng.one([Phase::Running, Phase::Running, Phase::Running, Phase::Pending, Phase::Unknown]),
        terminating: rng.percent(8),
        addresses: (0..rng.one([1, 1, 2, 2, 3, 0])).map(|_| address(rng)).collect(),
        ports,
        created: format!("2024-01-01T00:00:{:02}Z", serial % 60).into(),
        interface: None,
    };
    if rng.percent(8) {
        pod.phase = rng.one([Phase::Succeeded, Phase::Failed]);
    }
    if let Some(old) = old {
        // The same pod, changed: relabelled, ended, or given an address.
        pod = Pod { labels: pod.labels, phase: pod.phase, ports: pod.ports, ..(**old).clone() };
        if rng.percent(30) {
            pod.addresses = vec![address(rng)];
        }
    }
    pod
}

fn container_port(rng: &mut Rng) -> ContainerPort {
    ContainerPort {
        name: rng.one(NAMES).into(),
        port: rng.one([53, 80, 81, 443, 8080]),
        protocol: protocol(rng),
    }
}

fn protocol(rng: &mut Rng) -> Protocol {
    rng.one([Protocol::Tcp, Protocol::Tcp, Protocol::Udp, Protocol::Sctp])
}

fn policy(rng: &mut Rng, world: &World) -> Policy {
    let key = ObjectKey::new(rng.one(NAMESPACES), rng.one(["n0", "n1", "n2"]));
    let old = world.policies.get(&key).filter(|_| rng.percent(50));
    let uid = old.map_or_else(|| format!("{:x}", rng.next()).into(), |old| old.uid.clone());
    let (ingress, egress) = match rng.below(4) {
        0 => (None, Some(rules(rng))),
        1 | 2 => (Some(rules(rng)), None),
        _ => (Some(rules(rng)), Some(rules(rng))),
    };
    let pod_selector = if rng.percent(50) { Selector::default() } else { selector(rng) };
    Policy { key, uid, pod_selector, ingress, egress }
}

fn rules(rng: &mut Rng) -> Vec<Rule> {
    (0..rng.one([0, 1, 1, 2, 3, 4])).map(|_| Rule { peers: peers(rng), ports: ports(rng) }).collect()
}

fn peers(rng: &mut Rng) -> Peers {
    if rng.percent(12) {
        return Peers::All;
    }
    Peers::Any((0..rng.one([1, 1, 2, 3])).map(|_| peer(rng)).collect())
}

fn peer(rng: &mut Rng) -> Peer {
    match rng.below(22) {
        0 => Peer::Nothing,
        1..=8 => block(rng),
        _ => Peer::Pods {
            namespaces: match rng.below(3) {
                0 => NamespaceScope::Selector(selector(rng)),
                1 => NamespaceScope::Selector(Selector::default()),
                _ => NamespaceScope::Own,
            },
            pods: selector(rng),
        },
    }
}

pub(super) fn block(rng: &mut Rng) -> Peer {
    let blocks: Vec<IpNet> = BLOCKS.iter().filter_map(|b| b.parse().ok()).collect();
    let Some(cidr) = rng.pick(&blocks).copied() else { return Peer::Nothing };
    let inside: Vec<IpNet> = blocks.iter().copied().filter(|b| *b != cidr && cidr.contains(b)).collect();
    let except = (0..rng.below(3)).filter_map(|_| rng.pick(&inside).copied()).collect();
    Peer::Block { cidr, except }
}

pub(super) fn selector(rng: &mut Rng) -> Selector {
    let requirements = (0..rng.one([0, 1, 1, 1, 2])).map(|_| requirement(rng)).collect();
    Selector { requirements }
}

fn requirement(rng: &mut Rng) -> Requirement {
    let key = rng.one(["app", "tier", NAMESPACE_NAME_LABEL]).to_owned();
    let count = 1 + rng.below(2);
    let values: Vec<String> =
        (0..count).map(|_| rng.one(["web", "db", "api", "0", "1", "", "a", "b"]).to_owned()).collect();
    match rng.below(9) {
        0..=3 => Requirement::In(key, values),
        4 | 5 => Requirement::NotIn(key, values),
        6 => Requirement::Exists(key),
        7 => Requirement::DoesNotExist(key),
        _ => Requirement::Never,
    }
}

pub(super) fn ports(rng: &mut Rng) -> Ports {
    if rng.percent(25) {
        return Ports::All;
    }
    Ports::Any((0..rng.one([1, 1, 2, 3])).map(|_| port(rng)).collect())
}

fn port(rng: &mut Rng) -> PortMatch {
    let protocol = protocol(rng);
    match rng.below(12) {
        0 => PortMatch::Nothing,
        1 => PortMatch::Protocol(protocol),
        2..=5 => PortMatch::Named(protocol, rng.one(NAMES).into()),
        6..=9 => {
            let port = rng.one([53, 80, 81, 443, 8080]);
            PortMatch::Range(protocol, port, port)
        }
        _ => {
            let (a, b) = (rng.one([0, 53, 80, 81]), rng.one([80, 443, 8080, 65_535]));
            PortMatch::Range(protocol, a.min(b), a.max(b))
        }
    }
}
