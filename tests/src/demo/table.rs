//! A back end that tells what another one sees: one small table for each step and port.

use super::stop;
use crate::{
    backend::{Backend, Places, Seen, Wire, run},
    scenario::{AgentAction, Case, Expected, Pair, SessionSend, SessionState, State},
};
use anyhow::Result;
use std::collections::{BTreeMap, BTreeSet};

/// The wire, with a table of expected and seen behind each probe.
#[derive(Debug)]
pub(super) struct Told {
    wire: Wire,
    steps: Vec<String>,
    round: usize,
    pairs: usize,
    wrong: usize,
}

impl Told {
    pub(super) fn new(wire: Wire) -> Self {
        Self { wire, steps: Vec::new(), round: 0, pairs: 0, wrong: 0 }
    }

    /// Runs a scenario and shows its tables. `false`: something differs.
    pub(super) fn show(&mut self, case: &Case) -> Result<bool> {
        println!("== {}", case.title);
        self.steps = case.steps.iter().filter(|s| s.expect.is_some()).map(|s| s.name.clone()).collect();
        self.round = 0;
        let differences = run(case, self)?;
        for difference in &differences {
            println!("   DIFFERS {difference}");
        }
        println!();
        Ok(differences.is_empty())
    }

    /// Pairs that were asked, and those that differed.
    pub(super) fn totals(&self) -> (usize, usize) {
        (self.pairs, self.wrong)
    }

    fn tell(&mut self, pairs: &[Expected], seen: &[Seen]) {
        let asked: Vec<(&Expected, bool)> =
            pairs.iter().zip(seen).filter_map(|(e, s)| Some((e, s.allow?))).collect();
        let wrong = asked.iter().filter(|(e, allow)| e.allow != *allow).count();
        self.pairs += asked.len();
        self.wrong += wrong;
        // The first round shows that without policies every pair passes: one line is enough for that.
        if self.round == 0 {
            println!("   before any policy: {} of {} pairs pass", asked.len() - wrong, asked.len());
        } else {
            let name = self.steps.get(self.round - 1).map_or("", String::as_str);
            println!("-- {name}");
            grids(&asked);
        }
        self.round += 1;
    }
}

/// Expected and seen, by source and destination.
type Grid<'a> = BTreeMap<(&'a str, &'a str), (bool, bool)>;

/// One grid per port: sources down, destinations across, by their numbers.
fn grids(asked: &[(&Expected, bool)]) {
    let mut ports: BTreeMap<String, Grid<'_>> = BTreeMap::new();
    let mut names: BTreeSet<&str> = BTreeSet::new();
    for (expected, allow) in asked {
        let Pair { from, to, port, family } = &expected.pair;
        names.extend([from.as_str(), to.as_str()]);
        let cells = ports.entry(format!("{port} {family:?}")).or_default();
        cells.insert((from, to), (expected.allow, *allow));
    }
    let width = names.iter().map(|name| name.len()).max().unwrap_or(0);
    for (port, cells) in ports {
        println!(
            "   {port}, to:{:w$}{}",
            "",
            header(names.len()),
            w = (width + 4).saturating_sub(port.len() + 2)
        );
        for (n, source) in names.iter().enumerate() {
            let row: Vec<&str> = names.iter().map(|target| cell(cells.get(&(*source, *target)))).collect();
            if cells.keys().any(|(from, _)| from == source) {
                println!("   {:>3} {source:width$}  {}", n + 1, row.join(" ").trim_end());
            }
        }
    }
}

fn header(count: usize) -> String {
    (1..=count).map(|n| format!("{n:<4}")).collect()
}

/// Expected and seen.
fn cell(found: Option<&(bool, bool)>) -> &'static str {
    match found {
        Some((true, true)) => "+/+",
        Some((false, false)) => "./.",
        Some((true, false)) => "+!.",
        Some((false, true)) => ".!+",
        None => "   ",
    }
}

impl Backend for Told {
    fn begin(&mut self, case: &Case) -> Result<()> {
        self.wire.begin(case)
    }
    fn needs_open_baseline(&self) -> bool {
        self.wire.needs_open_baseline()
    }
    fn sync(&mut self, state: &State) -> Result<()> {
        stop::check()?;
        self.wire.sync(state)
    }
    fn agent(&mut self, action: AgentAction) -> Result<()> {
        self.wire.agent(action)
    }
    fn probe(&mut self, places: &Places, pairs: &[Expected], size: Option<usize>) -> Result<Vec<Seen>> {
        let seen = self.wire.probe(places, pairs, size)?;
        self.tell(pairs, &seen);
        stop::check()?;
        Ok(seen)
    }
    fn open(&mut self, places: &Places, id: &str, pair: &Pair) -> Result<bool> {
        self.wire.open(places, id, pair)
    }
    fn send(&mut self, places: &Places, send: &SessionSend) -> Result<()> {
        self.wire.send(places, send)
    }
    fn is_alive(&mut self, places: &Places, id: &str, expected: SessionState) -> Result<bool> {
        self.wire.is_alive(places, id, expected)
    }
}
