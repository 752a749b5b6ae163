//! The life of an endpoint's slot: made closed, filled by plans, closed, retired after a grace period.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use policy_common::abi::{
    ANY_SLOT, EndpointWord, LocalKey, ROW_CLOSED, TICK_SHIFT, address_words, endpoint_config, endpoint_words,
    limits, meta_words,
};

use super::error::{Error, Result};
use super::executor::Executor;
use super::grace::Grace;
use super::ledger::{FLOWS, Ledger};
use super::map::{Map, bytes_of, from_bytes};
use super::spare::{self, Slots, There};
use super::spec::MapId;

const CLOSED: EndpointWord = EndpointWord { epoch: 1, ingress_row: ROW_CLOSED, egress_row: ROW_CLOSED };
/// Index of a further local address: the first of each family has 1 and stands in the endpoint's words.
const LOCAL_INDEXES: std::ops::RangeInclusive<u32> = 2..=254;

/// A pod to be enforced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Slot, not in use, not 0.
    pub slot: u16,
    /// Id, never 0 and never used before: events carry it.
    pub id: u32,
    /// Host's end of its interface; 0 for a control group.
    pub ifindex: u32,
    /// All of its addresses; a source that is not among them is forged. The first of each family that is not link-local
    /// is its main one.
    pub addresses: Vec<IpAddr>,
    /// Bits of [`policy_common::abi::endpoint_config`].
    pub config: u16,
    /// How long packets in the middle of unknown connections are taken as theirs: those that began before the hook.
    pub pickup: Duration,
}

/// An endpoint as the kernel holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveEndpoint {
    /// Slot.
    pub slot: u16,
    /// Id.
    pub id: u32,
    /// Interface; 0 for a control group.
    pub ifindex: u32,
    /// Id of the control group.
    pub group: Option<u64>,
    /// Addresses, the main ones first.
    pub addresses: Vec<IpAddr>,
    /// Configuration bits.
    pub config: u16,
    /// Uses of the slot, modulo 2^16.
    pub generation: u16,
    /// Rows and epoch.
    pub word: EndpointWord,
}

/// The second half of an endpoint's removal. It waits for a grace period: run it on a thread of its own, and give
/// the slot to nobody before it has returned.
#[derive(Debug)]
#[must_use = "the slot stays taken until this has run"]
pub struct Retirement {
    slots: Vec<u16>,
    flows: Vec<OwnedFd>,
    locals: Vec<(LocalKey, u32)>,
    locals_map: OwnedFd,
    ep: OwnedFd,
    grace: Arc<Grace>,
    free: Slots,
    ledger: Arc<Mutex<Ledger>>,
}

impl Executor {
    /// Makes an endpoint: flow maps, addresses, then its words; closed in both directions until a plan opens it.
    /// Packets of its interface are judged once [`Executor::set_interface`] and the hooks are in place.
    ///
    /// Takes some milliseconds, unless the slot is one of [`Executor::spare_slots`].
    ///
    /// # Errors
    /// The slot is in use, too many addresses, or the kernel's answer.
    pub fn create_endpoint(&self, endpoint: &Endpoint) -> Result<()> {
        let slot = endpoint.slot;
        let wrong = |problem: String| Err(Error::Endpoint { slot, problem });
        let sockets = endpoint.config & endpoint_config::SOCKETS != 0;
        let nowhere = endpoint.ifindex == 0 && !sockets;
        if slot == 0 || u32::from(slot) >= limits::ENDPOINTS || endpoint.id == 0 || nowhere {
            return wrong("slot, id and interface must not be 0".to_owned());
        }
        let before = self.ep.load(u32::from(slot), endpoint_words::IDENTITY)?;
        if before as u32 != 0 {
            return wrong(format!("in use by endpoint {}", before as u32));
        }
        let there = self.slots.take(slot);
        let done = self.write_endpoint(endpoint, there, before);
        if done.is_err() {
            self.slots.free(slot);
        }
        done
    }

