//! What the API server told, kind by kind, and what of it is news: synchronous, without a clock or a connection.
//!
//! A full list replaces what is held in one step, once it is complete. So a list that breaks off, and a server that
//! stays away, take nothing from what is enforced.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::mem;

use policy_engine::model::ObjectKey;
use policy_engine::world::Delta;

use super::fault::Fault;
use super::intern::Interner;
use super::kind::Kind;
use super::object::{Held, Object, Reading};
use super::point::{Open, Point};
use crate::source::objects::{Located, Update};
use crate::source::{SourceState, Told};

/// What happened to a kind.
#[derive(Debug)]
pub(super) enum Event {
    /// A full list begins.
    Begin,
    /// An object of the list.
    Listed(Object),
    /// The list is complete, as of this version.
    Complete(u64),
    /// An object was made or changed.
    Put(Object),
    /// An object was deleted.
    Gone(Object),
    /// Everything up to this version was told.
    Progress(u64),
    /// The server does not have the kind, so there are no objects of it.
    Absent,
    /// Changes are told again.
    Connected,
    /// A request failed; it is tried again.
    Failed(Fault),
}

/// What the store hears.
#[derive(Debug)]
pub(super) enum Message {
    /// Something happened to a kind.
    Of(Kind, Event),
    /// Tell when everything up to this point has been told.
    Point(Point),
}

/// The store.
#[derive(Debug)]
pub(super) struct Store {
    /// The node whose agent this is.
    node: ObjectKey,
    kinds: BTreeMap<Kind, Table>,
    interner: Interner,
    deltas: Vec<Delta>,
    problems: BTreeMap<(Kind, ObjectKey), Vec<Located>>,
    problems_changed: bool,
    points: Vec<Open>,
    answered: u64,
    /// Everything was told once.
    synced: bool,
    /// What was told last, to tell only news.
    last: Option<(SourceState, u64)>,
}

/// A kind.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) held: HashMap<ObjectKey, Held>,
    /// The list that is coming in.
    listing: Option<Listing>,
    /// A list was complete once.
    pub(super) ready: bool,
    /// Everything up to this version was told.
    pub(super) progress: u64,
    fault: Option<Fault>,
    /// With random keys, so that nobody can make two objects that look the same.
    hasher: RandomState,
}

#[derive(Debug, Default)]
struct Listing {
    seen: HashSet<ObjectKey>,
    changed: Vec<Reading>,
}

impl Store {
    /// A store that is complete when each of these kinds is.
    pub(super) fn new(node: &str, kinds: &[Kind]) -> Self {
        Self {
            node: ObjectKey::new("", node),
            kinds: kinds.iter().map(|kind| (*kind, Table::default())).collect(),
            interner: Interner::default(),
            deltas: Vec::new(),
            problems: BTreeMap::new(),
            problems_changed: false,
            points: Vec::new(),
            answered: 0,
            synced: false,
            last: None,
        }
    }

    /// Takes something in.
    pub(super) fn take(&mut self, message: Message) {
        match message {
            Message::Of(kind, event) => self.event(kind, event),
            Message::Point(point) => self.points.push(Open::new(point, &self.kinds)),
        }
    }

    /// What is new since the last call, if anything. Before every kind is complete only the state is told.
    pub(super) fn told(&mut self) -> Option<Told> {
        let state = self.state();
        self.answer(state.synced);
        let news = self.last.as_ref() != Some(&(state.clone(), self.answered));
        let changed = state.synced && (!self.deltas.is_empty() || self.problems_changed);
        if !news && !changed {
            return None;
        }
        self.synced = state.synced;
        self.last = Some((state.clone(), self.answered));
        let update = if state.synced { self.update() } else { Update::default() };
        Some(Told { update, answered: self.answered, state })
    }

    fn update(&mut self) -> Update {
        self.problems_changed = false;
        let mut problems: Vec<Located> = self.problems.values().flatten().cloned().collect();
        problems.sort();
        Update { deltas: mem::take(&mut self.deltas), problems }
    }

    fn state(&self) -> SourceState {
        let waiting = self.kinds.iter().filter(|(_, table)| !table.ready);
        let mut missing: Vec<String> = waiting
            .map(|(kind, table)| match &table.fault {
                Some(fault) => format!("{kind} are not known yet: {fault}"),
                None => format!("{kind} are not known yet"),
            })
            .collect();
        let fault = self.kinds.iter().find_map(|(kind, table)| Some((kind, table.fault.as_ref()?)));
        let error = fault.map(|(kind, fault)| format!("{kind}: {fault}")).unwrap_or_default();
        missing.extend(self.unknown_node().filter(|_| missing.is_empty()));
        // An agent of another node's name must not undo what this node enforces.
        SourceState { synced: self.synced || missing.is_empty(), missing, error }
    }

