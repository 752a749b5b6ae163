//! The self-check: what the kernel holds against what this agent wrote, part by part, and packets that nobody sent against
//! the evaluator.
//!
//! ```text
//! ledger ─> tables ─> pins ─> hooks ─> trials      each part is a turn of the writer, spread over the interval
//!    └────────┴────────┴───────┴── put back at once; told as drift: log, monitor, status, metrics
//! ```
//! Everything is read between two plans by the thread that writes them, so what differs was written by somebody else.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use policy_engine::desired::Endpoint;
use policy_engine::planner::Held;
use policy_engine::spot::{Corners, Spot, spots};
use policy_engine::tables::Difference;

use super::core::Core;
use crate::cli::chain;
use crate::datapath::{self, spec::MapId};

/// Drifts that are kept for the status, and told one by one in one turn.
const KEPT: usize = 16;
/// Packets tried in one turn.
const TRIALS: usize = 64;

/// A part of the check: one turn of the writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Ledger,
    Tables,
    Pins,
    Hooks,
    Trials,
}

impl Part {
    const ALL: [Self; 5] = [Self::Ledger, Self::Tables, Self::Pins, Self::Hooks, Self::Trials];
}

/// Something in the kernel that was not as this agent left it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drift {
    /// Name of the map, or `pin`, `hook`, `verdict`.
    pub place: &'static str,
    /// Which entry, what was there and what should be.
    pub what: Difference,
    /// It was put right.
    pub repaired: bool,
    /// When it was found.
    pub at: SystemTime,
}

/// What checking has found so far.
#[derive(Clone, Debug, Default)]
pub struct Checked {
    /// How often everything was checked; `None` = never by itself.
    pub interval: Option<Duration>,
    /// Times that everything was checked.
    pub rounds: u64,
    /// When that was last.
    pub last: Option<SystemTime>,
    /// How long the writer took for the last whole check, all parts together.
    pub took: Duration,
    /// Packets tried.
    pub trials: u64,
    /// Drifts by place.
    pub counts: BTreeMap<&'static str, u64>,
    /// The newest drifts.
    pub recent: VecDeque<Drift>,
    /// What could not be put right.
    pub unrepaired: BTreeMap<&'static str, String>,
    /// What could not be checked.
    pub unchecked: BTreeMap<&'static str, String>,
}

impl Checked {
    /// Drifts found, in all places.
    #[must_use]
    pub fn drifts(&self) -> u64 {
        self.counts.values().sum()
    }
}

/// When the next part is due, and what was found.
#[derive(Debug)]
pub(super) struct Checker {
    next: Option<Instant>,
    part: usize,
    running: Duration,
    seed: u64,
    /// Somebody loads the programs for trials.
    preparing: bool,
    pub(super) checked: Checked,
}

/// The answer to somebody who asked for a check.
#[derive(Clone, Debug, Default)]
pub(super) struct Report {
    /// How much had drifted.
    pub found: u64,
    /// The first of it.
    pub drifts: Vec<Drift>,
    /// What could not be put right or not be checked.
    pub failures: Vec<String>,
    /// Entries that were compared.
    pub entries: u64,
    /// Hooks that were looked at.
    pub hooks: u64,
    /// Packets that were tried.
    pub trials: u64,
    /// How long the writer took.
    pub took: Duration,
    /// Number of the plan in force.
    pub plan: u64,
}

impl Checker {
    pub(super) fn new(interval: Option<Duration>, now: Instant) -> Self {
        let seed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
        let checked = Checked { interval, ..Checked::default() };
        let next = interval.map(|interval| now + interval / Part::ALL.len() as u32);
        Self { next, part: 0, running: Duration::ZERO, seed: seed as u64 | 1, preparing: false, checked }
    }

    /// When the next part is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.next
    }

    /// Numbers that need not be good ones (xorshift).
    fn random(&mut self) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed
    }
}

impl Core {
    /// Checks a part if one is due.
    pub(super) fn check_in_turn(&mut self, now: Instant) {
        let (Some(due), Some(interval)) = (self.checker.next, self.checker.checked.interval) else { return };
        if due > now {
            return;
        }
        self.checker.next = Some(now + interval / Part::ALL.len() as u32);
        let Some(part) = Part::ALL.get(self.checker.part).copied() else { return };
        let mut report = Report::default();
        self.check(part, TRIALS, &mut report);
        self.checker.running += report.took;
        self.checker.part = (self.checker.part + 1) % Part::ALL.len();
        if self.checker.part == 0 {
            self.checker.checked.took = std::mem::take(&mut self.checker.running);
            self.round_done();
        }
    }

    /// Checks everything now.
    pub(super) fn check_all(&mut self) -> Report {
        let mut report = Report::default();
        for part in Part::ALL {
            self.check(part, 4 * TRIALS, &mut report);
        }
        self.checker.checked.took = report.took;
        self.round_done();
        let checked = &self.checker.checked;
        report.failures.extend(checked.unrepaired.values().chain(checked.unchecked.values()).cloned());
        report.plan = self.planner.tables.number();
        report
    }

