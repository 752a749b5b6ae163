//! Recorded sequences of events, and what they change in the world.

use std::net::IpAddr;

use policy_engine::world::World;
use serde_json::{Value, json};

use super::super::fault::{Class, Fault};
use super::super::kind::NEEDED;
use super::super::point::Versions;
use super::*;

/// A store with the world that follows it.
struct Cluster {
    store: Store,
    world: World,
    problems: Vec<Located>,
    answered: u64,
    state: SourceState,
    version: u64,
    /// Changes since the last look.
    changes: Vec<String>,
}

impl Cluster {
    /// Nothing was told yet.
    fn new() -> Self {
        Self {
            store: Store::new("n1", &NEEDED),
            world: World::new("n1"),
            problems: Vec::new(),
            answered: 0,
            state: SourceState::default(),
            version: 100,
            changes: Vec::new(),
        }
    }

    /// Every kind was listed and is empty, but for the own node.
    fn empty() -> Self {
        let mut cluster = Self::new();
        for kind in NEEDED {
            cluster.list(kind, &[]);
        }
        assert!(!cluster.state.synced);
        cluster.put(Kind::Node, &json!({"metadata": {"name": "n1", "uid": "n1"}}));
        assert!(cluster.state.synced);
        cluster.changes.clear();
        cluster
    }

    fn object(&mut self, kind: Kind, value: &Value) -> Object {
        self.version += 1;
        let mut value = value.clone();
        if value["metadata"]["resourceVersion"].is_null() {
            value["metadata"]["resourceVersion"] = self.version.to_string().into();
        }
        Object::of(kind, kind.shape().read(value.to_string().as_bytes()).unwrap()).unwrap()
    }

    fn event(&mut self, kind: Kind, event: Event) {
        self.store.take(Message::Of(kind, event));
        self.look();
    }

    fn look(&mut self) {
        let Some(Told { update, answered, state }) = self.store.told() else { return };
        assert!(state.synced || update.deltas.is_empty(), "nothing before everything is known");
        for delta in update.deltas {
            self.changes.push(format!("{delta:?}").split(['(', ' ']).next().unwrap().to_owned());
            self.world.apply(delta);
        }
        if state.synced {
            self.problems = update.problems;
        }
        (self.answered, self.state) = (answered, state);
    }

    fn put(&mut self, kind: Kind, value: &Value) {
        let object = self.object(kind, value);
        self.event(kind, Event::Put(object));
    }

    fn delete(&mut self, kind: Kind, value: &Value) {
        let object = self.object(kind, value);
        self.event(kind, Event::Gone(object));
    }

    fn list(&mut self, kind: Kind, values: &[Value]) {
        self.event(kind, Event::Begin);
        for value in values {
            let object = self.object(kind, value);
            self.event(kind, Event::Listed(object));
        }
        self.version += 1;
        self.event(kind, Event::Complete(self.version));
    }

    fn at(&self, address: &str) -> Option<String> {
        let address: IpAddr = address.parse().unwrap();
        self.world.pod_at(address).map(|pod| format!("{} {}", pod.key, pod.uid))
    }

    fn changes(&mut self) -> Vec<String> {
        mem::take(&mut self.changes)
    }
}

fn pod(name: &str, uid: &str, address: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "x", "uid": uid, "labels": {"app": name},
            "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"nodeName": "n1", "containers": [{"ports": [{"name": "web", "containerPort": 80}]}]},
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
    })
}

fn with(mut value: Value, path: &str, field: Value) -> Value {
    *value.pointer_mut(path).unwrap() = field;
    value
}

fn policy(spec: &Value) -> Value {
    json!({"metadata": {"name": "p", "namespace": "x", "uid": "p1"}, "spec": spec})
}

fn fault() -> Fault {
    Fault::later("the API server cannot be reached")
}

