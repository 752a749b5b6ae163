//! Every packet against every world in which it may have been judged.

use super::{
    Change, Fence, Live, Probe, Step,
    history::{History, Sides},
};
use anyhow::Result;
use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

/// A packet that has not come by then was dropped.
pub(super) const SETTLED: Duration = Duration::from_millis(500);

/// Longest that a packet may be on its way behind one that was sent later, as when a neighbour is asked for.
const SLACK: Duration = Duration::from_millis(10);

/// What came of it.
#[derive(Debug, Default)]
pub struct Report {
    /// Packets that were sent.
    pub sent: usize,
    /// Of a pod that the agent had not promised to enforce yet.
    pub young: usize,
    /// Of a pod that may have been deleted when they were judged.
    pub gone: usize,
    /// Packets for which every world that may have been in force gives the same verdict: they passed.
    pub passed: usize,
    /// The same: they were dropped.
    pub dropped: usize,
    /// Packets within the propagation of a change that concerns them: either verdict is right.
    pub between: usize,
    /// Verdicts of no world that may have been in force.
    pub wrong: Vec<String>,
    /// From the API server's answer to a change of labels to the first packet from where on all are judged by it; sorted.
    pub windows: Vec<Duration>,
    /// From the API server's answer to a new pod's address to the agent's promise that the pod is enforced; sorted.
    pub known: Vec<Duration>,
    /// For how long packets reached a new pod that nobody may reach, before its interface was hooked; sorted.
    pub open: Vec<Duration>,
    /// Changes of the API server, and promises of the agent.
    pub changes: usize,
    /// See `changes`.
    pub fences: usize,
}

impl Report {
    /// The share of packets for which only one verdict was right.
    #[must_use]
    pub fn judged(&self) -> f64 {
        (self.passed + self.dropped) as f64 / (self.sent.max(1)) as f64
    }

    /// Median, 99th percentile and maximum, in milliseconds; zero when there are none.
    fn milliseconds(sorted: &[Duration]) -> [f64; 3] {
        let last = sorted.len().saturating_sub(1) as f64;
        [0.5, 0.99, 1.0].map(|quantile| {
            let at = sorted.get((last * quantile).round() as usize);
            at.map_or(0.0, |time| time.as_secs_f64() * 1e3)
        })
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [p50, p99, most] = Self::milliseconds(&self.windows);
        let [known50, known99, known_most] = Self::milliseconds(&self.known);
        let [open50, open99, open_most] = Self::milliseconds(&self.open);
        let reached = self.open.iter().filter(|time| !time.is_zero()).count();
        write!(
            f,
            "{} changes, {} promises; {} packets: {} passed and {} dropped as only one verdict was right ({:.1} % of all), \
             {} within the propagation of a change, {} of pods that were new, {} of pods that were going, {} wrong; from \
             the answer to a change of labels to its enforcement: p50 {p50:.1} ms, p99 {p99:.1} ms, maximum {most:.1} ms, \
             of {}; from the answer to a new pod's address to the promise that it is enforced: p50 {known50:.1} ms, p99 \
             {known99:.1} ms, maximum {known_most:.1} ms; packets reached {reached} of {} new isolated pods before their hook, for p50 {open50:.1} ms, p99 {open99:.1} ms, \
             maximum {open_most:.1} ms",
            self.changes,
            self.fences,
            self.sent,
            self.passed,
            self.dropped,
            self.judged() * 100.0,
            self.between,
            self.young,
            self.gone,
            self.wrong.len(),
            self.windows.len(),
            self.open.len(),
        )
    }
}

/// A change with its place in history.
struct Placed<'a> {
    change: &'a Change,
    place: usize,
}

/// What a pod's endpoint had promised at a moment: every change up to a place.
struct Promise {
    given: Instant,
    place: usize,
}

struct Judge<'a> {
    history: &'a History,
    changes: Vec<Placed<'a>>,
    /// By pod, in the order in which they were given.
    promises: HashMap<usize, Vec<Promise>>,
    known: HashMap<(usize, IpAddr, IpAddr, u16), Sides>,
}

pub(super) fn judge(
    history: &History,
    changes: &[Change],
    fences: &[Fence],
    probes: &[Probe],
) -> Result<Report> {
    let placed = changes.iter().map(|change| Ok(Placed { change, place: history.place(change)? }));
    let changes_placed = placed.collect::<Result<_>>()?;
    let mut judge =
        Judge { history, changes: changes_placed, promises: HashMap::new(), known: HashMap::new() };
    judge.promises(fences);
    let mut report =
        Report { sent: probes.len(), changes: changes.len(), fences: fences.len(), ..Report::default() };
    let judged = judged(probes);
    for (probe, judged) in probes.iter().zip(judged) {
        judge.one(probe, judged, &mut report);
    }
    report.known = judge.waits();
    report.known.sort_unstable();
    report.windows = judge.windows(probes);
    report.windows.sort_unstable();
    report.open = open(probes);
    report.open.sort_unstable();
    Ok(report)
}

/// Until when each packet was judged: when it came, or when one that was sent behind it came. All of them leave by one
/// processor, which handles them in their order.
fn judged(probes: &[Probe]) -> Vec<Instant> {
    let mut behind: Option<Instant> = None;
    let mut judged: Vec<Instant> = Vec::with_capacity(probes.len());
    for probe in probes.iter().rev() {
        let known = probe.came.into_iter().chain(behind).min();
        judged.push(known.map_or(probe.after + SETTLED, |at| at.max(probe.after) + SLACK));
        behind = probe.came.into_iter().chain(behind).min();
    }
    judged.reverse();
    judged
}

