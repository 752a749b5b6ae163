//! What the API server tells of pods, each event with the time at which it came here.

use crate::cluster::Client;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{
    collections::HashMap,
    io::{BufRead, BufReader},
    process::Child,
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Longest that the last events may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Something that happened to an object.
#[derive(Debug, Clone)]
pub(super) struct Event {
    /// As the watch told it: `type` and `object`.
    pub(super) value: Value,
    /// When it was told.
    pub(super) told: Instant,
}

#[derive(Debug, Default)]
struct Seen {
    events: Vec<Event>,
    /// The newest of each object that is there, by its UID.
    newest: HashMap<String, Value>,
}

/// A watch of our own, beside the agents'.
pub(super) struct Watch {
    child: Child,
    seen: Arc<Mutex<Seen>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Watches all objects of a path, from now on and those that there are.
    pub(super) fn start(client: &Client, path: &str) -> Result<Self> {
        let mut child = client.watch(path)?;
        let out = BufReader::new(child.stdout.take().context("curl has no stdout")?);
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let told = seen.clone();
        let thread = thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if let Ok(value) = serde_json::from_str::<Value>(&line) {
                    super::lock(&told).take(value);
                }
            }
        });
        Ok(Self { child, seen, thread: Some(thread) })
    }

    /// The newest version of an object, by its UID.
    pub(super) fn newest(&self, uid: &str) -> Option<Value> {
        super::lock(&self.seen).newest.get(uid).cloned()
    }

    /// Waits until an object is as wanted; `None`: until it is gone.
    pub(super) fn until(&self, uid: &str, wanted: impl Fn(Option<&Value>) -> bool) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while !wanted(super::lock(&self.seen).newest.get(uid)) {
            ensure!(Instant::now() < end, "waited in vain; the newest is {:?}", self.newest(uid));
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// All events, once so many deletions were told.
    pub(super) fn end_after(self, deletions: usize) -> Result<Vec<Event>> {
        let end = Instant::now() + PATIENCE;
        loop {
            let events = super::lock(&self.seen).events.clone();
            if events.iter().filter(|event| event.value["type"] == "DELETED").count() >= deletions {
                return Ok(events);
            }
            ensure!(Instant::now() < end, "the watch told {} events only", events.len());
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Seen {
    fn take(&mut self, value: Value) {
        let object = &value["object"];
        let uid = object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        if value["type"] == "DELETED" {
            self.newest.remove(&uid);
        } else {
            self.newest.insert(uid, object.clone());
        }
        self.events.push(Event { value, told: Instant::now() });
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        drop(self.thread.take().map(JoinHandle::join));
    }
}
