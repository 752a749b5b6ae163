//! A moment of the API server's data that has to be reached before `policyctl wait` is answered.
//!
//! The server is asked for the names and versions of all objects, read from its data store and not from a cache that
//! may be late. A kind has reached that moment when a change after it was seen, or when every object is held in that
//! version or a later one, and none is held that is not in the list. Versions alone do not tell: a kind in which
//! nothing happens stays at an old one, and not every server sends bookmarks in time.

use std::collections::{BTreeMap, HashMap, HashSet};

use policy_engine::model::ObjectKey;

use super::kind::Kind;
use super::store::Table;

/// What the server had at a moment.
#[derive(Clone, Debug)]
pub(super) struct Point {
    /// Number of the request that it answers.
    pub number: u64,
    /// Each kind.
    pub kinds: BTreeMap<Kind, Versions>,
}

/// What the server had of a kind.
#[derive(Clone, Debug, Default)]
pub(super) struct Versions {
    /// Version of the list.
    pub version: u64,
    /// Version of each object.
    pub objects: HashMap<ObjectKey, u64>,
}

/// A point, with what is still missing.
#[derive(Debug)]
pub(super) struct Open {
    number: u64,
    kinds: BTreeMap<Kind, Missing>,
}

#[derive(Debug)]
struct Missing {
    version: u64,
    /// Objects that are not held in this version yet.
    behind: HashMap<ObjectKey, u64>,
    /// Objects that should be gone.
    extra: HashSet<ObjectKey>,
}

impl Open {
    /// Compares with what is held.
    pub(super) fn new(point: Point, tables: &BTreeMap<Kind, Table>) -> Self {
        let missing = |(kind, versions): (Kind, Versions)| {
            let Versions { version, objects } = versions;
            let held = tables.get(&kind).map(|table| &table.held);
            let is_extra = |key: &&ObjectKey| !objects.contains_key(*key);
            let extra = held.into_iter().flatten().map(|(key, _)| key).filter(is_extra).cloned().collect();
            (kind, Missing { version, behind: objects, extra })
        };
        Self { number: point.number, kinds: point.kinds.into_iter().map(missing).collect() }
    }

    /// Number of the request.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Whether everything was told.
    pub(super) fn is_reached(&mut self, tables: &BTreeMap<Kind, Table>) -> bool {
        self.kinds.retain(|kind, missing| {
            let Some(table) = tables.get(kind) else { return false };
            missing
                .behind
                .retain(|key, version| table.held.get(key).is_none_or(|held| held.version < *version));
            // What was made after the moment is not too much.
            missing
                .extra
                .retain(|key| table.held.get(key).is_some_and(|held| held.version <= missing.version));
            table.progress < missing.version && !(missing.behind.is_empty() && missing.extra.is_empty())
        });
        self.kinds.is_empty()
    }
}
