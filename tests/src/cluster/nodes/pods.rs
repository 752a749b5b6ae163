//! Pods on real nodes: made by the API, found by their processes.

use super::{Cluster, until};
use crate::net::Netns;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{
    fs,
    net::{IpAddr, SocketAddr, TcpStream},
    os::unix::fs::MetadataExt,
    sync::Arc,
    time::Duration,
};

/// The image of test servers.
const SERVER: &str = "policy-agent.local/agnhost:dev";
/// Port on which a pod of [`Cluster::pod`] answers HTTP, and UDP one higher.
pub const PORT: u16 = 8080;

/// A new connection that is not answered in this time is not let through.
const SILENCE: Duration = Duration::from_millis(400);

/// A pod that runs.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Addresses, the one of the first family first.
    pub ips: Vec<IpAddr>,
    /// Its network namespace.
    pub ns: Arc<Netns>,
}

impl Pod {
    /// Whether a new TCP connection from this pod is answered in time.
    pub fn opens(&self, to: SocketAddr) -> bool {
        self.ns.run(|| TcpStream::connect_timeout(&to, SILENCE).is_ok())
    }
}

impl Cluster {
    /// A server's Pod object: HTTP on [`PORT`], UDP on the next one.
    pub fn pod_object(namespace: &str, name: &str, node: &str, labels: &Value) -> Value {
        let arguments = ["netexec", "--http-port=8080", "--udp-port=8081"];
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": namespace, "name": name, "labels": labels},
            "spec": {"nodeName": node, "terminationGracePeriodSeconds": 1, "restartPolicy": "Never",
                "containers": [{"name": "server", "image": SERVER, "imagePullPolicy": "Never", "args": arguments}]}})
    }

    /// A Pod object in which nothing listens.
    pub fn idle_pod_object(namespace: &str, name: &str, node: &str, labels: &Value) -> Value {
        let mut object = Self::pod_object(namespace, name, node, labels);
        object["spec"]["containers"][0]["args"] = json!(["pause"]);
        object
    }

    /// Makes namespaces, and waits until pods may be made in them.
    pub fn namespaces(&self, names: &[(&str, Value)]) -> Result<()> {
        for (name, labels) in names {
            let metadata = json!({"name": name, "labels": labels});
            self.admin().apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}))?;
        }
        for (name, _) in names {
            let path = format!("/api/v1/namespaces/{name}/serviceaccounts/default");
            until("a namespace has its account", || {
                Ok(self.admin().request("GET", &path, None)?.status == 200)
            })?;
        }
        Ok(())
    }

    /// Makes servers, given as (namespace, name, node, labels), and returns once they are ready.
    pub fn pods(&self, wanted: &[(&str, &str, &str, Value)]) -> Result<Vec<Pod>> {
        for (namespace, name, node, labels) in wanted {
            self.admin().create(&Self::pod_object(namespace, name, node, labels))?;
        }
        wanted.iter().map(|(namespace, name, ..)| self.running(namespace, name)).collect()
    }

    /// As [`Cluster::pods`], but nothing listens in them: a test opens its own sockets there.
    pub fn idle_pods(&self, wanted: &[(&str, &str, &str, Value)]) -> Result<Vec<Pod>> {
        for (namespace, name, node, labels) in wanted {
            self.admin().create(&Self::idle_pod_object(namespace, name, node, labels))?;
        }
        wanted.iter().map(|(namespace, name, ..)| self.running(namespace, name)).collect()
    }

    /// A pod, once all its containers are ready.
    pub fn running(&self, namespace: &str, name: &str) -> Result<Pod> {
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
        until(&format!("pod {namespace}/{name} is ready"), || {
            let pod = self.admin().get(&path)?;
            let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
            let ready = conditions.into_iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
            ensure!(ready, "{}", pod["status"]);
            Ok(true)
        })?;
        self.find(&self.admin().get(&path)?)
    }

    /// A pod's addresses and network namespace, by its object.
    pub fn find(&self, pod: &Value) -> Result<Pod> {
        let text = |value: &Value| value.as_str().map(str::to_owned).context("a pod without name");
        let ips = pod["status"]["podIPs"].as_array().into_iter().flatten();
        let ips = ips.filter_map(|ip| ip["ip"].as_str()?.parse().ok()).collect();
        // The kubelet runs a static pod by the UID that it gave the pod itself.
        let mirrored = &pod["metadata"]["annotations"]["kubernetes.io/config.mirror"];
        let uid = text(if mirrored.is_null() { &pod["metadata"]["uid"] } else { mirrored })?;
        let id = process_of(&uid)?;
        let file = fs::File::open(format!("/proc/{id}/ns/net")).context("open a pod's network namespace")?;
        Ok(Pod {
            namespace: text(&pod["metadata"]["namespace"])?,
            name: text(&pod["metadata"]["name"])?,
            ips,
            ns: Arc::new(Netns::from_file(file)),
        })
    }
}

/// A process of the pod, found by its control group, and in a network namespace that is not a node's.
fn process_of(uid: &str) -> Result<u32> {
    let group = format!("/pod{uid}/");
    let node = |inode: u64| {
        (1..=2).any(|n| {
            fs::metadata(super::lan::namespace(&super::node_name(n))).is_ok_and(|m| m.ino() == inode)
        })
    };
    for entry in fs::read_dir("/proc").context("list processes")?.flatten() {
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let groups = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        let inode = fs::metadata(entry.path().join("ns/net")).map(|found| found.ino());
        if groups.contains(&group) && inode.is_ok_and(|inode| !node(inode)) {
            return Ok(id);
        }
    }
    anyhow::bail!("no process of the pod {uid}")
}
