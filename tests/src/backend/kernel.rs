//! The kernel programs as a back end: the product's maps and programs, packets by `BPF_PROG_TEST_RUN`.
//!
//! Every probe is a conversation, packet by packet, through the hooks of both ends. What the programs note on a packet
//! for the node's exits is not handed back by the kernel, so Services are none of its business.

use super::{
    evaluator::{address, deltas, new_world, place},
    exchange::{Conversations, Speaker, deliver},
    objects::Objects,
    run::{Backend, Places, Seen, in_order},
};
use crate::{
    pkt::Packet,
    scenario::{Case, Expected, Pair, Place, SessionState, State, Where},
    test_run::{From, TestRun},
};
use anyhow::{Result, bail, ensure};
use policy_common::abi::{Direction, endpoint_config, limits};
use policy_engine::{
    desired::Endpoint,
    limits::Limits,
    plan::{Op, Plan},
    planner::Planner,
    rule_ids::RuleIds,
    tables::Tables,
    world::World,
};
use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

/// Name and UID of a pod: another pod of the name is another endpoint.
type PodId = (String, Arc<str>);

/// How often a plan may ask for a clean-up before it is stuck.
const ROUNDS: usize = 8;

/// Plans every change, writes it into the kernel's maps, and shows packets to the kernel's programs.
pub struct Kernel {
    objects: Objects,
    world: World,
    planner: Planner,
    run: TestRun,
    endpoints: BTreeMap<PodId, (Endpoint, Vec<IpAddr>)>,
    next_slot: u16,
    next_id: u32,
    conversations: Conversations,
}

impl Kernel {
    /// An empty cluster on maps of its own; they go on drop.
    pub fn new() -> Result<Self> {
        let limits = Limits::default();
        Ok(Self {
            objects: Objects::default(),
            world: new_world(),
            planner: Planner::new(limits, Tables::new(limits), RuleIds::default()),
            run: TestRun::new()?,
            endpoints: BTreeMap::new(),
            next_slot: 1,
            next_id: 1,
            conversations: Conversations::default(),
        })
    }

    /// One endpoint for each local pod that has an address, as discovery would find them.
    fn refresh_endpoints(&mut self) -> Result<()> {
        let pods = self.world.local_pods().filter(|pod| !pod.addresses.is_empty());
        // An address that two pods claim is the winner's.
        let own = |ip: &&IpAddr, key| self.world.pod_at(**ip).is_some_and(|pod| pod.key == key);
        let local: BTreeMap<PodId, _> = pods
            .map(|pod| {
                let ips: Vec<IpAddr> =
                    pod.addresses.iter().filter(|ip| own(ip, pod.key.clone())).copied().collect();
                ((pod.key.to_string(), pod.uid.clone()), (pod.key.clone(), ips))
            })
            .collect();
        let gone: Vec<PodId> = self.endpoints.keys().filter(|id| !local.contains_key(*id)).cloned().collect();
        self.remove(&gone)?;
        for (id, (pod, ips)) in local {
            if let Some((endpoint, known)) = self.endpoints.get_mut(&id) {
                if *known != ips {
                    self.run.kernel.datapath.executor.set_addresses(endpoint.slot, &ips)?;
                    *known = ips;
                }
                continue;
            }
            let slot = self.free_slot()?;
            self.run.add_endpoint_as(slot, self.next_id, &ips, endpoint_config::ANTI_SPOOF)?;
            self.write(vec![Op::Endpoint { slot, word: Tables::new_endpoint_word() }])?;
            self.endpoints.insert(id, (Endpoint { slot, id: self.next_id, pod }, ips));
            self.next_id += 1;
        }
        Ok(())
    }

    fn free_slot(&mut self) -> Result<u16> {
        for _ in 0..limits::ENDPOINTS {
            let slot = self.next_slot;
            self.next_slot = if u32::from(slot) + 1 < limits::ENDPOINTS { slot + 1 } else { 1 };
            if self.endpoints.values().all(|(endpoint, _)| endpoint.slot != slot) {
                return Ok(slot);
            }
        }
        bail!("all {} slots are taken", limits::ENDPOINTS)
    }

