//! `policy-agent run`: checks everything, takes over what is there, then starts the threads and the services.

use std::path::Path;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use policy_common::abi::meta_words;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::background::Background;
use super::core::{Core, Parts};
use super::drain::{Drain, Drained};
use super::handle::Handle;
use super::hooking::Hooking;
use super::kernel::Kernel;
use super::looking::Looking;
use super::origin::Origin;
use super::settings;
use super::spares::Spares;
use super::tags::Prober;
use super::view::Published;
use super::workloads::{Wanted, Workloads};
use super::writer::{Input, Inputs, Waiter, Writer};
use crate::api::{Socket, serve};
use crate::cgroup::Watch;
use crate::cli::{Exit, Failure, HostNetwork, Loopback, RunArgs, Unhookable, UnknownPods};
use crate::datapath::{self, Datapath, EventRing, OBJECT};
use crate::events::{Bus, Enricher, History, Views};
use crate::memory;
use crate::metrics::{self, Metrics};
use crate::netlink::{Discovery, Events};
use crate::preflight;
use crate::state::{Lock, Saved, Store};

/// How long `--once` waits.
const ONCE: Duration = Duration::from_secs(10);
/// How long the API has to end its streams.
const ENDING: Duration = Duration::from_secs(2);

/// Runs until a signal ends it. What is enforced stays in force.
///
/// # Errors
/// What is missing or wrong; before the datapath is loaded nothing was changed.
pub fn run(args: &RunArgs) -> Result<(), Failure> {
    memory::one_heap();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(failed)?;
    let result = runtime.block_on(start(args));
    runtime.shutdown_timeout(ENDING);
    result
}

/// Everything that must hold before anything is changed.
struct Ground {
    origin: Origin,
    node: String,
    release: String,
    store: Store,
    saved: Saved,
    _lock: Lock,
    socket: Socket,
    listener: Option<TcpListener>,
    events: Events,
    discovery: Discovery,
}

async fn start(args: &RunArgs) -> Result<(), Failure> {
    let ground = ground(args).await?;
    let node = ground.node.clone();
    tracing::info!(node, kernel = ground.release, version = env!("CARGO_PKG_VERSION"), "starting");
    let Datapath { executor, hooks, groups, ring, report, trial } =
        datapath::load(&settings::datapath(args), OBJECT)?;
    tracing::info!(
        adopted = report.adopted.len(),
        created = report.created.len(),
        "kernel programs verified"
    );
    let kernel = Arc::new(Kernel::new(executor, hooks, groups, report, trial));
    let switches = kernel.read().meta(meta_words::FLAGS)?;
    kernel.read().set_meta(meta_words::FLAGS, settings::flags(args, switches))?;
    let (inputs, inbox) = channel();
    watch_network(ground.events, inputs.clone()).map_err(failed)?;
    // What is there now was there before us.
    drop(inputs.send(Input::Network));
    let published = Published::default();
    let bus = Arc::new(Bus::new(crate::events::ring::CAPACITY, crate::events::bus::LIVE_CAPACITY));
    let (history, drained) = tell_events(ring, &node, &bus, &kernel);
    let (grace, done) = (kernel.read().grace(), inputs.clone());
    let background =
        Background::start(grace, drained, move |p| done.send(Input::Passed(p)).is_ok()).map_err(failed)?;
    let (maker, done) = (kernel.read().spare_maker()?, inputs.clone());
    let spares = Spares::start(maker, move |more| done.send(Input::Stocked(more)).is_ok()).map_err(failed)?;
    let done = inputs.clone();
    let hooking = Hooking::start(kernel.clone(), !args.once, move |d| done.send(Input::Hooked(d)).is_ok())
        .map_err(failed)?;
    let done = inputs.clone();
    let prober = Prober::start(move |p| done.send(Input::Probed(p)).is_ok()).map_err(failed)?;
    let done = inputs.clone();
    let looking =
        Looking::start(ground.discovery, move |l| done.send(Input::Looked(l)).is_ok()).map_err(failed)?;
    let parts = Parts {
        kernel: kernel.clone(),
        history,
        bus: bus.clone(),
        background,
        spares,
        hooking,
        prober,
        looking,
        store: ground.store,
        bits: settings::endpoint_bits(args),
        workloads: workloads(args, &inputs),
        guarding: args.unknown_pods == UnknownPods::Hold,
        self_check: args.self_check.0,
        node: node.clone(),
        services: args.services,
    };
    let core = Core::new(parts, ground.saved)?;
    let origin = ground.origin;
    let told = inputs.clone();
    let source = origin
        .start(&node, args.services, move |news| told.send(Input::Source(news, Instant::now())).is_ok())?;
    let writer = Writer::new(core, inbox, source, published.clone());
    let writer = start_writer(writer)?;
    let notices = origin.tell_owners(&node, &published);
    let handle = Arc::new(Handle {
        node,
        source: (origin.kind(), origin.location()),
        release: ground.release,
        started: SystemTime::now(),
        published: published.clone(),
        kernel: kernel.clone(),
        inputs: inputs.clone(),
        cgroup_root: args.cgroup_root.clone(),
    });
    if let Some(listener) = ground.listener {
        let metrics = Arc::new(Metrics::new(kernel, published, bus.clone(), notices));
        tokio::spawn(metrics::serve(listener, metrics));
    }
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let ending = async { drop(stopped.await) };
    let api = tokio::spawn(serve(ground.socket, handle, bus, ending));
    let result = if args.once { once(&inputs).await } else { until_signal().await };
    // The API may have ended by itself.
    let _: Result<(), ()> = stop.send(());
    if let Ok(Ok(Err(error))) = tokio::time::timeout(ENDING, api).await {
        tracing::warn!("the API ended: {error:#}");
    }
    drop(inputs.send(Input::Stop));
    drop(writer.join());
    tracing::info!("stopped; what is enforced stays in force");
    result
}

