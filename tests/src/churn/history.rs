//! What the API server told, in its order, and the worlds that follow from it.

use crate::{cluster::Client, net::Node, scenario::State};
use anyhow::{Context, Result, ensure};
use policy_engine::{
    model::ObjectKey,
    oracle, read,
    verdict::Query,
    world::{Delta, World},
};
use serde_json::Value;
use std::{
    collections::HashMap,
    io::{BufRead, BufReader},
    net::IpAddr,
    process::Child,
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Longest that the last events may take.
const PATIENCE: Duration = Duration::from_secs(60);
const UDP: u8 = 17;

/// A watch of our own.
pub(super) struct Watch {
    child: Child,
    events: Arc<Mutex<Vec<Value>>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Watches all objects of a path, from now on and those that there are.
    pub(super) fn start(client: &Client, path: &str) -> Result<Self> {
        let mut child = client.watch(path)?;
        let out = BufReader::new(child.stdout.take().context("curl has no stdout")?);
        let events: Arc<Mutex<Vec<Value>>> = Arc::default();
        let told = events.clone();
        let thread = thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                super::lock(&told).extend(serde_json::from_str::<Value>(&line).ok());
            }
        });
        Ok(Self { child, events, thread: Some(thread) })
    }

    /// All events, once so many deletions were told.
    pub(super) fn end_after(self, deletions: usize) -> Result<Vec<Value>> {
        let end = Instant::now() + PATIENCE;
        loop {
            let events = super::lock(&self.events).clone();
            if events.iter().filter(|event| event["type"] == "DELETED").count() >= deletions {
                return Ok(events);
            }
            ensure!(Instant::now() < end, "the watch told {} events only", events.len());
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        drop(self.thread.take().map(JoinHandle::join));
    }
}

/// The worlds, one after each event.
pub(super) struct History {
    worlds: Vec<World>,
    versions: HashMap<String, usize>,
    deletions: HashMap<String, usize>,
}

/// Whether the egress of the sender and the ingress of the receiver allow it.
pub(super) type Sides = [bool; 2];

impl History {
    pub(super) fn new(base: &[Value], events: &[Value]) -> Result<Self> {
        let mut world = World::new(State::NODE);
        let own = [Node::ADDRESS4, Node::GATEWAY4].map(IpAddr::V4);
        world.apply(Delta::HostAddresses(own.into_iter().collect()));
        for object in base {
            world.apply(read::object(object).delta.context("an object that says nothing")?);
        }
        let mut history =
            Self { worlds: vec![world.clone()], versions: HashMap::new(), deletions: HashMap::new() };
        for event in events {
            let object = &event["object"];
            let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
            let place = history.worlds.len();
            match event["type"].as_str() {
                Some("ADDED" | "MODIFIED") => {
                    world.apply(read::object(object).delta.context("an event that says nothing")?);
                    history.versions.insert(text("resourceVersion"), place);
                }
                Some("DELETED") => {
                    let key = ObjectKey::new(&text("namespace"), &text("name"));
                    world.apply(Delta::PodGone { key, uid: text("uid").as_str().into() });
                    history.deletions.insert(text("name"), place);
                }
                other => anyhow::bail!("an event of type {other:?}: {event}"),
            }
            history.worlds.push(world.clone());
        }
        Ok(history)
    }

    /// The first world in which this change is.
    pub(super) fn place(&self, change: &super::Change) -> Result<usize> {
        let place = match &change.version {
            Some(version) => self.versions.get(version),
            None => self.deletions.get(&super::name(change.pod)),
        };
        place.copied().with_context(|| format!("the watch did not tell of {change:?}"))
    }

    pub(super) fn judge(&self, place: usize, source: IpAddr, destination: IpAddr, port: u16) -> Sides {
        let query = Query { source, destination, protocol: UDP, port, from_node_process: false };
        let evaluation = oracle::verdicts(&self.worlds[place], &query);
        [evaluation.egress.allows(), evaluation.ingress.allows()]
    }
}
