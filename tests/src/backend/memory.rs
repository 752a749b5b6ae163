//! The datapath in memory as a back end: compiled tables under the code that the kernel object is made of.
//!
//! Every probe is a conversation, packet by packet, through the hooks of both ends.

use super::{
    evaluator::{deltas, new_world, own_address, place, query},
    exchange::{Conversations, Exchange, Speaker, deliver},
    objects::Objects,
    run::{Backend, Places, Seen, in_order},
};
use crate::{
    pkt::Packet,
    scenario::{Expected, Pair, Place, Port, SessionState, State, Translation, Translations, Where},
};
use anyhow::{Context, Result, ensure};
use policy_common::abi::{Direction, action, endpoint_config};
use policy_engine::{
    desired::Endpoint,
    limits::Limits,
    mem::{
        datapath::{MemDatapath, MemEndpoint, Way},
        tables::MemTables,
    },
    model::ServiceMode,
    planner::Planner,
    rule_ids::RuleIds,
    tables::Tables,
    verdict::Query,
    world::{Delta, World},
};
use std::{collections::BTreeMap, sync::Arc};

/// Name and UID of a pod: another pod of the name is another endpoint.
type PodId = (String, Arc<str>);

/// Interface through which everything comes that is neither a local pod nor the node.
const UPLINK: u32 = 1000;

/// Plans every change, applies it to tables in memory, and sends packets through hooks in memory.
#[derive(Debug)]
pub struct Memory {
    objects: Objects,
    world: World,
    planner: Planner,
    datapath: MemDatapath,
    endpoints: BTreeMap<PodId, Endpoint>,
    next_slot: u16,
    now: u32,
    translations: Translations,
    conversations: Conversations,
}

impl Memory {
    /// An empty cluster.
    pub fn new() -> Self {
        let limits = Limits { endpoints: 128, rows: 64, classes: 1024, ..Limits::default() };
        Self {
            objects: Objects::default(),
            world: new_world(),
            planner: Planner::new(limits, Tables::new(limits), RuleIds::default()),
            datapath: MemDatapath::new(MemTables::new(limits)),
            endpoints: BTreeMap::new(),
            next_slot: 1,
            now: 1,
            translations: Translations::default(),
            conversations: Conversations::default(),
        }
    }

    /// One endpoint for each local pod that has an address, as discovery would find them.
    fn refresh_endpoints(&mut self) {
        let pods = self.world.local_pods().filter(|pod| !pod.addresses.is_empty());
        let local: BTreeMap<PodId, _> =
            pods.map(|pod| ((pod.key.to_string(), pod.uid.clone()), pod.clone())).collect();
        let gone: Vec<PodId> = self.endpoints.keys().filter(|id| !local.contains_key(*id)).cloned().collect();
        for id in gone {
            if let Some(endpoint) = self.endpoints.remove(&id) {
                self.planner.tables.forget_endpoint(endpoint.slot);
                self.datapath.remove_endpoint(endpoint.slot);
            }
        }
        for (id, pod) in local {
            let next = &mut self.next_slot;
            let endpoint = self.endpoints.entry(id).or_insert_with(|| {
                *next += 1;
                Endpoint { slot: *next, id: u32::from(*next), pod: pod.key.clone() }
            });
            let made = MemEndpoint {
                id: endpoint.id,
                ifindex: endpoint.id,
                config: endpoint_config::ANTI_SPOOF,
                addresses: pod.addresses.clone(),
                ..MemEndpoint::default()
            };
            self.datapath.set_endpoint(endpoint.slot, made);
        }
    }

    fn slot(&self, place: &Place) -> Option<u16> {
        let of_pod =
            |((name, _), endpoint): (&PodId, &Endpoint)| (*name == place.name).then_some(endpoint.slot);
        if place.at == Where::Pod { self.endpoints.iter().find_map(of_pod) } else { None }
    }

    /// What the tables say of one side; `None` for a pod of another node, whose policies are not installed here.
    fn side(&self, place: &Place, direction: Direction, query: &Query) -> Option<bool> {
        let Some(slot) = self.slot(place) else {
            let is_pod_elsewhere = place.at == Where::Outside && !place.name.contains(':');
            return (!is_pod_elsewhere).then_some(true);
        };
        let remote = match direction {
            Direction::Ingress => query.source,
            Direction::Egress => query.destination,
        };
        let own_node = match direction {
            Direction::Ingress => query.from_node_process,
            Direction::Egress => self.world.is_host_address(remote),
        };
        let outcome = self.datapath.tables.verdict(slot, direction, remote, query.protocol, query.port);
        Some(own_node || outcome.action() == action::ALLOW)
    }

    /// Whether a packet passes the sender's hook and the receiver's.
    fn passes(&mut self, from: &Place, to: &Place, packet: &Packet) -> bool {
        self.passes_through(from, to, packet, packet)
    }

