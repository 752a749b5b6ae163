//! Whole nodes: kubelets, containerd and CNI plugins make and end the pods, and a DaemonSet has the agents.

use super::{Amount, Kubelets, Report, rules, run, watch::Watch};
use crate::{
    cluster::{Cluster, nodes::lan},
    net::Netns,
};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::{fs::File, net::IpAddr, process::Command};

struct Nodes<'a> {
    cluster: &'a Cluster,
    ns: Netns,
    names: Vec<String>,
}

/// Churns pods on the nodes of a cluster whose agents are ready.
///
/// # Errors
/// A request, a pod or the promise of an agent fails.
pub fn on_nodes(cluster: &Cluster, amount: Amount) -> Result<Report> {
    let namespaces = rules::NAMESPACES.map(|name| (name, json!({"team": name})));
    cluster.namespaces(&namespaces)?;
    let admin = cluster.admin();
    rules::objects().iter().try_for_each(|object| admin.apply(object).map(drop))?;
    let names: Vec<String> = cluster.nodes().iter().map(|node| node.name().to_owned()).collect();
    let file = File::open(lan::namespace(&names[0])).context("open the first node's network")?;
    let kubelets = Nodes { cluster, ns: Netns::from_file(file), names };
    let report = run(&kubelets, admin, amount);
    for name in rules::NAMESPACES {
        cluster.kubectl(&["delete", "namespace", name, "--wait=false"])?;
    }
    // Nobody sends to a pod before its address is told; how long it is open by then, other tests measure.
    report.map(|report| Report { open: Vec::new(), ..report })
}

impl Kubelets for Nodes<'_> {
    fn nodes(&self) -> &[String] {
        &self.names
    }

    fn ns(&self) -> &Netns {
        &self.ns
    }

    fn spec(&self, node: &str) -> Value {
        // Nothing listens in it: the traffic opens its own sockets there.
        Cluster::idle_pod_object("", "", node, &json!({}))["spec"].take()
    }

    fn start(
        &self,
        pod: &Value,
        watch: &Watch,
        begun: &mut dyn FnMut(&Netns, IpAddr) -> Result<()>,
    ) -> Result<()> {
        let uid = pod["metadata"]["uid"].as_str().context("a pod without UID")?;
        let runs = |pod: Option<&Value>| {
            pod.is_some_and(|pod| pod["status"]["podIP"].is_string() && pod["status"]["phase"] == "Running")
        };
        watch.until(uid, runs).context("the pod does not run")?;
        let pod = self.cluster.find(&watch.newest(uid).context("the pod is gone")?)?;
        begun(&pod.ns, *pod.ips.first().context("a pod without address")?)
    }

    fn end(&self, pod: &Value, watch: &Watch) -> Result<()> {
        let uid = pod["metadata"]["uid"].as_str().context("a pod without UID")?;
        watch.until(uid, |pod| pod.is_none()).context("the pod does not go")
    }

    fn ctl(&self, node: usize) -> Result<Command> {
        self.cluster.nodes()[node].ctl()
    }
}
