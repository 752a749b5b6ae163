//! A simulated node: endpoints come and go, plans are written to tables in memory, and every write is checked.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use policy_common::abi::{Direction, EndpointWord, Outcome, ROW_CLOSED, action, host_flags};

use super::rng::Rng;
use super::samples::{Expected, Sample, expected};
use super::worlds;
use crate::desired::Endpoint;
use crate::limits::Limits;
use crate::mem::tables::MemTables;
use crate::model::{ObjectKey, ServiceMode};
use crate::plan::{Op, Plan};
use crate::planner::{Held, Planned, Planner, Refusal};
use crate::rule_ids::RuleIds;
use crate::tables::{Dump, Tables};
use crate::world::World;

/// The node.
#[derive(Clone, Debug)]
pub struct SimNode {
    /// The agent's half.
    pub planner: Planner,
    /// The kernel's half.
    pub kernel: MemTables,
    /// Hooked pods.
    pub endpoints: Vec<Endpoint>,
    /// Plans up to this number are collected.
    pub grace: u64,
    limits: Limits,
    next_id: u32,
    /// Number -> plan that took its last reference, by kind of number.
    lost: BTreeMap<(Kind, u32), u64>,
    /// Words that programs in flight may have read, with the plan that replaced them.
    replaced: Vec<(u16, EndpointWord, u64)>,
}

/// Numbers that must not be reused early.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Row,
    Set,
    Class,
    Slot,
}

