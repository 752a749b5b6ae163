//! Every packet against every world in which it may have been judged.

use super::{
    Change, Fence, Live, Losses, Probe, Step,
    history::{History, Sides},
};
use anyhow::Result;
use std::{
    collections::HashMap,
    net::IpAddr,
    ops::RangeInclusive,
    time::{Duration, Instant},
};

/// A packet that has not come by then was dropped.
pub(super) const SETTLED: Duration = Duration::from_millis(500);

/// Longest that a packet may be on its way behind one that was sent later, as when a neighbour is asked for and answers.
const SLACK: Duration = Duration::from_millis(50);

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
    /// Packets that had to pass and did not come, when the harness itself lost as many; else they are wrong.
    pub lost: Vec<String>,
    /// What the harness lost.
    pub losses: Losses,
    /// From the API server's answer to a change of labels to the first packet from where on all are judged by it; sorted.
    pub windows: Vec<Duration>,
    /// From the API server's answer to a new pod's address to the agent's promise that the pod is enforced; sorted.
    pub known: Vec<Duration>,
    /// For how long packets reached a new pod that nobody may reach, before its interface was hooked; sorted. Empty where
    /// nobody sends before the pod is known.
    pub open: Vec<Duration>,
    /// Events of pods that the API server told, and promises of the agents.
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
        writeln!(
            f,
            "{} events, {} promises; {} packets: {} passed and {} dropped as only one verdict was right ({:.1} % of all), \
             {} within the propagation of a change, {} of pods that were new, {} of pods that were going, {} wrong, {} lost \
             by the harness ({})",
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
            self.lost.len(),
            self.losses,
        )?;
        write!(
            f,
            "from the answer to a change of labels to its enforcement: p50 {p50:.1} ms, p99 {p99:.1} ms, maximum {most:.1} \
             ms, of {}; from a new pod's address to the promise that it is enforced: p50 {known50:.1} ms, p99 {known99:.1} \
             ms, maximum {known_most:.1} ms",
            self.windows.len(),
        )?;
        if self.open.is_empty() {
            return Ok(());
        }
        let [open50, open99, open_most] = Self::milliseconds(&self.open);
        let reached = self.open.iter().filter(|time| !time.is_zero()).count();
        write!(
            f,
            "; packets reached {reached} of {} new isolated pods before their hook, for p50 {open50:.1} ms, p99 {open99:.1} \
             ms, maximum {open_most:.1} ms",
            self.open.len(),
        )
    }
}

/// What a pod's endpoint had promised at a moment: every change up to a place.
#[derive(Clone, Copy)]
struct Promise {
    given: Instant,
    place: usize,
}

struct Judge<'a> {
    history: &'a History,
    /// When the end of each pod was asked for.
    ended: HashMap<usize, Instant>,
    /// By pod, in the order in which they were given.
    promises: HashMap<usize, Vec<Promise>>,
    /// By place, once it was asked for.
    known: HashMap<(IpAddr, IpAddr, u16), Vec<Option<Sides>>>,
    /// The first packet that had another verdict, or was lost.
    first_wrong: Option<Probe>,
}

/// What became of the packets of the same pods before and after one of them, in milliseconds from it.
fn around(probes: &[Probe], wrong: &Probe) -> String {
    const NEAR: Duration = Duration::from_millis(100);
    let near = |probe: &&Probe| {
        (probe.pods[0] == wrong.pods[0] || probe.pods[1] == wrong.pods[1])
            && probe.before + NEAR > wrong.before
            && probe.before < wrong.before + NEAR
    };
    let told = probes.iter().filter(near).map(|probe| {
        let at = |time: Instant| {
            let since = time.saturating_duration_since(wrong.before).as_secs_f64();
            (since - wrong.before.saturating_duration_since(time).as_secs_f64()) * 1e3
        };
        let came = probe.came.map_or("-".to_owned(), |came| format!("{:.1}", at(came)));
        format!("{:?} {} {:.1}: {came}", probe.pods, probe.port, at(probe.before))
    });
    told.collect::<Vec<_>>().join("; ")
}

pub(super) fn judge(
    history: &History,
    changes: &[Change],
    fences: &[Fence],
    (probes, losses): &(Vec<Probe>, Losses),
) -> Result<Report> {
    let ends = changes.iter().filter(|change| change.step == Step::End);
    let ended = ends.map(|change| (change.pod, change.asked)).collect();
    let mut judge =
        Judge { history, ended, promises: HashMap::new(), known: HashMap::new(), first_wrong: None };
    judge.promises(fences);
    let mut report = Report {
        sent: probes.len(),
        changes: history.events(),
        fences: fences.len(),
        losses: losses.clone(),
        ..Report::default()
    };
    for (probe, judged) in probes.iter().zip(judged(probes)) {
        judge.one(probe, judged, &mut report);
    }
    // What had no room in the harness was not dropped by anybody's policy.
    if report.lost.len() > losses.total() {
        report.wrong.append(&mut report.lost);
    }
    if let Some(first) = judge.first_wrong.clone().filter(|_| !report.wrong.is_empty()) {
        report.wrong.push(around(probes, &first));
    }
    report.known = judge.waits();
    report.known.sort_unstable();
    report.windows = judge.windows(changes, probes)?;
    report.windows.sort_unstable();
    report.open = open(probes);
    report.open.sort_unstable();
    Ok(report)
}

