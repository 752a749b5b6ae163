//! Local endpoints: which slot and id each has, and what changes when pods or interfaces do.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use policy_common::abi::limits;
use policy_engine::address::is_identity;
use policy_engine::desired;
use policy_engine::model::{ObjectKey, Pod};
use policy_engine::world::World;

use super::guard;
use super::placement::Place;
use crate::cgroup::Group;
use crate::datapath::LiveEndpoint;
use crate::netlink::HostLink;

/// Local addresses of a control group that are told apart, of each family: the table of all endpoints holds 4,096.
const GROUP_ADDRESSES: usize = 32;

/// A pod that has a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Local {
    /// Slot.
    pub slot: u16,
    /// Id, never used before.
    pub id: u32,
    /// The pod; `None` = not known yet: found in the kernel's maps, or an interface that is guarded.
    pub pod: Option<ObjectKey>,
    /// Its UID.
    pub uid: Arc<str>,
    /// Its addresses, the main ones first.
    pub addresses: Vec<IpAddr>,
    /// Host's end of its interface.
    pub ifindex: u32,
    /// Name of it; of a control group its path.
    pub interface: String,
    /// The control group in place of an interface.
    pub group: Option<Group>,
    /// Both programs are in place.
    pub hooked: bool,
    /// They are being put there.
    pub attaching: bool,
    /// The interface had no hooks when this endpoint was made.
    pub unhooked_before: bool,
    /// Why they are not.
    pub failure: Option<String>,
    /// Packets that had passed before the hook was in place.
    pub unprotected: u64,
    /// Programs of others that run before ours.
    pub before_us: Vec<String>,
    /// Programs of others that run behind ours on packets from the pod.
    pub behind_us: Vec<String>,
}

/// What must be done to the kernel's endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// Slots that are new; their endpoints are in the table.
    pub created: Vec<u16>,
    /// Endpoints that are no longer in the table.
    pub removed: Vec<Local>,
    /// Slots whose further addresses changed, or whose pod is known now.
    pub readdressed: Vec<u16>,
    /// Pods for which there is no slot.
    pub crowded: BTreeSet<ObjectKey>,
}

/// The table.
#[derive(Clone, Debug)]
pub(super) struct Table {
    endpoints: BTreeMap<u16, Local>,
    /// Slots that packets may still be judged by.
    retiring: BTreeSet<u16>,
    /// Slots that have their flow maps already.
    spare: BTreeSet<u16>,
    /// Pods and interfaces whose endpoint could not be made yet.
    waiting: usize,
    next_id: u32,
}

impl Table {
    /// What an earlier agent left. `next_id` is above every id given before.
    #[must_use]
    pub(super) fn adopt(live: &[LiveEndpoint], next_id: u32) -> Self {
        let next_id = live.iter().map(|e| e.id.wrapping_add(1)).chain([next_id, 1]).max().unwrap_or(1);
        let endpoints = live.iter().map(|e| (e.slot, adopted(e))).collect();
        Self { endpoints, retiring: BTreeSet::new(), spare: BTreeSet::new(), waiting: 0, next_id }
    }

