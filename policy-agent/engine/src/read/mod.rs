//! Kubernetes objects, as JSON values, to the model. Reading never fails: what cannot be honoured matches nothing and
//! leaves a [`Problem`].

mod at;
mod block;
mod cluster;
mod label;
mod pod;
mod policy;
mod port;
mod rule;
mod selector;
#[cfg(test)]
mod tests;
mod tier;
mod tier_rule;

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::model::{ObjectKey, Problem};
use crate::world::Delta;
use at::{At, Log};

/// What one object became.
#[derive(Clone, Debug)]
pub struct Read {
    /// The change; `None` when the object means nothing to policy, or cannot be told from others.
    pub delta: Option<Delta>,
    /// What is wrong with the object, in order of its fields.
    pub problems: Vec<Problem>,
    /// Whether some part is not honoured. Problems without it are advice: the object means what it says.
    pub broken: bool,
}

/// Reads a document: one object, or a list of them (`List`, `PodList`, ..., nested or not), in order.
#[must_use]
pub fn objects(value: &Value) -> Vec<Read> {
    let mut reads = Vec::new();
    // An empty document of a YAML stream.
    if !value.is_null() {
        collect(value, "", "", &mut reads);
    }
    reads
}

/// Reads one object. A list is no object: it yields a problem that says so.
#[must_use]
pub fn object(value: &Value) -> Read {
    let api_version = value.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
    let kind = value.get("kind").and_then(Value::as_str).unwrap_or_default();
    one(value, api_version, kind)
}

/// Items of a typed list may leave out what the list says already: `api_version` and `kind` stand in for them.
fn collect(value: &Value, api_version: &str, kind: &str, reads: &mut Vec<Read>) {
    let api_version = value.get("apiVersion").and_then(Value::as_str).unwrap_or(api_version);
    let kind = value.get("kind").and_then(Value::as_str).unwrap_or(kind);
    let (Some(item_kind), Some(items)) = (kind.strip_suffix("List"), value.get("items")) else {
        reads.push(one(value, api_version, kind));
        return;
    };
    let item_version = if item_kind.is_empty() { "" } else { api_version };
    match items {
        Value::Null => {}
        Value::Array(items) => items.iter().for_each(|item| collect(item, item_version, item_kind, reads)),
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => {
            let log = Log::new(kind.to_owned());
            At::new(&log, "items", items).wrong_type("a list", "nothing of it is read");
            reads.push(log.finish(None));
        }
    }
}

fn one(value: &Value, api_version: &str, kind: &str) -> Read {
    let name = identity(value).map_or_else(|| "(no name)".to_owned(), |key| key.to_string());
    let kind_name = if kind.is_empty() { "object without kind" } else { kind };
    let log = Log::new(format!("{kind_name} {name}"));
    let root = At::new(&log, "", value);
    let delta = match (group(api_version), kind) {
        (Group::Core | Group::Missing, "Namespace") => named(&root, false, cluster::namespace),
        (Group::Core | Group::Missing, "Node") => named(&root, false, cluster::node),
        (Group::Core | Group::Missing, "Pod") => named(&root, true, pod::pod),
        (Group::Core | Group::Missing, "Service") => named(&root, true, cluster::service),
        (Group::Policy | Group::Missing, "NetworkPolicy") => named(&root, true, policy::policy),
        (Group::Tiers | Group::Missing, "ClusterNetworkPolicy") => named(&root, false, tier::policy),
        (Group::Discovery | Group::Missing, "EndpointSlice") => named(&root, true, cluster::endpoint_slice),
        (_, "") => {
            root.bad(format!("{}: ignored", if value.is_object() { "has no kind" } else { "is no object" }));
            None
        }
        (_, "List") => {
            root.bad("a list where one object is expected: ignored");
            None
        }
        _ => {
            root.note(unknown_kind(api_version, kind));
            None
        }
    };
    if delta.is_some() {
        version_notes(&root, api_version, kind);
    }
    log.finish(delta)
}

/// Where an API version belongs.
enum Group {
    Core,
    Policy,
    Tiers,
    Discovery,
    Missing,
    Other,
}

fn group(api_version: &str) -> Group {
    match api_version.split_once('/') {
        None if api_version.is_empty() => Group::Missing,
        None => Group::Core,
        // `extensions` is where NetworkPolicy lived first; ignoring it would leave its pods open.
        Some(("networking.k8s.io" | "extensions", _)) => Group::Policy,
        Some(("policy.networking.k8s.io", _)) => Group::Tiers,
        Some(("discovery.k8s.io", _)) => Group::Discovery,
        Some(_) => Group::Other,
    }
}

fn version_notes(root: &At<'_>, api_version: &str, kind: &str) {
    let expected = match kind {
        "NetworkPolicy" => "networking.k8s.io/v1",
        "ClusterNetworkPolicy" => "policy.networking.k8s.io/v1alpha2",
        "EndpointSlice" => "discovery.k8s.io/v1",
        _ => "v1",
    };
    if api_version.is_empty() {
        root.note(format!("has no apiVersion: read as {expected}"));
    } else if api_version != expected {
        root.note(format!("apiVersion is {api_version}: read as {expected}"));
    }
}

fn unknown_kind(api_version: &str, kind: &str) -> String {
    let version = if api_version.is_empty() { String::new() } else { format!(" of {api_version}") };
    if kind.contains("Policy") {
        format!(
            "kind {kind}{version} is not enforced: only NetworkPolicy of networking.k8s.io/v1 and \
             ClusterNetworkPolicy of policy.networking.k8s.io/v1alpha2 are"
        )
    } else {
        format!("kind {kind}{version} is not used: ignored")
    }
}

/// What all objects share.
struct Meta<'a> {
    key: ObjectKey,
    uid: Arc<str>,
    fields: At<'a>,
}

/// Reads an object that needs a name; without one there is no change.
fn named<'a>(root: &At<'a>, namespaced: bool, read: fn(&At<'a>, &Meta<'a>) -> Delta) -> Option<Delta> {
    const IGNORED: &str = "the object is ignored";
    let Some(fields) = root.field("metadata") else {
        root.bad(format!("has no metadata: {IGNORED}"));
        return None;
    };
    fields.object(IGNORED)?;
    let name = fields.field("name").map(|at| at.text(IGNORED));
    let name = match name {
        Some(name) => name?,
        None => "",
    };
    if name.is_empty() {
        fields.bad(format!("has no name: {IGNORED}"));
        return None;
    }
    let namespace = match fields.field("namespace") {
        Some(at) if namespaced => at.text(IGNORED)?,
        Some(_) | None => "",
    };
    let namespace = if namespaced && namespace.is_empty() { "default" } else { namespace };
    let uid = fields.field("uid").and_then(|at| at.text("read as absent")).unwrap_or_default();
    let meta = Meta { key: ObjectKey::new(namespace, name), uid: uid.into(), fields };
    Some(read(root, &meta))
}

/// Namespace and name as far as they can be read, for messages.
fn identity(value: &Value) -> Option<ObjectKey> {
    let metadata: &Map<String, Value> = value.get("metadata")?.as_object()?;
    let name = metadata.get("name")?.as_str().filter(|name| !name.is_empty())?;
    let namespace = metadata.get("namespace").and_then(Value::as_str).unwrap_or_default();
    let kind = value.get("kind").and_then(Value::as_str);
    let clusterwide = matches!(kind, Some("Namespace" | "Node" | "ClusterNetworkPolicy"));
    let namespace = match (namespace, clusterwide) {
        (_, true) => "",
        ("", false) => "default",
        (namespace, false) => namespace,
    };
    Some(ObjectKey::new(namespace, name))
}
