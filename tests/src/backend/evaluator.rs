//! The reference evaluator as a back end: what the API's words say.

use super::{
    objects::{Change, Objects},
    run::{Backend, Places, Seen},
};
use crate::{
    net::{Family, Node},
    scenario::{Expected, Pair, Place, SessionState, State, Translation, Translations, Where},
};
use anyhow::{Context, Result, ensure};
use policy_engine::{
    model::{ObjectKey, ServiceMode},
    oracle, read, services,
    verdict::Query,
    world::{Delta, World},
};
use std::{collections::BTreeMap, net::IpAddr};

/// Holds a world and asks the evaluator about it.
#[derive(Debug)]
pub struct Evaluator {
    objects: Objects,
    world: World,
    translations: Translations,
    sessions: BTreeMap<String, Pair>,
}

impl Evaluator {
    /// An empty cluster.
    pub fn new() -> Self {
        Self {
            objects: Objects::default(),
            world: new_world(),
            translations: Translations::default(),
            sessions: BTreeMap::new(),
        }
    }

    fn ask(&self, places: &Places, pair: &Pair) -> Result<Seen> {
        let query = query(places, pair)?;
        let translated = self.translations.of(query.destination, pair.port);
        if let Some(translation) = translated {
            return self.ask_service(place(places, &pair.from)?, &query, &translation);
        }
        let evaluation = oracle::verdicts(&self.world, &query);
        Ok(Seen {
            allow: Some(evaluation.allows()),
            ingress: Some(evaluation.ingress.allows()),
            egress: Some(evaluation.egress.allows()),
            ..Seen::default()
        })
    }
}

impl Evaluator {
    /// The verdict on all that the node may turn the destination into; an error where it depends on what it chooses.
    fn ask_service(&self, from: &Place, query: &Query, translation: &Translation) -> Result<Seen> {
        let mut found: Option<(bool, bool)> = None;
        // Nobody answers for a Service without backends, whatever policy says.
        let mut seen = Seen { allow: Some(false), ..Seen::default() };
        for backend in &translation.backends {
            let behind = services::towards(query, (backend.ip(), backend.port()));
            let judged = match self.world.service_mode {
                ServiceMode::Tag => &behind,
                ServiceMode::Backends => query,
            };
            let egress = oracle::through_service(&self.world, judged).egress.allows();
            let hidden = translation.masquerade && from.at == Where::Outside;
            let source = if hidden { own_address(backend.ip()) } else { query.source };
            let ingress = oracle::through_service(&self.world, &Query { source, ..behind }).ingress.allows();
            ensure!(
                found.is_none_or(|known| known == (egress, ingress)),
                "{backend} is judged unlike the others"
            );
            found = Some((egress, ingress));
        }
        if let Some((egress, ingress)) = found {
            seen = Seen {
                allow: Some(egress && ingress),
                ingress: Some(ingress),
                egress: Some(egress),
                ..Seen::default()
            };
        }
        Ok(seen)
    }
}

/// The address by which the node speaks to its pods, in the same family: that is what masquerading gives a packet.
pub(super) fn own_address(like: IpAddr) -> IpAddr {
    if like.is_ipv4() { Node::GATEWAY4.into() } else { Node::GATEWAY6.into() }
}

impl Default for Evaluator {
    fn default() -> Self {
        Self::new()
    }
}

impl Backend for Evaluator {
    fn judge_services(&mut self, mode: ServiceMode) -> Result<bool> {
        self.world.apply(Delta::ServiceMode(mode));
        Ok(true)
    }

    fn sync(&mut self, state: &State) -> Result<()> {
        self.translations = state.translations();
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
        "ClusterNetworkPolicy" => Some(Delta::ClusterPolicyGone(name.into())),
        "Service" => Some(Delta::ServiceGone(key)),
        "EndpointSlice" => Some(Delta::EndpointSliceGone(key)),
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
