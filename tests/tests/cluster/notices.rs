//! What is wrong with a policy, as its owner is told by the cluster's own tools.

use anyhow::Result;
use policy_tests::cluster::Cluster;
use policy_tests::cluster::nodes::until;
use serde_json::json;

/// `kubectl events` shows what the agents say of a policy. `kubectl describe` has no events of NetworkPolicies, whoever
/// writes them (`NetworkPolicyDescriber`, Kubernetes 1.36).
pub(crate) fn events(cluster: &Cluster) -> Result<()> {
    cluster.namespaces(&[("told", json!({}))])?;
    cluster.admin().apply(&json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "told", "name": "odd"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"], "egress": [{}]}}))?;
    let events = ["events", "--namespace", "told", "--for", "networkpolicy/odd"];
    until("kubectl events tells what has no effect", || {
        let told = cluster.kubectl(&events)?;
        Ok(told.contains("Advice") && told.contains("spec.egress: has no effect"))
    })?;
    // Every agent writes the same object.
    let told = cluster.kubectl(&events)?;
    anyhow::ensure!(told.matches("has no effect").count() == 1, "told more than once:\n{told}");
    let described = cluster.kubectl(&["describe", "--namespace", "told", "networkpolicy/odd"])?;
    println!(
        "kubectl events shows the policy's event; kubectl describe {}",
        if described.contains("has no effect") { "too" } else { "does not" }
    );
    cluster.kubectl(&["delete", "namespace", "told", "--wait=false"]).map(drop)
}
