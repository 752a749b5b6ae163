//! What the API server told, in its order, the worlds that follow from it, and when each of them began.
//!
//! Some changes are made by the test, others by kubelets. For those the server's version counter is a clock: whoever was told
//! a version by the server knows that what has a later one happened after his request, and all else before the answer.

use super::watch::Event;
use crate::{net::Node, scenario::State};
use anyhow::{Context, Result};
use policy_engine::{
    model::ObjectKey,
    oracle, read,
    verdict::Query,
    world::{Delta, World},
};
use serde_json::Value;
use std::{collections::HashMap, net::IpAddr, time::Instant};

const UDP: u8 = 17;

/// A version that the server told.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    pub(super) asked: Instant,
    pub(super) answered: Instant,
    pub(super) version: u64,
    /// Whether the request made the version.
    pub(super) made: bool,
}

/// When an event happened, and the first world with it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    pub(super) place: usize,
    /// Not before this.
    pub(super) earliest: Instant,
    /// Not after this.
    pub(super) latest: Instant,
}

/// The worlds, one after each event that makes a difference.
pub(super) struct History {
    worlds: Vec<World>,
    moments: Vec<Moment>,
    /// By version.
    versions: HashMap<u64, usize>,
    /// By pod: since when its address is known.
    addresses: HashMap<usize, usize>,
    /// Places up to here, by the earliest time at which they may be in force, and by the latest.
    earliest: Vec<(Instant, usize)>,
    latest: Vec<(Instant, usize)>,
}

/// Whether the egress of the sender and the ingress of the receiver allow it.
pub(super) type Sides = [bool; 2];

impl History {
    pub(super) fn new(
        base: &[Value],
        events: &[Event],
        readings: &[Reading],
        begun: Instant,
    ) -> Result<Self> {
        let mut world = World::new(State::NODE);
        let own = [Node::ADDRESS4, Node::GATEWAY4].map(IpAddr::V4);
        world.apply(Delta::HostAddresses(own.into_iter().collect()));
        for object in base {
            world.apply(read::object(object).delta.context("an object that says nothing")?);
        }
        let clock = Clock::new(readings, begun);
        let mut history = Self {
            worlds: vec![world.clone()],
            moments: Vec::new(),
            versions: HashMap::new(),
            addresses: HashMap::new(),
            earliest: Vec::new(),
            latest: Vec::new(),
        };
        for event in events {
            if history.follow(&mut world, &event.value)? {
                history.worlds.push(world.clone());
            }
            let place = history.worlds.len() - 1;
            let version = version(&event.value["object"])?;
            let (earliest, latest) = clock.bounds(version, event.told);
            history.versions.insert(version, history.moments.len());
            if let Some(pod) = super::rules::number(&event.value["object"])
                && event.value["object"]["status"]["podIP"].is_string()
            {
                history.addresses.entry(pod).or_insert(history.moments.len());
            }
            history.moments.push(Moment { place, earliest, latest });
        }
        history.earliest = running(history.moments.iter().map(|moment| (moment.earliest, moment.place)));
        history.latest = running(history.moments.iter().map(|moment| (moment.latest, moment.place)));
        Ok(history)
    }

    /// The event of a version.
    pub(super) fn of(&self, version: u64) -> Result<Moment> {
        let number = self.versions.get(&version);
        number
            .map(|n| self.moments[*n])
            .with_context(|| format!("the watch did not tell of version {version}"))
    }

    /// The event that told a pod's address.
    pub(super) fn address(&self, pod: usize) -> Option<Moment> {
        self.addresses.get(&pod).map(|n| self.moments[*n])
    }

    /// How many events there were.
    pub(super) fn events(&self) -> usize {
        self.moments.len()
    }

    /// The newest world that there may be at a moment.
    pub(super) fn newest(&self, at: Instant) -> usize {
        find(&self.earliest, at)
    }

    /// The newest world that there is for certain at a moment.
    pub(super) fn certain(&self, at: Instant) -> usize {
        find(&self.latest, at)
    }

    pub(super) fn judge(&self, place: usize, source: IpAddr, destination: IpAddr, port: u16) -> Sides {
        let query = Query { source, destination, protocol: UDP, port, from_node_process: false };
        let evaluation = oracle::verdicts(&self.worlds[place], &query);
        [evaluation.egress.allows(), evaluation.ingress.allows()]
    }