    /// Endpoints by slot.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Local> {
        self.endpoints.values()
    }

    /// The endpoint of a slot.
    #[must_use]
    pub(super) fn get(&self, slot: u16) -> Option<&Local> {
        self.endpoints.get(&slot)
    }

    /// The endpoint of a slot, to note what became of it.
    pub(super) fn get_mut(&mut self, slot: u16) -> Option<&mut Local> {
        self.endpoints.get_mut(&slot)
    }

    /// The endpoint of a pod.
    #[must_use]
    pub(super) fn of_pod(&self, pod: &ObjectKey) -> Option<&Local> {
        self.endpoints.values().find(|local| local.pod.as_ref() == Some(pod))
    }

    /// Whether some interface is being hooked.
    #[must_use]
    pub(super) fn is_attaching(&self) -> bool {
        self.endpoints.values().any(|local| local.attaching)
    }

    /// The endpoint for which an interface is being hooked.
    pub(super) fn attaching_at(&mut self, ifindex: u32) -> Option<&mut Local> {
        self.endpoints.values_mut().find(|local| local.ifindex == ifindex && local.attaching)
    }

    /// The next id that will be given.
    #[must_use]
    pub(super) fn next_id(&self) -> u32 {
        self.next_id
    }

    /// Endpoints for the compiler: those whose pod is known.
    #[must_use]
    pub(super) fn desired(&self) -> Vec<desired::Endpoint> {
        let known = self.endpoints.values().filter_map(|local| {
            Some(desired::Endpoint { slot: local.slot, id: local.id, pod: local.pod.clone()? })
        });
        known.collect()
    }

    /// Takes an endpoint out, for example because the kernel did not take it.
    pub(super) fn drop_slot(&mut self, slot: u16) -> Option<Local> {
        self.endpoints.remove(&slot)
    }

    /// Slots to be given first.
    pub(super) fn prefer(&mut self, spare: BTreeSet<u16>) {
        self.spare = spare;
    }

    /// Slots that may be used again.
    pub(super) fn freed(&mut self, slots: &[u16]) {
        self.retiring.retain(|slot| !slots.contains(slot));
    }

    /// Follows the places of the local pods. An endpoint stays itself as long as its interface and main addresses do.
    /// An interface that is guarded has one without a pod, which becomes the pod's when the pod is placed there. No more
    /// than `room` are made: the others wait.
    pub(super) fn follow(
        &mut self,
        world: &World,
        places: &BTreeMap<ObjectKey, Place>,
        guarded: &[HostLink],
        room: usize,
    ) -> Changes {
        let mut changes = Changes::default();
        let mut kept = BTreeSet::new();
        let (mut missing, mut groups) = (Vec::new(), Vec::new());
        for (key, place) in places {
            let Some(pod) = world.pods.get(key) else { continue };
            let link = match place {
                Place::At(link) => link,
                Place::Group(group) => {
                    let addresses = group_addresses(pod, world);
                    match self.recognise_group(pod, group, &kept) {
                        Some(slot) => {
                            kept.insert(slot);
                            if self.refresh_group(slot, pod, group, addresses) {
                                changes.readdressed.push(slot);
                            }
                        }
                        None => groups.push((pod.clone(), group.clone(), addresses)),
                    }
                    continue;
                }
                Place::Nowhere(_) => continue,
            };
            match self.recognise(pod, link, &kept) {
                Some(slot) => {
                    kept.insert(slot);
                    if self.refresh(slot, pod, link) {
                        changes.readdressed.push(slot);
                    }
                }
                None => missing.push((pod.clone(), link.clone())),
            }
        }
        let mut unguarded = Vec::new();
        for link in guarded {
            match self.recognise_guarded(link) {
                Some(slot) => drop(kept.insert(slot)),
                None => unguarded.push(link),
            }
        }
        let gone: Vec<u16> = self.endpoints.keys().filter(|slot| !kept.contains(slot)).copied().collect();
        for slot in gone {
            self.retiring.insert(slot);
            changes.removed.extend(self.endpoints.remove(&slot));
        }
        let wanted = groups.len() + missing.len() + unguarded.len();
        self.waiting = wanted.saturating_sub(room);
        let mut room = 0..room;
        for (pod, group, addresses) in groups.into_iter().take_while(|_| room.next().is_some()) {
            match self.create_group(&pod, group, addresses) {
                Some(slot) => changes.created.push(slot),
                None => drop(changes.crowded.insert(pod.key.clone())),
            }
        }
        for (pod, link) in missing.into_iter().take_while(|_| room.next().is_some()) {
            match self.create(&pod, &link) {
                Some(slot) => changes.created.push(slot),
                None => drop(changes.crowded.insert(pod.key.clone())),
            }
        }
        // Pods that are known come first.
        let unguarded = unguarded.into_iter().take_while(|_| room.next().is_some());
        changes.created.extend(unguarded.filter_map(|link| self.guard(link)));
        changes
    }

    /// How many endpoints could not be made yet.
    #[must_use]
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    fn recognise(&self, pod: &Pod, link: &HostLink, kept: &BTreeSet<u16>) -> Option<u16> {
        let same = |local: &&Local| {
            local.ifindex == link.ifindex
                && !kept.contains(&local.slot)
                && main(&local.addresses) == main(&pod.addresses)
                // A StatefulSet's pod may come back with its name and address, but it is another one.
                && (local.pod.is_none() || local.uid == pod.uid)
        };
        self.endpoints.values().find(same).map(|local| local.slot)
    }

    /// True when further addresses changed, or when the pod was not known before.
    fn refresh(&mut self, slot: u16, pod: &Pod, link: &HostLink) -> bool {
        let Some(local) = self.endpoints.get_mut(&slot) else { return false };
        // A guarded interface has found its pod: that is a change, unlike an endpoint of an earlier agent.
        let identified = local.pod.is_none() && (local.hooked || local.attaching);
        local.pod = Some(pod.key.clone());
        local.uid = pod.uid.clone();
        local.interface.clone_from(&link.name);
        let set = |addresses: &[IpAddr]| addresses.iter().copied().collect::<BTreeSet<_>>();
        let changed = identified || set(&local.addresses) != set(&pod.addresses);
        local.addresses.clone_from(&pod.addresses);
        changed
    }

    fn create(&mut self, pod: &Pod, link: &HostLink) -> Option<u16> {
        let slot = self.place(link, pod.addresses.clone())?;
        if let Some(local) = self.endpoints.get_mut(&slot) {
            local.pod = Some(pod.key.clone());
            local.uid = pod.uid.clone();
        }
        Some(slot)
    }

    fn recognise_group(&self, pod: &Pod, group: &Group, kept: &BTreeSet<u16>) -> Option<u16> {
        let same = |local: &&Local| {
            local.group.as_ref().is_some_and(|there| there.id == group.id)
                && !kept.contains(&local.slot)
                && local.pod.as_ref().is_none_or(|there| *there == pod.key && local.uid == pod.uid)
        };
        self.endpoints.values().find(same).map(|local| local.slot)
    }

    /// True when addresses changed.
    fn refresh_group(&mut self, slot: u16, pod: &Pod, group: &Group, addresses: Vec<IpAddr>) -> bool {
        let Some(local) = self.endpoints.get_mut(&slot) else { return false };
        local.pod = Some(pod.key.clone());
        local.uid = pod.uid.clone();
        local.interface.clone_from(&group.path);
        local.group = Some(group.clone());
        let changed = local.addresses != addresses;
        local.addresses = addresses;
        changed
    }

    fn create_group(&mut self, pod: &Pod, group: Group, addresses: Vec<IpAddr>) -> Option<u16> {
        // Whatever ran in it before its first hook may have open connections.
        let unprotected = if group.populated { u64::MAX } else { 0 };
        let slot = self.put(addresses)?;
        if let Some(local) = self.endpoints.get_mut(&slot) {
            local.pod = Some(pod.key.clone());
            local.uid = pod.uid.clone();
            local.interface.clone_from(&group.path);
            local.unprotected = unprotected;
            local.group = Some(group);
        }
        Some(slot)
    }

    /// Gives endpoints without a pod to those of these links that have none. Hands back their slots.
    pub(super) fn hold(&mut self, links: &[HostLink]) -> Vec<u16> {
        let bare = |link: &&HostLink| !self.endpoints.values().any(|local| local.ifindex == link.ifindex);
        let links: Vec<&HostLink> = links.iter().filter(bare).collect();
        links.into_iter().filter_map(|link| self.guard(link)).collect()
    }

    fn guard(&mut self, link: &HostLink) -> Option<u16> {
        self.place(link, guard::addresses(link))
    }

    /// Slots that an endpoint may get, in the order in which they are given.
    pub(super) fn free(&self) -> impl Iterator<Item = u16> {
        let free = |slot: &u16| !self.endpoints.contains_key(slot) && !self.retiring.contains(slot);
        let all = 1..u16::try_from(limits::ENDPOINTS).unwrap_or(u16::MAX);
        let others = all.filter(|slot| !self.spare.contains(slot));
        self.spare.iter().copied().chain(others).filter(free)
    }

    fn place(&mut self, link: &HostLink, addresses: Vec<IpAddr>) -> Option<u16> {
        let slot = self.put(addresses)?;
        if let Some(local) = self.endpoints.get_mut(&slot) {
            local.ifindex = link.ifindex;
            local.interface.clone_from(&link.name);
            local.unprotected = link.packets;
        }
        Some(slot)
    }

    fn put(&mut self, addresses: Vec<IpAddr>) -> Option<u16> {
        let slot = self.free().next()?;
        let id = self.next_id;
        self.next_id = self.next_id.checked_add(1)?;
        let local = Local {
            slot,
            id,
            pod: None,
            uid: "".into(),
            addresses,
            ifindex: 0,
            interface: String::new(),
            group: None,
            hooked: false,
            attaching: false,
            unhooked_before: false,
            failure: None,
            unprotected: 0,
            before_us: Vec::new(),
            behind_us: Vec::new(),
        };
        self.endpoints.insert(slot, local);
        Some(slot)
    }

    fn recognise_guarded(&self, link: &HostLink) -> Option<u16> {
        let addresses = guard::addresses(link);
        let same = |local: &&Local| {
            local.pod.is_none() && local.ifindex == link.ifindex && main(&local.addresses) == main(&addresses)
        };
        self.endpoints.values().find(same).map(|local| local.slot)
    }
}

