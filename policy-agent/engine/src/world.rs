//! The state of the cluster as this node sees it, and the only way to change it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;

use crate::model::{Namespace, Node, ObjectKey, Pod, Policy, Service};

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
    /// A policy was added or changed.
    Policy(Policy),
    /// A policy is gone.
    PolicyGone(ObjectKey),
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

/// The world. Cloning is cheap: all maps share their structure.
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
    /// Policies by key.
    pub policies: OrdMap<ObjectKey, Arc<Policy>>,
    /// Addresses configured in the host's network namespace.
    pub host_addresses: Arc<BTreeSet<IpAddr>>,
}
