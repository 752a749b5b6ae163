//! Our own types for the Kubernetes objects that policy depends on, already defaulted and checked.
//!
//! A part of an object that cannot be honoured is represented by something that matches nothing; what is wrong with it
//! is a [`Problem`] beside the value.

mod tier;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

pub use self::tier::{Action, ClusterPolicy, Tier, TierRule};

/// Labels of an object, shared between all objects with equal labels where the reader interns them.
pub type Labels = Arc<BTreeMap<String, String>>;

/// Label that every namespace has with its own name as value.
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// Namespace and name of an object.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Namespace; empty for objects of the whole cluster.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl ObjectKey {
    /// Key of `namespace/name`.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A protocol that policy rules can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP, 6.
    Tcp,
    /// UDP, 17.
    Udp,
    /// SCTP, 132.
    Sctp,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];
    /// IP protocol number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
    /// The protocol with this number.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            132 => Some(Self::Sctp),
            _ => None,
        }
    }
    /// Name as the API spells it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Name.
    pub name: Arc<str>,
    /// Labels, with [`NAMESPACE_NAME_LABEL`] always present.
    pub labels: Labels,
}

/// Phase of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Not yet running.
    Pending,
    /// Running; also the phase of a pod that names none.
    #[default]
    Running,
    /// All containers ended well.
    Succeeded,
    /// All containers ended, one badly.
    Failed,
    /// The node does not answer.
    Unknown,
}

impl Phase {
    /// Whether the pod has ended: its addresses grant and receive nothing.
    #[must_use]
    pub const fn is_finished(self) -> bool {
        match self {
            Self::Succeeded | Self::Failed => true,
            Self::Pending | Self::Running | Self::Unknown => false,
        }
    }
}

/// A named port of a container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerPort {
    /// Name.
    pub name: Arc<str>,
    /// Number.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

/// Which control group (of version 2) a pod's sockets are in, where it has no interface of its own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GroupHint {
    /// Path below the root of the hierarchy (annotation `policy-agent.io/cgroup`).
    Path(String),
    /// Unit of systemd (annotation `policy-agent.io/unit`).
    Unit(String),
    /// The group that a kubelet made for the pod with this UID.
    Pod(Arc<str>),
}

/// Where files mode is told to find a pod's interface instead of looking for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InterfaceHint {
    /// There is none: its sockets are judged.
    Group(GroupHint),
    /// Name of the host side interface (annotation `policy-agent.io/interface`).
    Name(String),
    /// Path of the pod's network namespace (annotation `policy-agent.io/netns`).
    Netns(String),
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Namespace and name.
    pub key: ObjectKey,
    /// UID; empty when the object has none (files).
    pub uid: Arc<str>,
    /// UID by which its kubelet runs it, where the object only mirrors a static pod (annotation
    /// `kubernetes.io/config.mirror`). Whoever makes pods can write it: it claims what the kubelet tells, nothing else.
    pub mirror_of: Option<Arc<str>>,
    /// Labels.
    pub labels: Labels,
    /// `spec.nodeName`.
    pub node: Option<Arc<str>>,
    /// Shares the node's network: never selected, as target or peer.
    pub host_network: bool,
    /// Phase.
    pub phase: Phase,
    /// Has a deletion timestamp.
    pub terminating: bool,
    /// Addresses of all families; of a control group its [`crate::address::identity`] first.
    pub addresses: Vec<IpAddr>,
    /// Named ports of all containers, sorted: app, sidecar and init.
    pub ports: Vec<ContainerPort>,
    /// Creation time as RFC 3339, empty when unknown: the newer pod wins an address.
    pub created: Arc<str>,
    /// Interface hint (files mode only).
    pub interface: Option<InterfaceHint>,
}

impl Pod {
    /// The control group whose sockets are its, where it has no interface.
    #[must_use]
    pub const fn group(&self) -> Option<&GroupHint> {
        match &self.interface {
            Some(InterfaceHint::Group(hint)) => Some(hint),
            Some(InterfaceHint::Name(_) | InterfaceHint::Netns(_)) | None => None,
        }
    }
    /// Whether it is a service of its host, and no pod of a cluster: its control group was named.
    #[must_use]
    pub const fn is_service(&self) -> bool {
        match self.group() {
            Some(GroupHint::Path(_) | GroupHint::Unit(_)) => true,
            Some(GroupHint::Pod(_)) | None => false,
        }
    }
    /// UID by which its kubelet, runtime and control group know it.
    #[must_use]
    pub const fn runtime_uid(&self) -> &Arc<str> {
        match &self.mirror_of {
            Some(uid) => uid,
            None => &self.uid,
        }
    }
    /// Whether policies may select it and rules may name it.
    #[must_use]
    pub fn is_subject(&self) -> bool {
        !self.host_network && !self.phase.is_finished()
    }
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Name.
    pub name: Arc<str>,
    /// Labels.
    pub labels: Labels,
    /// `status.addresses` that are IP addresses.
    pub addresses: Vec<IpAddr>,
}

/// How what a pod opens to a Service is judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServiceMode {
    /// Behind the node's translation, by the backend that it chose.
    #[default]
    Tag,
    /// Before it, by all backends that it may choose: every one must be allowed.
    Backends,
}

impl ServiceMode {
    /// Name in settings and output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tag => "tag",
            Self::Backends => "backends",
        }
    }
}