    fn write_endpoint(&self, endpoint: &Endpoint, there: There, before: u64) -> Result<()> {
        let slot = endpoint.slot;
        self.store_endpoint(slot, CLOSED)?;
        let (four, six) = main_addresses(&endpoint.addresses);
        let missing4 = (!there.four).then_some(MapId::Flows4);
        let missing6 = six.filter(|_| !there.six).map(|_| MapId::Flows6);
        self.install_flows(slot, [missing4, missing6].into_iter().flatten())?;
        self.write_addresses(
            slot,
            &endpoint.addresses,
            (four, six),
            endpoint.config & endpoint_config::SOCKETS != 0,
        )?;
        self.store_ep(u32::from(slot), endpoint_words::KEEP, 0)?;
        self.store_ep(u32::from(slot), endpoint_words::INTERFACE, u64::from(endpoint.ifindex))?;
        self.set_pickup(slot, endpoint.pickup)?;
        let generation = ((before >> 48) as u16).wrapping_add(1);
        let identity =
            u64::from(endpoint.id) | u64::from(endpoint.config) << 32 | u64::from(generation) << 48;
        self.store_ep(u32::from(slot), endpoint_words::IDENTITY, identity)
    }

    /// Replaces the endpoint's addresses. When the main address of a family changes, the flows of that family are
    /// forgotten: they were the other address's.
    ///
    /// # Errors
    /// Too many addresses, or the kernel's answer.
    pub fn set_addresses(&self, slot: u16, addresses: &[IpAddr]) -> Result<()> {
        let (four, six) = main_addresses(addresses);
        let before = self.main_words(slot)?;
        let changed4 = before.0 != Ipv4Addr::UNSPECIFIED && Some(before.0) != four;
        let changed6 = six.is_some_and(|ip| ip != before.1);
        let families = [changed4.then_some(MapId::Flows4), changed6.then_some(MapId::Flows6)];
        self.install_flows(slot, families.into_iter().flatten())?;
        let config = self.ep.load(u32::from(slot), endpoint_words::IDENTITY)? >> 32;
        let sockets = config & u64::from(endpoint_config::SOCKETS) != 0;
        self.write_addresses(slot, addresses, (four, six), sockets)
    }

    fn write_addresses(
        &self,
        slot: u16,
        addresses: &[IpAddr],
        (four, six): (Option<Ipv4Addr>, Option<Ipv6Addr>),
        sockets: bool,
    ) -> Result<()> {
        let main = [four.map(IpAddr::V4), six.map(IpAddr::V6)];
        let further = addresses.iter().filter(|ip| !main.contains(&Some(**ip)));
        let wanted: Vec<LocalKey> = further.map(|ip| local_key(u32::from(slot), *ip)).collect();
        let mut there = self.locals(slot)?;
        for (key, _) in there.iter().filter(|(key, _)| !wanted.contains(key)) {
            self.store_local(key, None)?;
        }
        for key in wanted {
            if there.iter().any(|(k, _)| *k == key) {
                continue;
            }
            let Some(index) = free_index(&there, key.family) else {
                return Err(Error::Endpoint {
                    slot,
                    problem: "more than 254 addresses of a family".to_owned(),
                });
            };
            self.store_local(&key, Some(index))?;
            there.push((key, index));
        }
        // The addresses of sockets are the host's: nobody owns them.
        let main = if sockets { [None, None] } else { main };
        self.write_owner(slot, &main.map(|ip| ip.map(|ip| local_key(ANY_SLOT, ip))))?;
        let slot = u32::from(slot);
        let (high, low) = six.map_or((0, 0), |ip| address_words(ip.octets()));
        self.store_ep(slot, endpoint_words::ADDRESS6_HIGH, high)?;
        self.store_ep(slot, endpoint_words::ADDRESS6_LOW, low)?;
        let until = self.ep.load(slot, endpoint_words::ADDRESS4)? >> 32;
        let address = four.map_or(0, |ip| u32::from_ne_bytes(ip.octets()));
        self.store_ep(slot, endpoint_words::ADDRESS4, u64::from(address) | until << 32)
    }

