//! What changed between two readings of the manifests, as deltas; of a broken object the last good version stays.

use std::collections::BTreeMap;
use std::sync::Arc;

use policy_engine::model::{ObjectKey, Problem};
use policy_engine::read;
use policy_engine::world::Delta;
use serde_json::Value;

use super::{Document, FileProblem, ObjectId, Origin, Snapshot};

/// Something wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Located {
    /// File, line and, where known, column.
    pub location: String,
    /// Kind and key of the object; empty when a whole file cannot be read.
    pub object: String,
    /// Field path; empty = the whole object.
    pub field: String,
    /// What is wrong and what happens instead.
    pub message: String,
    /// Something is not honoured; otherwise this is advice.
    pub broken: bool,
    /// Version of the object in the API server; 0 = it has none.
    pub version: u64,
}

/// What changed.
#[derive(Clone, Debug, Default)]
pub struct Update {
    /// Changes of the world.
    pub deltas: Vec<Delta>,
    /// Everything that is wrong now, sorted.
    pub problems: Vec<Located>,
}

/// The objects as they were last told.
#[derive(Debug, Default)]
pub struct Objects {
    held: BTreeMap<ObjectId, Held>,
}

#[derive(Debug)]
struct Held {
    value: Arc<Value>,
    origin: Origin,
    problems: Vec<Problem>,
    /// What removes the object again; `None` when nothing was told of it.
    gone: Option<Delta>,
    /// The version that was told had no broken part.
    good: bool,
    /// The newest version is broken.
    broken: bool,
}

impl Objects {
    /// Compares with the last reading.
    pub fn update(&mut self, snapshot: &Snapshot) -> Update {
        let mut update = Update::default();
        let mut nameless = Vec::new();
        let mut before = std::mem::take(&mut self.held);
        for document in &snapshot.documents {
            match ObjectId::of(&document.value) {
                Some(id) => {
                    let held = advance(before.remove(&id), document, &mut update.deltas);
                    self.held.insert(id, held);
                }
                None => nameless.push(document),
            }
        }
        update.deltas.extend(before.into_values().filter_map(|held| held.gone));
        update.problems = snapshot.problems.iter().map(of_file).collect();
        for held in self.held.values() {
            update.problems.extend(held.problems.iter().map(|p| located(&held.origin, p, held.broken)));
        }
        for document in nameless {
            let read = read::object(&document.value);
            update.problems.extend(read.problems.iter().map(|p| located(&document.origin, p, read.broken)));
        }
        update.problems.sort();
        update
    }
}

fn advance(before: Option<Held>, document: &Document, deltas: &mut Vec<Delta>) -> Held {
    let origin = document.origin.clone();
    if let Some(held) =
        before.as_ref().filter(|h| Arc::ptr_eq(&h.value, &document.value) || h.value == document.value)
    {
        return Held {
            value: held.value.clone(),
            origin,
            problems: held.problems.clone(),
            gone: held.gone.clone(),
            good: held.good,
            broken: held.broken,
        };
    }
    let read::Read { delta, mut problems, broken } = read::object(&document.value);
    let value = document.value.clone();
    let kept = before.filter(|held| broken && held.good && held.gone.is_some());
    if let Some(held) = kept {
        for problem in &mut problems {
            problem.message.push_str("; the object's last good version stays in force");
        }
        return Held { value, origin, problems, gone: held.gone, good: true, broken };
    }
    if !broken && delta.is_none() && !document.value["kind"].as_str().is_some_and(|k| k.contains("Policy")) {
        // A folder of manifests holds many things that say nothing about policy.
        problems.clear();
    }
    let gone = delta.as_ref().and_then(gone);
    deltas.extend(delta);
    Held { value, origin, problems, gone, good: !broken, broken }
}

