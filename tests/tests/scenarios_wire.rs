//! Every scenario on real packets: a node of namespaces and the real agent, in both topologies and both families.
//!
//! A few nodes run side by side and take scenarios from one list, one after another, as a cluster that lives long
//! would: what a scenario leaves behind on a node must not matter to the next.

use policy_tests::{
    backend::{Kind, run_all},
    group,
    scenario::{self, Case},
};

/// Nodes that run side by side in each topology.
const NODES: usize = 2;

#[test]
fn ptp_agrees_with_every_truth_table() {
    all(Kind::Wire);
}

#[test]
fn bridge_agrees_with_every_truth_table() {
    all(Kind::WireBridge);
}

#[test]
fn control_groups_agree_with_every_truth_table_that_they_can_be_asked() {
    all(Kind::Cgroup);
    // A process that was moved into another workload's group goes before the group does.
    assert_eq!(group::left().expect("control groups can be listed"), Vec::<std::path::PathBuf>::new());
}

fn all(kind: Kind) {
    let only = std::env::var("SCENARIO").unwrap_or_default();
    let wanted = |case: &Case| kind.runs(case) && case.id.starts_with(&only);
    let cases = scenario::all().expect("scenario files read").into_iter().map(|(_, case)| case);
    let cases: Vec<Case> = cases.filter(wanted).collect();
    assert!(!cases.is_empty(), "no scenario begins with {only:?}");
    let found = run_all(kind, &cases, NODES, &|_, _| {});
    let failed = cases.iter().zip(&found).filter(|(_, found)| !found.is_empty());
    let failures: Vec<String> =
        failed.map(|(case, found)| format!("{}\n  {}", case.id, found.join("\n  "))).collect();
    assert!(failures.is_empty(), "{} of {} fail:\n{}", failures.len(), cases.len(), failures.join("\n\n"));
}
