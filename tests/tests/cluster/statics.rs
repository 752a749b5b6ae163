//! Static pods: the kubelet starts them from files of its node, and the API server only shows a mirror of each.

use std::fs;
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use policy_tests::cluster::Cluster;
use policy_tests::cluster::nodes::{Node, PORT, Pod, node_name, until};
use serde_json::json;

const NAMESPACE: &str = "statics";
const MANIFEST: &str = "/etc/kubernetes/manifests/database.json";

/// A pod of a file is judged as its mirror's labels say, again when the file has changed, and forgotten with the file.
pub(crate) fn judged(cluster: &Cluster) -> Result<()> {
    cluster.namespaces(&[(NAMESPACE, json!({}))])?;
    let node = cluster.nodes().first().context("a cluster has nodes")?;
    let clients = cluster.pods(&[
        (NAMESPACE, "near", &node_name(1), json!({"app": "client"})),
        (NAMESPACE, "far", &node_name(2), json!({"app": "client"})),
        (NAMESPACE, "stranger", &node_name(1), json!({})),
    ])?;
    for app in ["database", "archive"] {
        let from = json!([{"podSelector": {"matchLabels": {"app": "client"}}}]);
        let ingress = if app == "database" { json!([{"from": from}]) } else { json!([]) };
        cluster.admin().apply(&json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": NAMESPACE, "name": app},
            "spec": {"podSelector": {"matchLabels": {"app": app}}, "policyTypes": ["Ingress"],
                "ingress": ingress}}))?;
    }
    let before = started(cluster, node, "database")?;
    answers(&before, &clients, &[true, true, false])?;
    let after = started(cluster, node, "archive")?;
    answers(&after, &clients, &[false, false, false])?;
    fs::remove_file(node.path(MANIFEST)).context("remove the manifest")?;
    until("the static pod is forgotten", || {
        let output = node.ctl()?.args(["get", "endpoints", "--output", "json"]).output()?;
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success() && !told.contains(&after.name), "{told}");
        Ok(true)
    })?;
    cluster.kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"]).map(drop)
}

/// Writes the file; the pod that the kubelet makes of it, once it has this label and is enforced.
fn started(cluster: &Cluster, node: &Node, app: &str) -> Result<Pod> {
    let mut object = Cluster::pod_object(NAMESPACE, "database", node.name(), &json!({"app": app}));
    if let Some(spec) = object["spec"].as_object_mut() {
        spec.remove("nodeName");
    }
    // The kubelet takes no notice of names that begin with a dot.
    let staged = node.path("/etc/kubernetes/manifests/.staged");
    fs::write(&staged, object.to_string()).context("write the manifest")?;
    fs::rename(&staged, node.path(MANIFEST)).context("put the manifest in place")?;
    let name = format!("database-{}", node.name());
    let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{name}");
    until("the mirror has the file's label", || {
        let answer = cluster.admin().request("GET", &path, None)?;
        Ok(answer.status == 200 && answer.fine()?["metadata"]["labels"]["app"] == app)
    })?;
    let pod = cluster.running(NAMESPACE, &name)?;
    let name = format!("{NAMESPACE}/{name}");
    let output = node.ctl()?.args(["wait", "--timeout", "60s", "--pod", &name]).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Ready is a container that has started; what it says to itself is nobody's to judge.
    let own = SocketAddr::new(*pod.ips.first().context("a pod has an address")?, PORT);
    until("the static pod's server listens", || Ok(pod.opens(own)))?;
    Ok(pod)
}

/// Whether each client is answered.
fn answers(pod: &Pod, clients: &[Pod], wanted: &[bool]) -> Result<()> {
    for ip in &pod.ips {
        let found: Vec<bool> =
            clients.iter().map(|client| client.opens(SocketAddr::new(*ip, PORT))).collect();
        ensure!(found == wanted, "{} at {ip} answers {found:?}, not {wanted:?}", pod.name);
    }
    Ok(())
}
