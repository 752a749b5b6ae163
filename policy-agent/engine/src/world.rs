//! The state of the cluster as this node sees it, and the only way to change it.

mod index;
mod services;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;

use self::index::{Index, first_at};
pub use self::services::FrontPort;
use crate::model::{
    ClusterPolicy, EndpointSlice, Labels, NAMESPACE_NAME_LABEL, Namespace, Node, ObjectKey, Pod, Policy,
    Service, ServiceMode,
};

/// One change. Sources produce nothing else.
#[derive(Clone, Debug)]
pub enum Delta {
    /// A namespace was added or changed.
    Namespace(Namespace),
    /// A namespace is gone.
    NamespaceGone(Arc<str>),
    /// A pod was added or changed.
    Pod(Pod),
    /// A pod is gone. `uid`: only if it is still that pod; empty = whatever its UID.
    PodGone {
        /// Namespace and name.
        key: ObjectKey,
        /// UID.
        uid: Arc<str>,
    },
    /// A node was added or changed.
    Node(Node),
    /// A node is gone.
    NodeGone(Arc<str>),
    /// A Service was added or changed.
    Service(Service),
    /// A Service is gone.
    ServiceGone(ObjectKey),
    /// Backends of a Service were added or changed.
    EndpointSlice(EndpointSlice),
    /// An EndpointSlice is gone.
    EndpointSliceGone(ObjectKey),
    /// How traffic to Services is judged on this node.
    ServiceMode(ServiceMode),
    /// A policy was added or changed.
    Policy(Policy),
    /// A policy is gone.
    PolicyGone(ObjectKey),
    /// A policy of the whole cluster was added or changed.
    ClusterPolicy(ClusterPolicy),
    /// A policy of the whole cluster is gone.
    ClusterPolicyGone(Arc<str>),
    /// The complete set of addresses configured in the host's network namespace.
    HostAddresses(BTreeSet<IpAddr>),
}

/// What an address is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entity {
    /// A live pod.
    Pod(ObjectKey),
    /// This node.
    OwnNode,
    /// Another node.
    Node(Arc<str>),
    /// A Service frontend.
    Service(ObjectKey),
    /// Anything else.
    World,
}

/// The world. Cloning is cheap: all maps share their structure. Change it through [`World::apply`] alone, which keeps
/// the indexes in step.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// Name of this node.
    pub node_name: Arc<str>,
    /// Namespaces by name.
    pub namespaces: OrdMap<Arc<str>, Arc<Namespace>>,
    /// Pods by key.
    pub pods: OrdMap<ObjectKey, Arc<Pod>>,
    /// Nodes by name.
    pub nodes: OrdMap<Arc<str>, Arc<Node>>,
    /// Services by key.
    pub services: OrdMap<ObjectKey, Arc<Service>>,
    /// EndpointSlices by key.
    pub slices: OrdMap<ObjectKey, Arc<EndpointSlice>>,
    /// How traffic to Services is judged on this node.
    pub service_mode: ServiceMode,
    /// Policies by key.
    pub policies: OrdMap<ObjectKey, Arc<Policy>>,
    /// Policies of the whole cluster by name.
    pub cluster_policies: OrdMap<Arc<str>, Arc<ClusterPolicy>>,
    /// Addresses configured in the host's network namespace.
    pub host_addresses: Arc<BTreeSet<IpAddr>>,
    index: Index,
}

impl World {
    /// An empty world seen from the node of this name; empty name = from no node (offline questions).
    #[must_use]
    pub fn new(node_name: &str) -> Self {
        Self { node_name: node_name.into(), ..Self::default() }
    }

    /// Takes over one change. Returns whether anything is different now.
    pub fn apply(&mut self, delta: Delta) -> bool {
        match delta {
            Delta::Namespace(new) => put(&mut self.namespaces, new.name.clone(), new).is_some(),
            Delta::NamespaceGone(name) => self.namespaces.remove(&name).is_some(),
            Delta::Pod(new) => self.put_pod(new),
            Delta::PodGone { key, uid } => self.remove_pod(&key, &uid),
            Delta::Node(new) => self.put_node(new),
            Delta::NodeGone(name) => self.remove_node(&name),
            Delta::Service(new) => self.put_service(new),
            Delta::ServiceGone(key) => self.remove_service(&key),
            Delta::EndpointSlice(new) => self.put_slice(new),
            Delta::EndpointSliceGone(key) => self.remove_slice(&key),
            Delta::ServiceMode(new) => std::mem::replace(&mut self.service_mode, new) != new,
            Delta::Policy(new) => put(&mut self.policies, new.key.clone(), new).is_some(),
            Delta::PolicyGone(key) => self.policies.remove(&key).is_some(),
            Delta::ClusterPolicy(new) => put(&mut self.cluster_policies, new.name.clone(), new).is_some(),
            Delta::ClusterPolicyGone(name) => self.cluster_policies.remove(&name).is_some(),
            Delta::HostAddresses(new) => {
                let changed = *self.host_addresses != new;
                self.host_addresses = Arc::new(new);
                changed
            }
        }
    }

