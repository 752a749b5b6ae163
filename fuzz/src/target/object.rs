//! The reader of objects: it ends, names what is wrong, and what it read means the same to compiler and evaluator.

use policy_engine::{
    limits::Limits,
    read,
    testing::{node::SimNode, rng::Rng, samples::samples},
    world::World,
};
use serde_json::{Value, json};

/// Words of manifests.
pub(super) const WORDS: &[&[u8]] = &[
    b"\"ingress\":[{}]",
    b"\"egress\":[]",
    b"\"from\":[{\"podSelector\":{}}]",
    b"{\"namespaceSelector\":{}}",
    b"{\"ipBlock\":{\"cidr\":\"10.0.0.0/8\",\"except\":[\"10.0.0.4/30\"]}}",
    b"{\"port\":\"web\"}",
    b"{\"port\":80,\"endPort\":90,\"protocol\":\"UDP\"}",
    b"\"policyTypes\":[\"Egress\"]",
    b"\"matchLabels\":{\"app\":\"a\"}",
    b"\"matchExpressions\":[{\"key\":\"app\",\"operator\":\"NotIn\",\"values\":[\"b\"]}]",
    b"null",
    b"{}",
    b"[]",
    b",",
    b"\"\"",
    b"-1",
    b"65536",
    b"1e99",
    b"\"::ffff:10.0.0.0/104\"",
    b"\"0.0.0.0/0\"",
    b"\"fd00::/8\"",
    b"\"hostNetwork\":true",
    b"\"phase\":\"Failed\"",
    b"\"kind\":\"Pod\"",
    b"\"kind\":\"List\",\"items\":[",
];

const LIMITS: Limits = Limits {
    endpoints: 16,
    rows: 32,
    classes: 64,
    hosts: 64,
    prefixes: 64,
    host_info: 256,
    rule_sets: 128,
    intervals: 256,
    intervals_per_set: 64,
};

pub(super) fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(value) = serde_norway::from_str::<Value>(text) else { return };
    let mut world = cluster();
    for read in read::objects(&value) {
        for problem in &read.problems {
            assert!(!problem.to_string().trim().is_empty(), "a problem without words");
        }
        assert!(!read.broken || !read.problems.is_empty(), "what is broken says why");
        if let Some(delta) = read.delta {
            world.apply(delta);
        }
    }
    let mut node = SimNode::new(LIMITS);
    node.discover(&world).unwrap_or_else(|error| panic!("{error}"));
    let mut rng = Rng::new(7);
    let asked = samples(&mut rng, &world, &node.endpoints, 60);
    let planned = node.update(&world, &asked[..asked.len().min(8)]).unwrap_or_else(|error| panic!("{error}"));
    if planned.busy.is_none() && planned.refusals.is_empty() {
        node.check(&world, &asked).unwrap_or_else(|error| panic!("{error}"));
    }
}

/// Two pods of this node and one elsewhere.
fn cluster() -> World {
    let mut world = World::new("n1");
    let pods = [("x", "a", 5, "n1"), ("x", "b", 6, "n1"), ("y", "c", 7, "n2")];
    for (namespace, name, number, node) in pods {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": namespace, "name": name, "uid": name, "labels": {"app": name}},
            "spec": {"nodeName": node, "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 80}]}]},
            "status": {"phase": "Running", "podIPs": [{"ip": format!("10.0.0.{number}")}, {"ip": format!("fd00::{number}")}]},
        });
        for delta in read::objects(&pod).into_iter().filter_map(|read| read.delta) {
            world.apply(delta);
        }
    }
    world
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let policy = |spec: Value| {
        let metadata = json!({"namespace": "x", "name": "p", "uid": "p"});
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec})
    };
    let block = json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.4/30", "10.0.0.8/32"]}});
    let expressions = json!([{"key": "app", "operator": "In", "values": ["a", "b"]}, {"key": "x", "operator": "DoesNotExist"}]);
    let peers = json!([block, {"namespaceSelector": {"matchExpressions": expressions}, "podSelector": {"matchLabels": {"app": "b"}}}]);
    let ports = json!([{"port": 80}, {"port": "web", "protocol": "TCP"}, {"port": 1000, "endPort": 2000, "protocol": "UDP"}]);
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "x", "name": "d", "labels": {"app": "a"}},
        "spec": {"nodeName": "n1", "hostNetwork": false, "initContainers": [{"restartPolicy": "Always", "ports": [{"name": "web", "containerPort": 81}]}]},
        "status": {"phase": "Running", "podIP": "10.0.0.9", "podIPs": [{"ip": "10.0.0.9"}]}});
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "x", "name": "s"},
        "spec": {"clusterIPs": ["10.96.0.1"], "externalIPs": ["10.0.0.5"], "ports": [{"port": 80}]}});
    let namespace =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "y", "labels": {"team": "t"}}});
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}});
    let both = policy(json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": peers, "ports": ports}], "egress": [{"to": [{"podSelector": {}}]}, {}]}));
    let closed = policy(json!({"podSelector": {"matchLabels": {"app": "a"}}, "policyTypes": ["Ingress"]}));
    let list =
        json!({"apiVersion": "v1", "kind": "List", "items": [pod, namespace, node, service, both, closed]});
    [pod, service, namespace, node, both, closed, list]
        .iter()
        .map(|value| value.to_string().into_bytes())
        .collect()
}
