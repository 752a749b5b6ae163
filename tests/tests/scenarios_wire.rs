//! Every scenario on real packets: a node of namespaces and the real agent, in both topologies and both families.
//!
//! A few nodes run side by side and take scenarios from one list, one after another, as a cluster that lives long
//! would: what a scenario leaves behind on a node must not matter to the next.

use policy_tests::{
    backend::{self, Wire},
    net::Topology,
    scenario::{self, Case, Kind},
};
use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

/// Nodes that run side by side in each topology.
const NODES: usize = 2;

#[test]
fn ptp_agrees_with_every_truth_table() {
    all(Topology::Ptp);
}

#[test]
fn bridge_agrees_with_every_truth_table() {
    all(Topology::Bridge);
}

fn all(topology: Topology) {
    let only = std::env::var("SCENARIO").unwrap_or_default();
    let wanted = |case: &Case| case.kind != Kind::Admission && case.id.starts_with(&only);
    let cases = scenario::all().expect("scenario files read").into_iter().map(|(_, case)| case);
    let cases: Vec<Case> = cases.filter(wanted).collect();
    assert!(!cases.is_empty(), "no scenario begins with {only:?}");
    let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..NODES.min(cases.len()) {
            scope.spawn(|| {
                let mut wire = Wire::start(topology).expect("a node with an agent");
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let found =
                        backend::run(case, &mut wire).unwrap_or_else(|error| vec![format!("{error:#}")]);
                    if !found.is_empty() {
                        let text = format!("{}\n  {}\n{}", case.id, found.join("\n  "), wire.log());
                        failures.lock().expect("no thread panics with it").push(text);
                        // What went wrong must not make the next scenario fail too.
                        wire = Wire::start(topology).expect("a node with an agent");
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("no thread panics with it");
    assert!(failures.is_empty(), "{} of {} fail:\n{}", failures.len(), cases.len(), failures.join("\n\n"));
}
