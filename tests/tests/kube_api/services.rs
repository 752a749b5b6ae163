//! Services judged by their backends: EndpointSlices are watched, and followed.

use std::net::SocketAddr;

use policy_tests::agent::Agent;
use policy_tests::nat::{Forward, Front, translate};
use serde_json::{Value, json};

use crate::setup::{A, B, PORT, Setup, USER, ip, policy};

const VIP: &str = "198.51.100.1";

fn slice(addresses: &[&str]) -> Value {
    let endpoints: Vec<Value> = addresses.iter().map(|ip| json!({"addresses": [ip]})).collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": "shop", "name": "vip-1", "labels": {"kubernetes.io/service-name": "vip"}},
        "ports": [{"name": "echo", "port": PORT, "protocol": "UDP"}], "endpoints": endpoints})
}

#[test]
fn backends_of_services_are_followed() {
    let mut setup = Setup::new();
    setup.agent.set_arguments(&["--services", "backends"]);
    setup.pod("a", A);
    setup.pod("b", B);
    let front = Front::Address(SocketAddr::new(ip(VIP), 80));
    let backends = vec![SocketAddr::new(ip(B), PORT)];
    let forward = Forward { front, protocols: vec!["udp"], backends };
    translate(setup.node.ns(), &[forward]).unwrap();
    let to_b = json!({"podSelector": {"matchLabels": {"app": "a"}}, "policyTypes": ["Egress"],
        "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "b"}}}]}]});
    setup.apply(&policy(&to_b));
    setup.apply(
        &json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": "vip"},
        "spec": {"externalIPs": [VIP],
            "ports": [{"name": "echo", "port": 80, "targetPort": PORT, "protocol": "UDP"}]}}),
    );
    setup.agent.start().unwrap();
    let expect = |setup: &mut Setup, reaches, why: &str| {
        setup.agent.wait().unwrap();
        let to = SocketAddr::new(ip(VIP), 80);
        assert_eq!(setup.reaches_at(to, reaches), reaches, "{why}; log:\n{}", setup.agent.log());
    };
    expect(&mut setup, false, "no backend is known");
    setup.apply(&slice(&[B]));
    expect(&mut setup, true, "its only backend is allowed");
    setup.apply(&slice(&[B, "10.244.0.99"]));
    expect(&mut setup, false, "one of two is not");
    setup.apply(&slice(&[B]));
    expect(&mut setup, true, "it is gone");
    setup.label("Pod", "b", &json!({"app": "other"}));
    expect(&mut setup, false, "the backend has another label");
    setup.label("Pod", "b", &json!({"app": "b"}));
    expect(&mut setup, true, "and its own again");
    setup.admin(|admin| admin.delete(&slice(&[B]))).unwrap();
    expect(&mut setup, false, "the slice is gone");
}

/// The permission that this takes, and the shipped role has not, is named.
#[test]
fn a_role_without_endpoint_slices_is_told() {
    let mut setup = Setup::new();
    setup.role(|_| {});
    let file = setup.kubeconfig("user", &format!("{USER}-token"));
    setup.agent = Agent::new(&setup.node).unwrap().kubeconfig(&file).arguments(&["--services", "auto"]);
    setup.agent.start().unwrap();
    setup.until_status(
        |status| {
            let text = status["sources"][0].to_string();
            text.contains("endpointslices") && text.contains("discovery.k8s.io")
        },
        "the permission is named",
    );
}
