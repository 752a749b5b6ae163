//! Namespaces, nodes, Services and their backends.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::at::At;
use super::{Meta, block, label, port};
use crate::model::{
    EndpointSlice, NAMESPACE_NAME_LABEL, Namespace, Node, Protocol, Service, ServicePort, SlicePort,
    TargetPort,
};
use crate::world::Delta;

const NO_PORTS: &str = "the Service counts as without ports";
const NO_PORT: &str = "this port of the Service is left out";
const SKIPPED: &str = "this address is left out";
const NO_BACKEND: &str = "this backend is left out";
/// Label of an EndpointSlice that names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

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
    let is_headless =
        |spec: &At<'_>| spec.field("clusterIP").is_some_and(|at| at.value().as_str() == Some("None"));
    // Nothing translates the addresses of a headless one, whatever they are.
    if let Some(spec) = root.field("spec").filter(|spec| !is_headless(spec)) {
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
        // Packets to such an address leave the node as they are.
        if item.field("ipMode").is_some_and(|at| at.value().as_str() == Some("Proxy")) {
            continue;
        }
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
    let node_port = at.field("nodePort").filter(|at| at.value().as_u64() != Some(0));
    let node_port = node_port.and_then(|at| at.port_number("read as absent"));
    Some(ServicePort { name: port_name(at), protocol, port: number, node_port, target })
}

fn port_name(at: &At<'_>) -> Arc<str> {
    at.field("name").and_then(|at| at.value().as_str()).unwrap_or_default().into()
}

/// Reads an EndpointSlice.
pub(super) fn endpoint_slice(root: &At<'_>, meta: &Meta<'_>) -> Delta {
    let ports = root.field("ports").and_then(|at| at.items("the slice counts as without ports"));
    let endpoints = root.field("endpoints").and_then(|at| at.items("the slice counts as without backends"));
    let mut serving = Vec::new();
    for endpoint in endpoints.unwrap_or_default().iter().filter(|at| is_serving(at)) {
        // Of its addresses only the first is used, as the API says.
        let addresses = endpoint.field("addresses").and_then(|at| at.items(NO_BACKEND)).unwrap_or_default();
        // A slice of names holds no addresses.
        push_new(&mut serving, addresses.first().and_then(|at| block::plain_address(at.value().as_str()?)));
    }
    Delta::EndpointSlice(EndpointSlice {
        key: meta.key.clone(),
        service: label::labels(&meta.fields).get(SERVICE_NAME).map_or("", String::as_str).into(),
        ports: ports.unwrap_or_default().iter().filter_map(slice_port).collect(),
        serving,
    })
}

/// Whether connections may go to a backend: one that is ending gets them while no other is ready.
fn is_serving(at: &At<'_>) -> bool {
    let condition = |name: &str| at.field("conditions")?.field(name)?.value().as_bool();
    let ready = condition("ready").unwrap_or(true);
    ready || condition("serving").unwrap_or(ready)
}

fn slice_port(at: &At<'_>) -> Option<SlicePort> {
    let protocol = match at.field("protocol") {
        Some(at) => port::protocol(&at, NO_PORT)?,
        None => Protocol::Tcp,
    };
    Some(SlicePort { name: port_name(at), protocol, port: at.field("port")?.port_number(NO_PORT)? })
}

/// Adds an address that is not there yet.
pub(super) fn push_new(addresses: &mut Vec<IpAddr>, address: Option<IpAddr>) {
    addresses.extend(address.filter(|address| !addresses.contains(address)));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::read::object;

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn backends_that_get_connections_are_kept() {
        let endpoint =
            |ip: &str, conditions| json!({"addresses": [ip, "10.9.9.9"], "conditions": conditions});
        let read = object(&json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"namespace": "x", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
            "ports": [{"name": "http", "port": 8080}, {"port": 53, "protocol": "UDP"}, {"name": "all", "port": null}],
            "endpoints": [
                endpoint("10.0.0.1", json!({"ready": true})), endpoint("10.0.0.2", json!({"ready": false})),
                endpoint("10.0.0.3", json!({"ready": false, "serving": true, "terminating": true})),
                endpoint("10.0.0.4", json!({})), {"addresses": ["10.0.0.5"]}, {"addresses": ["host.example"]},
                endpoint("10.0.0.6", json!({"ready": false, "serving": false, "terminating": true})),
            ],
        }));
        let Some(Delta::EndpointSlice(slice)) = read.delta else { panic!("{read:?}") };
        assert_eq!(slice.service_key().to_string(), "x/web");
        assert_eq!(slice.serving, ips(&["10.0.0.1", "10.0.0.3", "10.0.0.4", "10.0.0.5"]));
        let ports: Vec<_> = slice.ports.iter().map(|p| (&*p.name, p.protocol, p.port)).collect();
        assert_eq!(ports, [("http", Protocol::Tcp, 8080), ("", Protocol::Udp, 53)]);
        assert!(!read.broken, "{:?}", read.problems);
    }

    #[test]
    fn addresses_that_nobody_translates_are_none_of_the_services() {
        let service = |spec: serde_json::Value, ingress: serde_json::Value| {
            let read = object(&json!({
                "apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": spec,
                "status": {"loadBalancer": {"ingress": ingress}},
            }));
            let Some(Delta::Service(service)) = read.delta else { panic!("{read:?}") };
            service
        };
        let headless = service(json!({"clusterIP": "None", "externalIPs": ["192.0.2.7"]}), json!([]));
        assert_eq!(headless.addresses, ips(&[]));
        let ingress = json!([{"ip": "192.0.2.8", "ipMode": "Proxy"}, {"ip": "192.0.2.9", "ipMode": "VIP"}]);
        let ports = json!([{"name": "http", "port": 80, "nodePort": 30080}, {"port": 81, "nodePort": 0}]);
        let balanced = service(json!({"clusterIP": "10.96.0.1", "ports": ports}), ingress);
        assert_eq!(balanced.addresses, ips(&["10.96.0.1", "192.0.2.9"]));
        let ports: Vec<_> = balanced.ports.iter().map(|p| (&*p.name, p.port, p.node_port)).collect();
        assert_eq!(ports, [("http", 80, Some(30_080)), ("", 81, None)]);
    }
}
