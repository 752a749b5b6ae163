//! The fields of a `netpol-case/v1` file, exactly as written.

use super::step::{Side, Step};
use crate::net::Family;
use anyhow::{Result, ensure};
use policy_engine::model::ServiceMode;
use serde::Deserialize;
use serde_json::Value;
use std::{collections::BTreeMap, net::IpAddr};

/// A scenario.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// `netpol-case/v1`.
    pub schema: String,
    /// Stable, path-like name.
    pub id: String,
    /// One line on what it shows.
    pub title: String,
    /// Free text.
    #[serde(default)]
    pub notes: String,
    /// What sort of scenario it is.
    #[serde(default)]
    pub kind: Kind,
    /// Where the expectation comes from.
    #[serde(default)]
    pub source: Option<Source>,
    /// Abilities that a back end needs to run it.
    #[serde(default)]
    pub requires: Vec<Gate>,
    /// Free words.
    #[serde(default)]
    pub tags: Vec<String>,
    /// The cluster before the first step.
    #[serde(default)]
    pub cluster: Cluster,
    /// How the node judges what pods send to Services.
    #[serde(default)]
    pub services: Services,
    /// The pods of the node under test are control groups, and the file is about what differs for those: only the back
    /// end `cgroup` runs it.
    #[serde(default)]
    pub workloads: Option<Workloads>,
    /// What holds unless a step says otherwise.
    #[serde(default)]
    pub defaults: Defaults,
    /// Changes and what must be true after each.
    #[serde(default)]
    pub steps: Vec<Step>,
    /// For [`Kind::Admission`]: an object and what reading it must give.
    #[serde(default)]
    pub admission: Option<Admission>,
}

impl Case {
    pub(super) fn check(&self) -> Result<()> {
        let admission = self.kind == Kind::Admission;
        ensure!(
            admission == self.admission.is_some(),
            "admission: goes with kind admission, and only with it"
        );
        ensure!(admission || !self.steps.is_empty(), "steps: a scenario without steps shows nothing");
        for (n, step) in self.steps.iter().enumerate() {
            let says = step.expect.is_some() || !step.sessions.is_empty();
            ensure!(says, "steps[{n}]: neither expect nor sessions");
            for (m, action) in step.actions.iter().enumerate() {
                let group = action.regroup.is_none() || self.workloads.is_some();
                ensure!(group, "steps[{n}].actions[{m}].regroup: only a file about workloads has groups");
                ensure!(action.count() == 1, "steps[{n}].actions[{m}]: exactly one action is wanted");
            }
            for (m, session) in step.sessions.iter().enumerate() {
                let set = [session.open.is_some(), session.send.is_some(), session.expect.is_some()];
                let count = set.into_iter().filter(|set| *set).count();
                ensure!(count == 1, "steps[{n}].sessions[{m}]: exactly one of open, send, expect is wanted");
            }
        }
        Ok(())
    }
}

/// Sort of a scenario.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// New connections only.
    #[default]
    Verdict,
    /// One object is read, and accepted or not.
    Admission,
    /// Connections with a history.
    Session,
    /// Pods that come, end and change.
    Lifecycle,
}

/// How the node judges what pods send to Services.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Services {
    /// By the backend that it chose.
    #[default]
    Tag,
    /// By all backends.
    Backends,
    /// The truth is the same either way: both are run.
    Both,
}

impl Services {
    /// The ways to run a scenario.
    pub fn modes(self) -> &'static [ServiceMode] {
        match self {
            Self::Tag => &[ServiceMode::Tag],
            Self::Backends => &[ServiceMode::Backends],
            Self::Both => &[ServiceMode::Tag, ServiceMode::Backends],
        }
    }
}

/// Settings of an agent whose pods are control groups.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workloads {
    /// What becomes of packets between loopback addresses.
    #[serde(default)]
    pub loopback: Loopback,
}