#[test]
fn nothing_is_told_before_every_kind_is_complete() {
    let mut cluster = Cluster::new();
    for kind in &NEEDED[..4] {
        cluster.list(*kind, &[]);
        assert!(!cluster.state.synced);
    }
    cluster.put(Kind::Node, &json!({"metadata": {"name": "n1", "uid": "n1"}}));
    cluster.event(Kind::Pod, Event::Begin);
    let object = cluster.object(Kind::Pod, &pod("a", "u1", "10.0.0.1"));
    cluster.event(Kind::Pod, Event::Listed(object));
    cluster.event(Kind::Pod, Event::Failed(fault()));
    assert_eq!(cluster.state.missing, ["pods are not known yet: the API server cannot be reached"]);
    assert_eq!(cluster.state.error, "pods: the API server cannot be reached");
    cluster.list(Kind::Pod, &[pod("a", "u1", "10.0.0.1")]);
    assert_eq!(cluster.state, SourceState { synced: true, ..SourceState::default() });
    assert_eq!(cluster.at("10.0.0.1").as_deref(), Some("x/a u1"));
}

#[test]
fn a_new_list_tells_the_difference_only_and_a_broken_one_nothing() {
    let mut cluster = Cluster::empty();
    let a = with(
        pod("a", "u1", "10.0.0.1"),
        "/metadata",
        json!({"name": "a", "namespace": "x", "uid": "u1", "resourceVersion": "7"}),
    );
    cluster.list(Kind::Pod, &[a.clone(), pod("b", "u2", "10.0.0.2"), pod("c", "u3", "10.0.0.3")]);
    assert_eq!(cluster.changes().len(), 3);
    // The connection is lost, the server says 410, the first list breaks off.
    cluster.event(Kind::Pod, Event::Failed(fault()));
    cluster.event(Kind::Pod, Event::Begin);
    let object = cluster.object(Kind::Pod, &pod("d", "u4", "10.0.0.4"));
    cluster.event(Kind::Pod, Event::Listed(object));
    cluster.event(Kind::Pod, Event::Failed(fault()));
    assert_eq!((cluster.changes().len(), cluster.world.pods.len(), cluster.state.synced), (0, 3, true));
    // In the gap b was deleted, and c deleted and made again.
    cluster.list(Kind::Pod, &[a, pod("c", "u9", "10.0.0.2")]);
    assert_eq!(cluster.changes(), ["PodGone", "Pod"], "b is gone, c is another one, a is as it was");
    assert_eq!(cluster.at("10.0.0.2").as_deref(), Some("x/c u9"));
    assert_eq!((cluster.at("10.0.0.3"), cluster.at("10.0.0.4")), (None, None));
}

#[test]
fn what_comes_twice_changes_nothing() {
    let mut cluster = Cluster::empty();
    let old = with(pod("a", "u1", "10.0.0.1"), "/metadata/labels", json!({"app": "old"}));
    let old = cluster.object(Kind::Pod, &old);
    let new = cluster.object(Kind::Pod, &pod("a", "u1", "10.0.0.1"));
    for object in [&old, &new, &old, &new] {
        cluster.event(Kind::Pod, Event::Put((*object).clone()));
    }
    assert_eq!(cluster.changes().len(), 2);
    assert_eq!(cluster.world.pods.values().next().unwrap().labels["app"], "a");
}