    /// What an address is. An address that the host itself has configured is the node, whatever any object claims:
    /// packets to it are delivered to the host.
    #[must_use]
    pub fn entity(&self, address: IpAddr) -> Entity {
        if self.is_host_address(address) {
            return Entity::OwnNode;
        }
        if let Some(pods) = self.index.pods.get(&address) {
            return Entity::Pod(pods[0].key.clone());
        }
        if let Some(node) = first_at(&self.index.nodes, address) {
            return if node == self.node_name { Entity::OwnNode } else { Entity::Node(node) };
        }
        first_at(&self.index.services, address).map_or(Entity::World, Entity::Service)
    }

    /// The live pod that has an address. Finished and host-network pods have none; between two live pods the one
    /// created last has it, then one that is not being deleted, then the greater UID.
    #[must_use]
    pub fn pod_at(&self, address: IpAddr) -> Option<Arc<Pod>> {
        self.index.pods.get(&address).map(|pods| pods[0].clone())
    }

    /// Every address of a live pod with the pod that has it, in order of address.
    pub fn pod_addresses(&self) -> impl Iterator<Item = (IpAddr, &Arc<Pod>)> {
        self.index.pods.iter().map(|(address, pods)| (*address, &pods[0]))
    }

    /// Whether the pods and their addresses are the very ones of the other world.
    #[must_use]
    pub fn has_pods_of(&self, other: &Self) -> bool {
        self.index.pods.ptr_eq(&other.index.pods)
    }

    /// Addresses of live pods whose claimants are others, or changed, since an earlier state of this world. Fast where
    /// the two share most of their structure.
    pub fn changed_pod_addresses<'a>(&'a self, earlier: &'a Self) -> impl Iterator<Item = IpAddr> + 'a {
        earlier.index.pods.diff(&self.index.pods).map(|change| match change {
            DiffItem::Add(address, _) | DiffItem::Remove(address, _) => *address,
            DiffItem::Update { new: (address, _), .. } => *address,
        })
    }

    /// Addresses that more than one live pod claims, with the claimants; the first one has the address.
    pub fn conflicts(&self) -> impl Iterator<Item = (IpAddr, &[Arc<Pod>])> {
        self.index.conflicts.iter().filter_map(|address| Some((*address, &**self.index.pods.get(address)?)))
    }

    /// Pods of this node that policies may select (neither finished nor on the host's network), by key.
    pub fn local_pods(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.node_pods().filter(|pod| pod.is_subject())
    }

    /// All pods of this node, by key.
    pub fn node_pods(&self) -> impl Iterator<Item = &Arc<Pod>> {
        let first = (self.node_name.clone(), ObjectKey::new("", ""));
        self.index
            .by_node
            .range(first..)
            .take_while(|((node, _), _)| *node == self.node_name)
            .map(|(_, pod)| pod)
    }

    /// Policies of a namespace, by name.
    pub fn policies_of<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a Arc<Policy>> {
        self.policies
            .range(ObjectKey::new(namespace, "")..)
            .take_while(move |(key, _)| &*key.namespace == namespace)
            .map(|(_, policy)| policy)
    }

    /// Whether a policy of any kind concerns the pod: without one, nothing that it sends or receives is judged.
    #[must_use]
    pub fn is_concerned(&self, pod: &Pod) -> bool {
        let labels = self.namespace_labels(&pod.key.namespace);
        self.policies_of(&pod.key.namespace).any(|policy| policy.pod_selector.matches(&pod.labels))
            || self.cluster_policies.values().any(|policy| policy.concerns(&labels, pod))
    }

    /// Labels of a namespace. One without an object exists all the same, with the label of its name alone.
    #[must_use]
    pub fn namespace_labels(&self, name: &str) -> Labels {
        self.namespaces.get(name).map_or_else(
            || Arc::new(BTreeMap::from([(NAMESPACE_NAME_LABEL.to_owned(), name.to_owned())])),
            |namespace| namespace.labels.clone(),
        )
    }

