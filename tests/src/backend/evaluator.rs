//! The reference evaluator as a back end: what the API's words say.

use super::{
    objects::{Change, Objects},
    run::{Backend, Places, Seen},
};
use crate::{
    net::{Family, Node},
    scenario::{Expected, Pair, Place, SessionState, State, Where},
};
use anyhow::{Context, Result};
use policy_engine::{
    model::ObjectKey,
    oracle, read,
    verdict::Query,
    world::{Delta, World},
};
use std::{collections::BTreeMap, net::IpAddr};

/// Holds a world and asks the evaluator about it.
#[derive(Debug)]
pub struct Evaluator {
    objects: Objects,
    world: World,
    sessions: BTreeMap<String, Pair>,
}

impl Evaluator {
    /// An empty cluster.
    pub fn new() -> Self {
        Self { objects: Objects::default(), world: new_world(), sessions: BTreeMap::new() }
    }

    fn ask(&self, places: &Places, pair: &Pair) -> Result<Seen> {
        let evaluation = oracle::verdicts(&self.world, &query(places, pair)?);
        Ok(Seen {
            allow: Some(evaluation.allows()),
            ingress: Some(evaluation.ingress.allows()),
            egress: Some(evaluation.egress.allows()),
            note: String::new(),
        })
    }
}

impl Default for Evaluator {
    fn default() -> Self {
        Self::new()
    }
}

impl Backend for Evaluator {
    fn sync(&mut self, state: &State) -> Result<()> {
        for delta in deltas(&mut self.objects, state) {
            self.world.apply(delta);
        }
        Ok(())
    }

    fn probe(&mut self, places: &Places, pairs: &[Expected], _size: Option<usize>) -> Result<Vec<Seen>> {
        pairs.iter().map(|expected| self.ask(places, &expected.pair)).collect()
    }

    fn open(&mut self, places: &Places, id: &str, pair: &Pair) -> Result<bool> {
        self.sessions.insert(id.to_owned(), pair.clone());
        Ok(self.ask(places, pair)?.allow == Some(true))
    }

    /// A connection lives as long as the policy of the moment would let its opener open it.
    fn is_alive(&mut self, places: &Places, id: &str, _expected: SessionState) -> Result<bool> {
        let pair = self.sessions.get(id).context("no such session")?;
        Ok(self.ask(places, pair)?.allow == Some(true))
    }
}

/// The changes of the world that bring it to `state`.
pub(crate) fn deltas(objects: &mut Objects, state: &State) -> Vec<Delta> {
    let changes = objects.update(state).into_iter();
    changes
        .filter_map(|change| match change {
            Change::Put(_, object) => read::object(&object).delta,
            Change::Gone((kind, namespace, name), object) => gone(&kind, &namespace, &name, &object),
        })
        .collect()
}

fn gone(kind: &str, namespace: &str, name: &str, object: &serde_json::Value) -> Option<Delta> {
    let key = ObjectKey::new(if namespace.is_empty() { "default" } else { namespace }, name);
    match kind {
        "Namespace" => Some(Delta::NamespaceGone(name.into())),
        "Node" => Some(Delta::NodeGone(name.into())),
        "Pod" => {
            let uid = object.pointer("/metadata/uid").and_then(serde_json::Value::as_str).unwrap_or_default();
            Some(Delta::PodGone { key, uid: uid.into() })
        }
        "NetworkPolicy" => Some(Delta::PolicyGone(key)),
        "Service" => Some(Delta::ServiceGone(key)),
        _ => None,
    }
}

/// A world seen from the node under test, with the addresses that it has in every topology.
pub(crate) fn new_world() -> World {
    let mut world = World::new(State::NODE);
    let v4 = [Node::ADDRESS4, Node::GATEWAY4].map(IpAddr::V4);
    let v6 = [Node::ADDRESS6, Node::GATEWAY6].map(IpAddr::V6);
    world.apply(Delta::HostAddresses(v4.into_iter().chain(v6).collect()));
    world
}

/// The opening packet of a pair.
pub(crate) fn query(places: &Places, pair: &Pair) -> Result<Query> {
    let (from, to) = (place(places, &pair.from)?, place(places, &pair.to)?);
    Ok(Query {
        source: address(from, pair.family)?,
        destination: address(to, pair.family)?,
        protocol: pair.port.transport.number(pair.family),
        port: pair.port.number,
        from_node_process: from.at == Where::Node,
    })
}

pub(super) fn place<'a>(places: &'a Places, name: &str) -> Result<&'a Place> {
    places.get(name).with_context(|| format!("no place {name}"))
}

pub(super) fn address(place: &Place, family: Family) -> Result<IpAddr> {
    place.ip(family).with_context(|| format!("{} has no address of {family:?}", place.name))
}
