//! Pods that come, change and go under load on a real API server and real agents, and every packet held against the
//! evaluator.
//!
//! The pods are made by real kubelets on whole nodes ([`on_nodes`]), or by the harness, which is kubelet and CNI at once on
//! a node of namespaces ([`alone`]) and so makes them faster. What the API server told in which order is read from a watch,
//! so the worlds in which a packet may have been judged are known: those from what `policyctl wait` has promised of the
//! pod that judges it before it was sent, to what the server may have known when it was judged.

mod alone;
mod history;
mod judge;
mod losses;
mod nodes;
mod rules;
mod steady;
mod traffic;
mod watch;

pub use alone::alone;
pub use judge::Report;
pub use losses::Losses;
pub use nodes::on_nodes;
pub use steady::{Steady, written};
pub use traffic::{Live, Pace, Probe, Traffic};

use crate::{cluster::Client, net::Netns};
use anyhow::{Context, Result, ensure};
use history::{History, Reading};
use rules::{metadata, name, namespace, objects};
use serde_json::{Value, json};
use std::{
    net::IpAddr,
    process::{Command, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use watch::Watch;

/// How much is to be done.
#[derive(Debug, Clone, Copy)]
pub struct Amount {
    /// Pods in all.
    pub pods: usize,
    /// Pods that are there at the same time, beside those that stay.
    pub at_once: usize,
    /// How long a pod stays as it is: packets must meet it.
    pub stay: Duration,
    /// Packets between them.
    pub pace: Pace,
}

/// Longest wait for the promise that a new pod is enforced.
const PROMISE: &str = "60s";
/// Longest wait for the promise that all of a node is: while pods come and go there may be no such moment.
const PROMISE_OF_ALL: &str = "1s";
/// Between two looks at the server's version.
const TICK: Duration = Duration::from_millis(150);
/// While there is no pod to ask for.
const PAUSE: Duration = Duration::from_millis(5);

/// Something that the API server was asked to do, and did.
#[derive(Debug, Clone)]
struct Change {
    pod: usize,
    step: Step,
    asked: Instant,
    answered: Instant,
    /// Version of the object that came of it.
    version: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Create,
    Label,
    End,
}

/// A promise of `policyctl wait`: everything that had been told before it was asked for is enforced at these pods.
#[derive(Debug, Clone)]
struct Fence {
    pods: Vec<usize>,
    began: Instant,
    given: Instant,
}

/// Who makes pods real, and whose agents promise.
trait Kubelets: Sync {
    /// Names of the nodes.
    fn nodes(&self) -> &[String];

    /// From where the API server can be asked.
    fn ns(&self) -> &Netns;

    /// A pod's `spec`, but for its ports.
    fn spec(&self, node: &str) -> Value;

    /// Makes a pod run that was created. `begun` is to be called once it has its interface; returns when its address is told.
    fn start(
        &self,
        pod: &Value,
        watch: &Watch,
        begun: &mut dyn FnMut(&Netns, IpAddr) -> Result<()>,
    ) -> Result<()>;

    /// Ends a pod that was asked to end; returns when it is gone.
    fn end(&self, pod: &Value, watch: &Watch) -> Result<()>;

    /// `policyctl` at a node's agent.
    fn ctl(&self, node: usize) -> Result<Command>;
}

struct Run<'a, K> {
    kubelets: &'a K,
    admin: Client,
    traffic: Traffic,
    watch: Watch,
    stay: Duration,
    changes: Mutex<Vec<Change>>,
    readings: Mutex<Vec<Reading>>,
    fences: Mutex<Vec<Fence>>,
    /// Pods that are enforced, of which promises are asked, over and over.
    known: Mutex<Vec<usize>>,
    next: AtomicUsize,
    pods: usize,
}

/// Churns pods on nodes whose agents run. Nothing is asserted but that it could be done.
///
/// # Errors
/// A request, an interface or the promise of an agent fails.
fn run<K: Kubelets>(kubelets: &K, admin: Client, amount: Amount) -> Result<Report> {
    let begun = Instant::now();
    let ns = kubelets.ns();
    let watch = ns.run(|| Watch::start(&admin, "/api/v1/pods"))?;
    // Pods that stay, one in each namespace of each node: the first may be reached by red ones only, the second is blue
    // and may reach nobody in the first one's namespace.
    let anchors = rules::NAMESPACES.len() * kubelets.nodes().len();
    let run = Run {
        kubelets,
        admin,
        traffic: Traffic::start(amount.pace),
        watch,
        stay: amount.stay,
        changes: Mutex::default(),
        readings: Mutex::default(),
        fences: Mutex::default(),
        known: Mutex::default(),
        next: AtomicUsize::new(anchors),
        pods: anchors + amount.pods,
    };
    run.all(anchors, amount.at_once)?;
    let events = run.watch.end_after(amount.pods)?;
    let changes = unlock(run.changes);
    let mut readings = unlock(run.readings);
    readings.extend(changes.iter().map(|change| Reading {
        asked: change.asked,
        answered: change.answered,
        version: change.version,
        made: true,
    }));
    let history = History::new(&objects(), &events, &readings, begun)?;
    judge::judge(&history, &changes, &unlock(run.fences), &run.traffic.end())
}

/// Ends the threads of a scope, however it is left.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn join<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

impl<K: Kubelets> Run<'_, K> {
    /// Makes the pods that stay, and all others after and beside each other.
    fn all(&self, anchors: usize, at_once: usize) -> Result<()> {
        let (ns, ending) = (self.kubelets.ns(), &AtomicBool::new(false));
        thread::scope(|scope| {
            let _end = Ends(ending);
            let clock = scope.spawn(|| ns.run(|| self.read_versions(ending)));
            let anchors: Result<Arc<[_]>> = (0..anchors).map(|n| ns.run(|| self.begin(n, None))).collect();
            let anchors = anchors.context("the pods that stay")?;
            let nodes = 0..self.kubelets.nodes().len();
            let asking: Vec<_> =
                nodes.map(|node| scope.spawn(move || self.ask_promises(node, ending))).collect();
            let worker = |_| {
                let anchors = anchors.clone();
                scope.spawn(move || ns.run(|| self.work(&anchors)))
            };
            let workers: Vec<_> = (0..at_once).map(worker).collect();
            let done: Vec<Result<()>> = workers.into_iter().map(join).collect();
            ending.store(true, Ordering::Relaxed);
            done.into_iter().chain(asking.into_iter().map(join)).chain([join(clock)]).collect()
        })
    }

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
        thread::sleep(self.stay);
        let mut object = json!({"apiVersion": "v1", "kind": "Pod"});
        for generation in 1..=2 {
            object["metadata"] = metadata(n, generation);
            self.ask(n, Step::Label, || self.admin.merge(&object))?;
            thread::sleep(self.stay);
        }
        self.traffic.forget(&live);
        lock(&self.known).retain(|known| *known != n);
        let path = format!("/api/v1/namespaces/{}/pods/{}", namespace(n), name(n));
        let deleted = self.ask(n, Step::End, || self.admin.request("DELETE", &path, None)?.fine())?;
        self.kubelets.end(&deleted, &self.watch)
    }

    /// A pod, once the API server knows its address and its agent enforces it. `stranger` sends to it from its first moment.
    fn begin(&self, n: usize, stranger: Option<&Arc<Live>>) -> Result<Arc<Live>> {
        let nodes = self.kubelets.nodes();
        let mut spec = self.kubelets.spec(&nodes[n / 2 % nodes.len()]);
        spec["containers"][0]["ports"] = rules::ports(n);
        let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata(n, 0), "spec": spec});
        let created = self.ask(n, Step::Create, || self.admin.create(&object))?;
        let mut made = None;
        self.kubelets.start(&created, &self.watch, &mut |ns, address| {
            let live = made.insert(Arc::new(Live::new(n, ns, address)?));
            self.traffic.add(live);
            if let Some(stranger) = stranger {
                self.traffic.watch(stranger, live);
            }
            Ok(())
        })?;
        let live = made.context("the pod has no interface")?;
        ensure!(self.promise(n / 2 % nodes.len(), Some(n))?, "the new pod is not enforced");
        lock(&self.known).push(n);
        Ok(live)
    }

    /// Asks for promises of a node. While there is none of all its pods at once, one pod is asked for after the other; one
    /// that goes meanwhile gives none.
    fn ask_promises(&self, node: usize, ending: &AtomicBool) -> Result<()> {
        let mut turn = 0;
        while !ending.load(Ordering::Relaxed) {
            thread::sleep(PAUSE);
            let known = self.known_at(node);
            turn += 1;
            if let Some(pod) = known.get(turn % known.len().max(1))
                && !self.promise(node, None)?
            {
                self.promise(node, Some(*pod))?;
            }
        }
        Ok(())
    }

    fn known_at(&self, node: usize) -> Vec<usize> {
        let nodes = self.kubelets.nodes().len();
        lock(&self.known).iter().copied().filter(|pod| pod / 2 % nodes == node).collect()
    }

    /// Asks whether everything that was told before this call is enforced at a pod, or at all pods of a node.
    fn promise(&self, node: usize, pod: Option<usize>) -> Result<bool> {
        let pods = pod.map_or_else(|| self.known_at(node), |pod| vec![pod]);
        let mut ctl = self.kubelets.ctl(node)?;
        ctl.args(["wait", "--timeout", if pod.is_some() { PROMISE } else { PROMISE_OF_ALL }]);
        if let Some(pod) = pod {
            ctl.args(["--pod", &format!("{}/{}", namespace(pod), name(pod))]);
        }
        let began = Instant::now();
        let status = ctl.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        let given = Instant::now();
        let done = status.context("run policyctl")?.success();
        if done {
            lock(&self.fences).push(Fence { pods, began, given });
        }
        Ok(done)
    }

    fn ask(&self, pod: usize, step: Step, request: impl FnOnce() -> Result<Value>) -> Result<Value> {
        let asked = Instant::now();
        let answer = request()?;
        let answered = Instant::now();
        let version = history::version(&answer)?;
        lock(&self.changes).push(Change { pod, step, asked, answered, version });
        Ok(answer)
    }

    /// Asks the server again and again which version it has come to.
    fn read_versions(&self, ending: &AtomicBool) -> Result<()> {
        while !ending.load(Ordering::Relaxed) {
            let asked = Instant::now();
            let list = self.admin.get("/api/v1/namespaces?limit=1")?;
            let (answered, version) = (Instant::now(), history::version(&list)?);
            lock(&self.readings).push(Reading { asked, answered, version, made: false });
            thread::sleep(TICK);
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unlock<T>(mutex: Mutex<T>) -> T {
    mutex.into_inner().unwrap_or_else(PoisonError::into_inner)
}