    /// Whether the address is configured in the host's network namespace.
    #[must_use]
    pub fn is_host_address(&self, address: IpAddr) -> bool {
        self.host_addresses.contains(&address)
    }

    /// Whether the address is one of the node that the pod runs on. For this node the kernel's own list decides; of
    /// other nodes only their objects are known.
    #[must_use]
    pub fn is_node_of(&self, pod: &Pod, address: IpAddr) -> bool {
        let Some(name) = &pod.node else { return false };
        if *name == self.node_name {
            // A service of the host is no guest of it: the host's other processes are peers like any other.
            return !pod.is_service() && self.is_host_address(address);
        }
        self.nodes.get(name).is_some_and(|node| node.addresses.contains(&address))
    }

    fn put_pod(&mut self, new: Pod) -> bool {
        let old = self.pods.get(&new.key).cloned();
        let Some(pod) = put(&mut self.pods, new.key.clone(), new) else { return false };
        if let Some(old) = old {
            self.index.remove_pod(&old);
        }
        self.index.insert_pod(&pod);
        true
    }

    fn remove_pod(&mut self, key: &ObjectKey, uid: &str) -> bool {
        let Some(old) = self.pods.get(key) else { return false };
        if !uid.is_empty() && *old.uid != *uid {
            return false;
        }
        let old = old.clone();
        self.pods.remove(key);
        self.index.remove_pod(&old);
        true
    }

    fn put_node(&mut self, new: Node) -> bool {
        let old = self.nodes.get(&new.name).cloned();
        let Some(node) = put(&mut self.nodes, new.name.clone(), new) else { return false };
        for address in old.iter().flat_map(|old| &old.addresses) {
            self.index.nodes.remove(&(*address, node.name.clone()));
        }
        for address in &node.addresses {
            self.index.nodes.insert((*address, node.name.clone()));
        }
        true
    }

    fn remove_node(&mut self, name: &Arc<str>) -> bool {
        let Some(old) = self.nodes.remove(name) else { return false };
        for address in &old.addresses {
            self.index.nodes.remove(&(*address, name.clone()));
        }
        true
    }
}

