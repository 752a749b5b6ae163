//! What scenarios gave on several back ends, as a table for people and as JSON for programs.

use crate::{
    backend::{Kind, run_all},
    scenario::{Case, Level},
};
use policy_engine::read;
use serde_json::{Value, json};
use std::{
    fmt::Write as _,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

/// Back ends of one sort that run side by side.
const SIDE_BY_SIDE: usize = 2;

/// Scenarios, back ends, and what came of each pair of them.
#[derive(Debug)]
pub struct Report {
    cases: Vec<Case>,
    columns: Vec<Column>,
}

#[derive(Debug)]
struct Column {
    kind: Kind,
    /// One for each scenario: `None` where this back end has nothing to say, else the differences.
    results: Vec<Option<Vec<String>>>,
    took: Duration,
}

impl Report {
    /// Runs the scenarios on each of the back ends. `progress` hears a line for each back end.
    pub fn run(cases: Vec<Case>, kinds: &[Kind], progress: &(dyn Fn(&str) + Sync)) -> Self {
        let columns = kinds.iter().map(|kind| column(*kind, &cases, progress)).collect();
        Self { cases, columns }
    }

    /// Scenarios that some back end answers differently.
    pub fn failures(&self) -> usize {
        let fails = |n: &usize| {
            self.columns
                .iter()
                .any(|column| column.results[*n].as_ref().is_some_and(|found| !found.is_empty()))
        };
        (0..self.cases.len()).filter(fails).count()
    }

    /// A row for each scenario, then every difference, then the sums.
    pub fn table(&self) -> String {
        let width = self.cases.iter().map(|case| case.id.len()).max().unwrap_or_default().max(8);
        let mut out = format!("{:width$}  level ", "scenario");
        for column in &self.columns {
            let _ = write!(out, "  {:>11}", column.kind.name());
        }
        out.push('\n');
        for (n, case) in self.cases.iter().enumerate() {
            let _ = write!(out, "{:width$}  {:6}", case.id, level(case));
            for column in &self.columns {
                let word = match &column.results[n] {
                    None => "-".to_owned(),
                    Some(found) if found.is_empty() => "ok".to_owned(),
                    Some(found) => format!("{} differ", found.len()),
                };
                let _ = write!(out, "  {word:>11}");
            }
            out.push('\n');
        }
        for column in &self.columns {
            for (case, found) in self.cases.iter().zip(&column.results) {
                for text in found.iter().flatten() {
                    let _ = writeln!(out, "{} on {}: {text}", case.id, column.kind);
                }
            }
        }
        for column in &self.columns {
            let asked = column.results.iter().flatten().count();
            let agreed = column.results.iter().flatten().filter(|found| found.is_empty()).count();
            let seconds = column.took.as_secs_f32();
            let _ = writeln!(out, "{}: {agreed} of {asked} scenarios hold, {seconds:.1} s", column.kind);
        }
        out
    }

    /// The same for programs.
    pub fn json(&self) -> Value {
        let rows = self.cases.iter().enumerate().map(|(n, case)| {
            let results = self.columns.iter().map(|column| {
                let found = &column.results[n];
                let result = match found {
                    None => "not-asked",
                    Some(found) if found.is_empty() => "holds",
                    Some(_) => "differs",
                };
                json!({"backend": column.kind.name(), "result": result, "differences": found})
            });
            json!({"id": case.id, "title": case.title, "level": level(case), "results": results.collect::<Vec<_>>()})
        });
        json!({"scenarios": rows.collect::<Vec<_>>(), "failures": self.failures()})
    }
}

fn column(kind: Kind, cases: &[Case], progress: &(dyn Fn(&str) + Sync)) -> Column {
    let start = Instant::now();
    let begun = AtomicUsize::new(0);
    let (asked, mut results): (Vec<usize>, Vec<Option<Vec<String>>>) = (
        (0..cases.len()).filter(|n| kind.runs(&cases[*n])).collect(),
        cases.iter().map(|case| admission(kind, case)).collect(),
    );
    let asked_cases: Vec<Case> = asked.iter().map(|n| cases[*n].clone()).collect();
    let told = |case: &Case, found: &[String]| {
        let count = begun.fetch_add(1, Ordering::Relaxed) + 1;
        if !found.is_empty() || count.is_multiple_of(25) {
            let word = if found.is_empty() { "holds" } else { "DIFFERS" };
            progress(&format!("{kind}: {count} of {}: {} {word}", asked_cases.len(), case.id));
        }
    };
    let found = run_all(kind, &asked_cases, SIDE_BY_SIDE, &told);
    for (n, found) in asked.into_iter().zip(found) {
        results[n] = Some(found);
    }
    Column { kind, results, took: start.elapsed() }
}

/// What reading one object gives is a question to the evaluator's side alone.
fn admission(kind: Kind, case: &Case) -> Option<Vec<String>> {
    let admission = case.admission.as_ref().filter(|_| kind == Kind::Evaluator)?;
    let read = read::object(&admission.object);
    let named = read.problems.iter().any(|problem| problem.field == admission.field);
    let mut found = Vec::new();
    if read.broken == admission.accept {
        found.push(format!("accepted: {}, expected: {}", !read.broken, admission.accept));
    }
    if !admission.accept && !named {
        found.push(format!("no problem names {}: {:?}", admission.field, read.problems));
    }
    Some(found)
}

/// The least binding of the levels of its steps.
fn level(case: &Case) -> &'static str {
    let levels = || case.steps.iter().filter_map(|step| step.expect.as_ref()).map(|expect| expect.level);
    if levels().any(|level| level == Level::Choice) {
        "choice"
    } else if levels().any(|level| level == Level::Should) {
        "should"
    } else {
        "must"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario;

    const CASE: &str = "{schema: netpol-case/v1, id: t/one, title: t, cluster: {pods: {x/a: {}, x/b: {}}}, \
        steps: [{expect: {ports: [TCP/80], level: should, rules: [{from: x/a, to: x/b, verdict: deny}]}}]}";

    #[test]
    fn a_difference_is_told_in_every_form() {
        let case = scenario::parse(CASE).unwrap();
        let report = Report::run(vec![case], &[Kind::Evaluator, Kind::Tables], &|_| {});
        assert_eq!(report.failures(), 1);
        let table = report.table();
        assert!(table.contains("t/one     should"), "{table}");
        assert!(
            table.contains("t/one on tables: step 0: x/a -> x/b TCP/80 V4: expected deny, seen allow"),
            "{table}"
        );
        assert!(table.contains("evaluator: 0 of 1 scenarios hold"), "{table}");
        let json = report.json();
        assert_eq!(json["scenarios"][0]["results"][1]["result"], "differs");
    }
}
