//! Pods.

use std::net::IpAddr;
use std::sync::Arc;

use super::at::At;
use super::cluster::push_new;
use super::{Meta, block, label, port};
use crate::address::{identity, is_identity};
use crate::model::{ContainerPort, GroupHint, InterfaceHint, Phase, Pod, Protocol};
use crate::world::Delta;

const INTERFACE: &str = "policy-agent.io/interface";
const NETNS: &str = "policy-agent.io/netns";
const CGROUP: &str = "policy-agent.io/cgroup";
const UNIT: &str = "policy-agent.io/unit";
/// Kubelets write it to the objects that stand for static pods: the UID that they gave the pod themselves.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// Reads a pod.
pub(super) fn pod(root: &At<'_>, meta: &Meta<'_>) -> Delta {
    let spec = root.field("spec").filter(|at| at.object("the pod counts as without spec").is_some());
    let status = root.field("status").filter(|at| at.object("the pod counts as without address").is_some());
    let node = spec.as_ref().and_then(|at| at.field("nodeName"));
    let node = node.and_then(|at| at.text("the pod counts as on no node")).filter(|name| !name.is_empty());
    let host_network = spec.as_ref().and_then(|at| at.field("hostNetwork"));
    let unclear = "the pod counts as without address, as its address may be the node's";
    let host_network = host_network.map_or(Some(false), |at| at.boolean(unclear));
    let addresses = status.as_ref().map(addresses).unwrap_or_default();
    let interface = interface(&meta.fields);
    let mut addresses = if host_network.is_some() { addresses } else { Vec::new() };
    // Nobody but the group itself has one: it is what its peers on the host know it by.
    addresses.retain(|ip| !is_identity(ip));
    let group = matches!(interface, Some(InterfaceHint::Group(_)));
    if group {
        addresses.insert(0, identity(&meta.key));
    }
    Delta::Pod(Pod {
        key: meta.key.clone(),
        uid: meta.uid.clone(),
        mirror_of: mirror_of(&meta.fields),
        labels: label::labels(&meta.fields),
        node: node.map(Into::into),
        // What it shares with its host does not matter where its own sockets are judged.
        host_network: host_network.unwrap_or(false) && !group,
        phase: status.as_ref().map(phase).unwrap_or_default(),
        terminating: meta.fields.field("deletionTimestamp").is_some(),
        addresses,
        ports: spec.as_ref().map(ports).unwrap_or_default(),
        created: created(&meta.fields).into(),
        interface,
    })
}

fn addresses(status: &At<'_>) -> Vec<IpAddr> {
    const SKIPPED: &str = "this address is left out";
    let mut addresses = Vec::new();
    for item in status.field("podIPs").and_then(|at| at.items(SKIPPED)).unwrap_or_default() {
        if item.object(SKIPPED).is_some() {
            push_new(&mut addresses, item.field("ip").and_then(|at| block::address(&at, SKIPPED)));
        }
    }
    // An address that is not there yet may be the empty string.
    let single = status.field("podIP").filter(|at| at.value().as_str() != Some(""));
    push_new(&mut addresses, single.and_then(|at| block::address(&at, SKIPPED)));
    addresses
}

fn phase(status: &At<'_>) -> Phase {
    let Some(at) = status.field("phase") else { return Phase::default() };
    match at.text("the pod counts as running") {
        Some("Pending") => Phase::Pending,
        Some("Running") => Phase::Running,
        Some("Succeeded") => Phase::Succeeded,
        Some("Failed") => Phase::Failed,
        Some("Unknown") => Phase::Unknown,
        Some(other) => {
            at.bad(format!("unknown phase \"{other}\": the pod counts as running"));
            Phase::Unknown
        }
        None => Phase::Unknown,
    }
}

/// Named ports of all containers. Init containers count too: sidecars are among them, and a plain one may serve while
/// it runs.
fn ports(spec: &At<'_>) -> Vec<ContainerPort> {
    const NO_PORTS: &str = "its named ports are left out";
    let mut ports = Vec::new();
    for list in ["containers", "initContainers"] {
        let containers = spec.field(list).and_then(|at| at.items(NO_PORTS)).unwrap_or_default();
        for container in containers {
            let entries = container.field("ports").and_then(|at| at.items(NO_PORTS)).unwrap_or_default();
            ports.extend(entries.iter().filter_map(container_port));
        }
    }
    ports.sort();
    ports.dedup();
    ports
}

fn container_port(at: &At<'_>) -> Option<ContainerPort> {
    const SKIPPED: &str = "this named port is left out";
    at.object(SKIPPED)?;
    let name = at.field("name")?.text(SKIPPED)?;
    let number = at.field("containerPort").and_then(|at| at.port_number(SKIPPED));
    let protocol = match at.field("protocol") {
        Some(at) => port::protocol(&at, SKIPPED)?,
        None => Protocol::Tcp,
    };
    Some(ContainerPort { name: name.into(), port: number?, protocol })
}

/// Creation time, in the one form that API servers write: such texts sort by time.
fn created<'a>(metadata: &At<'a>) -> &'a str {
    let Some(at) = metadata.field("creationTimestamp") else { return "" };
    let Some(text) = at.text("the creation time counts as unknown") else { return "" };
    let form = b"dddd-dd-ddTdd:dd:ddZ";
    let fits = text.len() == form.len()
        && text
            .bytes()
            .zip(form)
            .all(|(byte, form)| if *form == b'd' { byte.is_ascii_digit() } else { byte == *form });
    if !fits {
        at.bad(format!(
            "\"{text}\" is no time like 2024-01-31T00:00:00Z: the creation time counts as unknown"
        ));
        return "";
    }
    text
}

fn mirror_of(metadata: &At<'_>) -> Option<Arc<str>> {
    let uid = metadata.field("annotations")?.field(MIRROR)?.text("the pod counts as no static one")?;
    (!uid.is_empty()).then(|| uid.into())
}

/// The first annotation that says where the pod is; others beside it are told.
fn interface(metadata: &At<'_>) -> Option<InterfaceHint> {
    let annotations = metadata.field("annotations")?;
    let read = |key: &'static str| {
        let text = annotations.field(key)?.text("this annotation is ignored")?;
        (!text.is_empty()).then(|| (key, text.to_owned()))
    };
    let mut found = [INTERFACE, NETNS, CGROUP, UNIT].into_iter().filter_map(read);
    let (key, text) = found.next()?;
    if let Some((other, _)) = found.next() {
        annotations.bad(format!("has {key} and {other}: the first is used"));
    }
    Some(match key {
        INTERFACE => InterfaceHint::Name(text),
        NETNS => InterfaceHint::Netns(text),
        CGROUP => InterfaceHint::Group(GroupHint::Path(text)),
        _ => InterfaceHint::Group(GroupHint::Unit(text)),
    })
}