/// Stores a value; `None` if an equal one was there.
fn put<K: Ord + Clone, V: PartialEq>(map: &mut OrdMap<K, Arc<V>>, key: K, value: V) -> Option<Arc<V>> {
    if map.get(&key).is_some_and(|old| **old == value) {
        return None;
    }
    let value = Arc::new(value);
    map.insert(key, value.clone());
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Phase;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn pod(name: &str, address: &str, created: &str) -> Pod {
        Pod {
            key: ObjectKey::new("x", name),
            uid: format!("uid-{name}-{created}").into(),
            labels: Labels::default(),
            node: Some("n1".into()),
            mirror_of: None,
            host_network: false,
            phase: Phase::Running,
            terminating: false,
            addresses: vec![ip(address)],
            ports: Vec::new(),
            created: created.into(),
            interface: None,
        }
    }

    fn name_at(world: &World, address: &str) -> Option<String> {
        world.pod_at(ip(address)).map(|pod| pod.key.name.to_string())
    }

    fn gone(pod: &Pod) -> Delta {
        Delta::PodGone { key: pod.key.clone(), uid: pod.uid.clone() }
    }

    /// Edge case 130: every order of the two events gives the same owner, and deleting the old pod keeps the new one.
    #[test]
    fn live_pod_wins_a_reused_address() {
        let mut job = pod("job", "10.0.0.9", "2024-01-02T00:00:00Z");
        job.phase = Phase::Succeeded;
        let intruder = pod("intruder", "10.0.0.9", "2024-01-01T00:00:00Z");
        for order in [[job.clone(), intruder.clone()], [intruder.clone(), job.clone()]] {
            let mut world = World::new("n1");
            for pod in order {
                assert!(world.apply(Delta::Pod(pod)));
            }
            assert_eq!(name_at(&world, "10.0.0.9").as_deref(), Some("intruder"));
            assert_eq!(world.conflicts().count(), 0);
            assert!(world.apply(gone(&job)));
            assert_eq!(name_at(&world, "10.0.0.9").as_deref(), Some("intruder"));
        }
    }

    #[test]
    fn newest_live_pod_has_the_address_and_the_conflict_is_listed() {
        let old = pod("old", "10.0.0.9", "2024-01-01T00:00:00Z");
        let new = pod("new", "10.0.0.9", "2024-01-02T00:00:00Z");
        for order in [[old.clone(), new.clone()], [new.clone(), old.clone()]] {
            let mut world = World::new("n1");
            order.into_iter().for_each(|pod| assert!(world.apply(Delta::Pod(pod))));
            assert_eq!(name_at(&world, "10.0.0.9").as_deref(), Some("new"));
            let conflicts: Vec<_> = world.conflicts().collect();
            assert_eq!(conflicts.len(), 1);
            assert_eq!(conflicts[0].0, ip("10.0.0.9"));
            assert_eq!(conflicts[0].1.len(), 2);
            let before = world.clone();
            assert!(world.apply(gone(&new)));
            assert_eq!(name_at(&world, "10.0.0.9").as_deref(), Some("old"));
            assert_eq!(world.conflicts().count(), 0);
            assert_eq!(name_at(&before, "10.0.0.9").as_deref(), Some("new"), "a clone keeps its own view");
        }
    }

    /// Edge cases 129, 133: finished pods have no address, terminating ones keep theirs.
    #[test]
    fn phase_and_deletion() {
        let mut world = World::new("n1");
        let mut a = pod("a", "10.0.0.1", "");
        a.terminating = true;
        world.apply(Delta::Pod(a.clone()));
        assert_eq!(name_at(&world, "10.0.0.1").as_deref(), Some("a"));
        assert_eq!(world.local_pods().count(), 1);
        a.phase = Phase::Failed;
        world.apply(Delta::Pod(a));
        assert_eq!(name_at(&world, "10.0.0.1"), None);
        assert_eq!(world.entity(ip("10.0.0.1")), Entity::World);
        assert_eq!(world.local_pods().count(), 0);
    }

    /// Edge cases 131, 132: a new address drops the old one; a late deletion of the former pod changes nothing.
    #[test]
    fn same_name_new_pod() {
        let mut world = World::new("n1");
        let first = pod("db-0", "10.0.0.1", "2024-01-01T00:00:00Z");
        let second = pod("db-0", "10.0.0.2", "2024-01-02T00:00:00Z");
        world.apply(Delta::Pod(first.clone()));
        world.apply(Delta::Pod(second));
        assert_eq!(name_at(&world, "10.0.0.1"), None);
        assert_eq!(name_at(&world, "10.0.0.2").as_deref(), Some("db-0"));
        assert!(!world.apply(gone(&first)));
        assert_eq!(name_at(&world, "10.0.0.2").as_deref(), Some("db-0"));
        assert!(world.apply(Delta::PodGone { key: first.key, uid: "".into() }));
        assert!(world.index.pods.is_empty() && world.index.by_node.is_empty());
    }

    /// Edge case 124: the node's address is never a host-network pod's.
    #[test]
    fn entities() {
        let mut world = World::new("n1");
        let mut agent = pod("agent", "192.168.0.1", "");
        agent.host_network = true;
        world.apply(Delta::Pod(agent));
        let node = |name: &str, address: &str| Node {
            name: name.into(),
            labels: Labels::default(),
            addresses: vec![ip(address)],
        };
        world.apply(Delta::Node(node("n1", "192.168.0.1")));
        world.apply(Delta::Node(node("n2", "192.168.0.2")));
        let dns = Service {
            key: ObjectKey::new("kube-system", "dns"),
            addresses: vec![ip("10.96.0.10")],
            ..Service::default()
        };
        world.apply(Delta::Service(dns.clone()));
        world.apply(Delta::HostAddresses(BTreeSet::from([ip("169.254.1.1")])));
        assert_eq!(world.entity(ip("192.168.0.1")), Entity::OwnNode);
        assert_eq!(world.entity(ip("192.168.0.2")), Entity::Node("n2".into()));
        assert_eq!(world.entity(ip("169.254.1.1")), Entity::OwnNode);
        assert_eq!(world.entity(ip("10.96.0.10")), Entity::Service(dns.key.clone()));
        assert_eq!(world.entity(ip("8.8.8.8")), Entity::World);
        world.apply(Delta::Node(node("n2", "192.168.0.3")));
        assert_eq!(world.entity(ip("192.168.0.2")), Entity::World);
        world.apply(Delta::ServiceGone(dns.key));
        assert_eq!(world.entity(ip("10.96.0.10")), Entity::World);
    }

    #[test]
    fn equal_objects_change_nothing() {
        let mut world = World::new("n1");
        assert!(world.apply(Delta::Pod(pod("a", "10.0.0.1", ""))));
        assert!(!world.apply(Delta::Pod(pod("a", "10.0.0.1", ""))));
        assert!(!world.apply(Delta::HostAddresses(BTreeSet::new())));
    }
}
