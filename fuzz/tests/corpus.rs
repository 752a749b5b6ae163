//! The corpus holds, and so do some thousands of changed inputs: a bounded run without coverage in each run of the
//! tests. `cargo xtask fuzz` goes on from there, guided.

use policy_fuzz::{Budget, Target, corpus, drive};
use std::time::{Duration, SystemTime};

fn fuzz(target: Target, runs: u64) {
    let seed = std::env::var("POLICY_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.map_or(1, |now| now.as_nanos() as u64)
    });
    println!("POLICY_SEED={seed}");
    let known = corpus::load(target).expect("the corpus reads").len() as u64;
    // The bound is a number of inputs; the time is there for a machine that stands still.
    let budget = Budget { time: Duration::from_secs(600), runs: known + runs };
    match drive(target, seed, budget).expect("the corpus reads") {
        Ok(told) => assert!(told.runs >= known + runs, "{told:?}"),
        Err(crash) => {
            let (name, file) = (target.name(), crash.file.display());
            panic!("POLICY_SEED={seed}: {name}: {}, on {file}: {:02x?}", crash.why, crash.input)
        }
    }
}

#[test]
fn packets() {
    fuzz(Target::Packet, 200_000);
}

#[test]
fn decisions() {
    fuzz(Target::Decide, 20_000);
}

#[test]
fn objects() {
    fuzz(Target::Object, 2_000);
}

#[test]
fn events() {
    fuzz(Target::Event, 100_000);
}