/// What becomes of packets between loopback addresses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Loopback {
    /// They pass.
    #[default]
    Exempt,
    /// They are judged.
    Judge,
}

/// Origin of an expectation.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    pub suite: String,
    #[serde(rename = "ref", default)]
    pub reference: String,
    #[serde(default)]
    pub revision: String,
    #[serde(default)]
    pub licence: String,
    #[serde(default)]
    pub derived: bool,
}

/// An ability that a scenario needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gate {
    Sctp,
    Ipv6,
    Dualstack,
    Endport,
    NamedPort,
    HostNetwork,
    External,
    Icmp,
    IpReuse,
}

/// The cluster that a scenario starts with.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// Families of automatic addresses and of probes; both if absent.
    #[serde(default, rename = "ipFamilies")]
    pub ip_families: Vec<Family>,
    /// Nodes beside the one under test, which is `node-1` and is always there.
    #[serde(default)]
    pub nodes: BTreeMap<String, NodeSpec>,
    /// Namespaces beyond those that pods name.
    #[serde(default)]
    pub namespaces: BTreeMap<String, NamespaceSpec>,
    /// Pods by `namespace/name`.
    #[serde(default)]
    pub pods: BTreeMap<String, PodSpec>,
    /// Hosts that are no part of the cluster.
    #[serde(default)]
    pub external: BTreeMap<String, ExternalSpec>,
}

/// A node.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSpec {
    /// Addresses; automatic if absent.
    #[serde(default)]
    pub ips: Vec<IpAddr>,
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// A namespace.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamespaceSpec {
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Leaves out the label that the API server would add.
    #[serde(default, rename = "noDefaultLabel")]
    pub no_default_label: bool,
    /// Is being deleted; what is in it goes on.
    #[serde(default)]
    pub terminating: bool,
}

/// A pod.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodSpec {
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// Node; the one under test if absent.
    #[serde(default)]
    pub node: Option<String>,
    /// Addresses: absent or `auto` for automatic ones, an empty list for a pod that has none yet.
    #[serde(default)]
    pub ips: Option<Vec<String>>,
    /// Shares the node's network.
    #[serde(default, rename = "hostNetwork")]
    pub host_network: bool,
    /// Phase; Running if absent.
    #[serde(default)]
    pub phase: Option<String>,
    /// Has a deletion timestamp.
    #[serde(default)]
    pub terminating: bool,
    /// Containers with their ports.
    #[serde(default)]
    pub containers: Vec<Container>,
}

/// A container.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Container {
    /// Name.
    pub name: String,
    /// App, init or sidecar.
    #[serde(default)]
    pub kind: ContainerKind,
    /// Declared ports.
    #[serde(default)]
    pub ports: Vec<ContainerPort>,
}

/// Kind of a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ContainerKind {
    #[default]
    App,
    Init,
    Sidecar,
}

/// A declared port.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerPort {
    /// Name.
    #[serde(default)]
    pub name: Option<String>,
    /// Number.
    pub port: u16,
    /// TCP, UDP or SCTP; TCP if absent.
    #[serde(default)]
    pub protocol: Option<String>,
    /// Port of the node that leads here.
    #[serde(default, rename = "hostPort")]
    pub host_port: Option<u16>,
}

/// A host outside the cluster.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExternalSpec {
    /// Addresses; automatic if absent.
    #[serde(default)]
    pub ips: Vec<IpAddr>,
}

/// What holds for the whole scenario.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Defaults {
    /// Verdict of pairs that no rule names; allow if absent.
    #[serde(default)]
    pub verdict: Option<Side>,
}

/// An object to read and what that must give.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Admission {
    /// The object.
    pub object: Value,
    /// Whether nothing is wrong with it.
    pub accept: bool,
    /// Path of the field that is wrong.
    #[serde(default)]
    pub field: String,
    /// What the object means where an API server let it through.
    #[serde(default)]
    pub lenient: String,
}