    fn round_done(&mut self) {
        self.checker.checked.rounds += 1;
        self.checker.checked.last = Some(SystemTime::now());
    }

    /// While a plan failed or waits, the tables do not hold what they should and the writer is about to change them.
    fn is_checkable(&self, part: Part) -> bool {
        match part {
            Part::Ledger | Part::Pins => true,
            Part::Hooks => self.synced,
            Part::Tables | Part::Trials => self.synced && self.degraded.is_none() && !self.stale,
        }
    }

    fn check(&mut self, part: Part, trials: usize, report: &mut Report) {
        let start = Instant::now();
        if !self.is_checkable(part) {
            let why = self.degraded.clone().unwrap_or_else(|| "a change is not in the kernel yet".to_owned());
            report.failures.push(format!("{} were not checked: {why}", part.name()));
            return;
        }
        let before = self.checker.checked.drifts();
        let done = match part {
            Part::Ledger => self.check_ledger(),
            Part::Tables => self.check_tables(report),
            Part::Pins => self.check_pins(),
            Part::Hooks => {
                self.hook_all(true);
                self.mend_exits();
                report.hooks += 2 * self.table.iter().filter(|l| l.hooked).count() as u64;
                report.hooks += self.exits.values().filter(|exit| exit.hooked).count() as u64;
                Ok(())
            }
            Part::Trials => self.check_verdicts(trials, report),
        };
        let name = part.name();
        match done {
            Ok(()) => drop(self.checker.checked.unchecked.remove(name)),
            Err(error) => {
                let text = format!("{name} cannot be checked: {}", chain(&error));
                let told = self.checker.checked.unchecked.insert(name, text.clone());
                if told.as_ref() != Some(&text) {
                    tracing::error!("{text}");
                }
            }
        }
        let found = self.checker.checked.drifts() - before;
        report.found += found;
        let told = usize::try_from(found).unwrap_or(KEPT).min(KEPT);
        let recent = &self.checker.checked.recent;
        report.drifts.extend(recent.iter().skip(recent.len().saturating_sub(told)).cloned());
        report.took += start.elapsed();
    }

    /// Tells of what was not as this agent left it: the first few one by one, the rest by their number.
    fn all_drifted(&mut self, found: Vec<Difference>, repaired: bool) {
        let more = found.len().saturating_sub(KEPT);
        for (number, what) in found.into_iter().enumerate() {
            if number < KEPT {
                self.drifted(what.map, what, repaired);
            } else {
                *self.checker.checked.counts.entry(what.map).or_default() += 1;
            }
        }
        if more > 0 {
            tracing::error!("self-check: somebody else changed {more} more");
            self.bus.tell(format!("self-check: somebody else changed {more} more"));
        }
    }

    /// Tells of something that was not as this agent left it.
    pub(super) fn drifted(&mut self, place: &'static str, what: Difference, repaired: bool) {
        let verb = if repaired { "put right" } else { "NOT put right" };
        tracing::error!(place, repaired, "self-check: somebody else changed {what}; {verb}");
        self.bus.tell(format!("self-check: somebody else changed {what}; {verb}"));
        let checked = &mut self.checker.checked;
        *checked.counts.entry(place).or_default() += 1;
        if checked.recent.len() == KEPT {
            checked.recent.pop_front();
        }
        checked.recent.push_back(Drift { place, what, repaired, at: SystemTime::now() });
    }

    fn check_ledger(&mut self) -> datapath::Result<()> {
        // Packets may have been judged by what was there: everything is judged anew.
        if self.mend_ledger()? && self.synced && self.degraded.is_none() {
            self.start_over()?;
        }
        Ok(())
    }

    /// Puts right what no plan covers; true if there was something.
    pub(super) fn mend_ledger(&mut self) -> datapath::Result<bool> {
        let planned: BTreeSet<u16> = self.planner.tables.slots().collect();
        let found = self.kernel.read().mend_ledger(&planned)?;
        let is_drift = !found.is_empty();
        self.all_drifted(found, true);
        Ok(is_drift)
    }

    fn check_tables(&mut self, report: &mut Report) -> datapath::Result<()> {
        let expected = self.planner.tables.expected();
        let found = self.kernel.read().read_like(&expected)?;
        report.entries += (expected.hosts.len() + expected.prefixes.len() + expected.endpoints.len()) as u64;
        report.entries += (expected.sets.len() + expected.intervals.len()) as u64;
        report.entries += expected.rows.iter().map(|(_, cells)| cells.len() as u64).sum::<u64>();
        let differences = expected.differences(&found);
        if differences.is_empty() {
            return Ok(());
        }
        self.kernel.read().empty_closed_row()?;
        self.start_over()?;
        let repaired = self.degraded.is_none() && !self.stale;
        self.all_drifted(differences, repaired);
        Ok(())
    }

    /// Reads everything back and plans from there, as behind a write that failed; then every flow is judged anew.
    fn start_over(&mut self) -> datapath::Result<()> {
        let grace = self.kernel.read().grace();
        let failed = |source| datapath::Error::Map { action: "wait for readers of", map: "EP", source };
        grace.wait().map_err(failed)?;
        let dump = self.kernel.read().dump()?;
        self.planner.tables.readopt(&dump);
        self.stale = true;
        self.enforce();
        Ok(())
    }

