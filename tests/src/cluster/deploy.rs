//! The project's own manifests on a cluster: what a user applies, on real nodes.

use super::{Cluster, nodes::until};
use crate::scenario;
use anyhow::{Result, ensure};
use serde_json::Value;

/// Namespace of the agent.
pub const NAMESPACE: &str = "policy-agent";

/// Applies `deploy/base` and returns once every node has an agent that is ready.
pub fn apply(cluster: &Cluster) -> Result<()> {
    apply_folder(cluster, "base")
}

/// Applies a folder of `deploy` and returns once every node has an agent that is ready.
pub fn apply_folder(cluster: &Cluster, folder: &str) -> Result<()> {
    let base = scenario::root().join("deploy").join(folder);
    cluster.kubectl(&["apply", "--kustomize", &base.display().to_string()])?;
    ready(cluster)
}

/// Returns once the newest template of the DaemonSet runs, ready, on every node.
pub fn ready(cluster: &Cluster) -> Result<()> {
    until("every node has an agent that is ready", || {
        let set =
            cluster.admin().get(&format!("/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/policy-agent"))?;
        let status = |key: &str| set["status"][key].as_u64().unwrap_or_default();
        let nodes = cluster.nodes().len() as u64;
        let observed = set["metadata"]["generation"] == set["status"]["observedGeneration"];
        let done = observed
            && status("desiredNumberScheduled") == nodes
            && status("updatedNumberScheduled") == nodes
            && status("numberReady") == nodes;
        ensure!(done, "{}\n{}", set["status"], pods(cluster)?);
        Ok(true)
    })
}

/// What the agents say, for a test that failed.
pub fn logs(cluster: &Cluster) -> String {
    pods(cluster).unwrap_or_else(|error| format!("{error:#}"))
}

/// Why pods of the agent are not ready.
fn pods(cluster: &Cluster) -> Result<String> {
    let list = cluster.admin().get(&format!("/api/v1/namespaces/{NAMESPACE}/pods"))?;
    let states = list["items"].as_array().into_iter().flatten().map(|pod: &Value| {
        format!("{}: {}", pod["metadata"]["name"], pod["status"]["containerStatuses"][0]["state"])
    });
    let selector = "app.kubernetes.io/name=policy-agent";
    let logs = cluster.kubectl(&["-n", NAMESPACE, "logs", "-l", selector, "--prefix", "--tail=20"]);
    let logs = logs.unwrap_or_else(|error| error.to_string());
    Ok(format!("{}\n{logs}", states.collect::<Vec<_>>().join("\n")))
}
