//! A small world for tests: a database that two policies isolate, and its clients.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use policy_common::event::Event;
use policy_common::reason::Reason;
use policy_engine::model::{
    Labels, ObjectKey, Peer, Peers, Phase, Pod, Policy, PortMatch, Ports, Protocol, Rule, Selector,
};
use policy_engine::model::{NamespaceScope, Requirement};
use policy_engine::world::{Delta, World};

use crate::events::history::{EndpointState, Generation, History};

/// Labels from pairs.
pub(crate) fn labels(pairs: &[(&str, &str)]) -> Labels {
    Arc::new(pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
}

/// A running pod.
pub(crate) fn pod(namespace: &str, name: &str, address: &str, pairs: &[(&str, &str)]) -> Pod {
    Pod {
        key: ObjectKey::new(namespace, name),
        uid: name.into(),
        mirror_of: None,
        labels: labels(pairs),
        node: Some("node-a".into()),
        host_network: false,
        phase: Phase::Running,
        terminating: false,
        addresses: vec![address.parse().unwrap()],
        ports: Vec::new(),
        created: "".into(),
        interface: None,
    }
}

/// An address as a record holds it.
pub(crate) fn words(address: &str) -> [u32; 4] {
    let mut bytes = [0; 16];
    match address.parse::<IpAddr>().unwrap() {
        IpAddr::V4(v4) => bytes[..4].copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => bytes.copy_from_slice(&v6.octets()),
    }
    let mut words = [0; 4];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = u32::from_ne_bytes(chunk.try_into().unwrap());
    }
    words
}

fn app(value: &str) -> Selector {
    Selector { requirements: vec![Requirement::In("app".into(), vec![value.into()])] }
}

/// `shop/client` and `shop/web` may talk to nothing of `shop/db` but 5432/TCP, and only `web` may.
pub(crate) fn world() -> World {
    let mut world = World::new("node-a");
    for (name, address) in [("client", "10.0.0.11"), ("db", "10.0.0.12"), ("web", "10.0.0.13")] {
        world.apply(Delta::Pod(pod("shop", name, address, &[("app", name)])));
    }
    world.apply(Delta::HostAddresses(["10.0.0.1".parse().unwrap()].into()));
    let policy = |name: &str, pod_selector, rules| Policy {
        key: ObjectKey::new("shop", name),
        uid: "".into(),
        pod_selector,
        ingress: Some(rules),
        egress: None,
    };
    world.apply(Delta::Policy(policy("default-deny", Selector::default(), Vec::new())));
    let allow = Rule {
        peers: Peers::Any(vec![Peer::Pods { namespaces: NamespaceScope::Own, pods: app("web") }]),
        ports: Ports::Any(vec![PortMatch::Range(Protocol::Tcp, 5432, 5432)]),
    };
    world.apply(Delta::Policy(policy("db-allow", app("db"), vec![allow])));
    world
}

/// `world` as the newest generation: `db` is slot 2 with id 12 and epoch 5, `client` slot 1 with id 11.
pub(crate) fn history(world: World) -> History {
    let mut history = History::default();
    let state = |id, name: &str| EndpointState {
        id,
        epoch: 5,
        pod: ObjectKey::new("shop", name),
        interface: format!("veth-{name}").into(),
    };
    let endpoints = BTreeMap::from([(1, state(11, "client")), (2, state(12, "db"))]);
    history.push(Generation { plan: 3, since: 0, world: Arc::new(world), endpoints });
    history
}

/// A SYN from `web` to `db`, dropped at `db`.
pub(crate) fn dropped_syn(port: u16) -> Event {
    Event {
        time: 1_000,
        word: 5,
        endpoint: 12,
        ifindex: 7,
        length: 74,
        slot: 2,
        source_port: 40_003,
        destination_port: port,
        source: words("10.0.0.13"),
        destination: words("10.0.0.12"),
        direction: 1,
        reason: Reason::NoRuleMatched as u8,
        family: 4,
        protocol: 6,
        tcp_flags: 2,
        opener: 1,
        ..Event::default()
    }
}

/// A packet that `client` sent with the address of `web`.
pub(crate) fn forged() -> Event {
    Event {
        direction: 2,
        slot: 1,
        endpoint: 11,
        destination: words("192.0.2.7"),
        reason: Reason::SpoofedSource as u8,
        opener: 0,
        ..dropped_syn(9999)
    }
}
