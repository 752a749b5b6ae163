//! What a change costs in a large cluster: the memory that it takes for a moment, and what is kept behind it.
//!
//! `cargo test --release -p policy-engine --test growth -- --nocapture` prints the times, too.

#![expect(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::{BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use policy_engine::desired::Endpoint;
use policy_engine::limits::Limits;
use policy_engine::model::{Labels, ObjectKey};
use policy_engine::planner::Planner;
use policy_engine::read;
use policy_engine::rule_ids::RuleIds;
use policy_engine::tables::Tables;
use policy_engine::world::{Delta, World};
use serde_json::{Value, json};

const NAMESPACES: usize = 100;
const PODS: usize = 10_000;
const POLICIES: usize = 1_000;
const LOCAL: usize = 30;
/// Changes of pods: more than there are pods.
const CHANGES: usize = 15_000;
/// Worlds that an agent keeps to explain events.
const KEPT: usize = 64;

/// The system's allocator, counting.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);
static LARGEST: AtomicUsize = AtomicUsize::new(0);
static CALLS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Relaxed) + layout.size();
        MOST.fetch_max(live, Relaxed);
        LARGEST.fetch_max(layout.size(), Relaxed);
        CALLS.fetch_add(1, Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What one kind of change has cost.
#[derive(Debug, Default)]
struct Cost {
    times: Vec<Duration>,
    /// Bytes that were in use for a moment beyond what was before, at most.
    most: usize,
    /// The largest piece.
    largest: usize,
    calls: usize,
    /// Processor time of all, in nanoseconds.
    ran: u64,
}

/// Processor time of this thread so far, in nanoseconds: what others do beside it is not in there.
fn ran() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or_default()
}

impl Cost {
    fn of(&mut self, change: impl FnOnce()) {
        let before = LIVE.load(Relaxed);
        MOST.store(before, Relaxed);
        LARGEST.store(0, Relaxed);
        let calls = CALLS.load(Relaxed);
        let (start, from) = (Instant::now(), ran());
        change();
        self.times.push(start.elapsed());
        self.ran += ran() - from;
        self.most = self.most.max(MOST.load(Relaxed).saturating_sub(before));
        self.largest = self.largest.max(LARGEST.load(Relaxed));
        self.calls = self.calls.max(CALLS.load(Relaxed) - calls);
    }

    fn print(&mut self, what: &str) {
        self.times.sort_unstable();
        let at = |share: usize| self.times[(self.times.len() * share / 100).min(self.times.len() - 1)];
        eprintln!(
            "{what:24} processor {:6.0?}, p50 {:6.0?} p99 {:6.0?}  {:6} kB for a moment, largest {:4} kB, {:6} calls",
            Duration::from_nanos(self.ran) / u32::try_from(self.times.len()).unwrap(),
            at(50),
            at(99),
            self.most >> 10,
            self.largest >> 10,
            self.calls
        );
    }
}

fn namespace(number: usize) -> String {
    format!("ns-{:03}", number % NAMESPACES)
}

fn pod(namespace: &str, name: &str, labels: &Value, node: &str, address: Ipv4Addr) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": labels, "uid": format!("uid-{namespace}-{name}")},
        "spec": {"nodeName": node, "containers": [
            {"name": "main", "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}]}]},
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}})
}

fn remote(number: usize, release: &str) -> Value {
    let labels = json!({"app": format!("app-{}", number / NAMESPACES % 20), "release": release});
    let address = Ipv4Addr::from_bits(0x0a80_0001 + u32::try_from(number).unwrap());
    pod(
        &namespace(number),
        &format!("pod-{number:05}"),
        &labels,
        &format!("node-{}", 2 + number % 99),
        address,
    )
}

fn policy(namespace: &str, name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace, "name": name, "uid": format!("uid-{name}")}, "spec": spec})
}

/// In each namespace a default deny, and others of the forms that people write.
fn usual(number: usize) -> Value {
    let form = number / NAMESPACES;
    let app = |n: usize| json!({"matchLabels": {"app": format!("app-{}", n % 20)}});
    let team = json!({"matchLabels": {"team": format!("team-{}", number % 10)}});
    let ports = json!([{"protocol": "TCP", "port": 8080}, {"protocol": "UDP", "port": 5353}]);
    let spec = match form % 5 {
        0 => json!({"podSelector": {}, "policyTypes": ["Ingress"]}),
        1 => json!({"podSelector": app(form), "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": app(form + 1)}], "ports": ports}]}),
        2 => json!({"podSelector": app(form), "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"namespaceSelector": team, "podSelector": app(form + 2)}]}]}),
        3 => json!({"podSelector": app(form), "policyTypes": ["Egress"],
            "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": [format!("10.{}.0.0/16", number % 100)]}}],
                "ports": ports}]}),
        _ => json!({"podSelector": app(form), "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"namespaceSelector": {}}], "ports": [{"port": "http"}]}]}),
    };
    policy(&namespace(number), &format!("policy-{number:04}"), &spec)
}

