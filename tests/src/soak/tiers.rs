//! Random ClusterNetworkPolicies for random clusters: few names and priorities, so that they meet, and now and then a part
//! that cannot be read.

use super::cluster::{BLOCKS4, BLOCKS6, PORT_NAMES, selector};
use policy_engine::testing::rng::Rng;
use serde_json::{Value, json};

/// Names that these policies have.
pub(super) const NAMES: [&str; 3] = ["t", "u", "v"];

/// A policy to be applied.
pub(super) fn policy(rng: &mut Rng, name: &str) -> Value {
    let mut spec = json!({
        "tier": rng.one(["Admin", "Admin", "Baseline"]),
        "priority": rng.one([0, 1, 1, 1000]),
        "subject": subject(rng),
    });
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        if rng.percent(70) {
            spec[direction] = (0..rng.one([1, 1, 2, 3, 4])).map(|_| rule(rng, peers)).collect();
        }
    }
    if rng.percent(3) {
        // In doubt it comes first, and accepts nothing.
        let field = rng.one(["tier", "priority", "subject"]);
        spec[field] = [json!("x"), Value::Null, json!({"x": 1})][rng.below(3)].clone();
    }
    json!({"apply": {"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": name}, "spec": spec}})
}

fn subject(rng: &mut Rng) -> Value {
    match rng.below(4) {
        0 => json!({"namespaces": {}}),
        1 => json!({"namespaces": selector(rng)}),
        2 => json!({"pods": {"namespaceSelector": {}, "podSelector": selector(rng)}}),
        _ => json!({"pods": {"namespaceSelector": selector(rng), "podSelector": selector(rng)}}),
    }
}

fn rule(rng: &mut Rng, peers: &str) -> Value {
    let egress = peers == "to";
    let all: Vec<Value> = (0..rng.one([1, 1, 2, 3])).map(|_| peer(rng, egress)).collect();
    let mut rule = json!({"action": rng.one(["Accept", "Deny", "Deny", "Pass"]), peers: all});
    // Names are for rules whose peers may be pods alone.
    let named = !rule[peers].to_string().contains("networks") && !rule[peers].to_string().contains("nodes");
    if rng.percent(65) {
        rule["protocols"] = (0..rng.one([1, 1, 2, 3])).map(|_| protocol(rng, named)).collect();
    }
    rule
}

fn peer(rng: &mut Rng, egress: bool) -> Value {
    match rng.below(12) {
        0..=2 if egress => {
            let blocks = (0..rng.one([1, 1, 2])).map(|_| {
                let four = rng.percent(60);
                let all: &[&str] = if four { &BLOCKS4 } else { &BLOCKS6 };
                rng.pick(all).copied().unwrap_or("0.0.0.0/0")
            });
            json!({"networks": blocks.collect::<Vec<_>>()})
        }
        3 if egress => json!({"nodes": {}}),
        // Cannot be honoured: closes the rule.
        4 if rng.percent(30) => json!({"galaxies": {}}),
        5 => json!({"namespaces": {}}),
        6 | 7 => json!({"namespaces": selector(rng)}),
        8 => json!({"pods": {"podSelector": selector(rng)}}),
        _ => json!({"pods": {"namespaceSelector": selector(rng), "podSelector": selector(rng)}}),
    }
}

fn protocol(rng: &mut Rng, named: bool) -> Value {
    if named && rng.percent(25) {
        return json!({"destinationNamedPort": rng.one(PORT_NAMES)});
    }
    let port = match rng.below(8) {
        0 => json!({"range": {"start": 1, "end": 65_535}}),
        1..=3 => {
            let start = rng.one([1, 52, 79, 80, 443]);
            json!({"range": {"start": start, "end": start + rng.one([1, 2, 1000])}})
        }
        _ => json!({"number": rng.one([53, 80, 81, 443, 8080])}),
    };
    json!({rng.one(["tcp", "tcp", "udp", "sctp"]): {"destinationPort": port}})
}