/// How long the pods of the first namespace were reached by the second pod, which may reach none of them.
fn open(probes: &[Probe]) -> Vec<Duration> {
    let mut first: HashMap<usize, (Instant, Duration)> = HashMap::new();
    for probe in probes.iter().filter(|probe| probe.pods[0] == 1 && probe.port == Live::PORTS[0]) {
        let pod = probe.pods[1];
        if pod == 0 || !pod.is_multiple_of(super::NAMESPACES.len()) {
            continue;
        }
        let (begun, open) = first.entry(pod).or_insert((probe.before, Duration::ZERO));
        if probe.came.is_some() {
            *open = probe.after - *begun;
        }
    }
    first.into_values().map(|(_, open)| open).collect()
}

impl Judge<'_> {
    /// The moment and the place of a step of a pod.
    fn of(&self, pod: usize, step: Step) -> Option<&Placed<'_>> {
        self.changes.iter().find(|placed| placed.change.pod == pod && placed.change.step == step)
    }

    fn last(&self, which: impl Fn(&Change) -> bool) -> usize {
        let places = self.changes.iter().filter(|placed| which(placed.change)).map(|placed| placed.place);
        places.max().unwrap_or(0)
    }

    fn promises(&mut self, fences: &[Fence]) {
        for Fence { pod, began, given } in fences {
            let place = self.last(|change| change.answered <= *began);
            self.promises.entry(*pod).or_default().push(Promise { given: *given, place });
        }
        for promises in self.promises.values_mut() {
            promises.sort_unstable_by_key(|promise| promise.given);
            // A promise that was asked for later may have been given first: what it holds stays.
            let mut most = 0;
            for promise in promises {
                most = most.max(promise.place);
                promise.place = most;
            }
        }
    }

    /// The first world that a pod's endpoint may have judged by at a moment, once it is promised to be enforced.
    fn first(&self, pod: usize, at: Instant) -> Option<usize> {
        let promises = self.promises.get(&pod)?;
        let given = promises.partition_point(|promise| promise.given <= at);
        let place = promises[..given].last()?.place;
        self.of(pod, Step::Address).is_some_and(|address| address.place <= place).then_some(place)
    }

    /// `judged`: until when the packet was judged.
    fn one(&mut self, probe: &Probe, judged: Instant, report: &mut Report) {
        let [from, to] = probe.pods.map(|pod| self.first(pod, probe.before));
        let (Some(from), Some(to)) = (from, to) else {
            report.young += 1;
            return;
        };
        let gone = |pod: &usize| self.of(*pod, Step::Terminate).is_some_and(|d| d.change.asked <= judged);
        if probe.pods.iter().any(gone) {
            report.gone += 1;
            return;
        }
        let last = self.last(|change| change.asked <= judged);
        // Each side is judged by its own endpoint, which follows in its own time.
        let sides = [from, to].map(|first| first..=last.max(first));
        let sides: Vec<Vec<bool>> = sides
            .into_iter()
            .enumerate()
            .map(|(side, places)| places.map(|place| self.sides(place, probe)[side]).collect())
            .collect();
        let can_pass = sides.iter().all(|side| side.contains(&true));
        let can_drop = sides.iter().any(|side| side.contains(&false));
        match (probe.came.is_some(), can_pass, can_drop) {
            (true, true, false) => report.passed += 1,
            (false, false, true) => report.dropped += 1,
            (_, true, true) => report.between += 1,
            (came, _, _) => report.wrong.push(format!(
                "{probe:?} came: {came}; worlds from {from} and {to} to {last} say [egress, ingress] {sides:?}"
            )),
        }
    }

    /// From the answer to each pod's address to the first promise.
    fn waits(&self) -> Vec<Duration> {
        let addresses = self.changes.iter().filter(|placed| placed.change.step == Step::Address);
        let known = addresses.filter_map(|address| {
            let promises = self.promises.get(&address.change.pod)?;
            let first = promises.iter().find(|promise| promise.place >= address.place)?;
            Some(first.given.saturating_duration_since(address.change.answered))
        });
        known.collect()
    }

    fn sides(&mut self, place: usize, probe: &Probe) -> Sides {
        let [from, to] = probe.addresses;
        let history = self.history;
        *self
            .known
            .entry((place, from, to, probe.port))
            .or_insert_with(|| history.judge(place, from, to, probe.port))
    }

    /// How long each change of labels took to be enforced for the pair that was watched.
    fn windows(&mut self, probes: &[Probe]) -> Vec<Duration> {
        let labels = self.changes.iter().filter(|placed| placed.change.step == Step::Label);
        let labels: Vec<(usize, usize, Instant)> =
            labels.map(|placed| (placed.change.pod, placed.place, placed.change.answered)).collect();
        let mut windows = Vec::new();
        for (pod, place, answered) in labels {
            let next = self.changes.iter().map(|placed| placed.change);
            let next = next.filter(|change| change.pod == pod && change.asked > answered);
            let Some(until) = next.map(|change| change.asked).min() else { continue };
            let of_pair = |probe: &&Probe| {
                probe.pods == [pod, 0]
                    && probe.port == Live::PORTS[0]
                    && probe.after < until
                    && probe.before >= answered
            };
            let of_pair: Vec<&Probe> = probes.iter().filter(of_pair).collect();
            let Some(any) = of_pair.first() else { continue };
            let passes = |sides: Sides| sides.iter().all(|allowed| *allowed);
            let (old, new) = (passes(self.sides(place - 1, any)), passes(self.sides(place, any)));
            if old == new {
                continue;
            }
            let stale = of_pair.iter().rposition(|probe| probe.came.is_some() != new);
            let first = stale.map_or(0, |last| last + 1);
            // Not followed within the pod's stay: as long as that at least.
            let moment = of_pair.get(first).map_or(until, |probe| probe.before);
            windows.push(if stale.is_none() { Duration::ZERO } else { moment - answered });
        }
        windows
    }
}
