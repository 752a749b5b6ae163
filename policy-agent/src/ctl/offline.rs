//! A world out of a directory of manifests, and the pods and addresses that a user names in it.

use std::io::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use policy_engine::model::{ObjectKey, Pod, Protocol};
use policy_engine::services;
use policy_engine::world::World;

use crate::ctl::failure::Failure;
use crate::ctl::screen::{Screen, joined};
use crate::source::files;
use crate::source::objects::Objects;

/// Reads all objects below a path. What is wrong with them goes to standard error: it changes the answer.
///
/// # Errors
/// When the path cannot be read, or the messages cannot be written.
pub fn world(path: &Path, screen: &mut Screen<'_>) -> Result<World, Failure> {
    let snapshot = files::read_dir(path).map_err(|error| {
        Failure::new(format!("cannot read {}: {error}", path.display()))
            .hint("--manifests takes a directory of YAML and JSON objects, or one file")
    })?;
    let update = Objects::default().update(&snapshot);
    for problem in &update.problems {
        let told = joined(&[&problem.location, &problem.object, &problem.field, &problem.message]);
        writeln!(screen.err, "warning: {told}")?;
    }
    let mut world = World::new("");
    for delta in update.deltas {
        world.apply(delta);
    }
    if world.pods.is_empty() {
        writeln!(screen.err, "warning: no pods in {}", path.display())?;
    }
    Ok(world)
}

/// One end of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// As the user named it.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// Finds a pod by `namespace/name`, or takes an address as it is.
///
/// # Errors
/// When there is no such pod, or policy cannot judge it.
pub fn end(world: &World, text: &str) -> Result<End, Failure> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(End { name: address.to_string(), addresses: vec![address] });
    }
    let Some((namespace, name)) = text.split_once('/') else {
        return Err(Failure::new(format!("{text:?} is neither a pod nor an address"))
            .hint("name a pod as namespace/name, for example shop/db"));
    };
    let key = ObjectKey::new(namespace, name);
    let Some(pod) = world.pods.get(&key) else {
        return Err(Failure::new(format!("no pod {key}")).hint(neighbours(world, namespace)));
    };
    let addresses = addresses(world, pod)?;
    Ok(End { name: key.to_string(), addresses })
}

/// The pods to which a Service, given as `namespace/name`, leads, each with its number of the port.
///
/// # Errors
/// When there is no such Service or port, or nothing behind it.
pub fn backends(
    world: &World,
    text: &str,
    protocol: Protocol,
    port: u16,
) -> Result<Vec<(End, u16)>, Failure> {
    let wrong = || {
        Failure::new(format!("{text:?} is no Service"))
            .hint("name it as svc/namespace/name, for example svc/shop/db")
    };
    let (namespace, name) = text.split_once('/').ok_or_else(wrong)?;
    let key = ObjectKey::new(namespace, name);
    let Some(service) = world.services.get(&key) else {
        let names: Vec<String> = world.services.keys().take(10).map(|key| format!("svc/{key}")).collect();
        let hint = if names.is_empty() { "the manifests hold none".to_owned() } else { names.join(", ") };
        return Err(Failure::new(format!("no Service {key}")).hint(format!("Services: {hint}")));
    };
    let Some(service_port) = service.port(protocol, port) else {
        let ports: Vec<String> = service.ports.iter().map(|p| format!("{}/{}", p.port, p.protocol)).collect();
        return Err(Failure::new(format!("Service {key} has no port {port}/{protocol}"))
            .hint(format!("its ports: {}", ports.join(", "))));
    };
    if world.slices.values().any(|slice| slice.service_key() == key) {
        let ends = services::reached(world, service, service_port).into_iter().map(|(address, port)| {
            let name = world.pod_at(address).map_or_else(|| address.to_string(), |pod| pod.key.to_string());
            (End { name, addresses: vec![address] }, port)
        });
        return some_backend(&key, ends.collect(), "see its EndpointSlices");
    }
    if service.selector.is_empty() {
        return Err(Failure::new(format!("Service {key} has no selector: its backends are in no manifest"))
            .hint("ask for a backend by its address"));
    }
    let pods = world.pods.values().filter(|pod| service.selects(pod) && pod.is_subject());
    let ends = pods.filter(|pod| !pod.addresses.is_empty()).filter_map(|pod| {
        let port = service_port.on(pod)?;
        Some(addresses(world, pod).map(|addresses| (End { name: pod.key.to_string(), addresses }, port)))
    });
    let ends = ends.collect::<Result<Vec<_>, _>>()?;
    some_backend(&key, ends, "see its selector, and the pods' labels, addresses and port names")
}

fn some_backend(key: &ObjectKey, ends: Vec<(End, u16)>, hint: &str) -> Result<Vec<(End, u16)>, Failure> {
    if ends.is_empty() {
        let none = format!("Service {key} leads to no pod: the node refuses connections to it");
        return Err(Failure::new(none).hint(hint));
    }
    Ok(ends)
}

fn addresses(world: &World, pod: &Arc<Pod>) -> Result<Vec<IpAddr>, Failure> {
    let key = &pod.key;
    if pod.phase.is_finished() {
        return Err(Failure::new(format!("pod {key} has finished: it has no traffic")));
    }
    if pod.host_network {
        return Err(Failure::new(format!("pod {key} is on its node's network, where no policy applies"))
            .hint("name the node's address instead"));
    }
    if pod.addresses.is_empty() {
        return Err(Failure::new(format!("pod {key} has no address")).hint("give it a status.podIP"));
    }
    let own = |address: &IpAddr| world.pod_at(*address).is_some_and(|owner| owner.key == *key);
    let addresses: Vec<IpAddr> = pod.addresses.iter().copied().filter(own).collect();
    if addresses.is_empty() {
        return Err(Failure::new(format!("the addresses of pod {key} belong to another pod or node"))
            .hint("two objects claim them; see status.podIPs"));
    }
    Ok(addresses)
}

fn neighbours(world: &World, namespace: &str) -> String {
    let names: Vec<&str> =
        world.pods.keys().filter(|key| &*key.namespace == namespace).map(|key| &*key.name).take(10).collect();
    if names.is_empty() {
        let mut namespaces: Vec<&str> = world.pods.keys().map(|key| &*key.namespace).collect();
        namespaces.dedup();
        namespaces.truncate(10);
        return format!("no pods in namespace {namespace}; there are some in: {}", namespaces.join(", "));
    }
    format!("pods in {namespace}: {}", names.join(", "))
}