#[test]
fn a_change_of_other_fields_is_no_change() {
    let mut cluster = Cluster::empty();
    cluster.put(Kind::Pod, &pod("a", "u1", "10.0.0.1"));
    let bad = policy(&json!({"podSelector": {}, "later": 1}));
    cluster.put(Kind::Policy, &bad);
    assert_eq!((cluster.changes().len(), cluster.problems.len()), (2, 1));
    let mut beat = pod("a", "u1", "10.0.0.1");
    beat["status"]["conditions"] = json!([{"type": "Ready"}]);
    beat["metadata"]["annotations"] = json!({"a": "b"});
    cluster.put(Kind::Pod, &beat);
    cluster.put(Kind::Policy, &bad);
    cluster.list(Kind::Policy, &[bad]);
    cluster.list(Kind::Pod, &[beat]);
    assert_eq!((cluster.changes().len(), cluster.problems.len()), (0, 1), "{:?}", cluster.problems);
    // Versions went on all the same: what is older changes nothing.
    let mut old = pod("a", "u1", "10.0.0.9");
    old["metadata"]["resourceVersion"] = (cluster.version - 1).to_string().into();
    cluster.put(Kind::Pod, &old);
    assert_eq!(cluster.at("10.0.0.9"), None);
}

#[test]
fn a_late_deletion_of_a_pod_spares_its_successor() {
    let mut cluster = Cluster::empty();
    cluster.put(Kind::Pod, &pod("a", "u1", "10.0.0.1"));
    cluster.put(Kind::Pod, &pod("a", "u2", "10.0.0.1"));
    cluster.delete(Kind::Pod, &pod("a", "u1", "10.0.0.1"));
    assert_eq!(cluster.at("10.0.0.1").as_deref(), Some("x/a u2"));
    cluster.delete(Kind::Pod, &pod("a", "u2", "10.0.0.1"));
    assert_eq!(cluster.at("10.0.0.1"), None);
}

#[test]
fn a_finished_pod_leaves_its_address_at_once() {
    let mut cluster = Cluster::empty();
    cluster.put(Kind::Pod, &pod("job", "u1", "10.0.0.1"));
    cluster.put(Kind::Pod, &with(pod("job", "u1", "10.0.0.1"), "/status/phase", "Succeeded".into()));
    assert_eq!(cluster.at("10.0.0.1"), None);
    cluster.put(Kind::Pod, &pod("next", "u2", "10.0.0.1"));
    assert_eq!(cluster.at("10.0.0.1").as_deref(), Some("x/next u2"));
    cluster.delete(Kind::Pod, &pod("job", "u1", "10.0.0.1"));
    assert_eq!(cluster.at("10.0.0.1").as_deref(), Some("x/next u2"));
}

