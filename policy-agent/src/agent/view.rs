//! What is enforced, as onlookers see it: published after every batch, whole.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use policy_common::abi::{Direction, EndpointWord, ROW_CLOSED};
use policy_engine::model::{ObjectKey, Pod};
use policy_engine::plan::{Op, Plan};
use policy_engine::planner::{Held, Refusal};
use policy_engine::tables::Usage;
use policy_engine::verdict::RuleRef;
use policy_engine::world::World;

use super::check::Checked;
use super::core::Core;
use super::endpoints::CHATTER;
use super::exits::Exit;
use super::placement::Place;
use super::table::Local;
use super::tags::TagsView;
use crate::source::SourceState;
use crate::source::objects::Located;

/// State of a local pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Hooked, and the kernel holds its current policy.
    Enforced,
    /// Hooked, its policy not yet installed: everything that policy decides is dropped.
    Pending,
    /// Not hooked.
    Unenforced,
    /// On an older policy, or closed, because the current one could not be installed.
    Stale,
}

/// A local pod.
#[derive(Clone, Debug)]
pub struct EndpointView {
    /// The pod.
    pub pod: Arc<Pod>,
    /// State.
    pub state: State,
    /// What the state means here; empty when enforced and nothing is to be told.
    pub detail: String,
    /// Interface, its index, slot and id; zero and empty without a slot.
    pub interface: String,
    /// Index of the interface.
    pub ifindex: u32,
    /// Slot.
    pub slot: u16,
    /// Id.
    pub id: u32,
    /// Rows and epoch.
    pub word: EndpointWord,
    /// Policies that judge it on ingress: those that isolate it, then those of the cluster.
    pub ingress: Vec<ObjectKey>,
    /// Policies that judge it on egress.
    pub egress: Vec<ObjectKey>,
    /// Packets passed before the first hook was in place.
    pub unprotected: bool,
}

impl EndpointView {
    /// Whether it counts as missing: a pod without an address is not running yet, and one that is ending and has no
    /// interface any more does not run any longer.
    #[must_use]
    pub fn missing(&self) -> Option<String> {
        let ended = self.pod.terminating && self.ifindex == 0;
        let idle = self.state == State::Unenforced && (self.pod.addresses.is_empty() || ended);
        (self.state != State::Enforced && !idle)
            .then(|| format!("pod {} is {}: {}", self.pod.key, self.state.name(), self.detail))
    }
}

impl State {
    /// Name in messages and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Enforced => "enforced",
            Self::Pending => "pending",
            Self::Unenforced => "unenforced",
            Self::Stale => "stale",
        }
    }
}

/// Counts of the writer.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Plans that were applied.
    pub plans: u64,
    /// Writes of all plans.
    pub writes: u64,
    /// Epochs that were raised.
    pub epochs: u64,
    /// Failures to apply or to look.
    pub failures: u64,
    /// Time to make a plan and to write it, of the newest plans.
    pub latencies: Latencies,
    /// Time from a change in the source's hands to the last write that it made, of the newest changes.
    pub delays: Latencies,
    /// When objects changed last.
    pub last_change: Option<SystemTime>,
}

/// The newest of some times.
#[derive(Clone, Debug, Default)]
pub struct Latencies {
    first: u64,
    newest: VecDeque<Duration>,
}

impl Latencies {
    const KEPT: usize = 1024;

    fn push(&mut self, time: Duration) {
        if self.newest.len() == Self::KEPT {
            self.first += 1;
            self.newest.pop_front();
        }
        self.newest.push_back(time);
    }

    /// Those that were not seen yet; `seen`: how many there were at the last look.
    pub fn unseen(&self, seen: &mut u64) -> impl Iterator<Item = Duration> {
        let known = usize::try_from(seen.saturating_sub(self.first)).unwrap_or(usize::MAX);
        *seen = self.first + self.newest.len() as u64;
        self.newest.iter().skip(known).copied()
    }
}

impl Tally {
    /// A plan was written: how long that took, and how long ago its oldest change was told, if a source told it.
    pub(super) fn planned(&mut self, took: Duration, delay: Option<Duration>, plan: &Plan) {
        if plan.is_empty() {
            return;
        }
        self.collected(plan);
        self.latencies.push(took);
        delay.into_iter().for_each(|delay| self.delays.push(delay));
    }

    pub(super) fn collected(&mut self, plan: &Plan) {
        self.plans += 1;
        self.writes += plan.ops.len() as u64;
        self.epochs += plan.ops.iter().filter(|op| matches!(op, Op::Endpoint { .. })).count() as u64;
    }
}

