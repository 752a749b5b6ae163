//! The synchronous heart: takes in what happened, makes the kernel enforce it, tells what is enforced.
//!
//! ```text
//! batch -> World -> places of pods -> endpoints (closed first) -> Planner (compile, plan) -> history -> apply -> hooks
//! ```
//! It never waits for a grace period: what needs one goes to the background and comes back as an input.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use policy_engine::limits::Limits;
use policy_engine::plan::Plan;
use policy_engine::planner::{Planned, Planner, Refusal};
use policy_engine::rule_ids::RuleIds;
use policy_engine::tables::Tables;
use policy_engine::verdict::RuleRef;
use policy_engine::world::{Delta, World};

use super::background::{Background, Work};
use super::batch::Batch;
use super::check::Checker;
use super::claims::{Claim, Claims};
use super::exits::Exits;
use super::guard::Guards;
use super::hooking::Hooking;
use super::kernel::Kernel;
use super::looking::Looking;
use super::placement::{NetnsLinks, Place};
use super::retry::Retry;
use super::spares::Spares;
use super::table::Table;
use super::tags::{Prober, Tags};
use super::view::Tally;
use super::workloads::Workloads;
use crate::cli::ServicesArg;
use crate::datapath;
use crate::events::{Bus, EndpointState, Generation, History, Now};
use crate::netlink::Interfaces;
use crate::source::SourceState;
use crate::source::objects::Located;
use crate::state::{Saved, Store};

/// What the core is made of.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) kernel: Arc<Kernel>,
    pub(super) history: Arc<Mutex<History>>,
    pub(super) bus: Arc<Bus>,
    pub(super) background: Background,
    pub(super) spares: Spares,
    /// The store has filled up since endpoints waited for it.
    pub(super) stocked: bool,
    pub(super) hooking: Hooking,
    pub(super) prober: Prober,
    pub(super) looking: Looking,
    pub(super) store: Store,
    /// Configuration bits of endpoints.
    pub(super) bits: u16,
    /// What the sources say.
    pub(super) world: World,
    pub(super) planner: Planner,
    pub(super) saved: Saved,
    /// Changes of the rules' numbers, and the next endpoint's id, when `saved` was found to be all.
    saved_at: Option<(u64, u32)>,
    pub(super) table: Table,
    pub(super) exits: Exits,
    /// How traffic to Services is judged.
    pub(super) tags: Tags,
    pub(super) interfaces: Interfaces,
    pub(super) netns: NetnsLinks,
    pub(super) workloads: Workloads,
    pub(super) places: BTreeMap<policy_engine::model::ObjectKey, Place>,
    pub(super) claims: Claims,
    pub(super) guards: Guards,
    /// Interfaces of pods that are not known yet are closed until they are.
    pub(super) guarding: bool,
    pub(super) problems: Vec<Located>,
    pub(super) refused: Vec<Refusal>,
    /// Why the kernel does not hold what it should, and when to try again.
    pub(super) degraded: Option<String>,
    pub(super) retry: Retry,
    /// Why the interfaces could not be looked at the last time.
    pub(super) blind: Option<String>,
    /// When to look, and to try to hook what could not be hooked, again. Apart from the writes: an interface that cannot
    /// be hooked for long must not keep them waiting.
    pub(super) rehook: Retry,
    /// Since when a look at all hooks is due.
    pub(super) check_wanted: Option<Instant>,
    /// The world changed, or a plan could not be made yet.
    pub(super) stale: bool,
    /// Since when the oldest change is not in the kernel.
    pub(super) since: Option<Instant>,
    /// How the source is doing.
    pub(super) source: SourceState,
    /// The source has told everything once.
    pub(super) told: bool,
    /// The first complete set of objects was read and applied.
    pub(super) synced: bool,
    pub(super) tally: Tally,
    pub(super) checker: Checker,
    /// Pins of maps that this build does not use are gone.
    tidy: bool,
    /// Why the state is not on disk.
    pub(super) unsaved: Option<String>,
    /// Rules with their numbers, sorted by rule.
    pub(super) rules: Arc<Vec<(RuleRef, u32)>>,
}