/// A Service. Where it leads is asked only in [`ServiceMode::Backends`], and by people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub key: ObjectKey,
    /// Cluster, external and load-balancer addresses.
    pub addresses: Vec<IpAddr>,
    /// Labels of the pods that it leads to; empty: its backends are given otherwise.
    pub selector: BTreeMap<String, String>,
    /// Ports.
    pub ports: Vec<ServicePort>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Name, by which EndpointSlices know it; empty when it has none.
    pub name: Arc<str>,
    /// Protocol.
    pub protocol: Protocol,
    /// Number at the Service's addresses.
    pub port: u16,
    /// Number at every address of every node.
    pub node_port: Option<u16>,
    /// Where it leads on a pod.
    pub target: TargetPort,
}

/// Some backends of a Service, of one address family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Namespace and name.
    pub key: ObjectKey,
    /// The Service, in the same namespace; empty when it belongs to none.
    pub service: Arc<str>,
    /// Ports of the backends, by the name of the Service's port.
    pub ports: Vec<SlicePort>,
    /// Addresses of the backends that connections may go to: ready, or ending and still serving.
    pub serving: Vec<IpAddr>,
}

impl EndpointSlice {
    /// Key of the Service.
    #[must_use]
    pub fn service_key(&self) -> ObjectKey {
        ObjectKey { namespace: self.key.namespace.clone(), name: self.service.clone() }
    }
}

/// A port of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// Name of the Service's port; empty when it has none.
    pub name: Arc<str>,
    /// Protocol.
    pub protocol: Protocol,
    /// Number at the backends.
    pub port: u16,
}

/// Port of a pod to which a Service leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// A number.
    Number(u16),
    /// A name, which each pod gives its own number.
    Name(Arc<str>),
}

impl Service {
    /// The port with this number.
    #[must_use]
    pub fn port(&self, protocol: Protocol, port: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|p| p.protocol == protocol && p.port == port)
    }

    /// Whether it leads to the pod.
    #[must_use]
    pub fn selects(&self, pod: &Pod) -> bool {
        let all = || self.selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value));
        pod.key.namespace == self.key.namespace && !self.selector.is_empty() && all()
    }
}

impl ServicePort {
    /// Its number on a pod; `None` if the pod has no port of the name.
    #[must_use]
    pub fn on(&self, pod: &Pod) -> Option<u16> {
        match &self.target {
            TargetPort::Number(port) => Some(*port),
            TargetPort::Name(name) => {
                let mut ports = pod.ports.iter();
                ports.find(|p| p.name == *name && p.protocol == self.protocol).map(|p| p.port)
            }
        }
    }
}

/// One requirement of a label selector.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Requirement {
    /// The key is present with one of the values.
    In(String, Vec<String>),
    /// The key is absent or has none of the values.
    NotIn(String, Vec<String>),
    /// The key is present.
    Exists(String),
    /// The key is absent.
    DoesNotExist(String),
    /// Cannot be honoured: never satisfied.
    Never,
}

/// A label selector: all requirements must hold; none = everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    /// Requirements; `matchLabels` entries are `In` with one value.
    pub requirements: Vec<Requirement>,
}

/// Namespaces in which a peer's pods are looked for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NamespaceScope {
    /// The policy's own namespace (`namespaceSelector` absent).
    Own,
    /// Namespaces whose labels match.
    Selector(Selector),
}

/// One peer of a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// Pods that match in namespaces that match.
    Pods {
        /// Namespaces.
        namespaces: NamespaceScope,
        /// Pods in them (`podSelector` absent = all).
        pods: Selector,
    },
    /// Addresses in a block and in none of its excepts.
    Block {
        /// The block, host bits cleared.
        cidr: IpNet,
        /// Blocks strictly inside it.
        except: Vec<IpNet>,
    },
    /// Addresses of the nodes whose labels match.
    Nodes(Selector),
    /// Cannot be honoured: matches nothing.
    Nothing,
}

/// Peers of a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peers {
    /// `from` or `to` absent or empty: everything.
    All,
    /// Any of these; positions are those of the object.
    Any(Vec<Peer>),
}

/// One port entry of a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortMatch {
    /// All ports of a protocol.
    Protocol(Protocol),
    /// A port or a range, both ends included.
    Range(Protocol, u16, u16),
    /// A name, looked up on the destination pod.
    Named(Protocol, Arc<str>),
    /// Cannot be honoured: matches nothing.
    Nothing,
}

/// Ports of a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ports {
    /// `ports` absent or empty: every protocol and port.
    All,
    /// Any of these; positions are those of the object.
    Any(Vec<PortMatch>),
}

/// One rule: peers AND ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// `from` or `to`.
    pub peers: Peers,
    /// `ports`.
    pub ports: Ports,
}

/// A NetworkPolicy. `Some` = the policy isolates in that direction, whatever its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Namespace and name.
    pub key: ObjectKey,
    /// UID; empty when the object has none.
    pub uid: Arc<str>,
    /// Pods of the policy's namespace that it selects.
    pub pod_selector: Selector,
    /// Ingress rules; positions are those of the object.
    pub ingress: Option<Vec<Rule>>,
    /// Egress rules; positions are those of the object.
    pub egress: Option<Vec<Rule>>,
}

/// Something in an object that cannot be honoured.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Kind and key of the object, for example `NetworkPolicy shop/db`.
    pub object: String,
    /// Field path, for example `spec.ingress[0].ports[1].endPort`; empty = the whole object.
    pub field: String,
    /// What is wrong and what happens instead.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            write!(f, "{}: {}", self.object, self.message)
        } else {
            write!(f, "{}: {}: {}", self.object, self.field, self.message)
        }
    }
}
