//! Random clusters that change, as scenarios: biased to blocks inside blocks, port names that differ per pod, ranges,
//! empty selectors, two families, and addresses that are used again.

use super::tiers;
use policy_engine::testing::rng::Rng;
use serde_json::{Map, Value, json};

const NAMESPACES: [&str; 3] = ["x", "y", "z"];
const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
pub(super) const PORT_NAMES: [&str; 3] = ["http", "dns", "web"];
/// Names that policies have.
const POLICIES: [&str; 4] = ["p", "q", "r", "s"];
/// Blocks that hold each other, and addresses of pods, nodes, Services and strangers.
pub(super) const BLOCKS4: [&str; 12] = [
    "0.0.0.0/0",
    "128.0.0.0/1",
    "10.0.0.0/8",
    "10.99.0.0/16",
    "10.99.0.0/28",
    "10.99.0.4/30",
    "10.99.0.5/32",
    "10.99.0.6/31",
    "10.99.1.0/24",
    "192.0.2.0/24",
    "198.51.100.0/24",
    "10.96.0.0/29",
];
pub(super) const BLOCKS6: [&str; 7] =
    ["::/0", "fd00::/8", "fd99::/64", "fd99::/124", "fd99::4/126", "fd99::5/128", "2001:db8::/32"];

/// A random scenario: a cluster, and so many steps of changes.
pub fn random(rng: &mut Rng) -> Value {
    let mut story = Story::default();
    let mut pods = Map::new();
    for _ in 0..4 + rng.below(8) {
        if let Some((name, pod)) = story.pod(rng) {
            pods.insert(name, pod);
        }
    }
    let mut namespaces = Map::new();
    for name in NAMESPACES {
        if rng.percent(80) {
            namespaces.insert(name.to_owned(), json!({"labels": labels(rng)}));
        }
    }
    let mut steps = Vec::new();
    let mut first: Vec<Value> = (0..1 + rng.below(6)).map(|_| story.policy(rng)).collect();
    if rng.percent(50) {
        first.extend((0..1 + rng.below(3)).map(|_| story.cluster_policy(rng)));
    }
    steps.push(json!({"actions": first}));
    for _ in 0..2 + rng.below(6) {
        // Several changes in one step are one plan.
        let actions: Vec<Value> = (0..rng.one([1, 1, 2, 3, 6])).map(|_| story.change(rng)).collect();
        steps.push(json!({"actions": actions}));
    }
    json!({
        "schema": "netpol-case/v1", "id": "soak/random", "title": "random",
        "cluster": {
            "nodes": {"node-2": {"ips": ["192.0.2.77", "fd00:192::77"]}},
            "namespaces": namespaces, "pods": pods,
            "external": {
                "near": {"ips": ["10.99.0.14", "fd99::e"]},
                "far": {"ips": ["198.51.100.9", "2001:db8::9"]},
                "edge": {"ips": ["255.255.255.254"]},
                "half": {"ips": ["127.255.255.254"]},
            },
        },
        "steps": steps,
    })
}

/// What there is to change.
#[derive(Default)]
struct Story {
    pods: Vec<String>,
    policies: Vec<(String, String)>,
    cluster_policies: Vec<&'static str>,
    services: Vec<String>,
}

impl Story {
    fn change(&mut self, rng: &mut Rng) -> Value {
        match rng.below(24) {
            0..=6 => self.policy(rng),
            20..=22 => self.cluster_policy(rng),
            23 if !self.cluster_policies.is_empty() => {
                let name = self.cluster_policies.swap_remove(rng.below(self.cluster_policies.len()));
                json!({"delete": {"kind": "ClusterNetworkPolicy", "name": name}})
            }
            7 if !self.policies.is_empty() => {
                let (namespace, name) = self.policies.swap_remove(rng.below(self.policies.len()));
                json!({"delete": {"kind": "NetworkPolicy", "namespace": namespace, "name": name}})
            }
            8 | 9 => json!({"set-labels": {"namespace": rng.one(NAMESPACES), "labels": labels(rng)}}),
            10 | 11 => self.service(rng),
            12 | 13 => match self.pod(rng) {
                Some((name, pod)) => json!({"pod": {"add": {name: pod}}}),
                None => self.policy(rng),
            },
            _ => self.pod_change(rng),
        }
    }

