//! Fuzzes one target or all, for so long: `cargo xtask fuzz`.

use anyhow::{Context, Result, bail};
use policy_fuzz::{Budget, Target, corpus, coverage::Seen, drive};
use std::{
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            eprintln!(
                "hint: fuzz [packet|decide|object|event]... [--seconds N | --runs N] [--seed N] [--save]"
            );
            ExitCode::from(2)
        }
    }
}

/// `--save` keeps what reached new code as files of the corpus, as few as reach the same.
fn run() -> Result<bool> {
    let (mut targets, mut save) = (Vec::new(), false);
    let mut budget = Budget { time: Duration::from_secs(20), runs: u64::MAX };
    let mut seed = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.as_secs());
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut number = || -> Result<u64> {
            let value = args.next().with_context(|| format!("{arg} needs a value"))?;
            value.parse().with_context(|| format!("{arg}: {value:?} is no number"))
        };
        match arg.as_str() {
            "--seconds" => budget.time = Duration::from_secs(number()?),
            // A run that is to be the same on every machine is bounded by its inputs alone.
            "--runs" => budget = Budget { time: Duration::MAX, runs: number()? },
            "--seed" => seed = number()?,
            "--save" => save = true,
            name => match Target::ALL.into_iter().find(|target| target.name() == name) {
                Some(target) => targets.push(target),
                None => bail!("there is no target {name:?}"),
            },
        }
    }
    if targets.is_empty() {
        targets = Target::ALL.to_vec();
    }
    if !Seen::is_guided() {
        eprintln!("this build counts no coverage: fuzzing is blind (cargo xtask fuzz builds one that does)");
    }
    for target in targets {
        let told = match drive(target, seed, budget)? {
            Ok(told) => told,
            Err(crash) => {
                let text = String::from_utf8_lossy(&crash.input).into_owned();
                println!(
                    "{}: panics on {} bytes, kept as {}; seed {seed}",
                    target.name(),
                    crash.input.len(),
                    crash.file.display()
                );
                println!("{}\n{:02x?}\n{text}", crash.why, crash.input);
                return Ok(false);
            }
        };
        let rate = told.runs as f64 / told.took.as_secs_f64().max(0.001);
        println!(
            "{}: {} inputs, {rate:.0} a second, {} in the corpus ({} new), {} features, no panic; seed {seed}",
            target.name(),
            told.runs,
            told.corpus,
            told.found.len(),
            told.features
        );
        if save {
            for input in &told.found {
                corpus::save(&corpus::folder(target), input)?;
            }
            println!("{}: {} files in the corpus", target.name(), corpus::thin_out(target)?);
        }
    }
    Ok(true)
}
