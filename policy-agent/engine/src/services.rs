//! Where a packet to a Service may go, read straight from the objects: for the evaluator, and for people who ask.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::model::{Pod, Protocol, Service, ServiceMode, ServicePort};
use crate::verdict::Query;
use crate::world::World;

/// Everything that the pod's node may turn the destination into, sorted, where that is what judges it; empty if a Service
/// is asked that has no backend. `None`: the destination is judged as it is.
#[must_use]
pub fn backends(world: &World, pod: &Pod, query: &Query) -> Option<Vec<(IpAddr, u16)>> {
    match world.service_mode {
        ServiceMode::Tag => None,
        ServiceMode::Backends => translated(world, pod, query),
    }
}

/// The same, whatever judges it.
#[must_use]
pub fn translated(world: &World, pod: &Pod, query: &Query) -> Option<Vec<(IpAddr, u16)>> {
    let protocol = Protocol::from_number(query.protocol)?;
    let own = world.is_node_of(pod, query.destination);
    let mut found: Option<BTreeSet<(IpAddr, u16)>> = None;
    for service in world.services.values() {
        for port in service.ports.iter().filter(|port| port.protocol == protocol) {
            let by_address = service.addresses.contains(&query.destination) && port.port == query.port;
            let by_node = own && port.node_port == Some(query.port);
            if by_address || by_node {
                let all = found.get_or_insert_default();
                all.extend(behind(world, service, port, query.destination.is_ipv4()));
            }
        }
    }
    found.map(|found| found.into_iter().collect())
}

/// The packet as the node would send it on to a backend.
#[must_use]
pub fn towards(query: &Query, backend: (IpAddr, u16)) -> Query {
    Query { destination: backend.0, port: backend.1, ..*query }
}

/// Where a port of a Service leads, sorted: as EndpointSlices say; without any, the pods that the Service selects.
#[must_use]
pub fn reached(world: &World, service: &Service, port: &ServicePort) -> Vec<(IpAddr, u16)> {
    let given = world.slices.values().any(|slice| slice.service_key() == service.key);
    let found: BTreeSet<(IpAddr, u16)> = if given {
        [true, false].into_iter().flat_map(|ipv4| behind(world, service, port, ipv4)).collect()
    } else {
        let pods = world.pod_addresses().filter(|(_, pod)| service.selects(pod));
        pods.filter_map(|(address, pod)| Some((address, port.on(pod)?))).collect()
    };
    found.into_iter().collect()
}

/// Where a port of a Service leads in a family, as EndpointSlices say.
pub fn behind<'a>(
    world: &'a World,
    service: &'a Service,
    port: &'a ServicePort,
    ipv4: bool,
) -> impl Iterator<Item = (IpAddr, u16)> + 'a {
    let slices = world.slices.values().filter(move |slice| slice.service_key() == service.key);
    slices.flat_map(move |slice| {
        let same = slice.ports.iter().filter(|at| at.name == port.name && at.protocol == port.protocol);
        let serving = slice.serving.iter().filter(move |address| address.is_ipv4() == ipv4);
        same.flat_map(move |at| serving.clone().map(move |address| (*address, at.port)))
    })
}
