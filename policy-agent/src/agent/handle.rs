//! The running agent as the local API sees it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use policy_common::abi::Direction;
use policy_common::reason::Reason;
use policy_engine::address::is_identity;
use policy_engine::model::ObjectKey;
use policy_engine::world::World;
use tokio::sync::oneshot;

use super::claims::Claim;
use super::exits::Exit;
use super::kernel::Kernel;
use super::tags::TagsView;
use super::view::{EndpointView, Published, State, View, refusal_text};
use super::writer::{Input, Inputs, Waited, Waiter};
use crate::api::{AgentView, Verifying, Waiting};
use crate::cgroup::Hierarchy;
use crate::datapath::Mechanism;
use crate::proto::agent::{self as proto, EndpointState};

/// What the API needs of the agent.
#[derive(Debug)]
pub(super) struct Handle {
    /// Name of the node.
    pub node: String,
    /// Kind and place of the source.
    pub source: (&'static str, String),
    /// Release of the kernel.
    pub release: String,
    /// When the agent started.
    pub started: SystemTime,
    /// What is enforced.
    pub published: Published,
    /// Counters and hooks.
    pub kernel: Arc<Kernel>,
    /// The writer.
    pub inputs: Inputs,
    /// Where control groups are said to be.
    pub cgroup_root: Option<PathBuf>,
}

impl AgentView for Handle {
    fn node_name(&self) -> String {
        self.node.clone()
    }

    fn status(&self) -> proto::StatusResponse {
        let view = self.published.get();
        proto::StatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node_name: self.node.clone(),
            started: Some(self.started.into()),
            kernel: self.release.clone(),
            enforcement: view.plan,
            ready: view.missing().is_empty(),
            sources: vec![self.source(&view)],
            problems: problems(&view),
            endpoints: Some(summary(&view.endpoints)),
            tables: view.tables.iter().map(table).collect(),
            losses: self.losses(),
            features: self.features(),
            exits: view.exits.iter().map(exit).collect(),
            services: Some(services(&view.tags)),
            objects: objects(&view.world),
            self_check: Some(super::told::self_check(&view.checked)),
        }
    }

    fn policies(&self) -> Vec<proto::Policy> {
        let view = self.published.get();
        let of_cluster = view.world.cluster_policies.values();
        let of_cluster = of_cluster.map(|policy| super::listed::of_cluster_policy(policy, &view));
        let of_namespaces = view.world.policies.values();
        of_namespaces.map(|policy| super::listed::of_policy(policy, &view)).chain(of_cluster).collect()
    }

    fn endpoints(&self) -> Vec<proto::Endpoint> {
        let view = self.published.get();
        view.endpoints.iter().map(|endpoint| self.endpoint(endpoint)).collect()
    }

    fn wait(&self, timeout: Duration, pod: Option<ObjectKey>) -> Waiting<'_> {
        self.answer(timeout, pod.map(|pod| (pod, Vec::new())))
    }

    fn verify(&self) -> Verifying<'_> {
        let (kernel, inputs) = (self.kernel.clone(), self.inputs.clone());
        Box::pin(async move {
            // On a thread of its own, and first: the writer never waits for it.
            let prepared = tokio::task::spawn_blocking(move || kernel.prepare_trial()).await;
            let trial = match prepared {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(format!("verdicts cannot be checked: {}", crate::cli::chain(&error))),
                Err(error) => Some(format!("verdicts cannot be checked: {error}")),
            };
            let (reply, answer) = oneshot::channel();
            let ended = |_| "the agent is ending".to_owned();
            inputs.send(Input::Verify(reply)).map_err(|_| "the agent is ending".to_owned())?;
            let mut report = answer.await.map_err(ended)?;
            report.failures.extend(trial);
            Ok(super::told::report(&report))
        })
    }

    fn claim(&self, pod: ObjectKey, uid: &str, addresses: Vec<IpAddr>, timeout: Duration) -> Waiting<'_> {
        let claim = Claim { pod: pod.clone(), uid: uid.into(), addresses: addresses.clone() };
        // If the writer has ended, so says the wait.
        drop(self.inputs.send(Input::Claim(claim)));
        self.answer(timeout, Some((pod, addresses)))
    }
}