    fn check_pins(&mut self) -> datapath::Result<()> {
        if self.unsaved.is_some() {
            self.save();
        }
        let mut found = Vec::new();
        let mut failure = None;
        {
            let executor = self.kernel.read();
            for map in MapId::ALL {
                let name = map.spec().name;
                match executor.pins().mend_map(map, executor.map(map)) {
                    Ok(None) => {}
                    Ok(Some(held)) => found.push((name, held)),
                    Err(error) => drop(failure.get_or_insert_with(|| chain(&error))),
                }
            }
        }
        for (map, found) in found {
            let what = Difference { map, key: "its pin".to_owned(), found, wanted: "this map".to_owned() };
            self.drifted("pin", what, true);
        }
        let unrepaired = &mut self.checker.checked.unrepaired;
        let Some(failure) = failure else {
            unrepaired.remove("pin");
            return Ok(());
        };
        let text = format!("pins cannot be put back, what is enforced ends with this agent: {failure}");
        if unrepaired.insert("pin", text.clone()).is_none() {
            let found = failure;
            let what = Difference { map: "maps", key: "pins".to_owned(), found, wanted: "pins".to_owned() };
            self.drifted("pin", what, false);
        }
        Ok(())
    }

    fn check_verdicts(&mut self, count: usize, report: &mut Report) -> datapath::Result<()> {
        if let Some(failure) = self.kernel.trial_failure() {
            self.checker.preparing = false;
            return Err(failure);
        }
        if !self.kernel.is_ready_for_trials() {
            self.prepare_trial();
            return Ok(());
        }
        self.checker.preparing = false;
        let closed: BTreeSet<_> =
            self.refused.iter().filter(|r| r.held == Held::Closed).map(|r| r.namespace.clone()).collect();
        let hooked = |e: &Endpoint| {
            self.table.get(e.slot).is_some_and(|local| local.hooked) && !closed.contains(&e.pod.namespace)
        };
        let endpoints: Vec<Endpoint> = self.table.desired().into_iter().filter(hooked).collect();
        let world = self.planner.enforced().clone();
        let corners = Corners::of(&world);
        let questions = spots(&world, &corners, &endpoints, count, || self.checker.random());
        let wrong = self.try_all(&questions)?;
        report.trials += questions.len() as u64;
        self.checker.checked.trials += questions.len() as u64;
        if wrong.is_empty() {
            self.checker.checked.unrepaired.remove("verdict");
            return Ok(());
        }
        // Most likely somebody has just changed the tables: then that is what there is to tell.
        let before = self.checker.checked.drifts();
        self.check_tables(report)?;
        let is_explained = self.checker.checked.drifts() > before;
        if !is_explained {
            self.start_over()?;
        }
        let left = self.try_all(&wrong)?;
        if is_explained && left.is_empty() {
            return Ok(());
        }
        for spot in &wrong {
            self.drifted("verdict", told(spot), !left.contains(spot));
        }
        let unrepaired = &mut self.checker.checked.unrepaired;
        match left.first() {
            None => drop(unrepaired.remove("verdict")),
            Some(first) => {
                let text = format!(
                    "{} of {} packets are not judged as the evaluator says, for example {}; please report it",
                    left.len(),
                    questions.len(),
                    told(first)
                );
                unrepaired.insert("verdict", text);
            }
        }
        Ok(())
    }

    /// Those on which the kernel does not agree.
    fn try_all(&self, questions: &[Spot]) -> datapath::Result<Vec<Spot>> {
        let mut trial = self.kernel.trial();
        let Some(trial) = trial.as_mut() else { return Ok(Vec::new()) };
        let executor = self.kernel.read();
        let mut wrong = Vec::new();
        for spot in questions {
            if trial.passes(&executor, spot)? != spot.passes {
                wrong.push(*spot);
            }
        }
        Ok(wrong)
    }

    fn prepare_trial(&mut self) {
        if std::mem::replace(&mut self.checker.preparing, true) {
            return;
        }
        let kernel = Arc::clone(&self.kernel);
        let work = move || kernel.prepare_trial_aside();
        if let Err(error) = std::thread::Builder::new().name("trial".to_owned()).spawn(work) {
            tracing::error!("verdicts cannot be checked: {error}");
            self.checker.preparing = false;
        }
    }
}

impl Part {
    const fn name(self) -> &'static str {
        match self {
            Self::Ledger => "endpoints",
            Self::Tables => "tables",
            Self::Pins => "pins",
            Self::Hooks => "hooks",
            Self::Trials => "verdicts",
        }
    }
}

fn told(spot: &Spot) -> Difference {
    let Spot { slot, direction, local, remote, protocol, from_port, port, passes } = spot;
    let word = |passes: bool| if passes { "passes" } else { "is dropped" }.to_owned();
    let direction = direction.name();
    Difference {
        map: "verdict",
        key: format!(
            "{direction} of {local} (slot {slot}), {remote}, protocol {protocol}, {from_port} to {port}"
        ),
        found: word(!passes),
        wanted: word(*passes),
    }
}