fn adopted(live: &LiveEndpoint) -> Local {
    Local {
        slot: live.slot,
        id: live.id,
        pod: None,
        uid: "".into(),
        addresses: live.addresses.clone(),
        ifindex: live.ifindex,
        interface: String::new(),
        group: live.group.map(|id| Group { id, ..Group::default() }),
        hooked: false,
        attaching: false,
        unhooked_before: false,
        failure: None,
        unprotected: 0,
        before_us: Vec::new(),
        behind_us: Vec::new(),
    }
}

/// Local addresses of a group's sockets, as the keys of its flows tell them apart: those that it is given, then the
/// host's own; of each family at least the loopback address.
fn group_addresses(pod: &Pod, world: &World) -> Vec<IpAddr> {
    let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let own = pod.addresses.iter().filter(|ip| !is_identity(ip));
    // A pod that was found by its UID has a network of its own.
    let shares = pod.group().is_some();
    let host = world.host_addresses.iter().filter(|ip| shares && !ip.is_loopback());
    let mut addresses: Vec<IpAddr> = Vec::new();
    for ip in own.chain(host).chain(&loopback) {
        // More than a key can tell apart share one number: their flows are told apart by ports alone.
        let many =
            addresses.iter().filter(|other| other.is_ipv4() == ip.is_ipv4()).count() >= GROUP_ADDRESSES;
        if !addresses.contains(ip) && (!many || ip.is_loopback()) {
            addresses.push(*ip);
        }
    }
    addresses
}

/// The first address of each family: flows in the kernel count on them.
fn main(addresses: &[IpAddr]) -> (Option<IpAddr>, Option<IpAddr>) {
    (addresses.iter().copied().find(IpAddr::is_ipv4), addresses.iter().copied().find(IpAddr::is_ipv6))
}

#[cfg(test)]
mod tests;
