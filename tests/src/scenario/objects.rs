//! The Kubernetes objects of a scenario's cluster, as an API server would hand them out.

use super::{
    schema::{Container, ContainerKind, NamespaceSpec},
    state::{NodeState, Pod, State},
};
use serde_json::{Map, Value, json};

/// Namespaces, nodes and pods.
pub(super) fn of_cluster(state: &State) -> Vec<Value> {
    let namespaces = state.namespaces.iter().map(|(name, spec)| namespace(name, spec));
    let nodes = state.nodes.iter().map(|(name, spec)| node(name, spec));
    let pods = state.pods.iter().map(|(name, spec)| pod(name, spec));
    namespaces.chain(nodes).chain(pods).collect()
}

fn namespace(name: &str, spec: &NamespaceSpec) -> Value {
    let mut labels = spec.labels.clone();
    if !spec.no_default_label {
        labels.insert("kubernetes.io/metadata.name".to_owned(), name.to_owned());
    }
    let mut metadata = json!({"name": name, "labels": labels});
    let mut phase = "Active";
    if spec.terminating {
        (metadata["deletionTimestamp"], phase) = ("2024-01-01T01:00:00Z".into(), "Terminating");
    }
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata, "status": {"phase": phase}})
}

fn node(name: &str, spec: &NodeState) -> Value {
    let addresses: Vec<Value> =
        spec.ips.iter().map(|ip| json!({"type": "InternalIP", "address": ip})).collect();
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": spec.labels},
        "status": {"addresses": addresses},
    })
}

fn pod(full_name: &str, pod: &Pod) -> Value {
    let (namespace, name) = full_name.split_once('/').unwrap_or(("default", full_name));
    let serial = pod.serial;
    let mut metadata = json!({
        "namespace": namespace, "name": name, "labels": pod.spec.labels,
        "uid": format!("00000000-0000-4000-8000-{serial:012}"),
        "creationTimestamp": format!("2024-01-01T00:{:02}:{:02}Z", serial / 60, serial % 60),
    });
    if !pod.spec.annotations.is_empty() {
        metadata["annotations"] = json!(pod.spec.annotations);
    }
    if pod.spec.terminating {
        metadata["deletionTimestamp"] = "2024-01-01T01:00:00Z".into();
    }
    let app: Vec<Value> = containers(pod, |kind| kind == ContainerKind::App);
    let init: Vec<Value> = containers(pod, |kind| kind != ContainerKind::App);
    let mut spec = json!({"nodeName": pod.spec.node.as_deref().unwrap_or(State::NODE), "containers": app});
    if !init.is_empty() {
        spec["initContainers"] = init.into();
    }
    if pod.spec.host_network {
        spec["hostNetwork"] = true.into();
    }
    let mut status = Map::new();
    status.insert("phase".to_owned(), pod.spec.phase.as_deref().unwrap_or("Running").into());
    if let Some(first) = pod.ips.first() {
        status.insert("podIP".to_owned(), json!(first));
        status.insert("podIPs".to_owned(), pod.ips.iter().map(|ip| json!({"ip": ip})).collect());
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": status})
}

fn containers(pod: &Pod, wanted: impl Fn(ContainerKind) -> bool) -> Vec<Value> {
    let mut out: Vec<Value> = pod.spec.containers.iter().filter(|c| wanted(c.kind)).map(container).collect();
    if out.is_empty() && wanted(ContainerKind::App) {
        out.push(json!({"name": "c"}));
    }
    out
}

fn container(container: &Container) -> Value {
    let mut out = json!({"name": container.name});
    if container.kind == ContainerKind::Sidecar {
        out["restartPolicy"] = "Always".into();
    }
    let port = |port: &super::schema::ContainerPort| {
        let mut out = json!({"containerPort": port.port});
        for (field, value) in [("name", &port.name), ("protocol", &port.protocol)] {
            if let Some(value) = value {
                out[field] = value.as_str().into();
            }
        }
        if let Some(host) = port.host_port {
            out["hostPort"] = host.into();
        }
        out
    };
    if !container.ports.is_empty() {
        out["ports"] = container.ports.iter().map(port).collect();
    }
    out
}
