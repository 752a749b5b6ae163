//! The loop: change an input, run it, keep it when it reached something new; a panic is a crash, made small and kept.

use crate::{Target, corpus, coverage, mutate::mutate};
use anyhow::Result;
use policy_engine::testing::rng::Rng;
use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::Once,
    time::{Duration, Instant},
};

/// When to stop.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// After so long.
    pub time: Duration,
    /// After so many inputs.
    pub runs: u64,
}

/// What was done.
#[derive(Debug, Clone, Default)]
pub struct Told {
    /// Inputs that ran.
    pub runs: u64,
    /// Inputs kept, with those of the start.
    pub corpus: usize,
    /// Places of code reached, in classes of how often; 0 without coverage.
    pub features: usize,
    /// Inputs that reached something new, in the order they were found.
    pub found: Vec<Vec<u8>>,
    /// How long it took.
    pub took: Duration,
}

/// An input on which the target panics.
#[derive(Debug, Clone)]
pub struct Crash {
    /// The input, made small.
    pub input: Vec<u8>,
    /// Where it was kept.
    pub file: PathBuf,
    /// What the panic says.
    pub why: String,
}

/// Fuzzes a target. The inner `Err` is a crash.
pub fn drive(target: Target, seed: u64, budget: Budget) -> Result<std::result::Result<Told, Crash>> {
    quiet_panics();
    let start = Instant::now();
    let mut seen = coverage::Seen::default();
    let mut told = Told::default();
    let mut inputs = Vec::new();
    for input in corpus::load(target)? {
        if !passes(target, &input) {
            return crash(target, &input).map(Err);
        }
        told.runs += 1;
        // What an input of the corpus shows that those before it do not is why it is there.
        seen.take();
        inputs.push(input);
    }
    let mut rng = Rng::new(seed);
    while told.runs < budget.runs && start.elapsed() < budget.time {
        // Newer inputs more often: they reach what is hardest to reach.
        let count = inputs.len();
        let pick = |rng: &mut Rng| {
            if rng.percent(40) { count - 1 - rng.below(count.min(16)) } else { rng.below(count) }
        };
        let (one, other) = (pick(&mut rng), rng.below(count));
        let input = mutate(&mut rng, &inputs[one], &inputs[other], target.words());
        if !passes(target, &input) {
            return crash(target, &input).map(Err);
        }
        told.runs += 1;
        if seen.take() > 0 {
            inputs.push(input.clone());
            told.found.push(input);
        }
    }
    (told.corpus, told.features, told.took) = (inputs.len(), seen.features(), start.elapsed());
    Ok(Ok(told))
}

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Panics of a target are results; those of anybody else are told as ever.
fn quiet_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !INSIDE.with(Cell::get) {
                before(info);
            }
        }));
    });
}

/// Whether the target does not panic.
pub fn passes(target: Target, input: &[u8]) -> bool {
    outcome(target, input).is_ok()
}

/// The text of its panic, if it panics.
fn outcome(target: Target, input: &[u8]) -> std::result::Result<(), String> {
    coverage::reset();
    INSIDE.with(|inside| inside.set(true));
    let ended = catch_unwind(AssertUnwindSafe(|| target.run(input)));
    INSIDE.with(|inside| inside.set(false));
    ended.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words").to_owned()
    })
}

/// Takes chunks away for as long as it still panics, and keeps the rest.
fn crash(target: Target, input: &[u8]) -> Result<Crash> {
    let mut best = input.to_vec();
    let mut size = best.len() / 2;
    while size > 0 {
        let mut at = 0;
        while at + size <= best.len() {
            let mut smaller = best.clone();
            smaller.drain(at..at + size);
            if passes(target, &smaller) {
                at += size;
            } else {
                best = smaller;
            }
        }
        size /= 2;
    }
    let file = corpus::save(&corpus::folder(target), &best)?;
    let why = outcome(target, &best).err().unwrap_or_else(|| "it does not panic again".to_owned());
    Ok(Crash { input: best, file, why })
}
