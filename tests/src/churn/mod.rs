//! Pods that come, change and go under load on a real API server and a real agent, and every packet held against the
//! evaluator.
//!
//! The harness is kubelet and CNI at once: it makes a pod's object, its namespace and interface, tells its address, changes
//! its labels, deletes it and gives its address to the next one. What the API server told in which order is read from a
//! watch, so the worlds in which a packet may have been judged are known: those from what `policyctl wait --pod` has
//! promised of the pod that judges it before it was sent, to what had been asked for when it was judged.

mod history;
mod judge;
mod traffic;

pub use judge::Report;
pub use traffic::{Live, Probe, Traffic};

use crate::{
    agent::Agent,
    cluster::Client,
    net::{Attach, Node},
};
use anyhow::{Context, Result, ensure};
use history::Watch;
use serde_json::{Value, json};
use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// How much is to be done.
#[derive(Debug, Clone, Copy)]
pub struct Amount {
    /// Pods in all.
    pub pods: usize,
    /// Pods that are changed at the same time; there is hardly an address more than that.
    pub workers: usize,
}

/// How long a pod stays as it is: packets must meet it.
const STAY: Duration = Duration::from_millis(250);
/// Longest wait for a promise.
const PROMISE: &str = "30s";
/// While there is no pod to ask for.
const PAUSE: Duration = Duration::from_millis(5);
/// Pods that stay, one in each namespace: the first may be reached by red ones only, the second is blue and may reach
/// nobody in the first one's namespace.
const ANCHORS: usize = 2;
const NAMESPACES: [&str; 2] = ["churn", "other"];

/// Something that the API server was asked to do.
#[derive(Debug, Clone)]
struct Change {
    pod: usize,
    step: Step,
    asked: Instant,
    answered: Instant,
    /// Version of the object that came of it; none of a deletion.
    version: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Create,
    Address,
    Label,
    Terminate,
    Delete,
}

/// A promise of `policyctl wait --pod`: everything that had been told before it was asked for is enforced at the pod.
#[derive(Debug, Clone, Copy)]
struct Fence {
    pod: usize,
    began: Instant,
    given: Instant,
}

struct Run<'a> {
    node: Mutex<&'a mut Node>,
    admin: Client,
    traffic: Traffic,
    changes: Mutex<Vec<Change>>,
    fences: Mutex<Vec<Fence>>,
    /// Pods of which promises are asked, over and over.
    known: Mutex<Vec<usize>>,
    free: Mutex<Vec<IpAddr>>,
    next: AtomicUsize,
    pods: usize,
    agent: &'a Agent,
}

/// Churns the pods of a node whose agent runs, without other pods. Nothing is asserted but that it could be done.
///
/// # Errors
/// A request, an interface or the promise of the agent fails.
pub fn run(node: &mut Node, admin: Client, agent: &Agent, amount: Amount) -> Result<Report> {
    let ns = node.ns().clone();
    let made = ns.run(|| objects().iter().try_for_each(|object| admin.apply(object).map(drop)));
    made.context("make the namespaces and policies")?;
    let watch = ns.run(|| Watch::start(&admin, "/api/v1/pods"))?;
    let addresses = (0..ANCHORS + amount.workers + 1).map(|n| Ipv4Addr::new(10, 244, 0, 20 + n as u8).into());
    let run = Run {
        node: Mutex::new(node),
        admin,
        traffic: Traffic::start(),
        changes: Mutex::default(),
        fences: Mutex::default(),
        known: Mutex::default(),
        free: Mutex::new(addresses.rev().collect()),
        next: AtomicUsize::new(ANCHORS),
        pods: ANCHORS + amount.pods,
        agent,
    };
    let anchors = (0..ANCHORS).map(|n| ns.run(|| run.begin(n, None))).collect::<Result<Vec<_>>>()?;
    let ending = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        scope.spawn(|| run.ask_promises(&ending));
        let workers: Vec<_> =
            (0..amount.workers).map(|_| scope.spawn(|| ns.run(|| run.work(&anchors)))).collect();
        let join = |worker: thread::ScopedJoinHandle<'_, Result<()>>| {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        let done = workers.into_iter().map(join).collect::<Vec<_>>();
        ending.store(true, Ordering::Relaxed);
        done.into_iter().collect()
    })?;
    let changes = run.changes.into_inner().unwrap_or_else(PoisonError::into_inner);
    let events = watch.end_after(changes.iter().filter(|change| change.step == Step::Delete).count())?;
    let fences = run.fences.into_inner().unwrap_or_else(PoisonError::into_inner);
    let history = history::History::new(&objects(), &events)?;
    judge::judge(&history, &changes, &fences, &run.traffic.end())
}

