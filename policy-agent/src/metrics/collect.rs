//! What is measured: counters of the kernel and of the writer, read when somebody asks.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use policy_common::abi::{Direction, limits};
use policy_engine::model::ServiceMode;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, LabelSetEncoder, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::agent::{Kernel, Published, State, View};
use crate::events::Bus;
use crate::notice::Count;

/// Bounds in seconds; fine where changes are expected to be.
const DELAYS: [f64; 16] = [
    0.0001, 0.0002, 0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.05, 0.1, 0.3,
    1.0,
];

/// The registry.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    published: Published,
    latency: Histogram,
    delay: Histogram,
    /// How many of the writer's times were observed.
    seen: Mutex<[u64; 2]>,
}

impl Metrics {
    /// Metrics of this agent.
    #[must_use]
    pub fn new(kernel: Arc<Kernel>, published: Published, bus: Arc<Bus>, notices: Arc<Count>) -> Self {
        let mut registry = Registry::with_prefix("policy_agent");
        // A plan takes from a tenth of a millisecond to some seconds.
        let latency = Histogram::new([0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0]);
        let help = "Time to make a plan and to write it to the kernel";
        registry.register("plan_duration_seconds", help, latency.clone());
        let delay = Histogram::new(DELAYS);
        let help = "Time from a change in the agent's hands to the last write to the kernel that it made";
        registry.register("change_duration_seconds", help, delay.clone());
        registry.register_collector(Box::new(OnDemand {
            kernel,
            published: published.clone(),
            bus,
            notices,
        }));
        Self { registry, published, latency, delay, seen: Mutex::default() }
    }

    /// The text of `/metrics`.
    ///
    /// # Errors
    /// When a value cannot be written.
    pub fn text(&self) -> Result<String, fmt::Error> {
        self.observe();
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// Whether everything that the sources hold is enforced; else what is missing.
    #[must_use]
    pub fn missing(&self) -> Vec<String> {
        self.published.get().missing()
    }

    fn observe(&self) {
        let view = self.published.get();
        let mut seen = self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let [plans, changes] = &mut *seen;
        let observe = |to: &Histogram, time: Duration| to.observe(time.as_secs_f64());
        view.tally.latencies.unseen(plans).for_each(|time| observe(&self.latency, time));
        view.tally.delays.unseen(changes).for_each(|time| observe(&self.delay, time));
    }
}

#[derive(Debug)]
struct OnDemand {
    kernel: Arc<Kernel>,
    published: Published,
    bus: Arc<Bus>,
    notices: Arc<Count>,
}

type Label = (&'static str, String);

impl Collector for OnDemand {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let view = self.published.get();
        self.packets(&mut encoder)?;
        self.losses(&mut encoder)?;
        self.rules(&mut encoder, &view)?;
        objects(&mut encoder, &view)?;
        tables(&mut encoder, &view)?;
        self.notices(&mut encoder)?;
        checks(&mut encoder, &view)?;
        writer(&mut encoder, &view)
    }
}

impl OnDemand {
    fn packets(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let counters = self.kernel.read().counters().unwrap_or_default();
        for (name, help, dropped, bytes) in [
            ("dropped_packets", "Packets dropped", true, false),
            ("dropped_bytes", "Bytes of packets dropped", true, true),
            ("passed_packets", "Packets passed at the first or a later look", false, false),
        ] {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (reason, direction, counter) in counters.iter().filter(|(r, ..)| r.passes() != dropped) {
                let value = if bytes { counter.bytes } else { counter.packets };
                let labels =
                    [("reason", reason.name().to_owned()), ("direction", direction.name().to_owned())];
                one(&mut family, &labels, &ConstCounter::new(value))?;
            }
        }
        let mut family = encoder.encode_descriptor(
            "unhooked_packets",
            "Packets that passed a hook whose interface belongs to no endpoint",
            None,
            MetricType::Counter,
        )?;
        for direction in [Direction::Ingress, Direction::Egress] {
            let count = self.kernel.read().unhooked(direction).unwrap_or_default().packets;
            one(&mut family, &[("direction", direction.name().to_owned())], &ConstCounter::new(count))?;
        }
        let mut family = encoder.encode_descriptor(
            "untagged_packets",
            "Packets of pods that had lost their tag",
            None,
            MetricType::Counter,
        )?;
        for (place, direction) in [("exit", Direction::Egress), ("pod", Direction::Ingress)] {
            let count = self.kernel.read().untagged(direction).unwrap_or_default().packets;
            one(&mut family, &[("place", place.to_owned())], &ConstCounter::new(count))?;
        }
        Ok(())
    }

