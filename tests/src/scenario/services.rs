//! Where Services lead: the EndpointSlices that a controller would write, and what kube-proxy makes of them.

use super::{Port, Transport, state::State};
use crate::{
    nat::{Forward, Front},
    net::Family,
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

/// Label that names the Service of a slice.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// What the node does to packets towards a destination that it translates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Translation {
    /// Where they may go; nowhere: they are refused.
    pub backends: Vec<SocketAddr>,
    /// The destination sees the node's address, whoever sends.
    pub masquerade: bool,
}

/// Everything that the node translates.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Translations {
    /// Services, node ports, host ports.
    pub forwards: Vec<Forward>,
    own: Vec<IpAddr>,
}

impl Translations {
    /// What the node makes of a packet from a pod, from itself or from outside.
    pub fn of(&self, to: IpAddr, port: Port) -> Option<Translation> {
        let name = match port.transport {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
            Transport::Sctp | Transport::Icmp | Transport::Other(_) => return None,
        };
        let own = self.own.contains(&to);
        self.forwards.iter().filter(|forward| forward.protocols.contains(&name)).find_map(|forward| {
            let (hit, masquerade) = match forward.front {
                Front::Address(front) => (front == SocketAddr::new(to, port.number), false),
                Front::NodePort(number) => (own && number == port.number, true),
                Front::HostPort(number) => (own && number == port.number, false),
            };
            let same_family = |backend: &SocketAddr| backend.is_ipv4() == to.is_ipv4();
            let backends = || forward.backends.iter().copied().filter(same_family).collect();
            hit.then(|| Translation { backends: backends(), masquerade })
        })
    }
}

impl State {
    fn forwards(&self) -> Vec<Forward> {
        let mut forwards = Vec::new();
        let slices = self.slices();
        for service in self.services() {
            let local =
                service.pointer("/spec/externalTrafficPolicy").is_some_and(|policy| policy == "Local");
            for port in list(service, "/spec/ports") {
                let protocol = protocol(port);
                let forward = |front, backends| Forward { front, protocols: vec![protocol], backends };
                for ip in addresses(service) {
                    let backends = self.backends(service, port, Family::of(ip), &slices);
                    forwards
                        .push(forward(Front::Address(SocketAddr::new(ip, number(port, "port"))), backends));
                }
                let node_port = number(port, "nodePort");
                let front = if local { Front::HostPort(node_port) } else { Front::NodePort(node_port) };
                if node_port != 0 {
                    let all = self.families.iter().flat_map(|f| self.backends(service, port, *f, &slices));
                    forwards.push(forward(front, all.collect()));
                }
            }
        }
        forwards.extend(self.host_ports());
        forwards
    }

    /// What the node does to packets now.
    pub fn translations(&self) -> Translations {
        let own = self.nodes.get(Self::NODE).map(|node| node.ips.clone()).unwrap_or_default();
        Translations { forwards: self.forwards(), own }
    }

    /// Names and addresses of Services as places: `svc/namespace/name` the cluster's addresses, `lb/namespace/name` the
    /// others.
    pub(super) fn service_places(&self) -> Vec<(String, Vec<IpAddr>)> {
        let mut places = Vec::new();
        for service in self.services() {
            let (namespace, name) = key(service);
            let cluster = cluster_addresses(service);
            let others = addresses(service).into_iter().filter(|ip| !cluster.contains(ip)).collect();
            places.push((format!("svc/{namespace}/{name}"), cluster));
            places.push((format!("lb/{namespace}/{name}"), others));
        }
        places.retain(|(_, ips)| !ips.is_empty());
        places
    }

    /// The slices of Services with a selector for which the scenario gives none.
    pub(super) fn made_slices(&self) -> Vec<Value> {
        let given: BTreeSet<(String, String)> = self.applied_of("EndpointSlice").map(service_of).collect();
        let mut slices = Vec::new();
        for service in self.applied_of("Service") {
            let selects = service.pointer("/spec/selector").and_then(Value::as_object);
            if given.contains(&key(service)) || selects.is_none_or(serde_json::Map::is_empty) {
                continue;
            }
            for family in self.families.iter().copied() {
                slices.extend(self.slices_of(service, family));
            }
        }
        slices
    }