impl Core {
    /// A core over a loaded datapath that holds what an earlier agent left.
    ///
    /// # Errors
    /// The maps cannot be read.
    pub(super) fn new(parts: Parts, saved: Saved) -> datapath::Result<Self> {
        let Parts {
            kernel,
            history,
            bus,
            background,
            spares,
            hooking,
            prober,
            looking,
            store,
            bits,
            workloads,
            guarding,
            self_check,
            node,
            services,
        } = parts;
        let (live, dump, next, switches) = {
            let executor = kernel.read();
            let next = executor.meta(policy_common::abi::meta_words::NEXT_ENDPOINT)?;
            let switches = executor.meta(policy_common::abi::meta_words::FLAGS)?;
            (executor.endpoints()?, executor.dump()?, u32::try_from(next).unwrap_or(u32::MAX), switches)
        };
        let limits = Limits::default();
        let mut world = World::new(&node);
        world.apply(Delta::ServiceMode(Tags::first(services, switches)));
        Ok(Self {
            kernel,
            history,
            bus,
            background,
            spares,
            stocked: true,
            hooking,
            prober,
            looking,
            store,
            bits,
            world,
            planner: Planner::new(limits, Tables::adopt(limits, &dump), saved.rules.clone()),
            table: Table::adopt(&live, next.max(saved.next_endpoint)),
            exits: Exits::new(),
            tags: Tags::new(services, switches),
            interfaces: Interfaces::default(),
            netns: NetnsLinks::new(),
            workloads,
            places: BTreeMap::new(),
            claims: Claims::default(),
            guards: Guards::default(),
            guarding,
            problems: Vec::new(),
            refused: Vec::new(),
            degraded: None,
            retry: Retry::default(),
            blind: None,
            rehook: Retry::default(),
            check_wanted: None,
            stale: true,
            since: None,
            source: SourceState::default(),
            told: false,
            synced: false,
            tally: Tally::default(),
            checker: Checker::new(self_check, Instant::now()),
            tidy: false,
            unsaved: None,
            rules: rules(&saved.rules),
            saved,
            saved_at: None,
        })
    }

    /// Takes in a batch and makes the kernel enforce it.
    pub(super) fn handle(&mut self, batch: Batch) {
        let Batch {
            updates,
            since,
            source,
            network,
            claims,
            passed,
            stocked,
            hooked,
            probed,
            looked,
            check_hooks,
        } = batch;
        let now = Instant::now();
        if let Some(source) = source {
            self.source = source;
        }
        if let Some((number, slots)) = passed {
            self.freed(number, &slots);
        }
        self.stocked &= stocked.unwrap_or(true);
        self.hooked(hooked);
        self.probed(probed);
        self.since = self.since.or(since);
        let news = !updates.is_empty();
        for update in updates {
            for delta in update.deltas {
                let delta = self.claims.pass(self.workloads.pass(&self.world.node_name, delta));
                self.stale |= self.world.apply(delta);
            }
            self.problems = update.problems;
        }
        self.claim(claims, now);
        // Nothing is judged, and above all nothing removed, before the source has told all that it has.
        self.told |= news;
        let (due, again) = (self.retry.due(now), self.rehook.due(now));
        let seen = looked.is_some();
        self.look(looked, network, now);
        if !self.told {
            return self.hold(seen, now);
        }
        let first = !self.synced;
        // Pods that cannot be found must not be taken for pods that are gone.
        if first && (self.blind.is_some() || !self.can_place()) {
            return;
        }
        self.place(first);
        self.synced = true;
        if self.degraded.is_some() && !due {
            return;
        }
        if self.degraded.take().is_some()
            && let Err(error) = self.read_back()
        {
            return self.fail(format!("read the maps back: {error}"));
        }
        self.follow(first, now);
        // Before anything is left to be judged there.
        let check = self.may_check(first || check_hooks || due || again, now);
        self.follow_exits(first, check);
        if self.stale {
            self.enforce();
        }
        self.since = self.since.filter(|_| self.stale);
        self.hook_all(check);
        self.follow_tags(check_hooks);
        self.stock();
        if self.degraded.is_none() {
            self.retry.succeeded();
            self.tidy_up();
        }
        let exits = self.exits.values().all(|exit| exit.failure.is_none());
        if self.blind.is_none() && exits && self.table.iter().all(|local| local.failure.is_none()) {
            self.rehook.succeeded();
        }
    }