/// Equal labels are one allocation, as an agent reads them.
fn put(world: &mut World, object: &Value) {
    static LABELS: Mutex<BTreeSet<Labels>> = Mutex::new(BTreeSet::new());
    for read in read::objects(object) {
        let mut delta = read.delta.unwrap();
        if let Delta::Pod(pod) = &mut delta {
            let mut labels = LABELS.lock().unwrap();
            labels.insert(pod.labels.clone());
            pod.labels = labels.get(&pod.labels).unwrap().clone();
        }
        world.apply(delta);
    }
}

fn cluster() -> World {
    let mut world = World::new("node-1");
    let space = |name: &str, number: usize| {
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name,
            "labels": {"kubernetes.io/metadata.name": name, "team": format!("team-{}", number % 10)}}})
    };
    put(&mut world, &space("lab", 0));
    (0..NAMESPACES).for_each(|n| put(&mut world, &space(&namespace(n), n)));
    (0..PODS).for_each(|n| put(&mut world, &remote(n, "stable")));
    (0..POLICIES).for_each(|n| put(&mut world, &usual(n)));
    for number in 0..LOCAL {
        let name = format!("local-{number}");
        let labels = json!({"app": format!("app-{}", number % 20), "pod": name});
        let namespace = if number < 2 { "lab".to_owned() } else { namespace(number) };
        let address = Ipv4Addr::new(10, 244, 0, 10 + u8::try_from(number).unwrap());
        put(&mut world, &pod(&namespace, &name, &labels, "node-1", address));
    }
    world
}

/// A node without a kernel, which keeps worlds as an agent does.
struct Node {
    world: World,
    endpoints: Vec<Endpoint>,
    planner: Planner,
    kept: VecDeque<World>,
}

impl Node {
    fn new(world: World) -> Self {
        let slots = (1..).zip(world.local_pods());
        let endpoints =
            slots.map(|(slot, pod)| Endpoint { slot, id: slot.into(), pod: pod.key.clone() }).collect();
        let limits = Limits::default();
        let planner = Planner::new(limits, Tables::new(limits), RuleIds::default());
        Self { world, endpoints, planner, kept: VecDeque::new() }
    }

    fn plan(&mut self) {
        let planned = self.planner.plan(&self.world, &self.endpoints);
        assert!(planned.busy.is_none() && planned.refusals.is_empty());
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(self.planner.enforced().clone());
    }

    fn change(&mut self, cost: &mut Cost, object: &Value) {
        put(&mut self.world, object);
        cost.of(|| self.plan());
        self.planner.collect(self.planner.tables.number());
    }

    fn remove(&mut self, cost: &mut Cost, policy: &ObjectKey) {
        self.world.apply(Delta::PolicyGone(policy.clone()));
        cost.of(|| self.plan());
        self.planner.collect(self.planner.tables.number());
    }
}

#[test]
fn changes_of_a_large_cluster_take_and_leave_little() {
    let mut node = Node::new(cluster());
    let mut first = Cost::default();
    first.of(|| node.plan());
    node.planner.collect(node.planner.tables.number());
    first.print("from nothing");
    let turn = |to: &str| {
        policy(
            "lab",
            "turn",
            &json!({"podSelector": {"matchLabels": {"pod": to}}, "policyTypes": ["Ingress"]}),
        )
    };
    let mut deny = Cost::default();
    for _ in 0..200 {
        node.change(&mut deny, &turn("local-1"));
        node.remove(&mut deny, &ObjectKey::new("lab", "turn"));
    }
    deny.print("deny of one pod");
    let (mut relabelled, mut named) = (Cost::default(), Cost::default());
    for number in 0..CHANGES {
        let release = format!("v{}", number % 3);
        node.change(&mut relabelled, &remote(number * 97 % PODS, &release));
    }
    relabelled.print("pod relabelled");
    for number in 0..100 {
        let from = json!([{"from": [{"namespaceSelector": {"matchLabels": {"team": format!("team-{}", number % 10)}},
            "podSelector": {"matchLabels": {"app": format!("app-{}", number % 20)}}}], "ports": [{"port": 7000 + number}]}]);
        let spec = json!({"podSelector": {"matchLabels": {"pod": "local-1"}}, "policyTypes": ["Ingress"], "ingress": from});
        node.change(&mut named, &policy("lab", "turn", &spec));
    }
    node.remove(&mut named, &ObjectKey::new("lab", "turn"));
    named.print("policy that names pods");
    // What is let go of leaves holes, in which small things settle that are kept: large pieces make the process grow.
    for (what, cost) in [("deny", &deny), ("names pods", &named)] {
        assert!(cost.most < 256 << 10, "{what}: {} kB for a moment", cost.most >> 10);
        assert!(cost.largest < 64 << 10, "{what}: a piece of {} kB", cost.largest >> 10);
    }
    node.kept.clear();
    let world = node.world.clone();
    let held = LIVE.load(Relaxed);
    drop(node);
    let held = held - LIVE.load(Relaxed);
    let before = LIVE.load(Relaxed);
    let mut fresh = Node::new(world);
    fresh.plan();
    fresh.kept.clear();
    let fresh = LIVE.load(Relaxed) - before;
    eprintln!("kept {} kB, {} kB by a compile from nothing", held >> 10, fresh >> 10);
    assert!(held < 2 * fresh, "{} kB are kept, {} kB by a compile from nothing", held >> 10, fresh >> 10);
}
