//! The cluster at a point of a scenario: what the steps so far have made of it.

use super::{
    objects,
    schema::{Case, NamespaceSpec, PodSpec},
    step::{Action, PodAction, SetLabels},
    template,
};
use crate::net::{Family, Node};
use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// Where traffic of a place enters and leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Where {
    /// A pod of the node under test.
    Pod,
    /// The node under test itself, or a pod that shares its network.
    Node,
    /// Anything beyond the node's uplink.
    Outside,
}

/// Something in the scenario that has addresses and can be probed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// `namespace/name`, `ext:name` or `node:name`.
    pub name: String,
    /// Where it is.
    pub at: Where,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Distinguishes a pod's sandboxes: another number is another network namespace.
    pub sandbox: u64,
    /// Whether a truth table includes it without being told to.
    pub in_tables: bool,
}

impl Place {
    /// Whether it is but an address of a Service: nobody is there.
    pub fn is_service(&self) -> bool {
        self.name.split('/').count() == 3
    }

    /// Its address of the family, if it has one.
    pub fn ip(&self, family: Family) -> Option<IpAddr> {
        self.ips.iter().copied().find(|ip| Family::of(*ip) == family)
    }
}

/// A pod as the scenario knows it.
#[derive(Debug, Clone)]
pub(super) struct Pod {
    pub(super) spec: PodSpec,
    pub(super) ips: Vec<IpAddr>,
    pub(super) serial: u64,
    pub(super) sandbox: u64,
}

impl Pod {
    pub(super) fn is_live(&self) -> bool {
        !matches!(self.spec.phase.as_deref(), Some("Succeeded" | "Failed"))
    }
}

/// A node as the scenario knows it.
#[derive(Debug, Clone)]
pub(super) struct NodeState {
    pub(super) ips: Vec<IpAddr>,
    pub(super) labels: BTreeMap<String, String>,
}

/// Kind, namespace and name.
type ObjectId = (String, String, String);

/// The cluster at a point of a scenario.
#[derive(Debug, Clone)]
pub struct State {
    /// Families of automatic addresses and of probes.
    pub families: Vec<Family>,
    pub(super) nodes: BTreeMap<String, NodeState>,
    pub(super) namespaces: BTreeMap<String, NamespaceSpec>,
    pub(super) pods: BTreeMap<String, Pod>,
    external: BTreeMap<String, Vec<IpAddr>>,
    applied: BTreeMap<ObjectId, Value>,
    serial: u64,
}

impl State {
    /// Name of the node under test.
    pub const NODE: &str = "node-1";

    /// The cluster before the first step.
    pub fn new(case: &Case) -> Result<Self> {
        let spec = &case.cluster;
        let families =
            if spec.ip_families.is_empty() { vec![Family::V4, Family::V6] } else { spec.ip_families.clone() };
        let mut state = Self {
            families,
            nodes: BTreeMap::new(),
            namespaces: spec.namespaces.clone(),
            pods: BTreeMap::new(),
            external: BTreeMap::new(),
            applied: BTreeMap::new(),
            serial: 0,
        };
        if !spec.nodes.contains_key(Self::NODE) {
            state.add_node(Self::NODE, Vec::new(), BTreeMap::new())?;
        }
        for (name, node) in &spec.nodes {
            state.add_node(name, node.ips.clone(), node.labels.clone())?;
        }
        for (name, external) in &spec.external {
            let serial = state.next();
            let ips = if external.ips.is_empty() {
                state.automatic(Pool::External, serial)
            } else {
                external.ips.clone()
            };
            state.external.insert(name.clone(), ips);
        }
        for (name, pod) in &spec.pods {
            state.add_pod(name, pod.clone()).with_context(|| format!("cluster.pods.{name}"))?;
        }
        Ok(state)
    }

    /// Makes one change. The agent's own actions change nothing here.
    pub fn act(&mut self, action: &Action) -> Result<()> {
        if let Some(object) = &action.apply {
            self.apply(object.clone())?;
        }
        if let Some(file) = &action.file {
            self.apply_file(file)?;
        }
        if let Some(object) = &action.delete {
            self.delete(&object.kind, &object.namespace, &object.name)?;
        }
        if let Some(labels) = &action.set_labels {
            self.set_labels(labels)?;
        }
        if let Some(pod) = &action.pod {
            self.change_pods(pod)?;
        }
        Ok(())
    }

    /// All Kubernetes objects that exist now.
    pub fn objects(&self) -> Vec<Value> {
        let applied = self.applied.values().cloned();
        objects::of_cluster(self).into_iter().chain(applied).chain(self.made_slices()).collect()
    }

    /// Objects of a kind that the steps have applied.
    pub(super) fn applied_of(&self, kind: &str) -> impl Iterator<Item = &Value> {
        self.applied.iter().filter(move |((of, ..), _)| of == kind).map(|(_, object)| object)
    }

