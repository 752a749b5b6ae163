//! Namespaces, nodes and Services.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::at::At;
use super::{Meta, block, label, port};
use crate::model::{NAMESPACE_NAME_LABEL, Namespace, Node, Protocol, Service, ServicePort, TargetPort};
use crate::world::Delta;

const NO_PORTS: &str = "the Service counts as without ports";
const NO_PORT: &str = "this port of the Service is left out";
const SKIPPED: &str = "this address is left out";

/// Reads a namespace. The label of its name is set whatever the object says: a policy may depend on it.
pub(super) fn namespace(_root: &At<'_>, meta: &Meta<'_>) -> Delta {
    let name = &meta.key.name;
    let mut labels: BTreeMap<String, String> = (*label::labels(&meta.fields)).clone();
    let given = labels.insert(NAMESPACE_NAME_LABEL.to_owned(), name.to_string());
    if given.is_some_and(|given| given != **name) {
        meta.fields.bad(format!("label {NAMESPACE_NAME_LABEL} differs from the name: read as {name}"));
    }
    Delta::Namespace(Namespace { name: name.clone(), labels: Arc::new(labels) })
}

/// Reads a node.
pub(super) fn node(root: &At<'_>, meta: &Meta<'_>) -> Delta {
    let list = root.field("status").and_then(|status| status.field("addresses"));
    let mut addresses = Vec::new();
    for item in list.and_then(|at| at.items("the node counts as without addresses")).unwrap_or_default() {
        // Host and DNS names stand in the same list.
        let text = item.field("address").and_then(|at| at.value().as_str());
        push_new(&mut addresses, text.and_then(block::plain_address));
    }
    Delta::Node(Node { name: meta.key.name.clone(), labels: label::labels(&meta.fields), addresses })
}

/// Reads a Service.
pub(super) fn service(root: &At<'_>, meta: &Meta<'_>) -> Delta {
    let mut addresses = Vec::new();
    if let Some(spec) = root.field("spec") {
        let one = spec.field("clusterIP").into_iter().chain(spec.field("loadBalancerIP"));
        let lists = [spec.field("clusterIPs"), spec.field("externalIPs")];
        let many = lists.into_iter().flatten().flat_map(|at| at.items(SKIPPED).unwrap_or_default());
        for at in one.chain(many) {
            // A headless Service says None, one that waits for its address the empty string.
            if !matches!(at.value().as_str(), Some("None" | "")) {
                push_new(&mut addresses, block::address(&at, SKIPPED));
            }
        }
    }
    let balancer = root.field("status").and_then(|status| status.field("loadBalancer"));
    let list = balancer.and_then(|at| at.field("ingress"));
    for item in list.and_then(|at| at.items(SKIPPED)).unwrap_or_default() {
        push_new(&mut addresses, item.field("ip").and_then(|at| block::address(&at, SKIPPED)));
    }
    let spec = root.field("spec");
    let selector = spec.as_ref().and_then(|spec| spec.field("selector"));
    let ports = spec.and_then(|spec| spec.field("ports"));
    let ports = ports.and_then(|at| at.items(NO_PORTS)).unwrap_or_default();
    Delta::Service(Service {
        key: meta.key.clone(),
        addresses,
        selector: selector.map(|at| selected(&at)).unwrap_or_default(),
        ports: ports.iter().filter_map(service_port).collect(),
    })
}

fn selected(at: &At<'_>) -> BTreeMap<String, String> {
    let Some(entries) = at.object("the Service selects no pods") else { return BTreeMap::new() };
    let text = |(key, value): (&String, &serde_json::Value)| Some((key.clone(), value.as_str()?.to_owned()));
    entries.iter().filter_map(text).collect()
}

fn service_port(at: &At<'_>) -> Option<ServicePort> {
    let protocol = match at.field("protocol") {
        Some(at) => port::protocol(&at, NO_PORT)?,
        None => Protocol::Tcp,
    };
    let number = at.field("port")?.port_number(NO_PORT)?;
    let target = match at.field("targetPort") {
        // The number 0 stands where nobody said anything.
        Some(at) if at.value().as_u64() == Some(0) => TargetPort::Number(number),
        Some(at) => match at.value().as_str() {
            Some(name) => TargetPort::Name(name.into()),
            None => TargetPort::Number(at.port_number(NO_PORT)?),
        },
        None => TargetPort::Number(number),
    };
    Some(ServicePort { protocol, port: number, target })
}

/// Adds an address that is not there yet.
pub(super) fn push_new(addresses: &mut Vec<IpAddr>, address: Option<IpAddr>) {
    addresses.extend(address.filter(|address| !addresses.contains(address)));
}