    fn pod_change(&mut self, rng: &mut Rng) -> Value {
        let Some(pod) = rng.pick(&self.pods).cloned() else { return self.policy(rng) };
        match rng.below(8) {
            0 => {
                self.pods.retain(|name| *name != pod);
                json!({"pod": {"remove": pod}})
            }
            1 => json!({"pod": {"phase": {"pod": pod, "to": rng.one(["Succeeded", "Failed", "Running"])}}}),
            2 => json!({"pod": {"terminate": pod}}),
            3 => json!({"pod": {"restart": {"pod": pod, "ips": addresses(rng)}}}),
            _ => json!({"set-labels": {"pod": pod, "labels": labels(rng)}}),
        }
    }

    fn pod(&mut self, rng: &mut Rng) -> Option<(String, Value)> {
        let name = format!("{}/{}", rng.one(NAMESPACES), rng.one(NAMES));
        if self.pods.contains(&name) {
            return None;
        }
        self.pods.push(name.clone());
        let mut pod = json!({"labels": labels(rng), "ips": addresses(rng)});
        if rng.percent(25) {
            pod["node"] = "node-2".into();
        }
        if rng.percent(5) {
            pod["hostNetwork"] = true.into();
        }
        let containers: Vec<Value> = (0..rng.below(3)).map(|n| container(rng, n)).collect();
        pod["containers"] = containers.into();
        Some((name, pod))
    }

