//! A cluster of a given size: what its API server holds.

use serde_json::{Value, json};
use std::net::Ipv4Addr;

/// Name of the node on which the agent runs.
pub(super) const NODE: &str = "node-1";
/// Namespace of the two pods whose traffic is watched.
pub(super) const LAB: &str = "lab";

/// How large a cluster is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    pub(super) namespaces: usize,
    pub(super) nodes: usize,
    pub(super) pods: usize,
    pub(super) policies: usize,
}

/// Metadata as the server completes it.
fn meta(namespace: Option<&str>, name: &str, labels: &Value) -> Value {
    // Any number of the form will do, as long as no other object has it.
    let hash = name.bytes().chain(namespace.unwrap_or_default().bytes());
    let hash = hash.fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let mut meta = json!({
        "name": name, "labels": labels, "creationTimestamp": "2026-01-01T00:00:00Z",
        "uid": format!("{:08x}-0000-4000-8000-{:012x}", hash >> 32, hash & 0xffff_ffff_ffff),
    });
    if let Some(namespace) = namespace {
        meta["namespace"] = namespace.into();
    }
    meta
}

/// A namespace.
pub(super) fn namespace(name: &str, team: usize) -> Value {
    let labels = json!({"kubernetes.io/metadata.name": name, "team": format!("team-{}", team % 10)});
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": meta(None, name, &labels),
        "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}})
}

/// A running pod.
pub(super) fn pod(namespace: &str, name: &str, labels: &Value, node: &str, address: Ipv4Addr) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta(Some(namespace), name, labels),
        // What a real pod carries along: an agent that keeps all of it is found out here.
        "spec": {"nodeName": node, "restartPolicy": "Always", "terminationGracePeriodSeconds": 30,
            "dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler", "securityContext": {},
            "containers": [{"name": "main", "image": "registry.example/app:1.2.3", "imagePullPolicy": "Always",
                "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
                "env": (0..20).map(|i| json!({"name": format!("SETTING_{i}"), "value": "a value of some length"}))
                    .collect::<Vec<_>>(),
                "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}]},
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "hostIP": "192.0.2.9",
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}})
}

/// A policy.
pub(super) fn policy(namespace: &str, name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": meta(Some(namespace), name, &json!({})), "spec": spec})
}

/// Name of a namespace.
pub(super) fn space(number: usize) -> String {
    format!("ns-{number:03}")
}

/// A remote pod by its number.
pub(super) fn remote(size: Size, number: usize) -> Value {
    let (namespace, name) = (space(number % size.namespaces), format!("pod-{number:05}"));
    let labels = json!({"app": format!("app-{}", number / size.namespaces % 20), "release": "stable"});
    let address =
        Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 128, 0, 1)) + u32::try_from(number).unwrap_or(0));
    pod(&namespace, &name, &labels, &format!("node-{}", 2 + number % (size.nodes - 1)), address)
}

/// A policy by its number: in each namespace a default deny, and others of the forms that people write.
fn usual(size: Size, number: usize) -> Value {
    let (namespace, form) = (space(number % size.namespaces), number / size.namespaces);
    let app = |n: usize| json!({"matchLabels": {"app": format!("app-{}", n % 20)}});
    let team = json!({"matchLabels": {"team": format!("team-{}", number % 10)}});
    let ports = json!([{"protocol": "TCP", "port": 8080}, {"protocol": "UDP", "port": 5353}]);
    let spec = match form % 5 {
        0 => json!({"podSelector": {}, "policyTypes": ["Ingress"]}),
        1 => json!({"podSelector": app(form), "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": app(form + 1)}], "ports": ports}]}),
        2 => json!({"podSelector": app(form), "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"namespaceSelector": team, "podSelector": app(form + 2)}]}]}),
        3 => json!({"podSelector": app(form), "policyTypes": ["Egress"],
            "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": [format!("10.{}.0.0/16", number % 100)]}}],
                "ports": ports}]}),
        _ => json!({"podSelector": app(form), "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"namespaceSelector": {}}], "ports": [{"port": "http"}]}]}),
    };
    policy(&namespace, &format!("policy-{number:04}"), &spec)
}

/// Every object of the cluster, with the key under which the API server stores it.
pub(super) fn cluster(size: Size, local: &[(String, Ipv4Addr)]) -> Vec<(String, Value)> {
    let mut objects = vec![("namespaces/lab".to_owned(), namespace(LAB, 0))];
    objects
        .extend((0..size.namespaces).map(|n| (format!("namespaces/{}", space(n)), namespace(&space(n), n))));
    objects.extend((1..=size.nodes).map(|n| {
        let name = format!("node-{n}");
        let node =
            json!({"apiVersion": "v1", "kind": "Node", "metadata": meta(None, &name, &json!({})), "spec": {}});
        (format!("minions/{name}"), node)
    }));
    let stored = |kind: &str, object: Value| {
        let meta = &object["metadata"];
        let name = |field: &str| meta[field].as_str().unwrap_or_default().to_owned();
        (format!("{kind}/{}/{}", name("namespace"), name("name")), object)
    };
    objects.extend((0..size.pods).map(|n| stored("pods", remote(size, n))));
    objects.extend((0..size.policies).map(|n| stored("networkpolicies", usual(size, n))));
    for (number, (name, address)) in local.iter().enumerate() {
        let labels = json!({"app": format!("app-{}", number % 20), "pod": name});
        let namespace = if number < 2 { LAB.to_owned() } else { space(number % size.namespaces) };
        objects.push(stored("pods", pod(&namespace, name, &labels, NODE, *address)));
    }
    objects
}
