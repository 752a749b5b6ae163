//! Every scenario file reads, its names are unique, and its truth tables fit its cluster.

use policy_tests::scenario::{self, Expected, Level, State};
use std::collections::BTreeSet;

#[test]
fn every_table_fits_its_cluster() {
    let mut ids = BTreeSet::new();
    let mut failures = Vec::new();
    for (path, case) in scenario::all().unwrap() {
        let file = path.strip_prefix(scenario::root().join("tests/scenarios")).unwrap().with_extension("");
        assert_eq!(file.to_string_lossy(), case.id, "the file's path is the scenario's id");
        assert!(ids.insert(case.id.clone()), "{} twice", case.id);
        if let Err(error) = check(&case) {
            failures.push(format!("{}: {error:#}", case.id));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    let edge = ids.iter().filter(|id| id.starts_with("edge/")).count();
    println!("{} scenarios, {edge} of them edge cases", ids.len());
}

/// A table in which every cell is the same shows a rule only if another step of the file shows the opposite.
fn check(case: &scenario::Case) -> anyhow::Result<()> {
    let mut state = State::new(case)?;
    let mut verdicts = BTreeSet::new();
    for (n, step) in case.steps.iter().enumerate() {
        for action in &step.actions {
            state.act(action).map_err(|error| error.context(format!("steps[{n}]")))?;
        }
        if let Some(expect) = &step.expect {
            let table =
                Expected::table(case, expect, &state).map_err(|e| e.context(format!("steps[{n}]")))?;
            anyhow::ensure!(!table.is_empty(), "steps[{n}]: an empty table");
            anyhow::ensure!(
                expect.alternatives.is_empty() || expect.level == Level::Choice,
                "steps[{n}]: only a choice has alternatives"
            );
            verdicts.extend(table.iter().map(|expected| expected.allow));
        }
    }
    let sessions = case.steps.iter().any(|step| !step.sessions.is_empty());
    anyhow::ensure!(
        verdicts.len() == 2 || sessions || case.admission.is_some(),
        "all verdicts of the file are equal"
    );
    Ok(())
}