    /// Makes the endpoint the owner of its main addresses, and of no others.
    fn write_owner(&self, slot: u16, main: &[Option<LocalKey>]) -> Result<()> {
        let slot = u32::from(slot);
        let all = self.all_locals()?;
        for (key, owner) in all.iter().filter(|(key, _)| key.slot == ANY_SLOT) {
            let wanted = main.contains(&Some(*key));
            // Another endpoint's address that became ours was that of a pod which is gone.
            if wanted != (*owner == slot) {
                self.store_local(key, None)?;
            }
        }
        for key in main.iter().flatten().filter(|key| !all.contains(&(**key, slot))) {
            self.store_local(key, Some(slot))?;
        }
        Ok(())
    }

    /// Opens the endpoint's pick-up window anew, or closes it with a duration of 0.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn set_pickup(&self, slot: u16, window: Duration) -> Result<()> {
        let hertz = match self.meta(meta_words::HZ)? {
            0 => u64::from(policy_common::abi::DEFAULT_HZ),
            hertz => hertz,
        };
        let ticks = (window.as_millis() as u64 * hertz / 1000) >> TICK_SHIFT;
        let until =
            if window.is_zero() { 0 } else { self.tick()?.wrapping_add(ticks as u32).wrapping_add(1) };
        let address = self.ep.load(u32::from(slot), endpoint_words::ADDRESS4)? as u32;
        self.store_ep(u32::from(slot), endpoint_words::ADDRESS4, u64::from(address) | u64::from(until) << 32)
    }

    /// Stores the endpoint's configuration bits.
    ///
    /// # Errors
    /// No such slot.
    pub fn set_config(&self, slot: u16, config: u16) -> Result<()> {
        let rest = self.ep.load(u32::from(slot), endpoint_words::IDENTITY)? & !(0xffff << 32);
        self.store_ep(u32::from(slot), endpoint_words::IDENTITY, rest | u64::from(config) << 32)
    }

    /// The first half of an endpoint's removal, once its hooks are gone: closed, and its interface forgotten.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn remove_endpoints(&self, slots: &[u16]) -> Result<Retirement> {
        let mut locals = Vec::new();
        for slot in slots {
            let slot32 = u32::from(*slot);
            let ifindex = self.ep.load(slot32, endpoint_words::INTERFACE)? as u32;
            // The interface may have been given to another endpoint.
            if self.interface(ifindex)? == Some(*slot) {
                self.clear_interface(ifindex)?;
            }
            let word = EndpointWord::unpack(self.ep.load(slot32, endpoint_words::POLICY)?);
            self.store_endpoint(*slot, EndpointWord { epoch: word.epoch.wrapping_add(1), ..CLOSED })?;
            let mut owned = self.all_locals()?;
            owned.retain(|(key, value)| key.slot == slot32 || (key.slot == ANY_SLOT && *value == slot32));
            locals.extend(owned);
        }
        Ok(Retirement {
            slots: slots.to_vec(),
            flows: vec![self.maps[MapId::Flows4].try_clone_fd()?, self.maps[MapId::Flows6].try_clone_fd()?],
            locals,
            locals_map: self.maps[MapId::Locals].try_clone_fd()?,
            ep: self.maps[MapId::Ep].try_clone_fd()?,
            grace: self.grace.clone(),
            free: self.slots.clone(),
            ledger: self.ledger.clone(),
        })
    }

    /// Endpoints in the kernel, by slot.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn endpoints(&self) -> Result<Vec<LiveEndpoint>> {
        let (locals, groups) = (self.all_locals()?, self.groups()?);
        let mut found = Vec::new();
        for slot in 0..limits::ENDPOINTS as u16 {
            let word = |index| self.ep.load(u32::from(slot), index);
            let identity = word(endpoint_words::IDENTITY)?;
            if identity as u32 == 0 {
                continue;
            }
            let (four, six) = self.main_words(slot)?;
            let main = [IpAddr::V4(four), IpAddr::V6(six)].into_iter().filter(|ip| !ip.is_unspecified());
            let further = locals.iter().filter(|(key, _)| key.slot == u32::from(slot));
            found.push(LiveEndpoint {
                slot,
                id: identity as u32,
                config: (identity >> 32) as u16,
                generation: (identity >> 48) as u16,
                ifindex: word(endpoint_words::INTERFACE)? as u32,
                group: groups.iter().find(|(_, at)| at.slot == u32::from(slot)).map(|(id, _)| *id),
                addresses: main.chain(further.map(|(key, _)| address_of(key))).collect(),
                word: EndpointWord::unpack(word(endpoint_words::POLICY)?),
            });
        }
        Ok(found)
    }

    /// Flow maps of the slot, empty.
    pub(super) fn install_flows(&self, slot: u16, families: impl Iterator<Item = MapId>) -> Result<()> {
        spare::install(slot, self.flow_entries, families.map(|id| (&self.maps[id], id)), &self.ledger)
    }

    fn main_words(&self, slot: u16) -> Result<(Ipv4Addr, Ipv6Addr)> {
        let word = |index| self.ep.load(u32::from(slot), index);
        let four = Ipv4Addr::from((word(endpoint_words::ADDRESS4)? as u32).to_ne_bytes());
        let six = six_of(word(endpoint_words::ADDRESS6_HIGH)?, word(endpoint_words::ADDRESS6_LOW)?);
        Ok((four, Ipv6Addr::from(six)))
    }

    fn locals(&self, slot: u16) -> Result<Vec<(LocalKey, u32)>> {
        Ok(self.all_locals()?.into_iter().filter(|(key, _)| key.slot == u32::from(slot)).collect())
    }

    fn all_locals(&self) -> Result<Vec<(LocalKey, u32)>> {
        let map = &self.maps[MapId::Locals];
        let elements = map.elements().map_err(map.failed("read"))?;
        let mut found: Vec<(LocalKey, u32)> =
            elements.iter().filter_map(|(key, value)| Some((from_bytes(key)?, from_bytes(value)?))).collect();
        found.sort_unstable_by_key(|(key, index)| (key.slot, *index, key.family));
        Ok(found)
    }
}

