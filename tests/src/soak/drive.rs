//! Seeds, one after another on a few threads, until enough pairs are compared or somebody disagrees.

use super::{
    cluster,
    compare::{Compared, Difference, Effort, Judges, compare},
    shrink, story,
};
use crate::{
    backend::Kernel,
    scenario::{self, Case},
};
use anyhow::{Context, Result};
use policy_engine::{testing::rng::Rng, world::World};
use serde_json::Value;
use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Questions while a failure is made small.
const SHRINKING: usize = 4_000;
/// Runs of a scenario whose failure depends on what is asked.
const TRIES: u64 = 3;

/// How much to compare.
#[derive(Debug, Clone)]
pub struct Amount {
    /// Pairs of a connection and a judge.
    pub pairs: u64,
    /// First seed; those after it follow.
    pub seed: u64,
    /// Threads.
    pub threads: usize,
    /// Pairs that the kernel's programs judge, among all; needs root if there are any.
    pub kernel_pairs: u64,
    /// What the compiler sees of a world: the world.
    pub seen: fn(&World) -> World,
    /// Where a failure's scenario is written.
    pub folder: PathBuf,
}

impl Amount {
    /// So many pairs from this seed on, without the kernel.
    pub fn new(pairs: u64, seed: u64) -> Self {
        let folder = scenario::root().join("target/soak");
        Self { pairs, seed, threads: 2, kernel_pairs: 0, seen: World::clone, folder }
    }
}

/// What was done.
#[derive(Debug, Clone, Copy, Default)]
pub struct Summary {
    /// Compared with the evaluator.
    pub compared: Compared,
    /// Random clusters.
    pub clusters: u64,
    /// How long it took.
    pub took: Duration,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Compared { tables, memory, kernel, plans } = self.compared;
        let seconds = self.took.as_secs_f64();
        write!(
            f,
            "{} pairs compared ({tables} tables, {memory} in memory, {kernel} in the kernel) in {} clusters and \
             {plans} plans, each checked after every write; {seconds:.1} s",
            self.compared.pairs(),
            self.clusters,
        )
    }
}

/// A failure, made small.
#[derive(Debug, Clone)]
pub struct Trouble {
    /// Seed that found it.
    pub seed: u64,
    /// In words.
    pub what: String,
    /// The scenario.
    pub file: PathBuf,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.display();
        write!(
            f,
            "seed {}: {}\nscenario: {file}\nreplay: cargo xtask soak --replay {file}\ntable: cargo xtask scenarios --file {file}",
            self.seed, self.what
        )
    }
}

/// Compares until it is enough. `Err` in the result is a disagreement; an error outside is a machine that cannot.
pub fn drive(amount: &Amount) -> Result<std::result::Result<Summary, Trouble>> {
    let start = Instant::now();
    let run = Run {
        amount,
        next: AtomicU64::new(amount.seed),
        asked: AtomicU64::new(0),
        in_kernel: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        sum: Mutex::new(Summary::default()),
        found: Mutex::new(None),
        failed: Mutex::new(None),
    };
    std::thread::scope(|scope| {
        for n in 0..amount.threads.max(1) {
            let run = &run;
            scope.spawn(move || {
                if let Err(error) = run.work(n == 0 && amount.kernel_pairs > 0) {
                    run.stop.store(true, Ordering::Relaxed);
                    lock(&run.failed).get_or_insert(error);
                }
            });
        }
    });
    if let Some(error) = lock(&run.failed).take() {
        return Err(error);
    }
    if let Some(found) = lock(&run.found).take() {
        return small(amount, &found).map(Err);
    }
    let sum = *lock(&run.sum);
    Ok(Ok(Summary { took: start.elapsed(), ..sum }))
}

/// A cluster on which somebody disagrees.
struct Found {
    seed: u64,
    document: Value,
    difference: Difference,
    with_kernel: bool,
}

