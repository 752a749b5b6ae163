//! Classes of addresses: equal sets of atoms and equal numbers of the port names that egress rules use.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use policy_common::abi::host_flags;

use super::atoms::{AtomId, Atoms};
use super::blocks::Blocks;
use super::fronts::{Backend, Front};
use super::groups::{GroupId, Groups, PortsId};
use super::policies::{PortName, Selection};
use crate::desired::HostTarget;
use crate::model::{ContainerPort, Pod, ServiceMode};
use crate::world::World;

/// What makes addresses equal for all rules: the atoms that contain them, and numbers of port names; both sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Signature {
    /// Atoms.
    pub(crate) atoms: Vec<AtomId>,
    /// Ports of the pod that egress rules which match it call by name.
    pub(crate) names: Vec<ContainerPort>,
    /// Where its ports lead, of an address that is judged before the node translates it.
    pub(crate) front: Option<Front>,
}

/// Classes. 0 is the empty signature.
#[derive(Clone, Debug)]
pub(crate) struct Classes {
    /// Signature by class.
    pub(crate) list: Vec<Arc<Signature>>,
    ids: HashMap<Arc<Signature>, u32>,
}

impl Default for Classes {
    fn default() -> Self {
        let none = Arc::new(Signature::default());
        Self { list: vec![none.clone()], ids: HashMap::from([(none, 0)]) }
    }
}

impl Classes {
    fn id(&mut self, signature: Signature) -> u32 {
        if let Some(id) = self.ids.get(&signature) {
            return *id;
        }
        let id = u32::try_from(self.list.len()).unwrap_or(u32::MAX);
        let signature = Arc::new(signature);
        self.list.push(signature.clone());
        self.ids.insert(signature, id);
        id
    }
}

/// Class of each combination seen. Valid for one selection and one state of the namespaces.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memo {
    live: Vec<bool>,
    /// Whether some egress rule calls a port by name.
    names: bool,
    /// By group: {block, ports, class}, of which a group has few.
    classes: Vec<Vec<(u32, PortsId, u32)>>,
    /// Class of the addresses that only blocks contain, by block signature.
    of_blocks: Vec<u32>,
}

impl Memo {
    /// For a new selection.
    pub(crate) fn new(selection: &Selection, blocks: &Blocks, atoms: &Atoms, classes: &mut Classes) -> Self {
        let live = flags(selection, atoms.len());
        let names = !selection.names.is_empty() || !selection.names_of_all.is_empty();
        let of_blocks = blocks
            .signatures
            .iter()
            .map(|atoms| classes.id(Signature { atoms: atoms.clone(), ..Signature::default() }))
            .collect();
        Self { live, names, of_blocks, ..Self::default() }
    }

    /// For a selection by which only pods of the groups that are `named` are told apart otherwise.
    pub(crate) fn rename(&mut self, selection: &Selection, atoms: usize, named: &[bool]) {
        self.live = flags(selection, atoms);
        for (classes, _) in self.classes.iter_mut().zip(named).filter(|(_, named)| **named) {
            classes.clear();
        }
    }

    fn class(&self, group: GroupId, block: u32, ports: PortsId) -> Option<u32> {
        let same = |entry: &&(u32, PortsId, u32)| entry.0 == block && entry.1 == ports;
        self.classes.get(group)?.iter().find(same).map(|entry| entry.2)
    }

    fn remember(&mut self, group: GroupId, block: u32, ports: PortsId, class: u32) {
        if self.classes.len() <= group {
            self.classes.resize(group + 1, Vec::new());
        }
        self.classes[group].push((block, ports, class));
    }

    /// Class of the addresses for which a prefix of this block signature is the longest.
    pub(crate) fn of_block(&self, signature: u32) -> u32 {
        self.of_blocks[signature as usize]
    }
}

/// Which atoms rules name.
fn flags(selection: &Selection, atoms: usize) -> Vec<bool> {
    let mut live = vec![false; atoms];
    for id in &selection.live {
        live[*id as usize] = true;
    }
    live
}

/// Parts of the compiler that the walk over all addresses needs.
pub(crate) struct Walk<'a> {
    /// The world.
    pub(crate) world: &'a World,
    /// Whether some pod's egress is isolated, so that the addresses of Services need a word.
    pub(crate) deferring: bool,
    /// Atoms.
    pub(crate) atoms: &'a Atoms,
    /// Selection.
    pub(crate) selection: &'a Selection,
    /// Blocks.
    pub(crate) blocks: &'a Blocks,
    /// Groups.
    pub(crate) groups: &'a mut Groups,
    /// Classes.
    pub(crate) classes: &'a mut Classes,
    /// Memo.
    pub(crate) memo: &'a mut Memo,
    /// Addresses of pods of this node whose traffic to themselves is judged, where it can be.
    pub(crate) judge_themselves: BTreeSet<IpAddr>,
}