impl Retirement {
    /// Waits until no packet is judged by the slots any more, then frees what they held. Hands back the free slots.
    ///
    /// # Errors
    /// The kernel's answer; the slots must then not be used again.
    pub fn run(self) -> Result<Vec<u16>> {
        let failed = |source| Error::Map { action: "wait for readers of", map: "EP", source };
        self.grace.wait().map_err(failed)?;
        for (fd, id) in self.flows.into_iter().zip(FLOWS) {
            let map = Map::new(fd, id.spec())?;
            for slot in self.slots.iter().map(|slot| u32::from(*slot)) {
                spare::remove_flows(&map, id, slot, &self.ledger)?;
            }
        }
        let locals = Map::new(self.locals_map, MapId::Locals.spec())?;
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, value) in &self.locals {
            // The address may have another endpoint by now.
            let there: Option<u32> =
                locals.get(bytes_of(key)).map_err(locals.failed("read"))?.and_then(|v| from_bytes(&v));
            if there == Some(*value) {
                ledger.drop_local(key);
                gone(&locals, bytes_of(key))?;
            }
        }
        // Last: a slot whose identity is not cleared is found again by the next agent.
        let words = Map::new(self.ep, MapId::Ep.spec())?.words()?;
        for slot in &self.slots {
            let generation = words.load(u32::from(*slot), endpoint_words::IDENTITY)? >> 48;
            ledger.note_ep(u32::from(*slot), endpoint_words::IDENTITY, generation << 48);
            words.store(u32::from(*slot), endpoint_words::IDENTITY, generation << 48)?;
            self.free.free(*slot);
        }
        Ok(self.slots)
    }
}