/// What the threads share.
struct Run<'a> {
    amount: &'a Amount,
    next: AtomicU64,
    asked: AtomicU64,
    in_kernel: AtomicU64,
    stop: AtomicBool,
    sum: Mutex<Summary>,
    found: Mutex<Option<Found>>,
    failed: Mutex<Option<anyhow::Error>>,
}

impl Run<'_> {
    fn work(&self, with_kernel: bool) -> Result<()> {
        let mut kernel = if with_kernel { Some(Kernel::new()?) } else { None };
        while !self.stop.load(Ordering::Relaxed) && self.asked.load(Ordering::Relaxed) < self.amount.pairs {
            let seed = self.next.fetch_add(1, Ordering::Relaxed);
            let wanted = self.in_kernel.load(Ordering::Relaxed) < self.amount.kernel_pairs;
            let with_kernel = kernel.is_some() && wanted;
            let document = cluster::random(&mut Rng::new(seed));
            let mut judges =
                Judges { kernel: kernel.as_mut().filter(|_| with_kernel), seen: self.amount.seen };
            match one(&document, seed, effort(with_kernel), &mut judges)? {
                Ok(compared) => {
                    self.asked.fetch_add(compared.pairs(), Ordering::Relaxed);
                    self.in_kernel.fetch_add(compared.kernel, Ordering::Relaxed);
                    let mut sum = lock(&self.sum);
                    sum.compared += compared;
                    sum.clusters += 1;
                }
                Err(difference) => {
                    self.stop.store(true, Ordering::Relaxed);
                    lock(&self.found).get_or_insert(Found { seed, document, difference, with_kernel });
                }
            }
        }
        Ok(())
    }
}

/// A thread that panicked has told so itself.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asks one scenario file what random clusters are asked, with the kernel's programs where the user may. What differs,
/// if anything.
pub fn replay(path: &Path, kernel: bool) -> Result<Option<String>> {
    let case = scenario::load(path)?;
    let mut kernel = if kernel { Some(Kernel::new()?) } else { None };
    for seed in 0..TRIES {
        let mut judges = Judges { kernel: kernel.as_mut(), seen: World::clone };
        let effort = effort(judges.kernel.is_some());
        if let Err(found) = compare(&case, effort, &mut Rng::new(seed), &mut judges)? {
            return Ok(Some(format!("step {}: {}", found.step, found.what)));
        }
    }
    Ok(None)
}

fn effort(kernel: bool) -> Effort {
    if kernel {
        Effort { samples: 400, during: 30, conversations: 60, kernel: 150 }
    } else {
        Effort { samples: 400, during: 40, conversations: 60, kernel: 0 }
    }
}

fn one(
    document: &Value,
    seed: u64,
    effort: Effort,
    judges: &mut Judges<'_>,
) -> Result<std::result::Result<Compared, Difference>> {
    let case: Case = serde_json::from_value(document.clone()).context("a random scenario reads")?;
    // Another stream than that which made the cluster.
    compare(&case, effort, &mut Rng::new(!seed), judges).with_context(|| format!("seed {seed}"))
}

fn small(amount: &Amount, found: &Found) -> Result<Trouble> {
    let mut kernel = if found.with_kernel { Some(Kernel::new()?) } else { None };
    let (mut last, mut best) = (found.difference.clone(), found.document.clone());
    let fails = |candidate: &Value| {
        let difference = (0..TRIES).find_map(|n| {
            let mut judges = Judges { kernel: kernel.as_mut(), seen: amount.seen };
            let seed = found.seed.wrapping_add(n);
            // A candidate that does not read, or cannot run, shows nothing.
            one(candidate, seed, effort(found.with_kernel), &mut judges).ok()?.err()
        });
        let Some(difference) = difference else { return false };
        (last, best) = (difference, candidate.clone());
        true
    };
    shrink(&found.document, SHRINKING, fails);
    let name = format!("seed-{}", found.seed);
    let text = story::story(&best, &format!("soak/{name}"), &last)?;
    let file = story::write(&text, &amount.folder, &name)?;
    Ok(Trouble { seed: found.seed, what: last.what.clone(), file })
}