    /// Rules beyond the kernel's table share one counter, which nobody's is.
    fn rules(&self, encoder: &mut DescriptorEncoder, view: &View) -> fmt::Result {
        let help = "Flows that a rule decided";
        let mut family = encoder.encode_descriptor("rule_hits", help, None, MetricType::Counter)?;
        let executor = self.kernel.read();
        for (rule, id) in view.rules.iter().filter(|(_, id)| *id < limits::RULE_HITS) {
            let labels = [
                ("namespace", rule.policy.namespace.to_string()),
                ("policy", rule.policy.name.to_string()),
                ("direction", rule.direction.name().to_owned()),
                ("rule", rule.index.to_string()),
            ];
            let hits = executor.rule_hits(*id).unwrap_or_default().packets;
            one(&mut family, &labels, &ConstCounter::new(hits))?;
        }
        Ok(())
    }

    fn notices(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let help = "What became of Kubernetes Events about policies";
        let mut family = encoder.encode_descriptor("kubernetes_events", help, None, MetricType::Counter)?;
        for (outcome, count) in self.notices.values() {
            one(&mut family, &[("outcome", outcome.to_owned())], &ConstCounter::new(count))?;
        }
        Ok(())
    }

    fn losses(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let (mut suppressed, mut full) = (0, 0);
        {
            let executor = self.kernel.read();
            let slots = executor.endpoints().unwrap_or_default().into_iter().map(|e| e.slot).chain([0]);
            for totals in slots.filter_map(|slot| executor.endpoint_totals(slot).ok()) {
                suppressed += totals.suppressed;
                full += totals.ring_full;
            }
        }
        let help = "Drop events that were not delivered; packet counters are exact all the same";
        let mut family = encoder.encode_descriptor("lost_events", help, None, MetricType::Counter)?;
        for (reason, count) in [("suppressed", suppressed), ("ring_full", full)] {
            one(&mut family, &[("reason", reason.to_owned())], &ConstCounter::new(count))?;
        }
        let flows = ConstCounter::new(self.bus.stats().seen);
        single(encoder, "flows", "Flows told to subscribers and kept", MetricType::Counter, &flows)
    }
}

fn objects(encoder: &mut DescriptorEncoder, view: &View) -> fmt::Result {
    let mut family =
        encoder.encode_descriptor("endpoints", "Local pods by their state", None, MetricType::Gauge)?;
    for state in [State::Enforced, State::Pending, State::Unenforced, State::Stale] {
        let count = view.endpoints.iter().filter(|e| e.state == state).count() as i64;
        one(&mut family, &[("state", state.name().to_owned())], &ConstGauge::new(count))?;
    }
    let help = "Devices of the host that are no pod's, by whether our program is there";
    let mut family = encoder.encode_descriptor("exit_devices", help, None, MetricType::Gauge)?;
    for (state, hooked) in [("hooked", true), ("unhooked", false)] {
        let count = view.exits.iter().filter(|exit| exit.hooked == hooked).count() as i64;
        one(&mut family, &[("state", state.to_owned())], &ConstGauge::new(count))?;
    }
    let help = "Interfaces of pods by what a probe showed of the tag by which traffic to Services is judged";
    let mut family = encoder.encode_descriptor("tag_probes", help, None, MetricType::Gauge)?;
    let tags = &view.tags;
    for (outcome, count) in [("kept", tags.kept), ("lost", tags.lost.len()), ("unknown", tags.unknown.len())]
    {
        one(&mut family, &[("outcome", outcome.to_owned())], &ConstGauge::new(count as i64))?;
    }
    let by_backends = usize::from(tags.mode == ServiceMode::Backends);
    let gauge = |n: usize| ConstGauge::new(n as i64);
    let broken = view.problems.iter().filter(|problem| problem.broken).count();
    for (name, help, value) in [
        ("policies", "Policies held", view.world.policies.len()),
        ("cluster_policies", "ClusterNetworkPolicies held", view.world.cluster_policies.len()),
        ("pods", "Pods held", view.world.pods.len()),
        ("problems", "Parts of files and objects that are not honoured", broken),
        ("refused_namespaces", "Namespaces whose policies do not fit", view.refused.len()),
        ("services_by_backends", "1 while traffic to Services is judged by all their backends", by_backends),
        ("degraded", "1 while the kernel does not hold what it should", usize::from(view.degraded.is_some())),
        ("state_unsaved", "1 while the state cannot be written to disk", usize::from(view.unsaved.is_some())),
        ("source_synced", "1 when the source has told all that it has", usize::from(view.synced)),
        ("source_failing", "1 while the source does not deliver", usize::from(!view.source.error.is_empty())),
    ] {
        single(encoder, name, help, MetricType::Gauge, &gauge(value))?;
    }
    Ok(())
}

fn tables(encoder: &mut DescriptorEncoder, view: &View) -> fmt::Result {
    for (name, help, limit) in
        [("table_used", "Entries in use", false), ("table_limit", "Entries there can be", true)]
    {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for usage in &view.tables {
            let value = if limit { usage.limit } else { usage.used } as i64;
            let label = [("table", usage.table.name().replace(' ', "_"))];
            one(&mut family, &label, &ConstGauge::new(value))?;
        }
    }
    Ok(())
}

fn checks(encoder: &mut DescriptorEncoder, view: &View) -> fmt::Result {
    let checked = &view.checked;
    let help = "Entries, hooks and pins in the kernel that somebody else had changed, by place";
    let mut family = encoder.encode_descriptor("self_check_drifts", help, None, MetricType::Counter)?;
    // The places that are there from the start: a rate over a series that appears later misses its first value.
    let zero = ["hook", "pin", "verdict"].into_iter().filter(|place| !checked.counts.contains_key(place));
    for (place, count) in zero.map(|place| (place, 0)).chain(checked.counts.iter().map(|(p, n)| (*p, *n))) {
        one(&mut family, &[("place", place.to_owned())], &ConstCounter::new(count))?;
    }
    for (name, help, value) in [
        ("self_check_rounds", "Whole checks of what the kernel holds", checked.rounds),
        ("self_check_trials", "Packets tried against the evaluator", checked.trials),
    ] {
        single(encoder, name, help, MetricType::Counter, &ConstCounter::new(value))?;
    }
    let help = "What the self-check could not put right, or not check";
    let left = (checked.unrepaired.len() + checked.unchecked.len()) as i64;
    single(encoder, "self_check_failing", help, MetricType::Gauge, &ConstGauge::new(left))?;
    let help = "How long changes could wait for the last whole check, all its parts together";
    let took = ConstGauge::new(checked.took.as_secs_f64());
    single(encoder, "self_check_seconds", help, MetricType::Gauge, &took)
}

fn writer(encoder: &mut DescriptorEncoder, view: &View) -> fmt::Result {
    for (name, help, value) in [
        ("plans", "Plans applied", view.tally.plans),
        ("writes", "Writes of all plans", view.tally.writes),
        ("epochs", "Endpoints' epochs raised: their flows are judged again", view.tally.epochs),
        ("failures", "Failures to write to the kernel or to look at interfaces", view.tally.failures),
    ] {
        single(encoder, name, help, MetricType::Counter, &ConstCounter::new(value))?;
    }
    Ok(())
}

fn single(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    kind: MetricType,
    metric: &impl EncodeMetric,
) -> fmt::Result {
    metric.encode(encoder.encode_descriptor(name, help, None, kind)?)
}

fn one(family: &mut MetricEncoder, labels: &[Label], metric: &impl EncodeMetric) -> fmt::Result {
    let labels = Labels(labels);
    metric.encode(family.encode_family(&labels)?)
}

struct Labels<'a>(&'a [Label]);

impl prometheus_client::encoding::EncodeLabelSet for Labels<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder) -> fmt::Result {
        use prometheus_client::encoding::EncodeLabel;
        self.0.iter().try_for_each(|(name, value)| (*name, value.as_str()).encode(encoder.encode_label()))
    }
}