/// Everything at one moment.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// What the sources say.
    pub world: World,
    /// How the source is doing.
    pub source: SourceState,
    /// The source has told all that it has, and it was applied once.
    pub synced: bool,
    /// Number of the last plan.
    pub plan: u64,
    /// Local pods by key.
    pub endpoints: Vec<EndpointView>,
    /// Devices that are no pod's, by index.
    pub exits: Vec<Exit>,
    /// How traffic to Services is judged, and whether its tags survive.
    pub tags: TagsView,
    /// What is wrong with files and objects.
    pub problems: Vec<Located>,
    /// Namespaces whose policies do not fit.
    pub refused: Vec<Refusal>,
    /// Why the kernel does not hold what it should.
    pub degraded: Option<String>,
    /// Why the state is not on disk.
    pub unsaved: Option<String>,
    /// A change waits for a grace period.
    pub waiting: bool,
    /// How full the tables are.
    pub tables: Vec<Usage>,
    /// Counts.
    pub tally: Tally,
    /// What the self-check found.
    pub checked: Checked,
    /// Rules that the kernel counts, with their numbers.
    pub rules: Arc<Vec<(RuleRef, u32)>>,
}

impl View {
    /// What keeps the kernel from enforcing everything that the sources hold.
    #[must_use]
    pub fn missing(&self) -> Vec<String> {
        if !self.synced {
            let waiting = self.source.missing.clone();
            let unread = || self.degraded.clone().unwrap_or_else(|| "no object was read yet".to_owned());
            return if waiting.is_empty() { vec![unread()] } else { waiting };
        }
        let refused = self.refused.iter().map(refusal_text);
        let waiting = self.waiting.then(|| "a change waits until tables are free again".to_owned());
        let unrepaired = self.checked.unrepaired.values().cloned();
        let degraded = self.degraded.iter().cloned().chain(waiting).chain(unrepaired);
        let exits = self.exits.iter().filter_map(Exit::missing);
        let source = self.source.missing.iter().cloned();
        source
            .chain(degraded)
            .chain(refused)
            .chain(exits)
            .chain(self.tags.missing())
            .chain(self.endpoints.iter().filter_map(EndpointView::missing))
            .collect()
    }
}

impl View {
    /// What keeps the kernel from enforcing this pod's policy. `addresses` that it is given must be known.
    #[must_use]
    pub fn missing_of(&self, key: &ObjectKey, addresses: &[IpAddr]) -> Vec<String> {
        let told = |why: &str| vec![format!("pod {key} {why}")];
        if !self.synced {
            return vec!["the sources were not read yet".to_owned()];
        }
        let Some(pod) = self.world.pods.get(key) else { return told("is not known") };
        if !pod.is_subject() {
            return told("is not subject to policy: it has finished, or is on the host's network");
        }
        let Some(endpoint) = self.endpoints.iter().find(|endpoint| endpoint.pod.key == *key) else {
            let node = pod.node.as_deref().unwrap_or("no node yet");
            return told(&format!("is not on this node but on {node}"));
        };
        if !addresses.iter().all(|address| endpoint.pod.addresses.contains(address)) {
            return told("is another pod of that name, or has other addresses");
        }
        match endpoint.state {
            State::Enforced if self.waiting => told("waits for a change of the tables"),
            State::Enforced => Vec::new(),
            State::Pending | State::Unenforced | State::Stale => {
                told(&format!("is {}: {}", endpoint.state.name(), endpoint.detail))
            }
        }
    }
}

/// Why a namespace's policies are not the newest ones, and what is in force instead.
#[must_use]
pub fn refusal_text(refusal: &Refusal) -> String {
    let Refusal { namespace, held, table, needed, limit, .. } = refusal;
    let instead = match held {
        Held::LastGood if namespace.is_empty() => {
            "the last ones that fitted stay in force; newer ones accept nothing, and deny everything if they deny or pass"
        }
        Held::LastGood => "its last policies that fitted stay in force; newer ones isolate and allow nothing",
        Held::Closed if namespace.is_empty() => "the pods that they are about are closed",
        Held::Closed => "its isolated pods are closed",
    };
    let policies = if namespace.is_empty() {
        "ClusterNetworkPolicies".to_owned()
    } else {
        format!("policies of namespace {namespace}")
    };
    format!("{policies} do not fit: {table}: {needed} needed, {limit} is the limit; {instead}")
}

