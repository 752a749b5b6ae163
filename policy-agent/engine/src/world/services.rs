//! Services and where they lead.

use std::collections::BTreeSet;
use std::net::IpAddr;

use imbl::ordmap::DiffItem;
use imbl::ordset;

use super::index::first_at;
use super::{World, put};
use crate::model::{EndpointSlice, ObjectKey, Protocol, Service, ServicePort};

/// A port at an address that the node translates.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FrontPort {
    /// Protocol.
    pub protocol: Protocol,
    /// Number.
    pub port: u16,
    /// Addresses and ports that it may lead to, sorted. Several Services with the same port lead to those of all.
    pub backends: BTreeSet<(IpAddr, u16)>,
}

impl World {
    /// Addresses of Services, with the first Service that has each, in order of address.
    pub fn frontends(&self) -> impl Iterator<Item = (IpAddr, &ObjectKey)> {
        let mut last = None;
        let all = self.index.services.iter();
        all.filter_map(move |(address, key)| {
            (last.replace(*address) != Some(*address)).then_some((*address, key))
        })
    }

    /// Whether a Service has the address.
    #[must_use]
    pub fn is_frontend(&self, address: IpAddr) -> bool {
        first_at(&self.index.services, address).is_some()
    }

    /// Addresses that came to, or went from, a Service since an earlier state of this world.
    pub fn changed_frontends<'a>(&'a self, earlier: &'a Self) -> impl Iterator<Item = IpAddr> + 'a {
        earlier.index.services.diff(&self.index.services).map(|change| match change {
            ordset::DiffItem::Add((address, _)) | ordset::DiffItem::Remove((address, _)) => *address,
        })
    }

    /// The ports of an address that lead to Services, sorted: those of the Services that have the address, and of the
    /// node's own addresses the node ports of all.
    #[must_use]
    pub fn front_ports(&self, address: IpAddr) -> Vec<FrontPort> {
        let mut found: Vec<FrontPort> = Vec::new();
        let mut add = |service: &Service, port: &ServicePort, number: u16| {
            let backends = self.backends(&service.key, port, address.is_ipv4());
            let same = |f: &&mut FrontPort| f.protocol == port.protocol && f.port == number;
            match found.iter_mut().find(same) {
                Some(front) => front.backends.extend(backends),
                None => found.push(FrontPort {
                    protocol: port.protocol,
                    port: number,
                    backends: backends.collect(),
                }),
            }
        };
        for service in self.services_at(address) {
            service.ports.iter().for_each(|port| add(service, port, port.port));
        }
        if self.is_host_address(address) {
            for service in self.services.values() {
                let node_ports = service.ports.iter().filter_map(|port| Some((port, port.node_port?)));
                node_ports.for_each(|(port, number)| add(service, port, number));
            }
        }
        found.sort_unstable();
        found
    }

    /// Addresses among those of Services and of the node that may lead to other backends, or to changed ones, than in an
    /// earlier state of this world. `changed`: addresses that mean something else since then.
    #[must_use]
    pub fn changed_fronts(&self, earlier: &Self, changed: &BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
        let mut services: BTreeSet<ObjectKey> = BTreeSet::new();
        for item in earlier.services.diff(&self.services) {
            services.insert(match item {
                DiffItem::Add(key, _) | DiffItem::Remove(key, _) => key.clone(),
                DiffItem::Update { new: (key, _), .. } => key.clone(),
            });
        }
        for item in earlier.slices.diff(&self.slices) {
            match item {
                DiffItem::Add(_, slice) | DiffItem::Remove(_, slice) => {
                    services.extend([slice.service_key()]);
                }
                DiffItem::Update { old: (_, old), new: (_, new) } => {
                    services.extend([old.service_key(), new.service_key()]);
                }
            }
        }
        for address in changed {
            let slices = self.index.backends.range((*address, ObjectKey::default())..);
            let slices =
                slices.take_while(|(at, _)| at == address).filter_map(|(_, key)| self.slices.get(key));
            services.extend(slices.map(|slice| slice.service_key()));
        }
        let mut fronts = BTreeSet::new();
        for service in
            services.iter().flat_map(|key| [earlier.services.get(key), self.services.get(key)]).flatten()
        {
            fronts.extend(&service.addresses);
            if service.ports.iter().any(|port| port.node_port.is_some()) {
                fronts.extend(self.host_addresses.iter());
            }
        }
        fronts
    }

    /// Services that have the address.
    fn services_at(&self, address: IpAddr) -> impl Iterator<Item = &Service> {
        let all = self.index.services.range((address, ObjectKey::default())..);
        all.take_while(move |(at, _)| *at == address)
            .filter_map(|(_, key)| self.services.get(key))
            .map(|s| &**s)
    }

    /// Where a Service's port leads in a family.
    fn backends<'a>(
        &'a self,
        service: &'a ObjectKey,
        port: &'a ServicePort,
        ipv4: bool,
    ) -> impl Iterator<Item = (IpAddr, u16)> + 'a {
        let slices = self.index.slices.range((service.clone(), ObjectKey::default())..);
        let slices =
            slices.take_while(move |(of, _)| of == service).filter_map(|(_, key)| self.slices.get(key));
        slices.flat_map(move |slice| {
            let here = slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol);
            here.flat_map(move |p| slice.serving.iter().map(move |address| (*address, p.port)))
                .filter(move |(address, _)| address.is_ipv4() == ipv4)
        })
    }

    pub(super) fn put_service(&mut self, new: Service) -> bool {
        let old = self.services.get(&new.key).cloned();
        let Some(service) = put(&mut self.services, new.key.clone(), new) else { return false };
        for address in old.iter().flat_map(|old| &old.addresses) {
            self.index.services.remove(&(*address, service.key.clone()));
        }
        for address in &service.addresses {
            self.index.services.insert((*address, service.key.clone()));
        }
        true
    }

    pub(super) fn remove_service(&mut self, key: &ObjectKey) -> bool {
        let Some(old) = self.services.remove(key) else { return false };
        for address in &old.addresses {
            self.index.services.remove(&(*address, key.clone()));
        }
        true
    }

    pub(super) fn put_slice(&mut self, new: EndpointSlice) -> bool {
        let old = self.slices.get(&new.key).cloned();
        let Some(slice) = put(&mut self.slices, new.key.clone(), new) else { return false };
        if let Some(old) = old {
            self.forget_slice(&old);
        }
        self.index.slices.insert((slice.service_key(), slice.key.clone()));
        for address in &slice.serving {
            self.index.backends.insert((*address, slice.key.clone()));
        }
        true
    }

    pub(super) fn remove_slice(&mut self, key: &ObjectKey) -> bool {
        let Some(old) = self.slices.remove(key) else { return false };
        self.forget_slice(&old);
        true
    }

    fn forget_slice(&mut self, slice: &EndpointSlice) {
        self.index.slices.remove(&(slice.service_key(), slice.key.clone()));
        for address in &slice.serving {
            self.index.backends.remove(&(*address, slice.key.clone()));
        }
    }
}
