//! Which atoms name a pod: evaluated once for each distinct (namespace, labels), and never twice for one atom.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;

use super::atoms::{AtomId, Atoms, Scope};
use crate::model::{ContainerPort, Labels, Pod, Selector};
use crate::world::World;

/// Number of a group of pods with one namespace and equal labels.
pub(crate) type GroupId = usize;

/// Number of a list of ports; 0 is the empty one.
pub(crate) type PortsId = usize;

/// Groups of pods.
#[derive(Clone, Debug, Default)]
pub(crate) struct Groups {
    by_labels: HashMap<(Arc<str>, Labels), GroupId>,
    port_lists: HashMap<Vec<ContainerPort>, PortsId>,
    /// Shortcut by the identity of the pod's allocation, which the value keeps alive.
    by_identity: HashMap<usize, (Arc<Pod>, GroupId, PortsId)>,
    list: Vec<Group>,
    roster: Roster,
    namespaces: HashMap<Arc<str>, Namespace>,
    /// Namespaces of the world that their labels are of.
    labelled: OrdMap<Arc<str>, Arc<crate::model::Namespace>>,
}

/// Every address of a pod with what rules can tell of it: policies change far more often than most pods do.
#[derive(Clone, Debug, Default)]
struct Roster {
    /// The world whose pods these are.
    of: Option<World>,
    list: Arc<Vec<(IpAddr, GroupId, PortsId)>>,
}

#[derive(Clone, Debug)]
struct Group {
    namespace: Arc<str>,
    labels: Labels,
    /// Atoms that name the group's pods, sorted.
    atoms: Vec<AtomId>,
    /// Peers of the namespace that are evaluated.
    evaluated: usize,
    /// Version of the namespace's peers that they belong to.
    version: u64,
}

/// Peers that look into a namespace.
#[derive(Clone, Debug)]
struct Namespace {
    labels: Labels,
    version: u64,
    peers: Vec<(AtomId, Selector)>,
    evaluated: usize,
}

impl Groups {
    /// What rules can tell of a pod: its group and its list of ports.
    pub(crate) fn of(&mut self, pod: &Arc<Pod>) -> (GroupId, PortsId) {
        let identity = Arc::as_ptr(pod).addr();
        if let Some((_, group, ports)) = self.by_identity.get(&identity) {
            return (*group, *ports);
        }
        let group = self.group(pod);
        let ports = if pod.ports.is_empty() {
            0
        } else {
            let next = self.port_lists.len() + 1;
            *self.port_lists.entry(pod.ports.clone()).or_insert(next)
        };
        self.by_identity.insert(identity, (pod.clone(), group, ports));
        (group, ports)
    }

    /// [`Groups::of`] for every address of a pod, in order of address.
    pub(crate) fn roster(&mut self, world: &World) -> Arc<Vec<(IpAddr, GroupId, PortsId)>> {
        let Roster { of, mut list } = std::mem::take(&mut self.roster);
        let changed: Option<Vec<IpAddr>> = of.map(|earlier| world.changed_pod_addresses(&earlier).collect());
        match changed {
            // Each one that comes or goes moves those behind it.
            Some(changed) if changed.len() <= list.len() / 16 => {
                let entries = Arc::make_mut(&mut list);
                for address in changed {
                    let place = entries.binary_search_by_key(&address, |entry| entry.0);
                    let entry = world.pod_at(address).map(|pod| self.entry(address, &pod));
                    match (place, entry) {
                        (Ok(at), Some(entry)) => entries[at] = entry,
                        (Ok(at), None) => drop(entries.remove(at)),
                        (Err(at), Some(entry)) => entries.insert(at, entry),
                        (Err(_), None) => {}
                    }
                }
            }
            Some(_) | None => {
                list =
                    Arc::new(world.pod_addresses().map(|(address, pod)| self.entry(address, pod)).collect());
            }
        }
        self.roster = Roster { of: Some(world.clone()), list };
        self.roster.list.clone()
    }