/// Programs of others at the hooks of an endpoint, and what they can do.
fn others(local: &Local) -> String {
    let told = |what: &str, programs: &[String]| {
        (!programs.is_empty()).then(|| format!("{what}: {}", programs.join(", ")))
    };
    let first = told("other programs run first", &local.before_us);
    let behind = "other programs run behind, where one that accepts a packet takes the tag by which \
                  traffic to Services is judged";
    first.into_iter().chain(told(behind, &local.behind_us)).collect::<Vec<_>>().join("; ")
}

/// The view of the moment.
#[derive(Clone, Debug, Default)]
pub struct Published(Arc<Mutex<Arc<View>>>);

/// A view that was published: who is answered from it and then asks what is in force hears nothing older.
#[derive(Debug)]
pub struct Shown(Arc<View>);

impl std::ops::Deref for Shown {
    type Target = View;

    fn deref(&self) -> &View {
        &self.0
    }
}

impl Published {
    /// The newest one.
    #[must_use]
    pub fn get(&self) -> Arc<View> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces it; from here on everybody is told the new one.
    pub fn publish(&self, view: View) -> Shown {
        let view = Arc::new(view);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&view);
        Shown(view)
    }
}

impl Core {
    /// What is enforced now.
    #[must_use]
    pub(super) fn view(&self) -> View {
        View {
            world: self.world.clone(),
            source: self.source.clone(),
            synced: self.synced,
            plan: self.planner.tables.number(),
            endpoints: self.world.local_pods().map(|pod| self.endpoint(pod)).collect(),
            exits: self.exits.values().filter(|exit| exit.due).cloned().collect(),
            tags: self.tags_view(),
            problems: self.problems.clone(),
            refused: self.refused.clone(),
            degraded: self.degraded.clone().or_else(|| self.blind.clone()),
            unsaved: self.unsaved.clone(),
            waiting: self.stale && self.degraded.is_none(),
            tables: self.planner.tables.usage(),
            tally: self.tally.clone(),
            checked: self.checker.checked.clone(),
            rules: self.rules.clone(),
        }
    }

    fn endpoint(&self, pod: &Arc<Pod>) -> EndpointView {
        let mut view = EndpointView {
            pod: pod.clone(),
            state: State::Unenforced,
            detail: String::new(),
            interface: String::new(),
            ifindex: 0,
            slot: 0,
            id: 0,
            word: EndpointWord::default(),
            ingress: Vec::new(),
            egress: Vec::new(),
            unprotected: false,
        };
        let Some(local) = self.table.of_pod(&pod.key) else {
            view.detail = match self.places.get(&pod.key) {
                Some(Place::Nowhere(reason)) => reason.clone(),
                Some(Place::At(link)) => format!("no endpoint is made yet for interface {}", link.name),
                Some(Place::Group(group)) => {
                    format!("no endpoint is made yet for control group {}", group.path)
                }
                None => "not looked for yet".to_owned(),
            };
            return view;
        };
        view.interface.clone_from(&local.interface);
        (view.ifindex, view.slot, view.id) = (local.ifindex, local.slot, local.id);
        view.word = self.planner.tables.endpoint(local.slot).unwrap_or_default();
        view.unprotected = local.unprotected > CHATTER;
        view.ingress = self.judged_by(view.word.row(Direction::Ingress));
        view.egress = self.judged_by(view.word.row(Direction::Egress));
        let what = if local.group.is_some() { "control group" } else { "interface" };
        let closed = view.word.ingress_row == ROW_CLOSED || view.word.egress_row == ROW_CLOSED;
        (view.state, view.detail) = if let Some(failure) = &local.failure {
            (State::Unenforced, format!("{what} {} is not hooked: {failure}", local.interface))
        } else if !local.hooked {
            (State::Unenforced, format!("{what} {} is not hooked yet", local.interface))
        } else if let Some(refusal) = self.refused.iter().find(|r| r.endpoints.contains(&pod.key)) {
            (State::Stale, refusal_text(refusal))
        } else if closed {
            (State::Pending, "its policy is not installed yet: nothing that policy decides passes".to_owned())
        } else if let Some(degraded) = &self.degraded {
            (State::Stale, degraded.clone())
        } else {
            (State::Enforced, others(local))
        };
        view
    }

    fn judged_by(&self, row: u16) -> Vec<ObjectKey> {
        let spec = self.planner.tables.row(row);
        spec.map(|spec| spec.keys().collect()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_answered_by_a_view_is_told_it_by_everybody() {
        let published = Published::default();
        for plan in 1..3 {
            let shown = published.publish(View { plan, ..View::default() });
            assert_eq!((shown.plan, published.get().plan), (plan, plan));
        }
    }
}
