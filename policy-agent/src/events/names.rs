//! How pods, nodes and Services are told in a flow: names, labels, workloads and identity numbers.

use policy_engine::model::{Labels, ObjectKey, Pod};
use policy_engine::world::{Entity, World};

use crate::proto::flow::{Endpoint, Service, Workload};

/// Identity of this node.
pub const IDENTITY_HOST: u32 = 1;
/// Identity of everything outside the cluster.
pub const IDENTITY_WORLD: u32 = 2;
/// Identity of other nodes.
pub const IDENTITY_REMOTE_NODE: u32 = 6;
/// First identity of pods.
pub const IDENTITY_FIRST: u32 = 256;

/// Labels that differ between pods of one workload or between its revisions: no part of an identity.
const VOLATILE_LABELS: [&str; 6] = [
    "apps.kubernetes.io/pod-index",
    "controller-revision-hash",
    "pod-template-generation",
    "pod-template-hash",
    "statefulset.kubernetes.io/pod-name",
    "batch.kubernetes.io/controller-uid",
];

/// An address and what a flow says about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Named {
    /// Pod, node or world.
    pub endpoint: Endpoint,
    /// The Service whose frontend it is.
    pub service: Option<Service>,
    /// Name of the node it is.
    pub node: Option<String>,
}

/// How an entity is told in a flow. `id`: endpoint id of the pod if it is local and known, else 0.
#[must_use]
pub fn name(world: &World, entity: &Entity, id: u32) -> Named {
    let (endpoint, service, node) = match entity {
        Entity::Pod(key) => (pod(world, key, id), None, None),
        Entity::OwnNode => (reserved(IDENTITY_HOST, "reserved:host"), None, Some(clean(&world.node_name))),
        Entity::Node(name) => {
            (reserved(IDENTITY_REMOTE_NODE, "reserved:remote-node"), None, Some(clean(name)))
        }
        Entity::Service(key) => {
            let service = Service { name: clean(&key.name), namespace: clean(&key.namespace) };
            (reserved(IDENTITY_WORLD, "reserved:world"), Some(service), None)
        }
        Entity::World => (reserved(IDENTITY_WORLD, "reserved:world"), None, None),
    };
    Named { endpoint, service, node }
}

/// The text without control characters: a name must not be able to forge a line in a log.
#[must_use]
pub fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

/// The number of a namespace and label set: equal on every node and after every restart. It is a hash of 24 bits, so two
/// label sets may share one; it is for display and filters, never for verdicts.
#[must_use]
pub fn identity(namespace: &str, labels: &Labels) -> u32 {
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let mut eat = |text: &str| {
        // The zero byte, which no label contains, keeps `ab`+`c` and `a`+`bc` apart.
        for byte in text.bytes().chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(PRIME);
        }
    };
    eat(namespace);
    for (key, value) in labels.iter().filter(|(key, _)| !VOLATILE_LABELS.contains(&key.as_str())) {
        eat(key);
        eat(value);
    }
    let span = (1 << 24) - IDENTITY_FIRST;
    IDENTITY_FIRST + ((hash ^ (hash >> 32)) as u32) % span
}

fn pod(world: &World, key: &ObjectKey, id: u32) -> Endpoint {
    let mut endpoint =
        Endpoint { id, namespace: clean(&key.namespace), pod_name: clean(&key.name), ..Endpoint::default() };
    if let Some(pod) = world.pods.get(key) {
        endpoint.identity = identity(&key.namespace, &pod.labels);
        endpoint.labels = labels(&key.namespace, &pod.labels);
        endpoint.workloads = workload(pod).into_iter().collect();
    }
    endpoint
}

fn reserved(identity: u32, label: &str) -> Endpoint {
    Endpoint { identity, labels: vec![label.to_owned()], ..Endpoint::default() }
}

fn labels(namespace: &str, labels: &Labels) -> Vec<String> {
    let mut all: Vec<String> =
        labels.iter().map(|(key, value)| clean(&format!("k8s:{key}={value}"))).collect();
    all.push(clean(&format!("k8s:io.kubernetes.pod.namespace={namespace}")));
    all.sort();
    all
}

/// The workload behind a pod, from the labels and names that Kubernetes' own controllers give.
fn workload(pod: &Pod) -> Option<Workload> {
    let name = &*pod.key.name;
    let made = |name: &str, kind: &str| Some(Workload { name: clean(name), kind: kind.to_owned() });
    if let Some(hash) = pod.labels.get("pod-template-hash") {
        let (replica_set, _) = name.rsplit_once('-')?;
        return match replica_set.strip_suffix(hash.as_str()).and_then(|rest| rest.strip_suffix('-')) {
            Some(deployment) => made(deployment, "Deployment"),
            None => made(replica_set, "ReplicaSet"),
        };
    }
    if pod.labels.contains_key("statefulset.kubernetes.io/pod-name") {
        return made(name.rsplit_once('-')?.0, "StatefulSet");
    }
    if pod.labels.contains_key("pod-template-generation") {
        return made(name.rsplit_once('-')?.0, "DaemonSet");
    }
    let job = pod.labels.get("batch.kubernetes.io/job-name").or_else(|| pod.labels.get("job-name"))?;
    made(job, "Job")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::events::fixture::pod;

    fn labels_of(list: &[(&str, &str)]) -> Labels {
        Arc::new(list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn identities_follow_the_label_set() {
        let web = identity("shop", &labels_of(&[("app", "web")]));
        assert!((IDENTITY_FIRST..1 << 24).contains(&web));
        assert_eq!(web, identity("shop", &labels_of(&[("app", "web"), ("pod-template-hash", "7d9c")])));
        assert_ne!(web, identity("shop2", &labels_of(&[("app", "web")])));
        assert_ne!(web, identity("shop", &labels_of(&[("app", "we"), ("b", "")])));
    }

    #[test]
    fn workloads_are_told_by_their_controllers_labels() {
        let told = |name: &str, list: &[(&str, &str)]| {
            let mut pod = pod("shop", name, "10.0.0.1", &[]);
            pod.labels = labels_of(list);
            workload(&pod).map(|w| format!("{}/{}", w.kind, w.name))
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(told("web-7d9c-x2x4z", &[("pod-template-hash", "7d9c")]), some("Deployment/web"));
        assert_eq!(told("web-x2x4z", &[("pod-template-hash", "7d9c")]), some("ReplicaSet/web"));
        assert_eq!(told("db-0", &[("statefulset.kubernetes.io/pod-name", "db-0")]), some("StatefulSet/db"));
        assert_eq!(told("log-abcde", &[("pod-template-generation", "1")]), some("DaemonSet/log"));
        assert_eq!(told("import-9-zz", &[("job-name", "import-9")]), some("Job/import-9"));
        assert_eq!(told("alone", &[("app", "web")]), None);
    }

    #[test]
    fn control_characters_do_not_reach_a_flow() {
        assert_eq!(clean("a\nb\u{1b}[31mc"), "ab[31mc");
    }
}