/// The main address of each family: the first that is not link-local.
fn main_addresses(addresses: &[IpAddr]) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
    let (mut four, mut six) = (None, None);
    for address in addresses {
        match address {
            IpAddr::V4(ip) if !ip.is_link_local() => drop(four.get_or_insert(*ip)),
            IpAddr::V6(ip) if !ip.is_unicast_link_local() => drop(six.get_or_insert(*ip)),
            IpAddr::V4(_) | IpAddr::V6(_) => {}
        }
    }
    (four, six)
}

/// An index that the slot does not use, above those in use as long as there is one: flows of an address that went may
/// still be there.
fn free_index(taken: &[(LocalKey, u32)], family: u32) -> Option<u32> {
    let used: BTreeSet<u32> = taken.iter().filter(|(key, _)| key.family == family).map(|(_, i)| *i).collect();
    let next = used.last().map_or(*LOCAL_INDEXES.start(), |last| last + 1);
    let free = |index: &u32| LOCAL_INDEXES.contains(index) && !used.contains(index);
    Some(next).filter(free).or_else(|| LOCAL_INDEXES.into_iter().find(free))
}

/// Removes an element; that it is gone already is fine.
pub(super) fn gone(map: &Map, key: &[u8]) -> Result<()> {
    match map.remove(key) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(map.failed("remove from")),
    }
}

fn local_key(slot: u32, address: IpAddr) -> LocalKey {
    match address {
        IpAddr::V4(ip) => LocalKey { slot, family: 4, address: [u32::from_ne_bytes(ip.octets()), 0, 0, 0] },
        IpAddr::V6(ip) => {
            let mut address = [0; 4];
            for (word, bytes) in address.iter_mut().zip(ip.octets().chunks_exact(4)) {
                *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            }
            LocalKey { slot, family: 6, address }
        }
    }
}

pub(super) fn address_of(key: &LocalKey) -> IpAddr {
    let mut bytes = [0; 16];
    for (to, word) in bytes.chunks_exact_mut(4).zip(key.address) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    match key.family {
        4 => IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]]),
        _ => IpAddr::from(bytes),
    }
}

fn six_of(high: u64, low: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&high.to_ne_bytes());
    bytes[8..].copy_from_slice(&low.to_ne_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_grow_and_are_reused_last() {
        let key = |family| LocalKey { slot: 1, family, ..LocalKey::default() };
        assert_eq!(free_index(&[], 4), Some(2));
        assert_eq!(free_index(&[(key(4), 5), (key(6), 9)], 4), Some(6));
        assert_eq!(free_index(&[(key(4), 254)], 4), Some(2));
        let full: Vec<_> = LOCAL_INDEXES.map(|index| (key(4), index)).collect();
        assert_eq!((free_index(&full, 4), free_index(&full, 6)), (None, Some(2)));
    }

    #[test]
    fn link_local_addresses_are_never_the_main_ones() {
        let all = ["fe80::1", "10.0.0.1", "2001:db8::1", "10.0.0.2"].map(|ip| ip.parse().unwrap());
        let (four, six) = main_addresses(&all);
        assert_eq!(four.unwrap().to_string() + " " + &six.unwrap().to_string(), "10.0.0.1 2001:db8::1");
        assert_eq!(main_addresses(&all[..1]), (None, None));
    }

    #[test]
    fn addresses_survive_their_keys() {
        for text in ["10.1.2.3", "2001:db8::1:2", "fe80::1"] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(address_of(&local_key(7, ip)), ip);
        }
        let ip: Ipv6Addr = "2001:db8::1:2".parse().unwrap();
        let (high, low) = address_words(ip.octets());
        assert_eq!(six_of(high, low), ip.octets());
    }
}
