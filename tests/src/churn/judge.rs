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

/// A packet that has not come by then was dropped. Its verdict fell at some moment of this time.
pub(super) const SETTLED: Duration = Duration::from_millis(500);

/// What came of it.
#[derive(Debug, Default)]
pub struct Report {
    /// Packets that were sent.
    pub sent: usize,
    /// Of a pod that was not promised to be enforced yet, or is being deleted.
    pub young_or_gone: usize,
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
    /// For how long packets reached a new pod that nobody may reach, before its interface was hooked; sorted.
    pub open: Vec<Duration>,
    /// Changes of the API server, and promises of the agent.
    pub changes: usize,
    /// See `changes`.
    pub fences: usize,
}

impl Report {
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
        let [open50, open99, open_most] = Self::milliseconds(&self.open);
        let reached = self.open.iter().filter(|time| !time.is_zero()).count();
        write!(
            f,
            "{} changes, {} promises; {} packets: {} passed and {} dropped as only one verdict was right, {} within \
             the propagation of a change, {} of pods that were new or going, {} wrong; from the answer to a change of \
             labels to its enforcement: p50 {p50:.1} ms, p99 {p99:.1} ms, maximum {most:.1} ms, of {}; packets reached \
             {reached} of {} new isolated pods before their hook, for p50 {open50:.1} ms, p99 {open99:.1} ms, \
             maximum {open_most:.1} ms",
            self.changes,
            self.fences,
            self.sent,
            self.passed,
            self.dropped,
            self.between,
            self.young_or_gone,
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

struct Judge<'a> {
    history: &'a History,
    changes: Vec<Placed<'a>>,
    known: HashMap<(usize, IpAddr, IpAddr, u16), Sides>,
}

pub(super) fn judge(
    history: &History,
    changes: &[Change],
    fences: &[Fence],
    probes: &[Probe],
) -> Result<Report> {
    let placed = changes.iter().map(|change| Ok(Placed { change, place: history.place(change)? }));
    let mut judge = Judge { history, changes: placed.collect::<Result<_>>()?, known: HashMap::new() };
    let mut report =
        Report { sent: probes.len(), changes: changes.len(), fences: fences.len(), ..Report::default() };
    for probe in probes {
        judge.one(probe, fences, &mut report);
    }
    report.windows = judge.windows(probes);
    report.windows.sort_unstable();
    report.open = open(probes);
    report.open.sort_unstable();
    Ok(report)
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

    fn one(&mut self, probe: &Probe, fences: &[Fence], report: &mut Report) {
        let end = probe.came.unwrap_or(probe.after + SETTLED);
        let fence = fences.iter().rev().find(|fence| fence.given <= probe.before);
        let first = fence.map_or(0, |fence| self.last(|change| change.answered <= fence.began));
        let enforced =
            |pod: &usize| self.of(*pod, Step::Address).is_some_and(|address| address.place <= first);
        let gone = |pod: &usize| self.of(*pod, Step::Terminate).is_some_and(|d| d.change.asked <= end);
        if !probe.pods.iter().all(enforced) || probe.pods.iter().any(gone) {
            report.young_or_gone += 1;
            return;
        }
        let last = self.last(|change| change.asked <= end).max(first);
        let sides: Vec<Sides> = (first..=last).map(|place| self.sides(place, probe)).collect();
        // Each side is judged by its own endpoint, which follows in its own time.
        let can_pass = [0, 1].iter().all(|side| sides.iter().any(|s| s[*side]));
        let can_drop = sides.iter().flatten().any(|allowed| !allowed);
        match (probe.came.is_some(), can_pass, can_drop) {
            (true, true, false) => report.passed += 1,
            (false, false, true) => report.dropped += 1,
            (_, true, true) => report.between += 1,
            (came, _, _) => report.wrong.push(format!(
                "{probe:?} came: {came}; worlds {first} to {last} say (egress, ingress) {sides:?}"
            )),
        }
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