    /// One slice for each way in which pods number the ports.
    fn slices_of(&self, service: &Value, family: Family) -> Vec<Value> {
        let (namespace, name) = key(service);
        let mut by_ports: BTreeMap<String, (Value, Vec<Value>)> = BTreeMap::new();
        for (pod, spec) in self.pods.iter().filter(|(_, pod)| pod.is_live()) {
            let wanted = service.pointer("/spec/selector").and_then(Value::as_object);
            let mut wanted = wanted.into_iter().flatten();
            let selected = wanted.all(|(k, v)| spec.spec.labels.get(k).map(String::as_str) == v.as_str());
            let here = pod.split_once('/').is_some_and(|(of, _)| of == namespace);
            let ip = spec.ips.iter().find(|ip| Family::of(**ip) == family);
            let (true, true, Some(ip)) = (selected, here, ip) else { continue };
            let ports: Value = list(service, "/spec/ports")
                .filter_map(|port| {
                    let number = target(port, spec)?;
                    Some(json!({"name": text(port, "name"), "protocol": upper(port), "port": number}))
                })
                .collect();
            let ending = spec.spec.terminating;
            let conditions = json!({"ready": !ending, "serving": true, "terminating": ending});
            let endpoint = json!({"addresses": [ip], "conditions": conditions});
            by_ports.entry(ports.to_string()).or_insert((ports, Vec::new())).1.push(endpoint);
        }
        let kind = if family == Family::V4 { "IPv4" } else { "IPv6" };
        let made = by_ports.into_values().enumerate().map(|(n, (ports, endpoints))| {
            let name_of_slice = format!("{name}-{}-{n}", kind.to_lowercase());
            let labels = json!({SERVICE_NAME: name});
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": kind,
                "metadata": {"namespace": namespace, "name": name_of_slice, "labels": labels},
                "ports": ports, "endpoints": endpoints,
            })
        });
        made.collect()
    }

    /// Services that a proxy looks at: those with an address in the cluster.
    fn services(&self) -> impl Iterator<Item = &Value> {
        self.applied_of("Service").filter(|service| !cluster_addresses(service).is_empty())
    }

    fn slices(&self) -> Vec<Value> {
        self.applied_of("EndpointSlice").cloned().chain(self.made_slices()).collect()
    }

    /// Backends that a proxy would use: those that are ready; if none is, those that end and still serve.
    fn backends(&self, service: &Value, port: &Value, family: Family, slices: &[Value]) -> Vec<SocketAddr> {
        let (mut ready, mut serving) = (BTreeSet::new(), BTreeSet::new());
        for slice in slices.iter().filter(|slice| service_of(slice) == key(service)) {
            let same = |at: &&Value| text(at, "name") == text(port, "name") && upper(at) == upper(port);
            for at in list(slice, "/ports").filter(same) {
                for endpoint in list(slice, "/endpoints") {
                    let condition = |name: &str| endpoint.pointer("/conditions")?.get(name)?.as_bool();
                    let is_ready = condition("ready").unwrap_or(true);
                    let ip = endpoint.pointer("/addresses/0").and_then(Value::as_str);
                    let ip =
                        ip.and_then(|ip| ip.parse::<IpAddr>().ok()).filter(|ip| Family::of(*ip) == family);
                    let Some(ip) = ip else { continue };
                    let backend = SocketAddr::new(ip, number(at, "port"));
                    if is_ready {
                        ready.insert(backend);
                    } else if condition("serving").unwrap_or(false) {
                        serving.insert(backend);
                    }
                }
            }
        }
        if ready.is_empty() { serving } else { ready }.into_iter().collect()
    }

    fn host_ports(&self) -> Vec<Forward> {
        let mut forwards = Vec::new();
        let here = |node: Option<&String>| node.is_none_or(|node| node == Self::NODE);
        for pod in self.pods.values().filter(|pod| pod.is_live() && here(pod.spec.node.as_ref())) {
            for port in pod.spec.containers.iter().flat_map(|container| &container.ports) {
                let Some(host) = port.host_port else { continue };
                let protocol = if port.protocol.as_deref() == Some("UDP") { "udp" } else { "tcp" };
                let backends = pod.ips.iter().map(|ip| SocketAddr::new(*ip, port.port)).collect();
                forwards.push(Forward { front: Front::HostPort(host), protocols: vec![protocol], backends });
            }
        }
        forwards
    }
}

/// The number that a pod gives to the port to which the Service's port leads.
fn target(port: &Value, pod: &super::state::Pod) -> Option<u16> {
    let name = match port.get("targetPort") {
        None => return Some(number(port, "port")),
        Some(Value::String(name)) => name,
        Some(_) => return Some(number(port, "targetPort")),
    };
    let ports = pod.spec.containers.iter().flat_map(|container| &container.ports);
    let same = |p: &&super::schema::ContainerPort| {
        p.name.as_ref() == Some(name) && p.protocol.as_deref().unwrap_or("TCP") == upper(port)
    };
    ports.filter(same).map(|p| p.port).next()
}

fn cluster_addresses(service: &Value) -> Vec<IpAddr> {
    let one = service.pointer("/spec/clusterIP").into_iter();
    ips(one.chain(list(service, "/spec/clusterIPs")))
}

fn addresses(service: &Value) -> Vec<IpAddr> {
    let balancer = list(service, "/status/loadBalancer/ingress").filter_map(|ingress| ingress.get("ip"));
    let mut all = cluster_addresses(service);
    all.extend(ips(list(service, "/spec/externalIPs").chain(balancer)));
    all
}

fn ips<'a>(values: impl Iterator<Item = &'a Value>) -> Vec<IpAddr> {
    let mut all: Vec<IpAddr> = Vec::new();
    for ip in values.filter_map(|value| value.as_str()?.parse().ok()) {
        if !all.contains(&ip) {
            all.push(ip);
        }
    }
    all
}

fn list<'a>(object: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    object.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn number(object: &Value, field: &str) -> u16 {
    object.get(field).and_then(Value::as_u64).and_then(|n| u16::try_from(n).ok()).unwrap_or(0)
}

fn upper(port: &Value) -> &str {
    match text(port, "protocol") {
        "" => "TCP",
        protocol => protocol,
    }
}

fn protocol(port: &Value) -> &'static str {
    if upper(port) == "UDP" { "udp" } else { "tcp" }
}

fn key(object: &Value) -> (String, String) {
    let at = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    (at("/metadata/namespace"), at("/metadata/name"))
}

fn service_of(slice: &Value) -> (String, String) {
    let labels = slice.pointer("/metadata/labels");
    let name = labels.and_then(|labels| labels.get(SERVICE_NAME)).and_then(Value::as_str).unwrap_or_default();
    (key(slice).0, name.to_owned())
}