    fn entry(&mut self, address: IpAddr, pod: &Arc<Pod>) -> (IpAddr, GroupId, PortsId) {
        let (group, ports) = self.of(pod);
        (address, group, ports)
    }

    /// Of each group, whether some of these atoms name its pods.
    pub(crate) fn named(&mut self, by: &BTreeSet<AtomId>, atoms: &Atoms, world: &World) -> Vec<bool> {
        let is_named = |names: &[AtomId]| by.iter().any(|atom| names.binary_search(atom).is_ok());
        (0..self.list.len()).map(|group| is_named(self.atoms(group, atoms, world))).collect()
    }

    fn group(&mut self, pod: &Pod) -> GroupId {
        let next = self.list.len();
        let key = (pod.key.namespace.clone(), pod.labels.clone());
        let group = *self.by_labels.entry(key).or_insert(next);
        if group == next {
            self.list.push(Group {
                namespace: pod.key.namespace.clone(),
                labels: pod.labels.clone(),
                atoms: Vec::new(),
                evaluated: 0,
                version: 0,
            });
        }
        group
    }

    /// Atoms that name the pods of a group, sorted; dead ones are among them.
    pub(crate) fn atoms(&mut self, id: GroupId, atoms: &Atoms, world: &World) -> &[AtomId] {
        let group = &mut self.list[id];
        let namespace = self.namespaces.entry(group.namespace.clone()).or_insert_with(|| Namespace {
            labels: world.namespace_labels(&group.namespace),
            version: 0,
            peers: Vec::new(),
            evaluated: 0,
        });
        namespace.extend(&group.namespace, atoms);
        if group.version != namespace.version {
            group.version = namespace.version;
            group.evaluated = 0;
            group.atoms.clear();
        }
        let new = &namespace.peers[group.evaluated..];
        if !new.is_empty() {
            group.atoms.extend(new.iter().filter(|(_, s)| s.matches(&group.labels)).map(|(a, _)| *a));
            group.atoms.sort_unstable();
            group.atoms.dedup();
            group.evaluated = namespace.peers.len();
        }
        &group.atoms
    }

    /// Takes over changed labels of namespaces. Returns whether there were any.
    pub(crate) fn refresh(&mut self, world: &World) -> bool {
        let mut changed = false;
        if self.labelled.ptr_eq(&world.namespaces) {
            return changed;
        }
        self.labelled = world.namespaces.clone();
        for (name, namespace) in &mut self.namespaces {
            let labels = world.namespace_labels(name);
            if !Arc::ptr_eq(&labels, &namespace.labels) && labels != namespace.labels {
                changed = true;
                namespace.labels = labels;
                namespace.version += 1;
                namespace.peers.clear();
                namespace.evaluated = 0;
            }
        }
        changed
    }

    /// Drops shortcuts and groups when they are many more than the pods.
    pub(crate) fn trim(&mut self, pods: usize) -> bool {
        let some_more = pods + pods / 8 + 1024;
        if self.by_identity.len() > some_more {
            // A shortcut keeps its pod: those of earlier pods are all that still does.
            self.by_identity.retain(|_, (pod, ..)| Arc::strong_count(pod) > 1);
            if self.by_identity.len() > some_more {
                self.by_identity.clear();
            }
        }
        if self.list.len().max(self.port_lists.len()) > some_more {
            *self = Self::default();
            return true;
        }
        false
    }
}

impl Namespace {
    fn extend(&mut self, name: &Arc<str>, atoms: &Atoms) {
        for (id, atom) in atoms.since(self.evaluated) {
            for peer in &atom.pods {
                let looks_here = match &peer.scope {
                    Scope::Namespace(other) => other == name,
                    Scope::Selector(selector) => selector.matches(&self.labels),
                };
                if looks_here {
                    self.peers.push((id, peer.pods.clone()));
                }
            }
        }
        self.evaluated = atoms.len();
    }
}