/// Starts to turn records of the ring into flows on the bus.
fn tell_events(
    ring: EventRing,
    node: &str,
    bus: &Arc<Bus>,
    kernel: &Arc<Kernel>,
) -> (Arc<Mutex<History>>, Drained) {
    let (history, drained) = (Arc::new(Mutex::new(History::default())), Drained::default());
    let drain = Drain {
        ring,
        enricher: Enricher::new(node, Views::default()),
        history: history.clone(),
        bus: bus.clone(),
        drained: drained.clone(),
        kernel: kernel.clone(),
    };
    tokio::spawn(drain.run());
    (history, drained)
}

#[expect(clippy::needless_pass_by_value, reason = "made for map_err")]
fn failed(error: std::io::Error) -> Failure {
    Failure::new(Exit::Failed, &error)
}

async fn ground(args: &RunArgs) -> Result<Ground, Failure> {
    let node = settings::node_name(args)?;
    let facts = preflight::check(&args.paths.bpffs)?;
    let origin = Origin::of(args).await?;
    let failed =
        |what: &Path, e: std::io::Error| Failure::text(Exit::Failed, format!("{}: {e}", what.display()));
    let state_dir = &args.paths.state_dir;
    let store = Store::open(state_dir).map_err(|e| failed(state_dir, e))?;
    let lock = Lock::take(state_dir)?;
    let saved = store.load().unwrap_or_else(|error| {
        tracing::warn!("the saved state is not used: {error}: rules get new numbers");
        None
    });
    let socket = Socket::bind(&args.paths.socket)
        .map_err(|e| Failure::text(Exit::Failed, format!("--socket: {e:#}")).hint("give another --socket"))?;
    let listener = match args.metrics_address {
        Some(address) => {
            let told = |e| Failure::text(Exit::Failed, format!("--metrics-address {address}: {e}"));
            Some(metrics::bind(address).await.map_err(told)?)
        }
        None => None,
    };
    let netlink = |e: std::io::Error| Failure::text(Exit::Permission, format!("netlink: {e}"));
    // Subscribed before the first look, so that nothing falls between them.
    let events = Events::open().map_err(netlink)?;
    let discovery = Discovery::open().map_err(netlink)?;
    let saved = saved.unwrap_or_default();
    let release = facts.kernel;
    Ok(Ground { origin, node, release, store, saved, _lock: lock, socket, listener, events, discovery })
}

fn workloads(args: &RunArgs, inputs: &Inputs) -> Workloads {
    let changed = inputs.clone();
    let watch = Watch::start(move || changed.send(Input::Network).is_ok());
    if let Err(error) = &watch {
        tracing::warn!("control groups are looked at every few seconds only: {error}");
    }
    let wanted = Wanted {
        root: args.cgroup_root.clone(),
        judge_loopback: args.loopback == Loopback::Judge,
        unhookable: args.unhookable == Unhookable::Cgroup,
        host_network: args.host_network == HostNetwork::Cgroup,
    };
    Workloads::new(wanted, watch.ok())
}

/// Each event means "look again"; several at once are one look.
fn watch_network(events: Events, inputs: Inputs) -> std::io::Result<()> {
    const AT_MOST: Duration = Duration::from_secs(3600);
    let watch = move || {
        loop {
            match events.wait(AT_MOST) {
                Ok(change) if change.is_empty() => {}
                Ok(_) => {
                    if inputs.send(Input::Network).is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::error!("netlink events: {error}");
                    if inputs.send(Input::Network).is_err() {
                        return;
                    }
                    thread::sleep(Duration::from_secs(1));
                }
            }
        }
    };
    thread::Builder::new().name("netlink".to_owned()).spawn(watch).map(drop)
}

fn start_writer(writer: Writer) -> Result<JoinHandle<()>, Failure> {
    thread::Builder::new().name("writer".to_owned()).spawn(move || writer.run()).map_err(failed)
}

async fn once(inputs: &Inputs) -> Result<(), Failure> {
    let (reply, answer) = tokio::sync::oneshot::channel();
    let waiter = Waiter { deadline: Instant::now() + ONCE, pod: None, reply };
    let gone = || Failure::text(Exit::Failed, "the writer ended");
    inputs.send(Input::Wait(waiter)).map_err(|_| gone())?;
    let waited = answer.await.map_err(|_| gone())?;
    if waited.missing.is_empty() {
        return Ok(());
    }
    let missing = waited.missing.join("\n       ");
    Err(Failure::text(Exit::Incomplete, format!("not everything is enforced:\n       {missing}")))
}

async fn until_signal() -> Result<(), Failure> {
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
