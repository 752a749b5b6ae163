//! A million pairs of random worlds in each run: evaluator, compiled tables and kernel programs judge alike, after
//! every write of every plan. And a fault that is made on purpose is found and made small.

use policy_engine::{
    model::{Peer, Peers, Policy, Rule},
    testing::rng::Rng,
    world::{Delta, World},
};
use policy_tests::{
    backend::{Kind, run_all},
    scenario,
    soak::{Amount, drive, malformed, replay},
};
use std::{env, fs, time::SystemTime};

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().and_then(|text| text.parse().ok())
}

fn seed() -> u64 {
    let seed = number("POLICY_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.map_or(1, |now| Rng::new(now.as_nanos() as u64).next() >> 16)
    });
    println!("POLICY_SEED={seed}");
    seed
}

#[test]
fn a_million_pairs_are_judged_alike() {
    let mut amount = Amount::new(number("POLICY_PAIRS").unwrap_or(1_000_000), seed());
    amount.kernel_pairs = amount.pairs / 50;
    match drive(&amount).expect("random clusters run") {
        Ok(summary) => {
            println!("{summary}");
            assert!(summary.compared.pairs() >= amount.pairs && summary.compared.kernel > 0, "{summary}");
        }
        Err(trouble) => panic!("{trouble}"),
    }
}

#[test]
fn malformed_packets_change_no_verdict_and_leave_nothing() {
    let flood =
        malformed::flood(number("POLICY_PACKETS").unwrap_or(1_000_000), 50, seed()).expect("all agree");
    println!("{flood:?}");
    assert!(flood.dropped > flood.runs / 10 && flood.frames > flood.runs / 500, "{flood:?}");
}

/// A compiler that overlooks every `except`.
fn without_excepts(world: &World) -> World {
    let mut bent = world.clone();
    let rules = |rules: &Option<Vec<Rule>>| {
        let mut rules = rules.clone();
        for rule in rules.iter_mut().flatten() {
            if let Peers::Any(peers) = &mut rule.peers {
                for peer in peers {
                    if let Peer::Block { except, .. } = peer {
                        except.clear();
                    }
                }
            }
        }
        rules
    };
    for policy in world.policies.values() {
        let (ingress, egress) = (rules(&policy.ingress), rules(&policy.egress));
        bent.apply(Delta::Policy(Policy { ingress, egress, ..(**policy).clone() }));
    }
    bent
}

#[test]
fn a_fault_becomes_a_small_scenario() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut amount = Amount::new(u64::MAX, 1);
    (amount.seen, amount.threads, amount.folder) = (without_excepts, 1, folder.path().to_owned());
    let trouble = drive(&amount).expect("it runs").expect_err("the fault is found");
    let text = fs::read_to_string(&trouble.file).expect("the file is there");
    assert!(trouble.to_string().contains("cargo xtask soak --replay"), "{trouble}");
    // One policy with one block and its except, and who it is about.
    let case = scenario::load(&trouble.file).unwrap_or_else(|error| panic!("{error:#}\n{text}"));
    assert_eq!(case.steps.len(), 1, "{text}");
    assert_eq!(text.matches("NetworkPolicy").count(), 1, "{text}");
    assert_eq!(text.matches("except").count(), 1, "{text}");
    assert!(case.cluster.pods.len() <= 2, "{text}");
    // Whoever is not bent agrees with the truth in it.
    for kind in [Kind::Evaluator, Kind::Tables] {
        let found = run_all(kind, std::slice::from_ref(&case), 1, &|_, _| {});
        assert!(found[0].is_empty(), "{kind}: {found:?}\n{text}");
    }
    assert_eq!(replay(&trouble.file, false).expect("it replays"), None);
}