    /// All places that exist now and have an address.
    pub fn places(&self) -> Vec<Place> {
        let mut places = Vec::new();
        for (name, pod) in self.pods.iter().filter(|(_, pod)| pod.is_live() && !pod.ips.is_empty()) {
            let local = pod.spec.node.as_ref().is_none_or(|node| node == Self::NODE);
            let at = match (local, pod.spec.host_network) {
                (true, true) => Where::Node,
                (true, false) => Where::Pod,
                (false, _) => Where::Outside,
            };
            let in_tables = !pod.spec.host_network;
            places.push(Place {
                name: name.clone(),
                at,
                ips: pod.ips.clone(),
                sandbox: pod.sandbox,
                in_tables,
            });
        }
        for (name, ips) in &self.external {
            let name = format!("ext:{name}");
            places.push(Place { name, at: Where::Outside, ips: ips.clone(), sandbox: 0, in_tables: true });
        }
        for (name, node) in &self.nodes {
            let at = if name == Self::NODE { Where::Node } else { Where::Outside };
            let name = format!("node:{name}");
            places.push(Place { name, at, ips: node.ips.clone(), sandbox: 0, in_tables: false });
        }
        for (name, ips) in self.service_places() {
            // What nothing translates leaves the node.
            places.push(Place { name, at: Where::Outside, ips, sandbox: 0, in_tables: false });
        }
        places
    }

    /// Replaces the templates in `value` by addresses of this moment.
    pub fn expand(&self, value: &mut Value) -> Result<()> {
        template::expand(value, &|name| self.address(name))
    }

    fn address(&self, name: &str) -> Option<IpAddr> {
        let (rest, family) = match name.rsplit_once('.')? {
            (rest, "ip4") => (rest, Family::V4),
            (rest, "ip6") => (rest, Family::V6),
            (_, _) => return None,
        };
        let ips = match rest.split_once('.')? {
            ("pod", pod) => &self.pods.get(pod)?.ips,
            ("ext", name) => self.external.get(name)?,
            ("node", name) => &self.nodes.get(name)?.ips,
            (_, _) => return None,
        };
        ips.iter().copied().find(|ip| Family::of(*ip) == family)
    }

    fn apply(&mut self, mut object: Value) -> Result<()> {
        self.expand(&mut object)?;
        let text =
            |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let id = object_id(&text("/kind"), &text("/metadata/namespace"), &text("/metadata/name"));
        ensure!(!id.0.is_empty() && !id.2.is_empty(), "apply: an object needs kind and metadata.name");
        let known: &[&str] = match id.0.as_str() {
            "EndpointSlice" => &["apiVersion", "kind", "metadata", "addressType", "ports", "endpoints"],
            _ => &["apiVersion", "kind", "metadata", "spec", "status"],
        };
        let odd = object
            .as_object()
            .and_then(|fields| fields.keys().find(|field| !known.contains(&field.as_str())));
        ensure!(odd.is_none(), "apply: unknown field {}", odd.map_or("", String::as_str));
        ensure!(id.0 != "Pod", "apply: pods are changed by the action pod");
        if id.0 == "Namespace" {
            // It would be a second object of the same name: the scenario's own is changed instead.
            let namespace = self.namespaces.entry(id.2).or_default();
            namespace.terminating = object["metadata"].get("deletionTimestamp").is_some();
            namespace.labels =
                serde_json::from_value(object["metadata"]["labels"].take()).unwrap_or_default();
            return Ok(());
        }
        if !id.1.is_empty() {
            self.namespaces.entry(id.1.clone()).or_default();
        }
        self.applied.insert(id, object);
        Ok(())
    }

    fn apply_file(&mut self, file: &str) -> Result<()> {
        let path = super::root().join("deploy/examples").join(file);
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        for document in serde_norway::Deserializer::from_str(&text) {
            let object = Value::deserialize(document).with_context(|| file.to_owned())?;
            self.apply(object).with_context(|| file.to_owned())?;
        }
        Ok(())
    }

    fn delete(&mut self, kind: &str, namespace: &str, name: &str) -> Result<()> {
        if kind == "Namespace" {
            self.namespaces.remove(name);
            self.applied.retain(|(_, namespace, _), _| namespace != name);
            self.pods.retain(|pod, _| pod.split_once('/').is_none_or(|(namespace, _)| namespace != name));
            return Ok(());
        }
        let id = object_id(kind, namespace, name);
        self.applied.remove(&id).with_context(|| format!("delete: no {kind} {namespace}/{name}")).map(drop)
    }

    fn set_labels(&mut self, change: &SetLabels) -> Result<()> {
        let labels = match (&change.namespace, &change.pod) {
            (Some(name), None) => &mut self.namespaces.entry(name.clone()).or_default().labels,
            (None, Some(name)) => &mut self.pod(name)?.spec.labels,
            (Some(_), Some(_)) | (None, None) => bail!("set-labels: either namespace or pod"),
        };
        labels.clone_from(&change.labels);
        Ok(())
    }