/// Until when each packet was judged: one that came, when it came, for it may have waited for its neighbour; any other
/// when one that was sent behind it came, since all leave by one processor, which handles them in their order.
fn judged(probes: &[Probe]) -> Vec<Instant> {
    let mut behind: Option<Instant> = None;
    let mut judged: Vec<Instant> = Vec::with_capacity(probes.len());
    for probe in probes.iter().rev() {
        let known = probe.came.or(behind);
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
        if pod == 0 || !pod.is_multiple_of(super::rules::NAMESPACES.len()) {
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
    fn promises(&mut self, fences: &[Fence]) {
        for Fence { pods, began, given } in fences {
            let promise = Promise { given: *given, place: self.history.certain(*began) };
            for pod in pods {
                self.promises.entry(*pod).or_default().push(promise);
            }
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
        self.history.address(pod).is_some_and(|address| address.place <= place).then_some(place)
    }

    /// `judged`: until when the packet was judged.
    fn one(&mut self, probe: &Probe, judged: Instant, report: &mut Report) {
        let [from, to] = probe.pods.map(|pod| self.first(pod, probe.before));
        let (Some(from), Some(to)) = (from, to) else {
            report.young += 1;
            return;
        };
        if probe.pods.iter().any(|pod| self.ended.get(pod).is_some_and(|asked| *asked <= judged)) {
            report.gone += 1;
            return;
        }
        let last = self.history.newest(judged);
        // Each side is judged by its own endpoint, which follows in its own time.
        let sides = [self.side(0, from..=last.max(from), probe), self.side(1, to..=last.max(to), probe)];
        let can_pass = sides.iter().all(|side| side[1]);
        let can_drop = sides.iter().any(|side| side[0]);
        match (probe.came.is_some(), can_pass, can_drop) {
            (true, true, false) => report.passed += 1,
            (false, false, true) => report.dropped += 1,
            (_, true, true) => report.between += 1,
            (came, _, _) => {
                self.first_wrong.get_or_insert_with(|| probe.clone());
                let told = format!(
                    "{probe:?} came: {came}; in the worlds from {from} and {to} to {last} egress and ingress may \
                     [drop, pass] {sides:?}"
                );
                if came { &mut report.wrong } else { &mut report.lost }.push(told);
            }
        }
    }

    /// Whether a side drops the packet in one of these worlds, and whether it lets it pass in one.
    fn side(&mut self, side: usize, places: RangeInclusive<usize>, probe: &Probe) -> [bool; 2] {
        let mut found = [false; 2];
        for place in places {
            found[usize::from(self.sides(place, probe)[side])] = true;
            if found == [true; 2] {
                break;
            }
        }
        found
    }

    /// From the answer that tells each pod's address to the first promise.
    fn waits(&self) -> Vec<Duration> {
        let known = self.promises.iter().filter_map(|(pod, promises)| {
            let address = self.history.address(*pod)?;
            let first = promises.iter().find(|promise| promise.place >= address.place)?;
            Some(first.given.saturating_duration_since(address.latest))
        });
        known.collect()
    }

    fn sides(&mut self, place: usize, probe: &Probe) -> Sides {
        let [from, to] = probe.addresses;
        let known = self.known.entry((from, to, probe.port)).or_default();
        if known.len() <= place {
            known.resize(place + 1, None);
        }
        *known[place].get_or_insert_with(|| self.history.judge(place, from, to, probe.port))
    }

    /// How long each change of labels took to be enforced for the pair that was watched.
    fn windows(&mut self, changes: &[Change], probes: &[Probe]) -> Result<Vec<Duration>> {
        let mut pairs: HashMap<usize, Vec<&Probe>> = HashMap::new();
        for probe in probes.iter().filter(|probe| probe.pods[1] == 0 && probe.port == Live::PORTS[0]) {
            pairs.entry(probe.pods[0]).or_default().push(probe);
        }
        let mut windows = Vec::new();
        for change in changes.iter().filter(|change| change.step == Step::Label) {
            let (place, answered) = (self.history.of(change.version)?.place, change.answered);
            let next = changes.iter().filter(|next| next.pod == change.pod && next.asked > answered);
            let (Some(until), Some(pair)) = (next.map(|next| next.asked).min(), pairs.get(&change.pod))
            else {
                continue;
            };
            let meanwhile = |probe: &&&Probe| probe.after < until && probe.before >= answered;
            let of_pair: Vec<&&Probe> = pair.iter().filter(meanwhile).collect();
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
        Ok(windows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waited_for_its_neighbour_is_judged_when_it_came() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let probe = |sent: u64, came: Option<u64>| Probe {
            pods: [0, 1],
            addresses: [IpAddr::from([10, 0, 0, 1]); 2],
            port: 1,
            before: at(sent),
            after: at(sent),
            came: came.map(at),
        };
        let found = judged(&[probe(0, Some(521)), probe(1, None), probe(2, Some(3)), probe(4, None)]);
        assert_eq!(found, [at(521) + SLACK, at(3) + SLACK, at(3) + SLACK, at(4) + SETTLED]);
    }
}
