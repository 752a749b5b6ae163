//! A kind that a cluster may have or not: its CRD comes, goes and comes back while the agent runs.

use std::time::{Duration, Instant};

use policy_tests::agent::Agent;
use serde_json::{Value, json};

use crate::setup::{A, B, PATIENCE, Setup, USER, deny};

const VERSION: &str = "policy.networking.k8s.io/v1alpha2";

/// What the published CRD says of names and versions; its schema keeps everything.
fn crd() -> Value {
    let kept = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "clusternetworkpolicies.policy.networking.k8s.io", "annotations": {
            "api-approved.kubernetes.io": "https://github.com/kubernetes-sigs/network-policy-api/pull/300"}},
        "spec": {
            "group": "policy.networking.k8s.io", "scope": "Cluster",
            "names": {"kind": "ClusterNetworkPolicy", "listKind": "ClusterNetworkPolicyList",
                "plural": "clusternetworkpolicies", "singular": "clusternetworkpolicy", "shortNames": ["cnp"]},
            "versions": [{"name": "v1alpha2", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": kept}}],
        },
    })
}

/// `action` for everything that reaches pods of the cluster.
fn tier(action: &str) -> Value {
    json!({"apiVersion": VERSION, "kind": "ClusterNetworkPolicy", "metadata": {"name": "t"}, "spec": {
        "tier": "Admin", "priority": 0, "subject": {"namespaces": {}},
        "ingress": [{"action": action, "from": [{"namespaces": {}}]}]}})
}

/// Whether the API server takes objects of the kind by now.
fn establish(setup: &Setup, policy: &Value) {
    let end = Instant::now() + PATIENCE;
    while setup.admin(|admin| admin.apply(policy)).is_err() {
        assert!(Instant::now() < end, "the CRD is never established");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until `a` reaches `b`, or no more.
fn until(setup: &Setup, reaches: bool, why: &str) {
    let end = Instant::now() + PATIENCE;
    while setup.reaches() != reaches {
        assert!(Instant::now() < end, "{why}; log:\n{}", setup.agent.log());
    }
}

#[test]
fn policies_of_the_cluster_are_enforced_while_the_cluster_has_the_kind() {
    let mut setup = Setup::started();
    setup.expect(true, "a cluster without the kind");
    assert!(setup.agent.log().contains("does not have this kind"), "{}", setup.agent.log());
    let healthy = |setup: &Setup, why: &str| {
        let status = setup.status();
        let source = &status["sources"][0];
        assert!(
            status["ready"] == true && source["missing"] == json!([]) && source["error"] == "",
            "{why}: {status}"
        );
    };
    healthy(&setup, "without the kind");

    setup.apply(&crd());
    establish(&setup, &tier("Deny"));
    until(&setup, false, "the kind came while the agent ran");
    healthy(&setup, "with the kind");
    setup.apply(&deny());
    setup.apply(&tier("Accept"));
    setup.expect(true, "accepted before the NetworkPolicy is asked");
    setup.apply(&tier("Deny"));
    setup.expect(false, "denied");
    setup.delete("NetworkPolicy", "p");
    setup.expect(false, "whatever NetworkPolicies there are");

    // Without the kind there are no objects of it, and nothing else changes.
    setup.admin(|admin| admin.delete(&crd())).unwrap();
    until(&setup, true, "the kind went");
    setup.apply(&deny());
    setup.expect(false, "NetworkPolicies go on");
    healthy(&setup, "the kind went");

    setup.apply(&crd());
    establish(&setup, &tier("Accept"));
    until(&setup, true, "the kind is back");
}

#[test]
fn a_role_without_the_kind_matters_only_where_the_cluster_has_it() {
    let mut setup = Setup::new();
    setup.pod("a", A);
    setup.pod("b", B);
    setup.apply(&deny());
    setup.role(|rule: &mut Value| {
        if rule["resources"].to_string().contains("clusternetworkpolicies") {
            rule["verbs"] = json!(["get"]);
        }
    });
    let file = setup.kubeconfig("user", &format!("{USER}-token"));
    setup.agent = Agent::new(&setup.node).unwrap().kubeconfig(&file);
    setup.agent.start().unwrap();
    setup.expect(false, "the cluster does not have the kind");

    setup.apply(&crd());
    establish(&setup, &tier("Accept"));
    let rule =
        r#"{apiGroups: [\"policy.networking.k8s.io\"], resources: [\"clusternetworkpolicies\"], verbs: ["#;
    let named = |s: &Value| {
        let error = s["sources"][0]["error"].to_string();
        error.contains("forbids to") && error.contains("clusternetworkpolicies (403)") && error.contains(rule)
    };
    setup.until_status(named, "the missing rule");
    assert!(!setup.reaches(), "what was enforced stays");
    setup.role(|_| ());
    until(&setup, true, "with the shipped role");
    setup.until_status(|s| s["sources"][0]["error"] == "", "no error any more");
}
