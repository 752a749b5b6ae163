//! Who may reach whom: policies of every kind, and pods whose labels move them from one rule to the other.

use super::Live;
use serde_json::{Value, json};

/// The pods' namespaces; the pods take turns.
pub(super) const NAMESPACES: [&str; 2] = ["churn", "other"];
const NAME: &str = "pod-";
/// What the pods call one of their ports; not all of them the same one.
const PORT_NAME: &str = "talk";

pub(super) fn namespace(n: usize) -> &'static str {
    NAMESPACES[n % NAMESPACES.len()]
}

pub(super) fn name(n: usize) -> String {
    format!("{NAME}{n}")
}

/// The number of a pod of these namespaces.
pub(super) fn number(pod: &Value) -> Option<usize> {
    let metadata = &pod["metadata"];
    let ours = NAMESPACES.iter().any(|namespace| metadata["namespace"] == *namespace);
    metadata["name"].as_str()?.strip_prefix(NAME)?.parse().ok().filter(|_| ours)
}

/// Labels decide who may reach whom: each change of them moves the pod to other rules, as a peer and as a target.
pub(super) fn metadata(n: usize, generation: usize) -> Value {
    let role = ["red", "blue"][(n + generation) % 2];
    let tier = ["web", "db", "none"][(n + generation) % 3];
    let zone = if n.is_multiple_of(5) && n > 0 { "shut" } else { "open" };
    json!({"namespace": namespace(n), "name": name(n), "labels": {"role": role, "tier": tier, "zone": zone}})
}

/// A container's ports.
pub(super) fn ports(n: usize) -> Value {
    json!([{"name": PORT_NAME, "containerPort": Live::PORTS[n / 2 % 2], "protocol": "UDP"}])
}

/// The namespaces and the policies.
pub(super) fn objects() -> Vec<Value> {
    let namespace = |name: &str| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"team": name}}});
    let [first, second] = NAMESPACES;
    let policy = |namespace: &str, name: &str, spec: Value| {
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": namespace, "name": name}, "spec": spec})
    };
    let udp = |port: Value| json!([{"protocol": "UDP", "port": port}]);
    let [port, other_port] = Live::PORTS.map(Value::from);
    vec![
        namespace(first),
        namespace(second),
        policy(first, "default-deny", json!({"podSelector": {}, "policyTypes": ["Ingress"]})),
        policy(
            first,
            "red-may",
            json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [
                {"from": [{"podSelector": {"matchLabels": {"role": "red"}}}], "ports": udp(port.clone())},
                {"from": [{"namespaceSelector": {"matchLabels": {"team": second}},
                    "podSelector": {"matchLabels": {"role": "red"}}}], "ports": udp(port)}]}),
        ),
        policy(
            first,
            "web-to-db",
            json!({"podSelector": {"matchLabels": {"tier": "db"}}, "policyTypes": ["Ingress"], "ingress": [
                {"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"tier": "web"}}}],
                    "ports": udp(other_port.clone())}]}),
        ),
        policy(
            first,
            "shut",
            json!({"podSelector": {"matchLabels": {"zone": "shut"}}, "policyTypes": ["Egress"], "egress": [
                {"to": [{"podSelector": {"matchLabels": {"tier": "db"}}}]}]}),
        ),
        policy(
            first,
            "by-name",
            json!({"podSelector": {"matchLabels": {"tier": "none"}}, "policyTypes": ["Ingress"], "ingress": [
                {"from": [{"podSelector": {}}], "ports": udp(PORT_NAME.into())}]}),
        ),
        policy(
            first,
            "blocks",
            json!({"podSelector": {"matchLabels": {"tier": "web"}}, "policyTypes": ["Ingress"], "ingress": [
                {"from": [{"ipBlock": {"cidr": "10.244.0.0/16", "except": ["10.244.2.0/24", "10.244.0.24/29"]}}],
                    "ports": udp(other_port.clone())}]}),
        ),
        policy(
            second,
            "guests",
            json!({"podSelector": {"matchLabels": {"role": "red"}}, "policyTypes": ["Ingress"], "ingress": [
                {"from": [{"namespaceSelector": {"matchLabels": {"team": first}}}], "ports": udp(other_port)}]}),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_known_by_their_names() {
        for n in [0, 7, 199] {
            assert_eq!(number(&json!({"metadata": metadata(n, 1)})), Some(n));
        }
        assert_eq!(number(&json!({"metadata": {"namespace": "default", "name": "pod-1"}})), None);
    }
}
