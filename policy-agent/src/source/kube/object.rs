//! An object as the API server told it, and what it means to policy.

use std::sync::Arc;

use policy_engine::model::ObjectKey;
use policy_engine::read::{self, Read};
use policy_engine::world::Delta;
use serde_json::Value;

use super::intern::Interner;
use super::kind::Kind;
use crate::source::objects::Located;

/// An object, trimmed.
#[derive(Clone, Debug)]
pub(super) struct Object {
    /// Namespace and name.
    pub key: ObjectKey,
    /// Tells it from others that had its name.
    pub uid: Arc<str>,
    /// Its version; 0 when the server writes versions that are no numbers.
    pub version: u64,
    /// Its fields that count.
    pub value: Value,
}

impl Object {
    /// The object in a trimmed value; `None` without a name.
    pub(super) fn of(kind: Kind, mut value: Value) -> Option<Self> {
        // Items of a list leave out what the list says.
        let fields = value.as_object_mut()?;
        fields.insert("apiVersion".to_owned(), kind.api_version().into());
        fields.insert("kind".to_owned(), kind.name().into());
        let metadata = fields.get("metadata")?;
        let text = |name: &str| metadata.get(name).and_then(Value::as_str);
        let name = text("name").filter(|name| !name.is_empty())?;
        let key = ObjectKey::new(text("namespace").unwrap_or_default(), name);
        let uid = text("uid").unwrap_or_default().into();
        let version = version(text("resourceVersion").unwrap_or_default());
        // What is left says what the object means.
        if let Some(Value::Object(metadata)) = fields.get_mut("metadata") {
            metadata.remove("resourceVersion");
        }
        Some(Self { key, uid, version, value })
    }
}

/// A version as a number. Kubernetes promises that versions of one kind can be compared as decimal numbers.
pub(super) fn version(text: &str) -> u64 {
    text.parse().unwrap_or_default()
}

/// What is remembered of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    /// UID.
    pub uid: Arc<str>,
    /// Version.
    pub version: u64,
    /// Hash of the fields that count: most changes of pods and nodes are in others.
    pub content: u64,
}

/// An object that was read.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) key: ObjectKey,
    pub(super) held: Held,
    pub(super) delta: Option<Delta>,
    pub(super) problems: Vec<Located>,
}

impl Reading {
    /// Reads an object. A part that is not honoured matches nothing: unlike in files, where a slip while somebody edits
    /// must not undo the last good version, what the API server has accepted is what is meant, on every node alike.
    pub(super) fn of(object: Object, content: u64, interner: &mut Interner) -> Self {
        let Object { key, uid, version, value } = object;
        let Read { mut delta, problems, broken } = read::object(&value);
        let mut reading =
            Self { key, held: Held { uid, version, content }, delta: None, problems: Vec::new() };
        if let Some(delta) = &mut delta {
            interner.share(delta);
            reading.take_texts(delta);
        }
        reading.delta = delta;
        reading.problems = problems
            .into_iter()
            .map(|problem| Located {
                location: String::new(),
                object: problem.object,
                field: problem.field,
                message: problem.message,
                broken,
                version,
            })
            .collect();
        reading
    }

    /// The key and the UID are held twice, here and in the world: as one text.
    fn take_texts(&mut self, delta: &Delta) {
        match delta {
            Delta::Pod(pod) => {
                self.key = pod.key.clone();
                self.held.uid = pod.uid.clone();
            }
            Delta::Policy(policy) => {
                self.key = policy.key.clone();
                self.held.uid = policy.uid.clone();
            }
            Delta::ClusterPolicy(policy) => self.held.uid = policy.uid.clone(),
            Delta::Service(service) => self.key = service.key.clone(),
            Delta::EndpointSlice(slice) => self.key = slice.key.clone(),
            Delta::Namespace(_)
            | Delta::Node(_)
            | Delta::NamespaceGone(_)
            | Delta::PodGone { .. }
            | Delta::NodeGone(_)
            | Delta::ServiceGone(_)
            | Delta::EndpointSliceGone(_)
            | Delta::ServiceMode(_)
            | Delta::PolicyGone(_)
            | Delta::ClusterPolicyGone(_)
            | Delta::HostAddresses(_) => {}
        }
    }
}
