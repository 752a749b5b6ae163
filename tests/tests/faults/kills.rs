//! The agent is killed at random moments, a hundred times, while policies change.

use super::setup::{PATIENCE, actions, holds, is_clean, lab, rounds, streams};
use policy_engine::testing::rng::Rng;
use policy_tests::{
    net::{Family, Topology},
    probe::{Link, Probe},
};
use std::time::Duration;

/// Longest life of an agent that is killed: it may have got as far as enforcing a change.
const LIFE: usize = 600;

#[test]
fn killed_at_any_moment_nothing_leaks_and_nothing_that_is_allowed_is_lost() {
    let seed = std::env::var("POLICY_FAULTS_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(7);
    let mut rng = Rng::new(seed);
    let mut lab = lab(Topology::Ptp, &["--self-check", "200ms"]);
    let probe = Probe {
        ns: lab.host("x/b").unwrap().ns.clone(),
        from: lab.ip("x/b", Family::V6).unwrap(),
        to: lab.ip("x/a", Family::V6).unwrap(),
        port: "TCP/80".parse().unwrap(),
        size: 8,
        unconnected: false,
    };
    let mut connection = Link::open(&probe, PATIENCE).unwrap().expect("it opens");
    let streams = streams(&lab);
    let mut open = false;
    lab.agent().kill().unwrap();
    for round in 0..rounds(100) {
        if rng.percent(40) {
            open = !open;
            lab.act_without_waiting(&actions(open)).unwrap();
        }
        lab.agent().spawn().unwrap();
        std::thread::sleep(Duration::from_millis(rng.below(LIFE) as u64));
        if rng.percent(40) {
            open = !open;
            lab.act_without_waiting(&actions(open)).unwrap();
            std::thread::sleep(Duration::from_millis(rng.below(30) as u64));
        }
        assert!(
            lab.agent().is_running().unwrap(),
            "round {round}, seed {seed}: it ended:\n{}",
            lab.agent().log()
        );
        lab.agent().kill().unwrap();
    }
    lab.agent().start().unwrap();
    lab.agent().wait().unwrap();
    streams
        .stop()
        .unwrap()
        .nothing_lost()
        .unwrap_or_else(|e| panic!("seed {seed}: {e}\n{}", lab.agent().log()));
    assert!(connection.is_alive(PATIENCE).unwrap(), "the connection broke");
    is_clean(&mut lab);
    holds(&lab, open);
}