impl Run<'_> {
    fn work(&self, anchors: &[Arc<Live>]) -> Result<()> {
        loop {
            let n = self.next.fetch_add(1, Ordering::Relaxed);
            if n >= self.pods {
                return Ok(());
            }
            self.live_and_die(n, anchors).with_context(|| format!("pod {n}"))?;
        }
    }

    fn live_and_die(&self, n: usize, anchors: &[Arc<Live>]) -> Result<()> {
        let live = self.begin(n, Some(&anchors[1]))?;
        self.traffic.watch(&live, &anchors[0]);
        thread::sleep(STAY);
        for generation in 1..=2 {
            let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata(n, generation)});
            self.ask(n, Step::Label, || self.admin.merge(&object))?;
            thread::sleep(STAY);
        }
        self.traffic.forget(&live);
        lock(&self.known).retain(|known| *known != n);
        let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata(n, 0)});
        let path = format!("/api/v1/namespaces/{}/pods/{}", NAMESPACES[n % 2], name(n));
        let gracefully =
            || self.admin.request("DELETE", &format!("{path}?gracePeriodSeconds=30"), None)?.fine();
        self.ask(n, Step::Terminate, gracefully)?;
        lock(&self.node).remove(&name(n))?;
        // As with a real network plugin the next pod may get the address before the object is gone.
        lock(&self.free).push(live.address());
        self.ask(n, Step::Delete, || self.admin.delete(&object).map(|()| Value::Null))
    }

    /// A pod as a kubelet and a network plugin make it; returns once the API server knows its address.
    /// `stranger` sends to it from its first moment.
    fn begin(&self, n: usize, stranger: Option<&Arc<Live>>) -> Result<Arc<Live>> {
        let mut object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata(n, 0),
            "spec": {"nodeName": crate::scenario::State::NODE, "containers": [{"name": "c", "image": "i"}]}});
        self.ask(n, Step::Create, || self.admin.create(&object))?;
        let address = lock(&self.free).pop().context("no address is free")?;
        let host = lock(&self.node).add(&name(n), Attach::Pod, &[address])?;
        let live = Arc::new(Live::new(n, &host)?);
        self.traffic.add(&live);
        if let Some(stranger) = stranger {
            self.traffic.watch(stranger, &live);
        }
        object["status"] = json!({"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]});
        self.ask(n, Step::Address, || self.admin.merge_status(&object))?;
        self.promise(n)?;
        lock(&self.known).push(n);
        Ok(live)
    }

    /// Asks for promises of one pod after the other. A pod that goes meanwhile gives none.
    fn ask_promises(&self, ending: &AtomicBool) {
        let mut turn = 0;
        while !ending.load(Ordering::Relaxed) {
            let known = lock(&self.known).clone();
            turn += 1;
            match known.get(turn % known.len().max(1)) {
                Some(pod) => drop(self.promise(*pod)),
                None => thread::sleep(PAUSE),
            }
        }
    }

    /// Returns once everything that was told before this call is enforced at the pod.
    fn promise(&self, pod: usize) -> Result<()> {
        let began = Instant::now();
        let key = format!("{}/{}", NAMESPACES[pod % 2], name(pod));
        let output = self.agent.ctl(["wait", "--pod", &key, "--timeout", PROMISE])?;
        let given = Instant::now();
        ensure!(output.status.success(), "policyctl wait: {}", String::from_utf8_lossy(&output.stderr));
        lock(&self.fences).push(Fence { pod, began, given });
        Ok(())
    }

    fn ask(&self, pod: usize, step: Step, request: impl FnOnce() -> Result<Value>) -> Result<()> {
        let asked = Instant::now();
        let answer = request()?;
        let answered = Instant::now();
        let version = answer["metadata"]["resourceVersion"].as_str().map(str::to_owned);
        lock(&self.changes).push(Change { pod, step, asked, answered, version });
        Ok(())
    }
}

fn name(n: usize) -> String {
    format!("pod-{n}")
}

/// Labels decide who may reach whom: each change of them moves the pod to other rules, as a peer and as a target.
fn metadata(n: usize, generation: usize) -> Value {
    let role = ["red", "blue"][(n + generation) % 2];
    let tier = ["web", "db", "none"][(n + generation) % 3];
    let zone = if n.is_multiple_of(5) && n >= ANCHORS { "shut" } else { "open" };
    json!({"namespace": NAMESPACES[n % 2], "name": name(n),
        "labels": {"role": role, "tier": tier, "zone": zone}})
}

fn objects() -> Vec<Value> {
    let namespace = |name: &str| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"team": name}}});
    let policy = |name: &str, spec: Value| {
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": NAMESPACES[0], "name": name}, "spec": spec})
    };
    let udp = |port: u16| json!([{"protocol": "UDP", "port": port}]);
    let [open, second] = Live::PORTS;
    vec![
        namespace(NAMESPACES[0]),
        namespace(NAMESPACES[1]),
        policy(
            "red-may",
            json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [
                {"from": [{"podSelector": {"matchLabels": {"role": "red"}}}], "ports": udp(open)},
                {"from": [{"namespaceSelector": {"matchLabels": {"team": NAMESPACES[1]}},
                    "podSelector": {"matchLabels": {"role": "red"}}}], "ports": udp(open)}]}),
        ),
        policy(
            "web-to-db",
            json!({"podSelector": {"matchLabels": {"tier": "db"}}, "policyTypes": ["Ingress"], "ingress": [
                {"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"tier": "web"}}}],
                    "ports": udp(second)}]}),
        ),
        policy(
            "shut",
            json!({"podSelector": {"matchLabels": {"zone": "shut"}}, "policyTypes": ["Egress"], "egress": [
                {"to": [{"podSelector": {"matchLabels": {"tier": "db"}}}]}]}),
        ),
    ]
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