    /// The same for a packet that the node translates: as it is `sent`, and as it is `received`.
    fn passes_through(&mut self, from: &Place, to: &Place, sent: &Packet, received: &Packet) -> bool {
        let (sent, received) = (frame(sent), frame(received));
        let (mut tag, mut ingress_ifindex) = (0, if from.at == Where::Node { 0 } else { UPLINK });
        if let Some(slot) = self.slot(from) {
            let judged =
                self.datapath.judge_packet(slot, Direction::Egress, &Way::default(), &sent, self.now);
            if !judged.passes {
                return false;
            }
            (tag, ingress_ifindex) = (judged.tag, slot.into());
        }
        let way = Way { ingress_ifindex, socket: from.at == Where::Node, tag, vlan: false };
        match (self.slot(to), to.at) {
            (Some(slot), _) => {
                self.datapath.judge_packet(slot, Direction::Ingress, &way, &received, self.now).passes
            }
            // What the node delivers to itself leaves by no device.
            (None, Where::Node) => true,
            (None, Where::Pod | Where::Outside) => {
                self.datapath.judge_exit(UPLINK, &way, &received, self.now).passes
            }
        }
    }

    /// What becomes of a conversation with a Service, of which the node chooses the first backend.
    fn ask_service(
        &mut self,
        places: &Places,
        expected: &Expected,
        translation: &Translation,
        size: usize,
    ) -> Result<Seen> {
        let pair = &expected.pair;
        let outer = self.conversations.begin(places, pair, size)?;
        let Some(backend) = translation.backends.first() else {
            // The node refuses it, if the pod's hook does not.
            return Ok(Seen { allow: Some(false), ..Seen::default() });
        };
        let from = place(places, &pair.from)?.clone();
        let found = places.values().find(|place| place.ips.contains(&backend.ip()));
        let to = found.with_context(|| format!("nobody has {backend}"))?.clone();
        let hidden = translation.masquerade || to.name == from.name;
        let client = if hidden { own_address(backend.ip()) } else { outer.client };
        let port = Port { number: backend.port(), ..outer.port };
        let inner = Exchange { client, server: backend.ip(), port, ..outer.clone() };
        let packets = outer.opening().into_iter().zip(inner.opening());
        let passes = packets.into_iter().all(|((speaker, outer), (_, inner))| match speaker {
            Speaker::Client => self.passes_through(&from, &to, &outer, &inner),
            Speaker::Server => self.passes_through(&to, &from, &inner, &outer),
        });
        let allow = expected.on_the_wire(&from, &to).map(|wanted| (passes == wanted) == expected.allow);
        Ok(Seen { allow, ..Seen::default() })
    }

    fn send(&mut self, places: &Places, pair: &Pair, packets: &[(Speaker, Packet)]) -> Result<bool> {
        deliver(places, pair, packets, |from, to, packet| Ok(self.passes(from, to, packet)))
    }

    fn ask(&mut self, places: &Places, expected: &Expected, size: usize) -> Result<Seen> {
        let pair = &expected.pair;
        let (from, to) = (place(places, &pair.from)?.clone(), place(places, &pair.to)?.clone());
        let query = query(places, pair)?;
        let translated = self.translations.of(query.destination, pair.port);
        if let Some(translation) = translated {
            return self.ask_service(places, expected, &translation, size);
        }
        let egress = self.side(&from, Direction::Egress, &query);
        let ingress = self.side(&to, Direction::Ingress, &query);
        let exchange = self.conversations.begin(places, pair, size)?;
        let passes = self.send(places, pair, &exchange.opening())?;
        // Like a wire: it shows what the node under test enforces.
        let allow = expected.on_the_wire(&from, &to).map(|wanted| (passes == wanted) == expected.allow);
        Ok(Seen { allow, ingress, egress, ..Seen::default() })
    }
}

fn frame(packet: &Packet) -> Vec<u8> {
    packet.ethernet([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]).bytes
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Backend for Memory {
    fn judge_services(&mut self, mode: ServiceMode) -> Result<bool> {
        self.world.apply(Delta::ServiceMode(mode));
        Ok(true)
    }

    fn sync(&mut self, state: &State) -> Result<()> {
        self.translations = state.translations();
        for delta in deltas(&mut self.objects, state) {
            self.world.apply(delta);
        }
        self.refresh_endpoints();
        let endpoints: Vec<Endpoint> = self.endpoints.values().cloned().collect();
        let planned = self.planner.plan(&self.world, &endpoints);
        ensure!(planned.refusals.is_empty() && planned.busy.is_none(), "refused: {planned:?}");
        self.datapath.tables.apply_all(&planned.plan.ops)?;
        let grace = planned.plan.number;
        for _ in 0..3 {
            let plan = self.planner.collect(grace);
            self.datapath.tables.apply_all(&plan.ops)?;
        }
        self.now += 1;
        Ok(())
    }

    fn probe(&mut self, places: &Places, pairs: &[Expected], size: Option<usize>) -> Result<Vec<Seen>> {
        let mut seen = vec![Seen::default(); pairs.len()];
        for n in in_order(pairs).into_iter().flatten() {
            seen[n] = self.ask(places, &pairs[n], size.unwrap_or(8))?;
        }
        Ok(seen)
    }

    fn open(&mut self, places: &Places, id: &str, pair: &Pair) -> Result<bool> {
        let exchange = self.conversations.begin(places, pair, 8)?;
        let opened = self.send(places, pair, &exchange.opening())?;
        self.conversations.keep(id, pair, exchange);
        Ok(opened)
    }

    fn is_alive(&mut self, places: &Places, id: &str, _expected: SessionState) -> Result<bool> {
        let (pair, exchange) = self.conversations.kept(id)?;
        self.send(places, &pair, &exchange.continued())
    }
}