#[test]
fn pods_of_all_sorts() {
    let mut cluster = Cluster::empty();
    let mut dual = pod("dual", "u1", "10.0.0.1");
    dual["status"]["podIPs"] = json!([{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]);
    dual["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:30Z".into();
    dual["spec"]["initContainers"] =
        json!([{"restartPolicy": "Always", "ports": [{"name": "side", "containerPort": 81}]}]);
    cluster.put(Kind::Pod, &dual);
    let read = cluster.world.pods.values().next().unwrap().clone();
    assert!(read.terminating && read.is_subject(), "a pod that ends keeps its policy");
    assert_eq!(read.ports.iter().map(|port| &*port.name).collect::<Vec<_>>(), ["side", "web"]);
    assert_eq!(cluster.at("fd00::1"), cluster.at("10.0.0.1"));
    let mut host = pod("static", "u2", "192.0.2.1");
    host["spec"]["hostNetwork"] = true.into();
    cluster.put(Kind::Pod, &host);
    assert_eq!(cluster.at("192.0.2.1"), None, "the address is the node's");
    let waiting = with(pod("new", "u3", ""), "/status", json!({"phase": "Pending"}));
    cluster.put(Kind::Pod, &waiting);
    assert_eq!((cluster.world.pods.len(), cluster.problems.len()), (3, 0), "{:?}", cluster.problems);
    // Whatever its owner writes, the pod's interface is looked for.
    let mut claims = pod("claims", "u4", "10.0.0.4");
    claims["metadata"]["annotations"] = json!({"policy-agent.io/interface": "eth0"});
    cluster.put(Kind::Pod, &claims);
    assert!(cluster.world.pods.values().all(|pod| pod.interface.is_none()));
    // What a kubelet writes beside it counts.
    let uid =
        |cluster: &Cluster| cluster.world.pods[&ObjectKey::new("x", "claims")].runtime_uid().to_string();
    assert_eq!(uid(&cluster), "u4");
    claims["metadata"]["annotations"]["kubernetes.io/config.mirror"] = json!("f00");
    cluster.put(Kind::Pod, &claims);
    assert_eq!(uid(&cluster), "f00");
}

#[test]
fn namespaces_and_nodes_follow() {
    let mut cluster = Cluster::empty();
    let namespace =
        |uid: &str, team: &str| json!({"metadata": {"name": "x", "uid": uid, "labels": {"team": team}}});
    cluster.put(Kind::Namespace, &namespace("1", "a"));
    assert_eq!(cluster.world.namespace_labels("x")["team"], "a");
    cluster.put(Kind::Namespace, &namespace("1", "b"));
    assert_eq!(cluster.world.namespace_labels("x")["team"], "b");
    cluster.delete(Kind::Namespace, &namespace("1", "b"));
    assert_eq!(cluster.world.namespace_labels("x").len(), 1, "only its name");
    cluster.put(Kind::Namespace, &namespace("2", "c"));
    assert_eq!(cluster.world.namespace_labels("x")["team"], "c");
    let addresses = json!([{"type": "InternalIP", "address": "192.0.2.1"}, {"type": "InternalIP", "address": "2001:db8::1"},
        {"type": "Hostname", "address": "n1"}]);
    cluster.put(
        Kind::Node,
        &json!({"metadata": {"name": "n1", "uid": "n1"}, "status": {"addresses": addresses}}),
    );
    assert_eq!(cluster.world.nodes["n1"].addresses.len(), 2);
}

#[test]
fn a_bad_part_of_a_policy_matches_nothing_and_is_told_until_it_is_mended() {
    let mut cluster = Cluster::empty();
    let good = policy(&json!({"podSelector": {}, "ingress": [{"ports": [{"port": 80}]}]}));
    let bad = policy(&json!({"podSelector": {}, "ingress": [{"ports": [{"port": 80, "flow": "new"}]}]}));
    cluster.put(Kind::Policy, &good);
    assert_eq!(cluster.problems, []);
    cluster.put(Kind::Policy, &bad);
    assert_eq!(cluster.problems.len(), 1);
    let Located { location, object, field, broken, .. } = &cluster.problems[0];
    assert_eq!((location.as_str(), object.as_str(), *broken), ("", "NetworkPolicy x/p", true));
    assert_eq!(field, "spec.ingress[0].ports[0].flow");
    let held = cluster.world.policies.values().next().unwrap().clone();
    assert!(format!("{:?}", held.ingress).contains("Nothing"), "the newest version is in force: {held:?}");
    cluster.event(Kind::Policy, Event::Failed(fault()));
    assert_eq!(cluster.problems.len(), 1);
    cluster.put(Kind::Policy, &good);
    assert_eq!(cluster.problems, []);
    cluster.put(Kind::Policy, &bad);
    cluster.delete(Kind::Policy, &bad);
    assert_eq!((cluster.problems.len(), cluster.world.policies.len()), (0, 0));
}

#[test]
fn nothing_is_told_to_an_agent_whose_node_does_not_exist() {
    let mut cluster = Cluster::new();
    let node = |name: &str| json!({"metadata": {"name": name, "uid": name}});
    for kind in NEEDED {
        assert!(!cluster.state.missing.iter().any(|m| m.contains("--node-name")), "{:?}", cluster.state);
        cluster.list(kind, &[]);
    }
    assert!(!cluster.state.synced, "the agent must not take its node for one without pods");
    assert!(cluster.state.missing[0].contains("the cluster has no Node"), "{:?}", cluster.state);
    for n in 2..9 {
        cluster.put(Kind::Node, &node(&format!("n{n}")));
    }
    let told = &cluster.state.missing[0];
    assert!(told.contains("no Node \"n1\"") && told.contains("n2, n3, n4, n5, n6 and 2 more"), "{told}");
    assert!(told.contains("hint: --node-name") && cluster.changes.is_empty(), "{told}");
    cluster.put(Kind::Node, &node("n1"));
    assert!(cluster.state.synced && cluster.state.missing.is_empty());
    assert_eq!(cluster.changes.len(), 8, "all that was held back");
    cluster.delete(Kind::Node, &node("n1"));
    assert!(cluster.state.synced, "what is enforced is followed on");
    assert!(cluster.state.missing[0].contains("--node-name"), "{:?}", cluster.state);
    cluster.put(Kind::Node, &node("n1"));
    assert_eq!(cluster.state.missing, [""; 0]);
}

#[test]
fn a_point_is_reached_by_objects_or_by_versions() {
    let mut cluster = Cluster::empty();
    cluster.put(Kind::Pod, &pod("a", "u1", "10.0.0.1"));
    cluster.put(Kind::Pod, &pod("b", "u2", "10.0.0.2"));
    let now = cluster.version;
    // Since then b was deleted and c made; a is as it is held.
    let key = |name: &str| ObjectKey::new("x", name);
    let objects = HashMap::from([(key("a"), now - 1), (key("c"), now + 2)]);
    let pods = Versions { version: now + 5, objects };
    let ask = |cluster: &mut Cluster, number, pods: &Versions| {
        let point = Point { number, kinds: BTreeMap::from([(Kind::Pod, pods.clone())]) };
        cluster.store.take(Message::Point(point));
        cluster.look();
    };
    ask(&mut cluster, 1, &pods);
    assert_eq!(cluster.answered, 0);
    cluster.delete(Kind::Pod, &pod("b", "u2", "10.0.0.2"));
    assert_eq!(cluster.answered, 0, "c is missing");
    cluster.put(Kind::Pod, &pod("c", "u3", "10.0.0.3"));
    assert_eq!(cluster.answered, 1, "held exactly, without any later version");
    ask(&mut cluster, 2, &Versions { version: now + 50, objects: HashMap::from([(key("z"), now + 40)]) });
    assert_eq!(cluster.answered, 1);
    cluster.event(Kind::Pod, Event::Progress(now + 50));
    assert_eq!(cluster.answered, 2, "a bookmark");
    assert_eq!(fault().class, Class::Later);
}

#[test]
fn a_kind_that_the_server_does_not_have_is_complete_and_empty() {
    let kinds = [NEEDED.as_slice(), &[Kind::ClusterPolicy]].concat();
    let mut cluster = Cluster { store: Store::new("n1", &kinds), ..Cluster::new() };
    for kind in NEEDED {
        cluster.list(kind, &[]);
    }
    cluster.put(Kind::Node, &json!({"metadata": {"name": "n1", "uid": "n1"}}));
    assert!(
        !cluster.state.synced && cluster.state.missing[0].starts_with("clusternetworkpolicies are not known")
    );
    cluster.event(Kind::ClusterPolicy, Event::Absent);
    assert!(cluster.state.synced && cluster.state.error.is_empty(), "{:?}", cluster.state);
    // It comes, and goes with all its objects.
    let spec = json!({"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}});
    let object = json!({"metadata": {"name": "t", "uid": "t"}, "spec": spec});
    cluster.list(Kind::ClusterPolicy, std::slice::from_ref(&object));
    assert_eq!((cluster.world.cluster_policies.len(), cluster.problems.len()), (1, 0));
    cluster.event(Kind::ClusterPolicy, Event::Absent);
    assert!(cluster.world.cluster_policies.is_empty() && cluster.state.synced);
    cluster.event(Kind::ClusterPolicy, Event::Failed(fault()));
    assert!(cluster.state.synced && !cluster.state.error.is_empty(), "what is enforced stays");
}