    /// Plans up to this number, and these slots, are out of every program's sight.
    fn freed(&mut self, number: u64, slots: &[u16]) {
        self.table.freed(slots);
        self.collect(number);
        // There may be room now.
        self.stale |= !self.refused.is_empty();
    }

    /// When to call [`Core::handle`] again even if nothing happens.
    #[must_use]
    pub(super) fn again_at(&self) -> Option<Instant> {
        // What is being hooked tells of itself.
        let rehook = self.rehook.at().filter(|_| !self.table.is_attaching());
        let turns = [self.retry.at(), rehook, self.checker.next()];
        [self.guards.next(), self.claims.next(), self.next_exit()].into_iter().chain(turns).flatten().min()
    }

    fn claim(&mut self, claims: Vec<Claim>, now: Instant) {
        for claim in claims {
            tracing::info!(pod = %claim.pod, addresses = ?claim.addresses, "a container runtime starts a pod");
            let told = self.world.pods.get(&claim.pod).cloned();
            let delta = self.claims.put(claim, told.as_deref(), now);
            self.stale |= delta.is_some_and(|delta| self.world.apply(delta));
        }
        for delta in self.claims.expire(now) {
            self.stale |= self.world.apply(delta);
        }
    }

    /// Compiles and applies.
    pub(super) fn enforce(&mut self) {
        let start = Instant::now();
        let Planned { plan, refusals, busy } = self.planner.plan(&self.world, &self.table.desired());
        if let Some(table) = busy {
            if self.planner.tables.is_settled() {
                return self.fail(format!("the table of {table} is full; what was enforced stays"));
            }
            tracing::debug!("{table} in quarantine are needed: again after the grace period");
            return self.settle();
        }
        for refusal in refusals.iter().filter(|r| !self.refused.contains(r)) {
            tracing::error!("{}", super::view::refusal_text(refusal));
        }
        self.refused = refusals;
        self.save();
        self.remember(plan.number);
        match self.apply(&plan) {
            Ok(()) => {
                self.stale = false;
                self.tally.planned(start.elapsed(), self.since.take().map(|since| since.elapsed()), &plan);
                tracing::debug!(plan = plan.number, writes = plan.ops.len(), took = ?start.elapsed(), "enforced");
            }
            Err(error) => self.fail(format!("write to the kernel: {}", crate::cli::chain(&error))),
        }
        self.settle();
    }

    fn apply(&mut self, plan: &Plan) -> datapath::Result<()> {
        if plan.is_empty() {
            return Ok(());
        }
        self.kernel.write().apply(plan)
    }

    fn collect(&mut self, number: u64) {
        if self.degraded.is_some() {
            return;
        }
        let plan = self.planner.tables.collect(number);
        if plan.is_empty() {
            return;
        }
        self.remember(plan.number);
        match self.apply(&plan) {
            Ok(()) => {
                self.tally.collected(&plan);
                self.settle();
            }
            Err(error) => self.fail(format!("write to the kernel: {}", crate::cli::chain(&error))),
        }
    }

    /// What waits for a grace period goes to the background.
    fn settle(&self) {
        if !self.planner.tables.is_settled() {
            self.background.send(Work { upto: self.planner.tables.number(), retirements: Vec::new() });
        }
    }