impl SimNode {
    /// A node with empty tables.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            planner: Planner::new(limits, Tables::new(limits), RuleIds::default()),
            kernel: MemTables::new(limits),
            endpoints: Vec::new(),
            grace: 0,
            limits,
            next_id: 1,
            lost: BTreeMap::new(),
            replaced: Vec::new(),
        }
    }

    /// Hooks new local pods; gives up pods that are gone. Returns slots given up: they stay until [`SimNode::unhook`].
    ///
    /// # Errors
    /// A write that the kernel refuses.
    pub fn discover(&mut self, world: &World) -> Result<Vec<u16>, String> {
        let gone = |e: &Endpoint| {
            world.pods.get(&e.pod).is_none_or(|p| p.node.as_deref() != Some(&*world.node_name))
        };
        let given_up = self.endpoints.iter().filter(|e| gone(e)).map(|e| e.slot).collect();
        self.endpoints.retain(|e| !gone(e));
        let hooked: BTreeSet<ObjectKey> = self.endpoints.iter().map(|e| e.pod.clone()).collect();
        let new: Vec<ObjectKey> =
            world.local_pods().map(|p| p.key.clone()).filter(|key| !hooked.contains(key)).collect();
        for pod in new {
            let free = (1..).find(|s| self.kernel.endpoint(*s).is_none()).unwrap_or(u16::MAX);
            self.write(&Op::Endpoint { slot: free, word: Tables::new_endpoint_word() })?;
            self.endpoints.push(Endpoint { slot: free, id: self.next_id, pod });
            self.next_id += 1;
        }
        Ok(given_up)
    }

    /// Takes the programs off an interface whose pod is gone.
    pub fn unhook(&mut self, slot: u16) {
        let before = self.references();
        self.kernel.forget_endpoint(slot);
        let number = self.planner.tables.forget_endpoint(slot);
        self.note_losses(&before, number);
    }

    /// Plans for a world, writes, and checks the samples after every write.
    ///
    /// # Errors
    /// A write that the kernel refuses, a number used too early, a verdict of neither world.
    pub fn update(&mut self, world: &World, samples: &[Sample]) -> Result<Planned, String> {
        let planned = self.planner.plan(world, &self.endpoints);
        if planned.busy.is_none() {
            self.carry_out(&planned.plan, samples)?;
        }
        Ok(planned)
    }

    /// Lets the grace period of all plans so far pass and cleans up; no verdict may change.
    ///
    /// # Errors
    /// As [`SimNode::update`].
    pub fn collect(&mut self, samples: &[Sample]) -> Result<Plan, String> {
        self.collect_up_to(self.planner.tables.number(), samples)
    }

    /// Cleans up when the grace period is over for plans up to a number.
    ///
    /// # Errors
    /// As [`SimNode::update`].
    pub fn collect_up_to(&mut self, grace: u64, samples: &[Sample]) -> Result<Plan, String> {
        self.grace = self.grace.max(grace);
        self.replaced.retain(|(.., plan)| *plan > grace);
        let in_flight: Vec<_> = self.replaced.iter().map(|(slot, word, _)| (*slot, *word)).collect();
        let verdicts = |node: &Self| {
            let mut verdicts: Vec<Outcome> = samples.iter().map(|s| node.verdict(s)).collect();
            for (slot, word) in &in_flight {
                verdicts.extend(
                    samples.iter().filter(|s| s.slot == *slot).map(|s| judge(&node.kernel, *word, s)),
                );
            }
            verdicts
        };
        let before = verdicts(self);
        let plan = self.planner.collect(grace);
        let references = self.references();
        for op in &plan.ops {
            self.check_reuse(op, &references)?;
            self.write(op)?;
            if verdicts(self) != before {
                return Err(format!("collecting changes a verdict by {op:?}, grace {grace}"));
            }
        }
        self.note_losses(&references, plan.number);
        Ok(plan)
    }

    /// Collects until nothing waits.
    ///
    /// # Errors
    /// As [`SimNode::update`], or if it never ends.
    pub fn settle(&mut self, samples: &[Sample]) -> Result<(), String> {
        for _ in 0..8 {
            self.collect(samples)?;
            if self.planner.tables.is_settled() {
                return Ok(());
            }
        }
        Err("collecting does not come to an end".to_owned())
    }

    /// Plans for a world and is killed after so many writes.
    ///
    /// # Errors
    /// As [`SimNode::update`].
    pub fn interrupt(&mut self, world: &World, writes: usize) -> Result<(), String> {
        let plan = self.planner.plan(world, &self.endpoints).plan;
        let before = self.references();
        for op in plan.ops.iter().take(writes) {
            self.write(op)?;
        }
        self.note_losses(&before, plan.number);
        Ok(())
    }

    /// The agent starts anew from what the kernel holds, after a grace period.
    pub fn restart(&mut self) {
        self.grace = self.planner.tables.number();
        self.replaced.clear();
        let dump: Dump = self.kernel.dump(self.planner.tables.number());
        let tables = Tables::adopt(self.limits, &dump);
        self.planner = Planner::new(self.limits, tables, self.planner.rules.clone());
    }

    /// The agent finds that somebody else wrote to the tables, and goes on from what is there, after a grace period.
    pub fn read_back(&mut self) {
        self.grace = self.planner.tables.number();
        self.replaced.clear();
        let dump = self.kernel.dump(self.grace);
        self.planner.tables.readopt(&dump);
    }

    /// Somebody else puts elements into the tables: under no slot, under a slot that was never used, under another's.
    pub fn meddle(&mut self, rng: &mut Rng) {
        let slots: Vec<u32> = self.kernel.dump(0).hosts.iter().map(|(_, slot, _)| *slot).collect();
        let mut keys = Vec::new();
        for _ in 0..=rng.below(6) {
            let address = worlds::address(rng);
            let held = slots.get(rng.below(slots.len() + 1)).copied();
            let slot = [Some(0), Some(self.limits.host_info - 1), held][rng.below(3)].unwrap_or_default();
            let full = if address.is_ipv6() { 128 } else { 32 };
            let length =
                if rng.percent(50) { full } else { full - 1 - u8::try_from(rng.below(8)).unwrap_or(0) };
            keys.extend(IpNet::new(address, length).map(|prefix| (prefix.trunc(), slot)));
        }
        self.kernel.meddle(&keys);
    }

    /// Compares the tables with the evaluator.
    ///
    /// # Errors
    /// The first difference.
    pub fn check(&self, world: &World, samples: &[Sample]) -> Result<(), String> {
        for address in world.host_addresses.iter() {
            if self.kernel.classify(*address).flags & host_flags::OWN_NODE == 0 {
                return Err(format!("{address} is the node's own and does not say so"));
            }
        }
        let deferring = self.endpoints.iter().any(|e| {
            let word = self.kernel.endpoint(e.slot).unwrap_or_default();
            word.egress_row > ROW_CLOSED
        });
        let deferring = deferring && world.service_mode == ServiceMode::Tag;
        for (address, key) in
            world.frontends().filter(|(address, _)| deferring && !world.is_host_address(*address))
        {
            if self.kernel.classify(address).flags & host_flags::FRONTEND == 0 {
                return Err(format!("{address} is that of Service {key} and does not say so"));
            }
        }
        self.check_themselves(world)?;
        for sample in samples {
            let own = self.kernel.classify(sample.remote).flags & host_flags::OWN_NODE != 0;
            if own != world.is_host_address(sample.remote) {
                return Err(format!("{} is the node's own: {own}", sample.remote));
            }
            let Some(Expected::Tables(wanted)) =
                expected(world, &self.endpoints, &self.planner.rules, sample)
            else {
                continue;
            };
            let got = self.verdict(sample);
            if got != wanted {
                return Err(format!("{sample:?}: evaluator {}, tables {}", show(wanted), show(got)));
            }
        }
        Ok(())
    }

    /// Whose traffic to itself through a Service is judged must say so, and nobody else.
    fn check_themselves(&self, world: &World) -> Result<(), String> {
        let pods = self.endpoints.iter().filter_map(|endpoint| world.pods.get(&endpoint.pod));
        for pod in pods.filter(|pod| pod.is_subject()) {
            let labels = world.namespace_labels(&pod.key.namespace);
            let wanted = world.cluster_policies.values().any(|policy| policy.concerns(&labels, pod));
            let own = |address: &&IpAddr| {
                !world.is_host_address(**address)
                    && world.pod_at(**address).is_some_and(|at| at.key == pod.key)
            };
            for address in pod.addresses.iter().filter(own) {
                if (self.kernel.classify(*address).flags & host_flags::JUDGES_ITSELF != 0) != wanted {
                    return Err(format!("{address} of {} is judged by itself: {}", pod.key, !wanted));
                }
            }
        }
        Ok(())
    }

    /// As [`SimNode::check`], for the world as it is enforced while namespaces are held back.
    ///
    /// # Errors
    /// The first difference.
    pub fn check_held(&self, refusals: &[Refusal], samples: &[Sample]) -> Result<(), String> {
        let world = self.planner.enforced();
        let closed = |sample: &&Sample| {
            let pod = self.endpoints.iter().find(|e| e.slot == sample.slot).map(|e| &e.pod);
            refusals
                .iter()
                .any(|r| r.held == Held::Closed && pod.is_some_and(|pod| r.endpoints.contains(pod)))
        };
        let (closed, others): (Vec<&Sample>, Vec<&Sample>) = samples.iter().partition(closed);
        self.check(world, &others.into_iter().copied().collect::<Vec<_>>())?;
        for sample in closed {
            let isolated = match expected(world, &self.endpoints, &self.planner.rules, sample) {
                Some(Expected::Tables(outcome)) => outcome != Outcome::new(action::ALLOW, 0),
                Some(Expected::Path) | None => false,
            };
            if isolated && self.verdict(sample) != Outcome::DROP {
                return Err(format!("{sample:?} passes in a closed namespace"));
            }
        }
        Ok(())
    }

    /// What the tables decide.
    #[must_use]
    pub fn verdict(&self, sample: &Sample) -> Outcome {
        self.kernel.verdict(sample.slot, sample.direction, sample.remote, sample.protocol, sample.port)
    }

    fn carry_out(&mut self, plan: &Plan, samples: &[Sample]) -> Result<(), String> {
        let before = self.references();
        let words: BTreeMap<u16, EndpointWord> = self.kernel.dump(0).endpoints.into_iter().collect();
        let mut after = self.kernel.clone();
        after.apply_all(&plan.ops).map_err(|e| format!("plan {}: {e}", plan.number))?;
        // From the write on by which an address becomes the node's own, or ceases to be, the way of a packet decides. And
        // from that on by which traffic to the node itself is judged by its ports.
        let facts = host_flags::OWN_NODE | host_flags::NODE_PORTS;
        let own = |tables: &MemTables, a| tables.classify(a).flags & facts;
        let stays = |s: &&Sample| own(&self.kernel, s.remote) == own(&after, s.remote);
        let samples: Vec<Sample> = samples.iter().filter(stays).copied().collect();
        let old: Vec<Outcome> = samples.iter().map(|s| self.verdict(s)).collect();
        let bumped = |slot| self.kernel.endpoint(slot) != after.endpoint(slot);
        let new: Vec<Outcome> = samples
            .iter()
            .map(|s| after.verdict(s.slot, s.direction, s.remote, s.protocol, s.port))
            .collect();
        for ((sample, old), new) in samples.iter().zip(&old).zip(&new) {
            if old != new && !bumped(sample.slot) {
                return Err(format!("{sample:?} changes, the epoch of its endpoint does not"));
            }
        }
        for (index, op) in plan.ops.iter().enumerate() {
            self.check_reuse(op, &before)?;
            self.write(op)?;
            for ((sample, old), new) in samples.iter().zip(&old).zip(&new) {
                let now = self.verdict(sample);
                // From the new epoch on, flows remember what the tables say.
                let commits = matches!(op, Op::Endpoint { slot, .. } if *slot == sample.slot);
                if now != *new && (commits || now != *old) {
                    return Err(format!(
                        "plan {} after write {index} ({op:?}): {sample:?} is {}, was {}, shall be {}",
                        plan.number,
                        show(now),
                        show(*old),
                        show(*new),
                    ));
                }
                // A program that read the endpoint's word before the plan began.
                let Some(word) = words.get(&sample.slot) else { continue };
                let late = judge(&self.kernel, *word, sample);
                if late != *old && late != *new {
                    return Err(format!("write {index} ({op:?}): {sample:?} in flight is {}", show(late)));
                }
            }
        }
        for (slot, word) in words {
            if self.kernel.endpoint(slot) != Some(word) {
                self.replaced.push((slot, word, plan.number));
            }
        }
        self.note_losses(&before, plan.number);
        Ok(())
    }

    fn write(&mut self, op: &Op) -> Result<(), String> {
        self.kernel.apply(op).map_err(|e| format!("{op:?}: {e}"))
    }

    fn note_losses(&mut self, before: &BTreeSet<(Kind, u32)>, number: u64) {
        let now = self.references();
        for key in before.difference(&now) {
            self.lost.insert(*key, number);
        }
        self.lost.retain(|key, _| !now.contains(key));
    }

    /// Numbers that a packet could meet now.
    fn references(&self) -> BTreeSet<(Kind, u32)> {
        let dump = self.kernel.dump(0);
        let mut found = BTreeSet::new();
        let rows: BTreeMap<u16, &Vec<u16>> = dump.rows.iter().map(|(r, c)| (*r, c)).collect();
        for (_, word) in &dump.endpoints {
            for row in [Direction::Ingress, Direction::Egress].map(|d| EndpointWord::row(*word, d)) {
                if row > ROW_CLOSED {
                    found.insert((Kind::Row, u32::from(row)));
                    let cells = rows.get(&row).map_or(&[][..], |c| c);
                    found.extend(cells.iter().filter(|c| **c != 0).map(|c| (Kind::Set, u32::from(*c))));
                }
            }
        }
        let keys = dump.hosts.iter().map(|h| (h.1, h.2)).chain(dump.prefixes.iter().map(|p| (p.1, p.2)));
        for (slot, word) in keys {
            found.insert((Kind::Slot, slot));
            if word.class != 0 {
                found.insert((Kind::Class, u32::from(word.class)));
            }
        }
        found
    }

    /// A number may be written anew only when its last reference was gone before the grace period.
    fn check_reuse(&self, op: &Op, before: &BTreeSet<(Kind, u32)>) -> Result<(), String> {
        let key = match op {
            Op::Row { row, .. } => (Kind::Row, u32::from(*row)),
            Op::RuleSet { id, .. } => (Kind::Set, u32::from(*id)),
            Op::Cell { class, .. } => (Kind::Class, u32::from(*class)),
            Op::HostWord { slot, .. } => (Kind::Slot, *slot),
            Op::Intervals { .. }
            | Op::HostInsert { .. }
            | Op::HostRemove { .. }
            | Op::PrefixInsert { .. }
            | Op::PrefixRemove { .. }
            | Op::Endpoint { .. } => return Ok(()),
        };
        let moves = key.0 == Kind::Slot && self.references().contains(&key);
        if before.contains(&key) && !moves {
            return Err(format!("{op:?} writes what packets could meet when the plan began"));
        }
        match self.lost.get(&key) {
            Some(plan) if *plan > self.grace => {
                Err(format!("{op:?} reuses a number lost in plan {plan}, grace {}", self.grace))
            }
            Some(_) | None => Ok(()),
        }
    }
}

fn judge(kernel: &MemTables, word: EndpointWord, sample: &Sample) -> Outcome {
    kernel.judge(word, sample.direction, sample.remote, sample.protocol, sample.port)
}

fn show(outcome: Outcome) -> String {
    format!("{}/{}", outcome.action(), outcome.rule())
}