    fn change_pods(&mut self, action: &PodAction) -> Result<()> {
        if let Some(name) = &action.remove {
            self.pods.remove(name).with_context(|| format!("pod.remove: no pod {name}"))?;
        }
        if let Some(change) = &action.phase {
            self.pod(&change.pod)?.spec.phase = Some(change.to.clone());
        }
        if let Some(name) = &action.terminate {
            self.pod(name)?.spec.terminating = true;
        }
        if let Some(change) = &action.restart {
            let serial = self.next();
            let ips = self.addresses(change.ips.as_deref(), serial, true)?;
            let pod = self.pod(&change.pod)?;
            (pod.ips, pod.sandbox) = (ips, serial);
        }
        for (name, spec) in &action.add {
            self.add_pod(name, spec.clone()).with_context(|| format!("pod.add.{name}"))?;
        }
        Ok(())
    }

    fn pod(&mut self, name: &str) -> Result<&mut Pod> {
        self.pods.get_mut(name).with_context(|| format!("no pod {name}"))
    }

    fn add_node(&mut self, name: &str, ips: Vec<IpAddr>, labels: BTreeMap<String, String>) -> Result<()> {
        let own = name == Self::NODE;
        ensure!(!own || ips.is_empty(), "cluster.nodes.{name}: the node under test has addresses of its own");
        let serial = self.next();
        let ips = match (own, ips.is_empty()) {
            (true, _) => self.pick(Node::ADDRESS4, Node::ADDRESS6),
            (false, true) => self.automatic(Pool::Node, serial),
            (false, false) => ips,
        };
        self.nodes.insert(name.to_owned(), NodeState { ips, labels });
        Ok(())
    }

    fn add_pod(&mut self, name: &str, spec: PodSpec) -> Result<()> {
        let (namespace, _) = name.split_once('/').context("a pod is named namespace/name")?;
        self.namespaces.entry(namespace.to_owned()).or_default();
        let node = spec.node.clone().unwrap_or_else(|| Self::NODE.to_owned());
        let host = self.nodes.get(&node).with_context(|| format!("no node {node}"))?.ips.clone();
        let serial = self.next();
        let ips = if spec.host_network {
            host
        } else {
            self.addresses(spec.ips.as_deref(), serial, node == Self::NODE)?
        };
        self.pods.insert(name.to_owned(), Pod { spec, ips, serial, sandbox: serial });
        Ok(())
    }

    fn addresses(&self, given: Option<&[String]>, serial: u64, local: bool) -> Result<Vec<IpAddr>> {
        let automatic = self.automatic(if local { Pool::Pod } else { Pool::RemotePod }, serial);
        let Some(given) = given else { return Ok(automatic) };
        if given == ["auto"] {
            return Ok(automatic);
        }
        given.iter().map(|ip| ip.parse().with_context(|| format!("ips: {ip:?} is no address"))).collect()
    }

    fn next(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    fn automatic(&self, pool: Pool, serial: u64) -> Vec<IpAddr> {
        let last = u16::try_from(serial).unwrap_or(u16::MAX) + 15;
        let (v4, v6) = match pool {
            Pool::Pod => ([10, 244, 0], [0xfd00, 0x10, 0x244, 0]),
            Pool::RemotePod => ([10, 244, 1], [0xfd00, 0x10, 0x244, 1]),
            Pool::External => ([203, 0, 113], [0x2001, 0xdb8, 0, 113]),
            Pool::Node => ([192, 0, 2], [0xfd00, 0x192, 0, 0]),
        };
        let byte = u8::try_from(last).unwrap_or(u8::MAX);
        self.pick(
            Ipv4Addr::new(v4[0], v4[1], v4[2], byte),
            Ipv6Addr::new(v6[0], v6[1], v6[2], v6[3], 0, 0, 0, last),
        )
    }

    fn pick(&self, v4: Ipv4Addr, v6: Ipv6Addr) -> Vec<IpAddr> {
        let one = |family: &Family| match family {
            Family::V4 => IpAddr::V4(v4),
            Family::V6 => IpAddr::V6(v6),
        };
        self.families.iter().map(one).collect()
    }
}

/// A policy that names no namespace lives in `default`, as `kubectl apply` would have it.
fn object_id(kind: &str, namespace: &str, name: &str) -> ObjectId {
    let namespace = if namespace.is_empty() && kind == "NetworkPolicy" { "default" } else { namespace };
    (kind.to_owned(), namespace.to_owned(), name.to_owned())
}

/// Ranges of automatic addresses.
#[derive(Debug, Clone, Copy)]
enum Pool {
    Pod,
    RemotePod,
    External,
    Node,
}