    fn policy(&mut self, rng: &mut Rng) -> Value {
        let (namespace, name) = (rng.one(NAMESPACES), rng.one(POLICIES));
        let key = (namespace.to_owned(), name.to_owned());
        if !self.policies.contains(&key) {
            self.policies.push(key);
        }
        let selector = if rng.percent(45) { json!({}) } else { selector(rng) };
        let mut spec = json!({"podSelector": selector});
        match rng.below(5) {
            0 => {}
            1 => spec["policyTypes"] = json!(["Ingress"]),
            2 => spec["policyTypes"] = json!(["Egress"]),
            _ => spec["policyTypes"] = json!(["Ingress", "Egress"]),
        }
        if rng.percent(70) {
            spec["ingress"] = rules(rng, "from");
        }
        if rng.percent(55) {
            spec["egress"] = rules(rng, "to");
        }
        json!({"apply": {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": namespace, "name": name}, "spec": spec}})
    }

    fn cluster_policy(&mut self, rng: &mut Rng) -> Value {
        let name = rng.one(tiers::NAMES);
        if !self.cluster_policies.contains(&name) {
            self.cluster_policies.push(name);
        }
        tiers::policy(rng, name)
    }

    fn service(&mut self, rng: &mut Rng) -> Value {
        if !self.services.is_empty() && rng.percent(30) {
            let name = self.services.swap_remove(rng.below(self.services.len()));
            return json!({"delete": {"kind": "Service", "namespace": "x", "name": name}});
        }
        let name = rng.one(["s", "t"]).to_owned();
        if !self.services.contains(&name) {
            self.services.push(name.clone());
        }
        // Now and then an address that a pod has too.
        let ip = if rng.percent(15) { address4(rng) } else { format!("10.96.0.{}", 1 + rng.below(6)) };
        json!({"apply": {"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "x", "name": name},
            "spec": {"clusterIP": ip, "clusterIPs": [ip], "ports": [{"port": 80}]}}})
    }
}

fn address4(rng: &mut Rng) -> String {
    format!("10.99.{}.{}", rng.one([0, 0, 0, 1]), 1 + rng.below(12))
}

/// Few, so that they come back: on another pod, or on two at a time.
fn addresses(rng: &mut Rng) -> Value {
    let six = format!("fd99::{:x}", 1 + rng.below(12));
    match rng.below(12) {
        0 => json!([]),
        1 | 2 => json!([six]),
        3..=7 => json!([address4(rng), six]),
        8 => json!([address4(rng), address4(rng), six]),
        _ => json!([address4(rng)]),
    }
}

fn labels(rng: &mut Rng) -> Value {
    let mut labels = Map::new();
    for (key, values) in [("app", ["web", "db", "api"]), ("tier", ["0", "1", ""])] {
        if rng.percent(75) {
            labels.insert(key.to_owned(), rng.one(values).into());
        }
    }
    labels.into()
}

fn container(rng: &mut Rng, number: usize) -> Value {
    let ports: Vec<Value> = (0..1 + rng.below(2))
        .map(|_| {
            json!({"name": rng.one(PORT_NAMES), "port": rng.one([53, 80, 81, 8080]),
                "protocol": rng.one(["TCP", "TCP", "UDP", "SCTP"])})
        })
        .collect();
    let kind = rng.one(["app", "app", "sidecar", "init"]);
    json!({"name": format!("c{number}"), "kind": kind, "ports": ports})
}

pub(super) fn selector(rng: &mut Rng) -> Value {
    let mut out = json!({});
    if rng.percent(60) {
        out["matchLabels"] = json!({rng.one(["app", "tier"]): rng.one(["web", "db", "0", ""])});
    }
    if rng.percent(45) {
        let key = rng.one(["app", "tier", "absent", "kubernetes.io/metadata.name"]);
        let some = json!([rng.one(["web", "api", "x"]), rng.one(["db", "1", "y"])]);
        out["matchExpressions"] = match rng.below(9) {
            0 | 1 => json!([{"key": key, "operator": "In", "values": some}]),
            2 | 3 => json!([{"key": key, "operator": "NotIn", "values": some}]),
            4 | 5 => json!([{"key": key, "operator": "Exists"}]),
            6 | 7 => json!([{"key": key, "operator": "DoesNotExist"}]),
            _ => json!([{"key": key, "operator": "Gt", "values": ["0"]}]),
        };
    }
    out
}

fn rules(rng: &mut Rng, peers: &str) -> Value {
    let rule = |rng: &mut Rng| {
        let mut rule = json!({});
        if rng.percent(85) {
            rule[peers] = (0..rng.one([0, 1, 1, 2, 3])).map(|_| peer(rng)).collect();
        }
        if rng.percent(65) {
            rule["ports"] = (0..rng.one([0, 1, 1, 2, 3])).map(|_| port(rng)).collect();
        }
        rule
    };
    (0..rng.one([0, 1, 1, 2, 3])).map(|_| rule(rng)).collect()
}

fn peer(rng: &mut Rng) -> Value {
    match rng.below(12) {
        0 => json!({"namespaceSelector": {}}),
        1 => json!({"podSelector": {}}),
        2 => json!({"namespaceSelector": selector(rng)}),
        3 | 4 => json!({"podSelector": selector(rng)}),
        5 => json!({"namespaceSelector": selector(rng), "podSelector": selector(rng)}),
        // Cannot be honoured: must match nothing on either side.
        6 => json!({}),
        _ => block(rng),
    }
}

/// Excepts need not lie inside the block: then the whole peer matches nothing.
fn block(rng: &mut Rng) -> Value {
    let blocks: &[&str] = if rng.percent(60) { &BLOCKS4 } else { &BLOCKS6 };
    let one = |rng: &mut Rng| rng.pick(blocks).copied().unwrap_or("0.0.0.0/0");
    let wide = if rng.percent(50) { blocks[0] } else { one(rng) };
    let except: Vec<&str> = (0..rng.one([0, 0, 1, 2, 3])).map(|_| one(rng)).collect();
    if except.is_empty() {
        return json!({"ipBlock": {"cidr": one(rng)}});
    }
    json!({"ipBlock": {"cidr": wide, "except": except}})
}

fn port(rng: &mut Rng) -> Value {
    let mut port = match rng.below(12) {
        0 => json!({}),
        1..=3 => json!({"port": rng.one(PORT_NAMES)}),
        4..=6 => {
            let low = rng.one([1, 52, 79, 80, 81, 443, 65_535]);
            json!({"port": low, "endPort": low + rng.one([0, 0, 1, 2, 1000])})
        }
        7 => json!({"port": rng.one([0, 65_536])}),
        8 => json!({"port": 1, "endPort": 65_535}),
        _ => json!({"port": rng.one([53, 80, 81, 443, 8080])}),
    };
    if rng.percent(45) {
        port["protocol"] = rng.one(["TCP", "UDP", "SCTP"]).into();
    }
    port
}