    fn remove(&mut self, gone: &[PodId]) -> Result<()> {
        let removed = gone.iter().filter_map(|id| self.endpoints.remove(id));
        let slots: Vec<u16> = removed.map(|(endpoint, _)| endpoint.slot).collect();
        if slots.is_empty() {
            return Ok(());
        }
        self.run.kernel.datapath.executor.remove_endpoints(&slots)?.run()?;
        for slot in slots {
            self.planner.tables.forget_endpoint(slot);
        }
        Ok(())
    }

    fn write(&mut self, ops: Vec<Op>) -> Result<()> {
        Ok(self.run.kernel.datapath.executor.apply(&Plan { number: 0, ops })?)
    }

    fn collect(&mut self) -> Result<()> {
        self.run.kernel.datapath.executor.grace().wait()?;
        let plan = self.planner.collect(u64::MAX);
        Ok(self.run.kernel.datapath.executor.apply(&plan)?)
    }

    fn slot(&self, place: &Place) -> Option<u16> {
        let mut endpoints = self.endpoints.iter();
        let found = endpoints.find_map(|((name, _), (e, _))| (*name == place.name).then_some(e.slot));
        if place.at == Where::Pod { found } else { None }
    }

    /// Whether a packet passes the sender's hook and the receiver's.
    fn passes(&self, from: &Place, to: &Place, packet: &Packet) -> Result<bool> {
        let frame = packet.ethernet([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]).bytes;
        if let Some(slot) = self.slot(from)
            && !self.run.passes_from(slot, Direction::Egress, From::Elsewhere, &frame)?
        {
            return Ok(false);
        }
        let Some(slot) = self.slot(to) else { return Ok(true) };
        let way = if from.at == Where::Node { From::Node } else { From::Elsewhere };
        self.run.passes_from(slot, Direction::Ingress, way, &frame)
    }

    fn deliver(&self, places: &Places, pair: &Pair, packets: &[(Speaker, Packet)]) -> Result<bool> {
        deliver(places, pair, packets, |from, to, packet| self.passes(from, to, packet))
    }

    fn ask(&mut self, places: &Places, expected: &Expected, size: usize) -> Result<Seen> {
        let pair = &expected.pair;
        let (from, to) = (place(places, &pair.from)?, place(places, &pair.to)?);
        // Without the way of a packet each seems to come from the node's own processes.
        if !self.run.tells_interface() && self.world.is_host_address(address(from, pair.family)?) {
            return Ok(Seen::default());
        }
        let exchange = self.conversations.begin(places, pair, size)?;
        let passes = self.deliver(places, pair, &exchange.opening())?;
        // Like a wire: it shows what the node under test enforces.
        let allow = expected.on_the_wire(from, to).map(|wanted| (passes == wanted) == expected.allow);
        Ok(Seen { allow, ..Seen::default() })
    }
}

impl Backend for Kernel {
    /// Flows of the last scenario go with its endpoints.
    fn begin(&mut self, _case: &Case) -> Result<()> {
        self.conversations.forget();
        let all: Vec<PodId> = self.endpoints.keys().cloned().collect();
        self.remove(&all)
    }

    fn sync(&mut self, state: &State) -> Result<()> {
        for delta in deltas(&mut self.objects, state) {
            self.world.apply(delta);
        }
        self.refresh_endpoints()?;
        let endpoints: Vec<Endpoint> =
            self.endpoints.values().map(|(endpoint, _)| endpoint.clone()).collect();
        for _ in 0..ROUNDS {
            let planned = self.planner.plan(&self.world, &endpoints);
            self.run.kernel.datapath.executor.apply(&planned.plan)?;
            self.collect()?;
            if planned.busy.is_none() {
                ensure!(planned.refusals.is_empty(), "refused: {:?}", planned.refusals);
                return Ok(());
            }
        }
        bail!("a table stays busy")
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
        let opened = self.deliver(places, pair, &exchange.opening())?;
        self.conversations.keep(id, pair, exchange);
        Ok(opened)
    }

    fn is_alive(&mut self, places: &Places, id: &str, _expected: SessionState) -> Result<bool> {
        let (pair, exchange) = self.conversations.kept(id)?;
        self.deliver(places, &pair, &exchange.continued())
    }
}