impl Handle {
    fn answer(&self, timeout: Duration, pod: Option<(ObjectKey, Vec<IpAddr>)>) -> Waiting<'_> {
        let (reply, answer) = oneshot::channel();
        let waiter = Waiter { deadline: Instant::now() + timeout, pod, reply };
        let sent = self.inputs.send(Input::Wait(waiter));
        Box::pin(async move {
            let ended = || Waited { plan: 0, missing: vec!["the agent is ending".to_owned()] };
            let Waited { plan, missing } = match sent {
                Ok(()) => answer.await.unwrap_or_else(|_| ended()),
                Err(_) => ended(),
            };
            proto::WaitResponse { done: missing.is_empty(), enforcement: plan, missing }
        })
    }

    fn source(&self, view: &View) -> proto::Source {
        let broken = view.problems.iter().filter(|problem| problem.broken && problem.object.is_empty());
        let unread = broken.map(|problem| format!("{}: {}", problem.location, problem.message)).next();
        let error = if view.source.error.is_empty() { unread } else { Some(view.source.error.clone()) };
        let (kind, location) = &self.source;
        proto::Source {
            kind: (*kind).to_owned(),
            location: location.clone(),
            synced: view.synced,
            last_change: view.tally.last_change.map(Into::into),
            error: error.unwrap_or_default(),
            missing: view.source.missing.clone(),
        }
    }

    fn losses(&self) -> Vec<proto::Loss> {
        let executor = self.kernel.read();
        let loss = |name: &str, count, help: &str| proto::Loss {
            name: name.to_owned(),
            count,
            help: help.to_owned(),
        };
        let (mut suppressed, mut full, mut verdicts) = (0, 0, 0);
        let slots = executor.endpoints().unwrap_or_default().into_iter().map(|e| e.slot).chain([0]);
        for totals in slots.filter_map(|slot| executor.endpoint_totals(slot).ok()) {
            suppressed += totals.suppressed;
            full += totals.ring_full;
            verdicts += totals.verdicts_lost;
        }
        let internal = executor.counters().unwrap_or_default().into_iter();
        let internal =
            internal.filter(|(reason, ..)| *reason == Reason::Internal).map(|(.., c)| c.packets).sum();
        let untagged = [Direction::Ingress, Direction::Egress]
            .map(|direction| executor.untagged(direction).unwrap_or_default().packets)
            .iter()
            .sum();
        vec![
            loss(
                "events_suppressed",
                suppressed,
                "drop events held back by the rate limit; counters are exact",
            ),
            loss("events_ring_full", full, "drop events lost because they were not read fast enough"),
            loss("verdicts_lost", verdicts, "verdict events of allowed flows held back or lost"),
            loss("untagged_from_pod", untagged, "packets of pods whose tag somebody had removed"),
            loss("internal_drops", internal, "packets dropped because a table look-up failed"),
        ]
    }

    fn features(&self) -> Vec<proto::Feature> {
        let tcx = self.kernel.hooks.mechanism() == Mechanism::Tcx;
        let detail = if tcx { "" } else { "clsact filters at priority 1 are used" };
        let mut features =
            vec![proto::Feature { name: "tcx".to_owned(), available: tcx, detail: detail.to_owned() }];
        features.push(self.cgroups());
        for (program, instructions) in &self.kernel.report.verified {
            let detail = format!("{instructions} instructions walked by the verifier");
            features.push(proto::Feature { name: format!("program {program}"), available: true, detail });
        }
        features
    }

    fn cgroups(&self) -> proto::Feature {
        let (available, detail) = match Hierarchy::find(self.cgroup_root.as_deref()) {
            Ok(hierarchy) if hierarchy.is_hybrid() => {
                (true, format!("at {}, beside version 1", hierarchy.root().display()))
            }
            Ok(hierarchy) => (true, format!("at {}", hierarchy.root().display())),
            Err(why) => (
                false,
                format!("{why}: workloads that are control groups are not enforced (hint: {})", why.hint()),
            ),
        };
        proto::Feature { name: "cgroup v2".to_owned(), available, detail }
    }

    fn endpoint(&self, view: &EndpointView) -> proto::Endpoint {
        let totals = (view.slot != 0).then(|| self.kernel.read().endpoint_totals(view.slot).ok()).flatten();
        let keys = |keys: &[policy_engine::model::ObjectKey]| keys.iter().map(ToString::to_string).collect();
        let hooks = match (view.state, self.kernel.hooks.mechanism()) {
            (State::Unenforced, _) => "",
            (State::Enforced | State::Pending | State::Stale, _) if view.ifindex == 0 => "cgroup",
            (State::Enforced | State::Pending | State::Stale, Mechanism::Tcx) => "tcx",
            (State::Enforced | State::Pending | State::Stale, Mechanism::Clsact) => "clsact",
        };
        proto::Endpoint {
            namespace: view.pod.key.namespace.to_string(),
            pod: view.pod.key.name.to_string(),
            addresses: view
                .pod
                .addresses
                .iter()
                .filter(|ip| !is_identity(ip))
                .map(ToString::to_string)
                .collect(),
            state: state(view.state).into(),
            detail: view.detail.clone(),
            interface: view.interface.clone(),
            ifindex: view.ifindex,
            slot: view.slot.into(),
            id: view.id,
            epoch: view.word.epoch,
            ingress_isolated_by: keys(&view.ingress),
            egress_isolated_by: keys(&view.egress),
            started_unprotected: view.unprotected,
            hooks: hooks.to_owned(),
            dropped_packets: totals.map_or(0, |totals| totals.dropped),
        }
    }
}

