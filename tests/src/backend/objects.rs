//! What changed between two states of a cluster, object by object: back ends see changes, as an agent does.

use crate::scenario::State;
use serde_json::Value;
use std::collections::BTreeMap;

/// Kind, namespace and name.
pub type Id = (String, String, String);

/// One difference.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// The object is new or different.
    Put(Id, Value),
    /// The object is gone; it was this.
    Gone(Id, Value),
}

/// The objects that a back end has been told of.
#[derive(Debug, Clone, Default)]
pub struct Objects {
    known: BTreeMap<Id, Value>,
}

impl Objects {
    /// Takes over the objects of `state`; what is gone comes before what is new.
    pub fn update(&mut self, state: &State) -> Vec<Change> {
        let now: BTreeMap<Id, Value> =
            state.objects().into_iter().map(|object| (id(&object), object)).collect();
        let before = std::mem::replace(&mut self.known, now);
        let uid = |object: &Value| object.pointer("/metadata/uid").cloned();
        let mut changes = Vec::new();
        for (id, object) in &before {
            // Another UID is another object, as a watch would tell it.
            if self.known.get(id).is_none_or(|now| uid(now) != uid(object)) {
                changes.push(Change::Gone(id.clone(), object.clone()));
            }
        }
        for (id, object) in &self.known {
            if before.get(id) != Some(object) {
                changes.push(Change::Put(id.clone(), object.clone()));
            }
        }
        changes
    }
}

fn id(object: &Value) -> Id {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    (text("/kind"), text("/metadata/namespace"), text("/metadata/name"))
}
