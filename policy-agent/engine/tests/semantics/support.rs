//! A small cluster for tests of meaning, and questions to the evaluator in one line of text.

use std::collections::BTreeSet;
use std::net::IpAddr;

use policy_engine::model::Protocol;
use policy_engine::oracle;
use policy_engine::read;
use policy_engine::verdict::{Evaluation, Query};
use policy_engine::world::{Delta, World};

/// Namespaces x, y, z with label `ns`; pods a, b, c in x and a, b in y, z with label `pod`, one address of each family.
/// Namespace z has no object. All on node n1 but z's, which are on n2.
pub(crate) const CLUSTER: &str = "
kind: List
apiVersion: v1
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: x, labels: {ns: x}}}
- {apiVersion: v1, kind: Namespace, metadata: {name: y, labels: {ns: y, empty: ''}}}
- {apiVersion: v1, kind: Node, metadata: {name: n1}, status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}}
- {apiVersion: v1, kind: Node, metadata: {name: n2}, status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}}
";

const PODS: [(&str, &str, u8, &str); 7] = [
    ("x", "a", 11, "n1"),
    ("x", "b", 12, "n1"),
    ("x", "c", 13, "n1"),
    ("y", "a", 21, "n1"),
    ("y", "b", 22, "n1"),
    ("z", "a", 31, "n2"),
    ("z", "b", 32, "n2"),
];

/// The cluster, seen from node n1, whose host also has 169.254.1.1.
pub(crate) fn cluster() -> World {
    let mut world = World::new("n1");
    apply(&mut world, CLUSTER);
    for (namespace, name, number, node) in PODS {
        apply(&mut world, &pod(namespace, name, number, node));
    }
    world.apply(Delta::HostAddresses(BTreeSet::from([ip("192.0.2.1"), ip("169.254.1.1")])));
    world
}

/// A pod with label `pod`, addresses 10.0.0.`number` and fd00::`number` and named ports: `web` is 80/TCP, but 8080/TCP
/// on pods named b; `dns` is 53 of UDP and TCP; `side` is 9090/TCP of a sidecar.
pub(crate) fn pod(namespace: &str, name: &str, number: u8, node: &str) -> String {
    let web = if name == "b" { 8080 } else { 80 };
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{namespace: {namespace}, name: {name}, uid: {namespace}-{name}, labels: {{pod: {name}, empty: ''}}}}
spec:
  nodeName: {node}
  containers:
  - ports: [{{name: web, containerPort: {web}}}, {{name: dns, containerPort: 53, protocol: UDP}}]
  - ports: [{{name: dns, containerPort: 53}}, {{name: twice, containerPort: 1}}, {{name: twice, containerPort: 2}}]
  initContainers:
  - {{restartPolicy: Always, ports: [{{name: side, containerPort: 9090}}]}}
status: {{phase: Running, podIPs: [{{ip: 10.0.0.{number}}}, {{ip: 'fd00::{number}'}}]}}
"
    )
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// Applies all objects of one YAML document.
pub(crate) fn apply(world: &mut World, text: &str) {
    let value = serde_norway::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    for read in read::objects(&value) {
        world.apply(read.delta.unwrap_or_else(|| panic!("{:?}", read.problems)));
    }
}

/// Applies a NetworkPolicy, `key` as `namespace/name`.
pub(crate) fn policy(world: &mut World, key: &str, spec: &str) {
    let (namespace, name) = key.split_once('/').expect("namespace/name");
    let head = format!("metadata: {{namespace: {namespace}, name: {name}}}");
    apply(world, &format!("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n{head}\nspec: {spec}"));
}

/// Applies a ClusterNetworkPolicy.
pub(crate) fn cluster_policy(world: &mut World, name: &str, spec: &str) {
    let head = format!("metadata: {{name: {name}}}");
    apply(
        world,
        &format!(
            "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\n{head}\nspec: {spec}"
        ),
    );
}

/// The cluster with policies.
pub(crate) fn with(policies: &[(&str, &str)]) -> World {
    let mut world = cluster();
    policies.iter().for_each(|(key, spec)| policy(&mut world, key, spec));
    world
}

/// Reads `x/a -> y/b 80/TCP`; an end is a pod (its IPv4 address, with `6:` before it the IPv6 one), an address, or
/// `process:ADDRESS` for a process of the node. `ICMP` stands for a packet without ports.
pub(crate) fn query(world: &World, text: &str) -> Query {
    let (source, rest) = text.split_once(" -> ").expect("an arrow");
    let (destination, port) = rest.split_once(' ').expect("a port");
    let (port, protocol) = match port.split_once('/') {
        Some((port, name)) => {
            let protocol = Protocol::ALL.into_iter().find(|protocol| protocol.name() == name);
            (port.parse().expect("a port number"), protocol.expect("a protocol").number())
        }
        None => (0, if port == "ICMP" { 1 } else { port.parse().expect("a protocol number") }),
    };
    let process = source.strip_prefix("process:");
    Query {
        source: end(world, process.unwrap_or(source)),
        destination: end(world, destination),
        protocol,
        port,
        from_node_process: process.is_some(),
    }
}

fn end(world: &World, text: &str) -> IpAddr {
    let (v6, name) = match text.strip_prefix("6:") {
        Some(name) => (true, name),
        None => (false, text),
    };
    match name.split_once('/') {
        Some(_) => {
            let pod = world.pods.values().find(|pod| pod.key.to_string() == name);
            let pod = pod.unwrap_or_else(|| panic!("no pod {name}"));
            *pod.addresses.iter().find(|address| address.is_ipv6() == v6).expect("an address")
        }
        None => ip(text),
    }
}

pub(crate) fn ask(world: &World, text: &str) -> Evaluation {
    oracle::evaluate(world, &query(world, text))
}

/// Asserts the verdicts of several questions.
pub(crate) fn expect(world: &World, allowed: &[&str], denied: &[&str]) {
    for (texts, expected) in [(allowed, true), (denied, false)] {
        for text in texts {
            let evaluation = ask(world, text);
            assert_eq!(evaluation.allows(), expected, "{text}: {evaluation:#?}");
        }
    }
}
