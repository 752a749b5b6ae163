//! Every scenario on the back ends that need neither root nor kernel.

use policy_tests::{
    backend::{self, Backend, Evaluator, Memory},
    scenario::{self, Action, Case},
};
use std::path::PathBuf;

#[test]
fn the_evaluator_agrees_with_every_truth_table() {
    agrees(scenario::all().unwrap(), || Box::new(Evaluator::new()));
}

#[test]
fn the_datapath_in_memory_agrees_with_every_truth_table() {
    agrees(scenario::all().unwrap(), || Box::new(Memory::new()));
}

/// A truth table that holds without one of the scenario's policies does not show what that policy does.
#[test]
fn every_policy_of_a_scenario_matters() {
    let mut idle = Vec::new();
    for (_, case) in scenario::all().unwrap().into_iter().filter(|(_, case)| case.workloads.is_none()) {
        for (n, m) in policies(&case) {
            let mut without = case.clone();
            without.steps[n].actions.remove(m);
            // An error counts as a difference: a later step deletes what is missing now.
            let differs =
                backend::run(&without, &mut Evaluator::new()).map_or(true, |found| !found.is_empty());
            if !differs {
                idle.push(format!("{}: steps[{n}].actions[{m}]", case.id));
            }
        }
    }
    assert!(idle.is_empty(), "nothing changes without:\n{}", idle.join("\n"));
}

#[test]
fn bad_objects_are_told_by_field() {
    let mut failures = Vec::new();
    for (_, case) in scenario::all().unwrap() {
        let Some(admission) = &case.admission else { continue };
        let read = policy_engine::read::object(&admission.object);
        let named = read.problems.iter().any(|problem| problem.field == admission.field);
        if read.broken == admission.accept || !(admission.accept || named) {
            failures.push(format!("{}: broken={} {:#?}", case.id, read.broken, read.problems));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Steps and positions of the policies that a scenario applies. Files are looked at as a whole; the one of another
/// product's kind is there because nothing changes.
fn policies(case: &Case) -> Vec<(usize, usize)> {
    let kinds = ["NetworkPolicy", "ClusterNetworkPolicy"];
    let applies = |action: &Action| {
        action.apply.as_ref().is_some_and(|object| kinds.iter().any(|k| object["kind"] == *k))
    };
    let steps = case.steps.iter().enumerate();
    let positions =
        steps.flat_map(|(n, step)| step.actions.iter().enumerate().map(move |(m, action)| (n, m, action)));
    positions.filter(|(_, _, action)| applies(action)).map(|(n, m, _)| (n, m)).collect()
}

fn agrees(cases: Vec<(PathBuf, Case)>, backend: impl Fn() -> Box<dyn Backend>) {
    let mut failures = Vec::new();
    let mut count = 0;
    for (_, case) in cases.into_iter().filter(|(_, case)| backend::Kind::Evaluator.runs(case)) {
        let differences =
            backend::run(&case, &mut *backend()).unwrap_or_else(|error| vec![format!("{error:#}")]);
        failures.extend(differences.into_iter().map(|text| format!("{}: {text}", case.id)));
        count += 1;
    }
    assert!(count >= 100, "only {count} scenarios were found");
    assert!(failures.is_empty(), "{} differences:\n{}", failures.len(), failures.join("\n"));
}