fn exit(exit: &Exit) -> proto::ExitDevice {
    let detail = match (&exit.failure, exit.before_us.as_slice()) {
        (Some(failure), _) => failure.clone(),
        (None, []) => String::new(),
        (None, others) => format!("other programs run first: {}", others.join(", ")),
    };
    proto::ExitDevice { name: exit.name.clone(), ifindex: exit.ifindex, hooked: exit.hooked, detail }
}

fn services(tags: &TagsView) -> proto::Services {
    proto::Services {
        setting: tags.setting.to_owned(),
        judged_by: tags.mode.name().to_owned(),
        tags_kept: u32::try_from(tags.kept).unwrap_or(u32::MAX),
        tags_lost: tags.lost.clone(),
        tags_unknown: tags.unknown.clone(),
    }
}

fn state(state: State) -> EndpointState {
    match state {
        State::Enforced => EndpointState::Enforced,
        State::Pending => EndpointState::Pending,
        State::Unenforced => EndpointState::Unenforced,
        State::Stale => EndpointState::Stale,
    }
}

fn summary(endpoints: &[EndpointView]) -> proto::EndpointSummary {
    let count = |wanted: &[State]| {
        u32::try_from(endpoints.iter().filter(|e| wanted.contains(&e.state)).count()).unwrap_or(u32::MAX)
    };
    proto::EndpointSummary {
        total: u32::try_from(endpoints.len()).unwrap_or(u32::MAX),
        enforced: count(&[State::Enforced]),
        pending: count(&[State::Pending]),
        unenforced: count(&[State::Unenforced, State::Stale]),
    }
}

fn problems(view: &View) -> Vec<proto::Problem> {
    let of_objects = view.problems.iter().map(|p| proto::Problem {
        object: p.object.clone(),
        field: p.field.clone(),
        message: p.message.clone(),
        location: p.location.clone(),
    });
    let words = |message: String| proto::Problem { message, ..proto::Problem::default() };
    let refused = view.refused.iter().map(|refusal| proto::Problem {
        object: match &*refusal.namespace {
            "" => "ClusterNetworkPolicies".to_owned(),
            namespace => format!("Namespace {namespace}"),
        },
        message: refusal_text(refusal),
        ..proto::Problem::default()
    });
    let conflicts = view.world.conflicts().map(|(address, pods)| {
        let keys: Vec<_> = pods.iter().map(|pod| pod.key.to_string()).collect();
        words(format!("pods {} claim address {address}: the first one has it", keys.join(", ")))
    });
    let unrepaired = view.checked.unrepaired.values().chain(view.checked.unchecked.values());
    let failures = view.degraded.iter().chain(&view.unsaved).chain(unrepaired).cloned().map(words);
    failures.chain(refused).chain(of_objects).chain(conflicts).collect()
}

fn table(usage: &policy_engine::tables::Usage) -> proto::TableUsage {
    proto::TableUsage { name: usage.table.name().to_owned(), used: usage.used, limit: usage.limit }
}

fn objects(world: &World) -> Vec<proto::Count> {
    let count = |name: &str, count: usize| proto::Count { name: name.to_owned(), count: count as u64 };
    vec![
        count("policies", world.policies.len()),
        count("cluster policies", world.cluster_policies.len()),
        count("pods", world.pods.len()),
        count("namespaces", world.namespaces.len()),
        count("nodes", world.nodes.len()),
        count("services", world.services.len()),
        count("endpoint slices", world.slices.len()),
    ]
}