/// The delta that takes another one back.
fn gone(delta: &Delta) -> Option<Delta> {
    Some(match delta {
        Delta::Namespace(n) => Delta::NamespaceGone(n.name.clone()),
        Delta::Pod(p) => Delta::PodGone { key: p.key.clone(), uid: p.uid.clone() },
        Delta::Node(n) => Delta::NodeGone(n.name.clone()),
        Delta::Service(s) => Delta::ServiceGone(s.key.clone()),
        Delta::EndpointSlice(s) => Delta::EndpointSliceGone(s.key.clone()),
        Delta::Policy(p) => Delta::PolicyGone(p.key.clone()),
        Delta::ClusterPolicy(p) => Delta::ClusterPolicyGone(p.name.clone()),
        Delta::NamespaceGone(_)
        | Delta::PodGone { .. }
        | Delta::NodeGone(_)
        | Delta::ServiceGone(_)
        | Delta::EndpointSliceGone(_)
        | Delta::ServiceMode(_)
        | Delta::PolicyGone(_)
        | Delta::ClusterPolicyGone(_)
        | Delta::HostAddresses(_) => return None,
    })
}

fn located(origin: &Origin, problem: &Problem, broken: bool) -> Located {
    Located {
        location: origin.to_string(),
        object: problem.object.clone(),
        field: problem.field.clone(),
        message: problem.message.clone(),
        broken,
        version: 0,
    }
}

fn of_file(problem: &FileProblem) -> Located {
    let mut location = problem.file.to_string();
    for number in [problem.line, problem.column].into_iter().flatten() {
        location.push_str(&format!(":{number}"));
    }
    let message = problem.message.clone();
    Located { location, object: String::new(), field: String::new(), message, broken: true, version: 0 }
}

/// The policy, of either kind, that a problem is about.
#[must_use]
pub fn policy_of(problem: &Located) -> Option<ObjectKey> {
    if let Some(name) = problem.object.strip_prefix("ClusterNetworkPolicy ") {
        return Some(ObjectKey::new("", name));
    }
    let (namespace, name) = problem.object.strip_prefix("NetworkPolicy ")?.split_once('/')?;
    Some(ObjectKey::new(namespace, name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::text::{Syntax, parse};

    fn update(objects: &mut Objects, text: &str) -> Update {
        let parsed = parse(&"f.yaml".into(), text, Syntax::Yaml);
        objects.update(&Snapshot { documents: parsed.documents, problems: parsed.problems })
    }

    fn policy(port: &str) -> String {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: x}}\n\
             spec: {{podSelector: {{}}, ingress: [{{ports: [{{port: {port}}}]}}]}}\n"
        )
    }

    #[test]
    fn only_what_changed_is_told() {
        let mut objects = Objects::default();
        let both = format!("{}---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: x}}\n", policy("80"));
        assert_eq!(update(&mut objects, &both).deltas.len(), 2);
        assert_eq!(update(&mut objects, &format!("\n\n{both}")).deltas.len(), 0, "moved lines are no change");
        let changed = update(&mut objects, &policy("81"));
        assert!(matches!(&changed.deltas[..], [Delta::Policy(_), Delta::NamespaceGone(_)]), "{changed:?}");
        assert!(matches!(&update(&mut objects, "").deltas[..], [Delta::PolicyGone(_)]));
    }

    #[test]
    fn a_broken_policy_keeps_its_last_good_version_and_a_new_one_isolates() {
        let mut objects = Objects::default();
        let first = update(&mut objects, &policy("99999"));
        assert!(matches!(&first.deltas[..], [Delta::Policy(p)] if p.ingress.is_some()), "{first:?}");
        assert_eq!((first.problems.len(), first.problems[0].broken), (1, true));
        assert_eq!(first.problems[0].location, "f.yaml:1");
        assert_eq!(policy_of(&first.problems[0]), Some(ObjectKey::new("x", "p")));
        assert_eq!(update(&mut objects, &policy("80")).problems, []);
        let broken = update(&mut objects, &policy("99999"));
        assert_eq!((broken.deltas.len(), broken.problems.len()), (0, 1));
        assert!(broken.problems[0].message.contains("last good version"), "{:?}", broken.problems);
        assert!(matches!(&update(&mut objects, "").deltas[..], [Delta::PolicyGone(_)]));
    }

    #[test]
    fn other_kinds_are_passed_over_but_policies_that_are_not_ours_are_told() {
        let text = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n---\napiVersion: cilium.io/v2\n\
                    kind: CiliumNetworkPolicy\nmetadata: {name: c}\n";
        let seen = update(&mut Objects::default(), text);
        assert_eq!((seen.deltas.len(), seen.problems.len()), (0, 1), "{seen:?}");
    }
}
