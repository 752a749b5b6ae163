//! Compares random worlds and malformed packets for as long as asked: `cargo xtask soak`.

use anyhow::{Context, Result, bail};
use policy_tests::soak::{Amount, drive, malformed, replay};
use std::{
    path::PathBuf,
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

/// What the command line asks for.
#[derive(Debug)]
struct Wanted {
    pairs: u64,
    malformed: u64,
    repeat: u32,
    seed: u64,
    replay: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            eprintln!("hint: soak [--pairs N] [--malformed N] [--repeat N] [--seed N] [--replay FILE]");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<bool> {
    let wanted = arguments(std::env::args().skip(1))?;
    // SAFETY: geteuid has no precondition and cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    if let Some(file) = &wanted.replay {
        return Ok(match replay(file, root)? {
            None => {
                println!("{}: evaluator, tables and programs agree", file.display());
                true
            }
            Some(difference) => {
                println!("{}: {difference}", file.display());
                false
            }
        });
    }
    println!("seed {}", wanted.seed);
    if wanted.pairs > 0 {
        let mut amount = Amount::new(wanted.pairs, wanted.seed);
        amount.kernel_pairs = if root { wanted.pairs / 20 } else { 0 };
        match drive(&amount)? {
            Ok(summary) => println!("{summary}"),
            Err(trouble) => {
                println!("{trouble}");
                return Ok(false);
            }
        }
    }
    if wanted.malformed > 0 {
        if !root {
            bail!("malformed packets are shown to the kernel's programs, which needs root; or --malformed 0");
        }
        let flood = malformed::flood(wanted.malformed, wanted.repeat, wanted.seed)?;
        let seconds = flood.took.as_secs_f64();
        println!(
            "{} runs of the kernel's programs on {} malformed frames, {} dropped: no verdict, event or table differs; \
             {seconds:.1} s, {:.0} runs/s",
            flood.runs,
            flood.frames,
            flood.dropped,
            flood.runs as f64 / seconds.max(0.001)
        );
    }
    Ok(true)
}

fn arguments(mut args: impl Iterator<Item = String>) -> Result<Wanted> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.as_secs());
    let mut wanted =
        Wanted { pairs: 10_000_000, malformed: 100_000_000, repeat: 100, seed: now, replay: None };
    while let Some(arg) = args.next() {
        let value = args.next().with_context(|| format!("{arg} needs a value"))?;
        let number =
            || value.replace('_', "").parse().with_context(|| format!("{arg}: {value:?} is no number"));
        match arg.as_str() {
            "--pairs" => wanted.pairs = number()?,
            "--malformed" => wanted.malformed = number()?,
            "--repeat" => wanted.repeat = u32::try_from(number()?)?.max(1),
            "--seed" => wanted.seed = number()?,
            "--replay" => wanted.replay = Some(value.into()),
            other => bail!("there is no option {other:?}"),
        }
    }
    Ok(wanted)
}