    /// Takes over an event; whether anything that counts is different.
    fn follow(&self, world: &mut World, event: &Value) -> Result<bool> {
        let object = &event["object"];
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
        match event["type"].as_str() {
            Some("ADDED" | "MODIFIED") => {
                Ok(world.apply(read::object(object).delta.context("an event that says nothing")?))
            }
            Some("DELETED") => {
                let key = ObjectKey::new(text("namespace"), text("name"));
                Ok(world.apply(Delta::PodGone { key, uid: text("uid").into() }))
            }
            other => anyhow::bail!("an event of type {other:?}: {event}"),
        }
    }
}

/// The version of an object, or of a list of them.
pub(super) fn version(object: &Value) -> Result<u64> {
    let text = object["metadata"]["resourceVersion"].as_str();
    text.and_then(|text| text.parse().ok()).with_context(|| format!("no version in {object}"))
}

/// Places in the order of their times, each with all before it.
fn running(places: impl Iterator<Item = (Instant, usize)>) -> Vec<(Instant, usize)> {
    let mut places: Vec<(Instant, usize)> = places.collect();
    places.sort_unstable();
    let mut most = 0;
    for (_, place) in &mut places {
        most = most.max(*place);
        *place = most;
    }
    places
}

fn find(places: &[(Instant, usize)], at: Instant) -> usize {
    let end = places.partition_point(|(time, _)| *time <= at);
    end.checked_sub(1).map_or(0, |last| places[last].1)
}

/// The server's versions as a clock.
struct Clock {
    /// By version: the latest request that was answered with this or less, and the earliest answer with this or more.
    readings: Vec<(u64, Instant, Instant)>,
    /// When the request was sent that made a version.
    made: HashMap<u64, Instant>,
    begun: Instant,
}

impl Clock {
    fn new(readings: &[Reading], begun: Instant) -> Self {
        let mut sorted = readings.to_vec();
        sorted.sort_unstable_by_key(|reading| reading.version);
        let made =
            sorted.iter().filter(|reading| reading.made).map(|made| (made.version, made.asked)).collect();
        let mut all: Vec<_> = sorted.iter().map(|read| (read.version, read.asked, read.answered)).collect();
        for n in 1..all.len() {
            all[n].1 = all[n].1.max(all[n - 1].1);
        }
        for n in (1..all.len()).rev() {
            all[n - 1].2 = all[n - 1].2.min(all[n].2);
        }
        Self { readings: all, made, begun }
    }

    /// Between which times the server made a version, that a watch told at a time.
    fn bounds(&self, version: u64, told: Instant) -> (Instant, Instant) {
        let at = self.readings.partition_point(|(known, ..)| *known < version);
        let before = at.checked_sub(1).map_or(self.begun, |last| self.readings[last].1);
        let before = self.made.get(&version).map_or(before, |asked| before.max(*asked));
        (before, self.readings.get(at).map_or(told, |(_, _, answered)| told.min(*answered)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn versions_are_a_clock() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let reading = |asked, answered, version, made| Reading {
            asked: at(asked),
            answered: at(answered),
            version,
            made,
        };
        let readings = [reading(20, 30, 7, true), reading(10, 35, 5, false), reading(60, 70, 7, false)];
        let clock = Clock::new(&readings, start);
        // Before anything was read, it is as old as the beginning; after all, as young as its telling.
        assert_eq!(clock.bounds(4, at(90)), (start, at(30)));
        assert_eq!(clock.bounds(8, at(90)), (at(60), at(90)));
        // Later than what was answered with 5, and there when 7 was told first.
        assert_eq!(clock.bounds(6, at(90)), (at(10), at(30)));
        assert_eq!(clock.bounds(7, at(25)), (at(20), at(25)));
    }

    #[test]
    fn a_later_world_holds_what_was_before() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let places = running([(at(5), 2), (at(1), 1), (at(9), 1)].into_iter());
        assert_eq!([0, 1, 4, 5, 20].map(|ms| find(&places, at(ms))), [0, 1, 1, 2, 2]);
    }
}
