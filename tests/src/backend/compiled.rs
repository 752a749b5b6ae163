//! The compiled tables in memory as a back end: what the kernel would look up for an opening packet.

use super::{
    evaluator::{deltas, new_world, query},
    objects::Objects,
    run::{Backend, Places, Seen},
};
use crate::scenario::{Expected, Pair, Place, SessionState, State, Where};
use anyhow::{Context, Result, ensure};
use policy_common::abi::{Direction, action};
use policy_engine::{
    desired::Endpoint, limits::Limits, mem::tables::MemTables, planner::Planner, rule_ids::RuleIds,
    tables::Tables, verdict::Query, world::World,
};
use std::{collections::BTreeMap, sync::Arc};

/// Name and UID of a pod: another sandbox of the name is another endpoint.
type PodId = (String, Arc<str>);

/// Plans every change and applies it to tables in memory, as an agent does to the kernel's.
#[derive(Debug)]
pub struct Compiled {
    objects: Objects,
    world: World,
    planner: Planner,
    kernel: MemTables,
    endpoints: BTreeMap<PodId, Endpoint>,
    next: u16,
    sessions: BTreeMap<String, Pair>,
}

impl Compiled {
    /// An empty cluster.
    pub fn new() -> Self {
        let limits = Limits { endpoints: 128, rows: 64, classes: 1024, ..Limits::default() };
        Self {
            objects: Objects::default(),
            world: new_world(),
            planner: Planner::new(limits, Tables::new(limits), RuleIds::default()),
            kernel: MemTables::new(limits),
            endpoints: BTreeMap::new(),
            next: 1,
            sessions: BTreeMap::new(),
        }
    }

    /// One endpoint for each local pod that has an address, as discovery would find them.
    fn refresh_endpoints(&mut self) {
        let pods = self.world.local_pods().filter(|pod| !pod.addresses.is_empty());
        let local: BTreeMap<PodId, _> =
            pods.map(|pod| ((pod.key.to_string(), pod.uid.clone()), pod.key.clone())).collect();
        let gone: Vec<PodId> = self.endpoints.keys().filter(|id| !local.contains_key(*id)).cloned().collect();
        for id in gone {
            if let Some(endpoint) = self.endpoints.remove(&id) {
                self.planner.tables.forget_endpoint(endpoint.slot);
                self.kernel.forget_endpoint(endpoint.slot);
            }
        }
        for (id, pod) in local {
            let next = &mut self.next;
            self.endpoints.entry(id).or_insert_with(|| {
                *next += 1;
                Endpoint { slot: *next, id: u32::from(*next), pod }
            });
        }
    }

    fn side(&self, place: &Place, direction: Direction, query: &Query) -> Option<bool> {
        if place.at != Where::Pod {
            // Nothing is enforced for others here: whoever is no pod of the cluster is free, a pod elsewhere unknown.
            return place.name.contains(':').then_some(true).or((place.at == Where::Node).then_some(true));
        }
        let remote = match direction {
            Direction::Ingress => query.source,
            Direction::Egress => query.destination,
        };
        let own_node = match direction {
            Direction::Ingress => query.from_node_process,
            Direction::Egress => self.world.is_host_address(remote),
        };
        let slot = self.endpoints.iter().find(|((name, _), _)| *name == place.name).map(|(_, e)| e.slot)?;
        let outcome = self.kernel.verdict(slot, direction, remote, query.protocol, query.port);
        Some(own_node || outcome.action() == action::ALLOW)
    }

    fn ask(&self, places: &Places, pair: &Pair) -> Result<Seen> {
        let query = query(places, pair)?;
        let place = |name: &str| places.get(name).with_context(|| format!("no place {name}"));
        let egress = self.side(place(&pair.from)?, Direction::Egress, &query);
        let ingress = self.side(place(&pair.to)?, Direction::Ingress, &query);
        Ok(Seen {
            allow: egress.zip(ingress).map(|(egress, ingress)| egress && ingress),
            ingress,
            egress,
            note: String::new(),
        })
    }
}

impl Default for Compiled {
    fn default() -> Self {
        Self::new()
    }
}

impl Backend for Compiled {
    fn sync(&mut self, state: &State) -> Result<()> {
        for delta in deltas(&mut self.objects, state) {
            self.world.apply(delta);
        }
        self.refresh_endpoints();
        let endpoints: Vec<Endpoint> = self.endpoints.values().cloned().collect();
        let planned = self.planner.plan(&self.world, &endpoints);
        ensure!(planned.refusals.is_empty() && planned.busy.is_none(), "refused: {planned:?}");
        self.kernel.apply_all(&planned.plan.ops)?;
        let grace = planned.plan.number;
        for _ in 0..3 {
            let plan = self.planner.collect(grace);
            self.kernel.apply_all(&plan.ops)?;
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

    fn is_alive(&mut self, places: &Places, id: &str, _expected: SessionState) -> Result<bool> {
        let pair = self.sessions.get(id).context("no such session")?;
        Ok(self.ask(places, pair)?.allow == Some(true))
    }
}