/// [`Walk::judge_themselves`].
pub(crate) fn judge_themselves(world: &World, selection: &Selection) -> BTreeSet<IpAddr> {
    let pods = selection.of_cluster.iter().filter_map(|key| world.pods.get(key));
    let has = |(pod, address): &(&std::sync::Arc<Pod>, IpAddr)| {
        world.pod_at(*address).is_some_and(|at| at.key == pod.key)
    };
    let all = pods.flat_map(|pod| pod.addresses.iter().map(move |address| (pod, *address)));
    all.filter(has).map(|(_, address)| address).collect()
}

impl Walk<'_> {
    /// Addresses that need a word: their class is not that of their longest prefix, or they are the node's own or a
    /// Service's.
    pub(crate) fn all(mut self) -> BTreeMap<IpAddr, HostTarget> {
        let world = self.world;
        let roster = self.groups.roster(world);
        let mut hosts: BTreeMap<IpAddr, HostTarget> = roster
            .iter()
            // Of the node's own addresses the last loop decides.
            .filter_map(|(address, group, ports)| Some((*address, self.guest(*address, *group, *ports)?)))
            .collect();
        if self.deferring {
            for (address, _) in world.frontends() {
                hosts.extend(self.target(address).map(|target| (address, target)));
            }
        }
        for address in world.host_addresses.iter() {
            hosts.insert(*address, self.own(*address));
        }
        hosts
    }

    /// What the addresses are now that changed since the walk over an earlier world, and those that `moved` to another
    /// class; `None` = they need no word any more.
    pub(crate) fn changed(
        mut self,
        earlier: &World,
        moved: Vec<IpAddr>,
    ) -> Vec<(IpAddr, Option<HostTarget>)> {
        let world = self.world;
        let mut changed: BTreeSet<IpAddr> = moved.into_iter().collect();
        changed.extend(world.changed_pod_addresses(earlier));
        changed.extend(world.host_addresses.symmetric_difference(&earlier.host_addresses));
        changed.extend(world.changed_frontends(earlier));
        if self.deferring && world.service_mode == ServiceMode::Backends {
            changed.extend(world.changed_fronts(earlier, &changed));
        }
        changed.into_iter().map(|address| (address, self.target(address))).collect()
    }

    fn target(&mut self, address: IpAddr) -> Option<HostTarget> {
        let world = self.world;
        if world.is_host_address(address) {
            return Some(self.own(address));
        }
        let known = world.pod_at(address).map(|pod| self.groups.of(&pod));
        let pod = known.and_then(|(group, ports)| self.pod(address, group, ports));
        if !(self.deferring && world.is_frontend(address)) {
            return pod;
        }
        let class = pod.map_or_else(|| self.memo.of_block(self.blocks.at(address)), |pod| pod.class);
        match world.service_mode {
            // Whatever does not translate the address leaves it to be judged as itself.
            ServiceMode::Tag => {
                Some(HostTarget { class, flags: host_flags::FRONTEND | pod.map_or(0, |pod| pod.flags) })
            }
            ServiceMode::Backends => {
                let flags = pod.map_or(0, |pod| pod.flags);
                Some(HostTarget { class: self.front(address, false, class), flags })
            }
        }
    }

    fn own(&mut self, address: IpAddr) -> HostTarget {
        let class = self.memo.of_block(self.blocks.at(address));
        match self.world.service_mode {
            ServiceMode::Backends if self.deferring => {
                let flags = host_flags::OWN_NODE | host_flags::NODE_PORTS;
                HostTarget { class: self.front(address, true, class), flags }
            }
            ServiceMode::Backends | ServiceMode::Tag => HostTarget { class, flags: host_flags::OWN_NODE },
        }
    }

    /// Class of an address that the node translates; `itself` = its class where nothing does.
    fn front(&mut self, address: IpAddr, own: bool, itself: u32) -> u32 {
        let ports = self.world.front_ports(address);
        if ports.is_empty() && !own {
            return itself;
        }
        let mut list = Vec::with_capacity(ports.len());
        for port in ports {
            let backends = port.backends.into_iter().map(|(address, number)| self.backend(address, number));
            list.push((port.protocol, port.port, backends.collect()));
        }
        let signature = Signature::clone(&self.classes.list[itself as usize]);
        self.classes.id(Signature { front: Some(Front::new(own, list)), ..signature })
    }

    fn backend(&mut self, address: IpAddr, port: u16) -> Backend {
        let world = self.world;
        if world.is_host_address(address) {
            return Backend::Node;
        }
        let known = world.pod_at(address).map(|pod| self.groups.of(&pod));
        let pod = known.and_then(|(group, ports)| self.pod(address, group, ports));
        Backend::Class(pod.map_or_else(|| self.memo.of_block(self.blocks.at(address)), |pod| pod.class), port)
    }

    fn pod(&mut self, address: IpAddr, group: GroupId, ports: PortsId) -> Option<HostTarget> {
        if self.world.is_host_address(address) {
            return None;
        }
        self.guest(address, group, ports)
    }

    /// Of a pod's address that is not one of the node's own.
    fn guest(&mut self, address: IpAddr, group: GroupId, ports: PortsId) -> Option<HostTarget> {
        let block = self.blocks.at(address);
        let class = self.class(address, group, ports, block);
        let itself = self.judge_themselves.contains(&address);
        let flags = host_flags::POD | if itself { host_flags::JUDGES_ITSELF } else { 0 };
        (itself || class != self.memo.of_block(block)).then_some(HostTarget { class, flags })
    }

    fn class(&mut self, address: IpAddr, group: GroupId, ports: PortsId, block: u32) -> u32 {
        let ports = if self.memo.names { ports } else { 0 };
        if let Some(class) = self.memo.class(group, block, ports) {
            return class;
        }
        let named = self.groups.atoms(group, self.atoms, self.world);
        let live = &self.memo.live;
        let mut atoms: Vec<AtomId> =
            named.iter().copied().filter(|a| live.get(*a as usize).copied().unwrap_or(false)).collect();
        atoms.extend(&self.blocks.signatures[block as usize]);
        atoms.sort_unstable();
        atoms.dedup();
        let pod = if ports == 0 { None } else { self.world.pod_at(address) };
        let names = pod.map(|pod| self.relevant(&pod, &atoms)).unwrap_or_default();
        let class = self.classes.id(Signature { atoms, names, front: None });
        self.memo.remember(group, block, ports, class);
        class
    }

    /// Ports that rules which match these atoms call by name.
    fn relevant(&self, pod: &Pod, atoms: &[AtomId]) -> Vec<ContainerPort> {
        let mut names: BTreeSet<&PortName> = self.selection.names_of_all.iter().collect();
        names.extend(atoms.iter().filter_map(|a| self.selection.names.get(a)).flatten());
        let called = |p: &&ContainerPort| names.iter().any(|(q, name)| *q == p.protocol && *name == p.name);
        let mut ports: Vec<ContainerPort> = pod.ports.iter().filter(called).cloned().collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }
}

