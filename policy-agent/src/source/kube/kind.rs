//! The kinds of objects that are watched: where the API server has them, and which of their fields are kept.

use std::fmt;
use std::sync::Arc;

use policy_engine::model::ObjectKey;
use policy_engine::world::Delta;

use super::shape::Shape;

/// A kind of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Namespaces: selectors match their labels.
    Namespace,
    /// Nodes: their addresses.
    Node,
    /// Services: their addresses.
    Service,
    /// NetworkPolicies.
    Policy,
    /// Pods of the whole cluster: any of them may be a peer.
    Pod,
    /// ClusterNetworkPolicies. Their resource is a CRD, which a cluster may have or not.
    ClusterPolicy,
    /// Backends of Services. Nothing depends on them while the datapath sees where a packet really goes.
    EndpointSlice,
}

/// Kinds that every cluster has and without which nothing is enforced.
pub const NEEDED: [Kind; 5] = [Kind::Namespace, Kind::Node, Kind::Service, Kind::Policy, Kind::Pod];

/// Of the annotations only the one by which a kubelet knows its static pods. Those that name a pod's interface are for
/// files only, as a tenant can write them here.
const METADATA: Shape = Shape::Only(&[
    ("name", Shape::All),
    ("namespace", Shape::All),
    ("uid", Shape::All),
    ("resourceVersion", Shape::All),
    ("labels", Shape::All),
    ("creationTimestamp", Shape::All),
    ("deletionTimestamp", Shape::All),
    ("annotations", Shape::Few(&[("kubernetes.io/config.mirror", Shape::All)])),
]);

/// Containers are there for the names of their ports.
const CONTAINERS: Shape = Shape::Each(&Shape::Only(&[(
    "ports",
    Shape::Each(&Shape::Only(&[
        ("name", Shape::All),
        ("containerPort", Shape::All),
        ("protocol", Shape::All),
    ])),
)]));

const POD: Shape = Shape::Only(&[
    ("metadata", METADATA),
    (
        "spec",
        Shape::Only(&[
            ("nodeName", Shape::All),
            ("hostNetwork", Shape::All),
            ("containers", CONTAINERS),
            ("initContainers", CONTAINERS),
        ]),
    ),
    ("status", Shape::Only(&[("phase", Shape::All), ("podIP", Shape::All), ("podIPs", Shape::All)])),
]);

const NODE: Shape =
    Shape::Only(&[("metadata", METADATA), ("status", Shape::Only(&[("addresses", Shape::All)]))]);

const NAMESPACE: Shape = Shape::Only(&[("metadata", METADATA)]);

/// Every field of a policy counts, also one that is not known here: it may narrow what the others mean.
const POLICY: Shape = Shape::But(&[("metadata", METADATA), ("status", Shape::Only(&[]))]);

const SERVICE: Shape = Shape::Only(&[
    ("metadata", METADATA),
    ("spec", Shape::All),
    ("status", Shape::Only(&[("loadBalancer", Shape::All)])),
]);

const ENDPOINT_SLICE: Shape = Shape::Only(&[
    ("metadata", METADATA),
    ("addressType", Shape::All),
    ("ports", Shape::All),
    (
        "endpoints",
        Shape::Each(&Shape::Only(&[
            ("addresses", Shape::All),
            ("conditions", Shape::All),
            ("nodeName", Shape::All),
            ("targetRef", Shape::All),
        ])),
    ),
]);

impl Kind {
    /// Name of the kind, as an object has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Service => "Service",
            Self::Policy => "NetworkPolicy",
            Self::ClusterPolicy => "ClusterNetworkPolicy",
            Self::Pod => "Pod",
            Self::EndpointSlice => "EndpointSlice",
        }
    }

    /// Name of the resource, as roles and paths have it.
    #[must_use]
    pub const fn resource(self) -> &'static str {
        match self {
            Self::Namespace => "namespaces",
            Self::Node => "nodes",
            Self::Service => "services",
            Self::Policy => "networkpolicies",
            Self::ClusterPolicy => "clusternetworkpolicies",
            Self::Pod => "pods",
            Self::EndpointSlice => "endpointslices",
        }
    }

    /// API group; empty for the core group.
    #[must_use]
    pub const fn group(self) -> &'static str {
        match self {
            Self::Namespace | Self::Node | Self::Service | Self::Pod => "",
            Self::Policy => "networking.k8s.io",
            Self::ClusterPolicy => "policy.networking.k8s.io",
            Self::EndpointSlice => "discovery.k8s.io",
        }
    }

    /// `apiVersion` of its objects.
    #[must_use]
    pub const fn api_version(self) -> &'static str {
        match self {
            Self::Namespace | Self::Node | Self::Service | Self::Pod => "v1",
            Self::Policy => "networking.k8s.io/v1",
            Self::ClusterPolicy => "policy.networking.k8s.io/v1alpha2",
            Self::EndpointSlice => "discovery.k8s.io/v1",
        }
    }

    /// Path of all its objects.
    #[must_use]
    pub const fn path(self) -> &'static str {
        match self {
            Self::Namespace => "/api/v1/namespaces",
            Self::Node => "/api/v1/nodes",
            Self::Service => "/api/v1/services",
            Self::Policy => "/apis/networking.k8s.io/v1/networkpolicies",
            Self::ClusterPolicy => "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies",
            Self::Pod => "/api/v1/pods",
            Self::EndpointSlice => "/apis/discovery.k8s.io/v1/endpointslices",
        }
    }

    /// Whether a cluster may lack the kind: then there are no objects of it, and nothing is wrong.
    pub(super) const fn is_optional(self) -> bool {
        match self {
            Self::ClusterPolicy => true,
            Self::Namespace | Self::Node | Self::Service | Self::Policy | Self::Pod | Self::EndpointSlice => {
                false
            }
        }
    }

    /// The fields that are kept.
    pub(super) const fn shape(self) -> &'static Shape {
        match self {
            Self::Namespace => &NAMESPACE,
            Self::Node => &NODE,
            Self::Service => &SERVICE,
            Self::Policy | Self::ClusterPolicy => &POLICY,
            Self::Pod => &POD,
            Self::EndpointSlice => &ENDPOINT_SLICE,
        }
    }

    /// [`Kind::shape`] of each item of a list.
    pub(super) const fn items(self) -> &'static Shape {
        match self {
            Self::Namespace => &Shape::Each(&NAMESPACE),
            Self::Node => &Shape::Each(&NODE),
            Self::Service => &Shape::Each(&SERVICE),
            Self::Policy | Self::ClusterPolicy => &Shape::Each(&POLICY),
            Self::Pod => &Shape::Each(&POD),
            Self::EndpointSlice => &Shape::Each(&ENDPOINT_SLICE),
        }
    }

    /// What takes an object out of the world.
    pub(super) fn gone(self, key: &ObjectKey, uid: &Arc<str>) -> Delta {
        match self {
            Self::Namespace => Delta::NamespaceGone(key.name.clone()),
            Self::Node => Delta::NodeGone(key.name.clone()),
            Self::Service => Delta::ServiceGone(key.clone()),
            Self::Policy => Delta::PolicyGone(key.clone()),
            Self::ClusterPolicy => Delta::ClusterPolicyGone(key.name.clone()),
            Self::Pod => Delta::PodGone { key: key.clone(), uid: uid.clone() },
            Self::EndpointSlice => Delta::EndpointSliceGone(key.clone()),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.resource())
    }
}