    /// Why nothing can be on this node, as the API server sees it.
    pub(super) fn unknown_node(&self) -> Option<String> {
        const NAMED: usize = 5;
        let nodes = self.kinds.get(&Kind::Node).filter(|table| table.ready)?;
        if nodes.held.contains_key(&self.node) {
            return None;
        }
        let mut names: Vec<&str> = nodes.held.keys().map(|key| &*key.name).collect();
        names.sort_unstable();
        let more = names.len().saturating_sub(NAMED);
        names.truncate(NAMED);
        let there = match (names.is_empty(), more) {
            (true, _) => "the cluster has no Node".to_owned(),
            (false, 0) => format!("the Nodes are {}", names.join(", ")),
            (false, _) => format!("there are {} and {more} more", names.join(", ")),
        };
        let name = &self.node.name;
        Some(format!(
            "there is no Node {name:?}, so no pod can be on this node ({there}); \
             hint: --node-name must be the spec.nodeName of this node's pods"
        ))
    }

    /// Points that were reached count as answered.
    fn answer(&mut self, synced: bool) {
        if !synced {
            return;
        }
        for point in &mut self.points {
            if point.is_reached(&self.kinds) {
                self.answered = self.answered.max(point.number());
            }
        }
        // A later point includes the earlier ones.
        self.points.retain(|point| point.number() > self.answered);
    }

    fn event(&mut self, kind: Kind, event: Event) {
        let Some(table) = self.kinds.get_mut(&kind) else { return };
        match event {
            Event::Begin => table.listing = Some(Listing::default()),
            Event::Listed(object) => table.list(object, &mut self.interner),
            Event::Complete(version) => self.complete(kind, version),
            Event::Absent => {
                table.listing = Some(Listing::default());
                let progress = table.progress;
                self.complete(kind, progress);
            }
            Event::Put(object) => {
                table.progress = table.progress.max(object.version);
                let held = table.held_at(&object.key, &object.uid);
                // A version that is no number cannot be compared.
                if (object.version == 0 || held < Some(object.version))
                    && let Some(reading) = table.news(object, &mut self.interner)
                {
                    self.put(kind, reading);
                }
            }
            Event::Gone(object) => {
                table.progress = table.progress.max(object.version);
                if table.held.get(&object.key).is_some_and(|held| held.uid == object.uid) {
                    self.remove(kind, &object.key);
                }
            }
            Event::Progress(version) => table.progress = table.progress.max(version),
            Event::Connected => table.fault = None,
            Event::Failed(fault) => {
                table.listing = None;
                table.fault = Some(fault);
            }
        }
    }

    fn complete(&mut self, kind: Kind, version: u64) {
        let Some(table) = self.kinds.get_mut(&kind) else { return };
        let Some(Listing { seen, changed }) = table.listing.take() else { return };
        // A list read at this moment is the truth, also where it is older than what was known: the cluster's data may
        // have been restored from a copy.
        table.progress = version;
        table.ready = true;
        table.fault = None;
        let gone: Vec<ObjectKey> = table.held.keys().filter(|key| !seen.contains(*key)).cloned().collect();
        for key in gone {
            self.remove(kind, &key);
        }
        for reading in changed {
            self.put(kind, reading);
        }
    }

    fn put(&mut self, kind: Kind, reading: Reading) {
        let Reading { key, held, delta, problems } = reading;
        let Some(table) = self.kinds.get_mut(&kind) else { return };
        table.held.insert(key.clone(), held);
        self.deltas.extend(delta);
        self.note(kind, key, problems);
    }

    fn remove(&mut self, kind: Kind, key: &ObjectKey) {
        let Some(table) = self.kinds.get_mut(&kind) else { return };
        let Some(held) = table.held.remove(key) else { return };
        self.deltas.push(kind.gone(key, &held.uid));
        self.note(kind, key.clone(), Vec::new());
    }

    fn note(&mut self, kind: Kind, key: ObjectKey, problems: Vec<Located>) {
        let before = self.problems.get(&(kind, key.clone()));
        if before.map_or(&[][..], Vec::as_slice) == problems {
            return;
        }
        self.problems_changed = true;
        if problems.is_empty() {
            self.problems.remove(&(kind, key));
        } else {
            self.problems.insert((kind, key), problems);
        }
    }
}

impl Table {
    /// The version in which an object is held: after a broken connection some changes come twice.
    fn held_at(&self, key: &ObjectKey, uid: &str) -> Option<u64> {
        self.held.get(key).filter(|held| *held.uid == *uid).map(|held| held.version)
    }

    fn list(&mut self, object: Object, interner: &mut Interner) {
        let Some(listing) = &mut self.listing else { return };
        listing.seen.insert(object.key.clone());
        if self.held_at(&object.key, &object.uid) != Some(object.version)
            && let Some(reading) = self.news(object, interner)
            && let Some(listing) = &mut self.listing
        {
            listing.changed.push(reading);
        }
    }

    /// What a version of an object says; `None` when it says the same as the one that is held.
    fn news(&mut self, object: Object, interner: &mut Interner) -> Option<Reading> {
        let content = self.hasher.hash_one(&object.value);
        match self.held.get_mut(&object.key) {
            Some(held) if held.uid == object.uid && held.content == content => {
                held.version = object.version;
                None
            }
            _ => Some(Reading::of(object, content, interner)),
        }
    }
}

#[cfg(test)]
mod tests;