/// Addresses that are put in one by one, each of which moves those behind it.
const FEW: usize = 16;

/// Takes over what some addresses are now. Where that is what they were, the list stays the same one.
pub(crate) fn update(
    hosts: &mut Arc<Vec<(IpAddr, HostTarget)>>,
    mut news: Vec<(IpAddr, Option<HostTarget>)>,
) {
    let find = |hosts: &[(IpAddr, HostTarget)], address| hosts.binary_search_by_key(&address, |host| host.0);
    news.retain(|(address, target)| find(hosts, *address).ok().map(|at| hosts[at].1) != *target);
    if news.is_empty() {
        return;
    }
    let hosts = Arc::make_mut(hosts);
    let (mut gone, mut new) = (BTreeSet::new(), Vec::new());
    for (address, target) in news {
        match (find(hosts, address), target) {
            (Ok(at), Some(target)) => hosts[at].1 = target,
            (Ok(_) | Err(_), None) => drop(gone.insert(address)),
            (Err(_), Some(target)) => new.push((address, target)),
        }
    }
    if !gone.is_empty() {
        hosts.retain(|(address, _)| !gone.contains(address));
    }
    if new.len() > FEW {
        hosts.extend(new);
        // Two sorted runs: this merges them.
        hosts.sort_by_key(|host| host.0);
    } else {
        for host in new {
            hosts.insert(hosts.partition_point(|other| other.0 < host.0), host);
        }
    }
}