    /// Records of packets are explained by the world that judged them: it must be known before the first write.
    pub(super) fn remember(&self, plan: u64) {
        let state = |local: &super::table::Local| {
            let pod = local.pod.clone()?;
            let epoch = self.planner.tables.endpoint(local.slot).unwrap_or(Tables::new_endpoint_word()).epoch;
            Some((
                local.slot,
                EndpointState { id: local.id, epoch, pod, interface: local.interface.as_str().into() },
            ))
        };
        let generation = Generation {
            plan,
            since: Now::read().map_or(0, |now| now.monotonic),
            world: Arc::new(self.planner.enforced().clone()),
            endpoints: self.table.iter().filter_map(state).collect(),
        };
        self.history.lock().unwrap_or_else(PoisonError::into_inner).push(generation);
    }

    /// Once everything is judged by our own programs, maps that only an agent of another build knows are of no use.
    fn tidy_up(&mut self) {
        if self.tidy || self.stale || !self.table.iter().all(|local| local.hooked) {
            return;
        }
        self.tidy = true;
        match self.kernel.read().pins().remove_stale_maps() {
            Ok(removed) if removed.is_empty() => {}
            Ok(removed) => tracing::info!(maps = removed.join(" "), "maps of another build are unpinned"),
            Err(error) => tracing::warn!("maps of another build stay pinned: {}", crate::cli::chain(&error)),
        }
    }

    /// After a failed write only the maps themselves tell what the kernel holds.
    fn read_back(&mut self) -> datapath::Result<()> {
        // What no plan covers may be what stood in the way.
        self.mend_ledger()?;
        let dump = self.kernel.read().dump()?;
        self.planner.tables.readopt(&dump);
        self.stale = true;
        Ok(())
    }

    /// Numbers of rules must be on disk before the kernel holds them.
    pub(super) fn save(&mut self) {
        let now = (self.planner.rules.changes(), self.table.next_id());
        // To compare them takes as long as the rest of a change where there are thousands.
        if self.saved_at == Some(now) {
            return;
        }
        let saved = Saved { rules: self.planner.rules.clone(), next_endpoint: self.table.next_id() };
        if saved == self.saved {
            self.saved_at = Some(now);
            return;
        }
        self.rules = rules(&self.planner.rules);
        match self.store.save(&saved) {
            Ok(()) => (self.saved, self.unsaved, self.saved_at) = (saved, None, Some(now)),
            Err(error) => {
                let text = format!(
                    "the state cannot be saved: {error}: policies are enforced, but after a restart rules may be named \
                     wrongly"
                );
                if self.unsaved.as_ref() != Some(&text) {
                    tracing::error!("{text}");
                }
                self.unsaved = Some(text);
            }
        }
    }

    pub(super) fn fail(&mut self, message: String) {
        self.retry.failed(Instant::now());
        if self.degraded.as_ref() != Some(&message) {
            tracing::error!("{message}");
        }
        self.stale = true;
        self.tally.failures += 1;
        self.degraded = Some(message);
    }
}

fn rules(ids: &RuleIds) -> Arc<Vec<(RuleRef, u32)>> {
    let mut rules: Vec<_> = ids.in_use().map(|(id, rule)| (rule.clone(), id)).collect();
    rules.sort_unstable();
    Arc::new(rules)
}

/// What a core is made from.
#[derive(Debug)]
pub(super) struct Parts {
    /// Maps and hooks.
    pub kernel: Arc<Kernel>,
    /// Where worlds are remembered for events.
    pub history: Arc<Mutex<History>>,
    /// Where events go.
    pub bus: Arc<Bus>,
    /// Where grace periods are waited for.
    pub background: Background,
    /// Where flow maps are made before pods need them.
    pub spares: Spares,
    /// Where interfaces are hooked.
    pub hooking: Hooking,
    /// Where tags are probed.
    pub prober: Prober,
    /// Where interfaces are looked at.
    pub looking: Looking,
    /// State directory.
    pub store: Store,
    /// Configuration bits of endpoints.
    pub bits: u16,
    /// Control groups.
    pub workloads: Workloads,
    /// Interfaces of pods that are not known yet are closed until they are.
    pub guarding: bool,
    /// How often everything in the kernel is checked, if at all.
    pub self_check: Option<std::time::Duration>,
    /// Name of the node.
    pub node: String,
    /// How traffic to Services is to be judged.
    pub services: ServicesArg,
}
