//! Runs scenario files on back ends and prints what came of it: `cargo xtask scenarios`.

use anyhow::{Context, Result, bail, ensure};
use policy_tests::{
    backend::Kind,
    report::Report,
    scenario::{self, Case},
};
use regex::Regex;
use std::{path::Path, process::ExitCode};

/// What the command line asks for.
struct Wanted {
    only: Option<Regex>,
    kinds: Vec<Kind>,
    files: Vec<String>,
    json: bool,
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            eprintln!(
                "hint: scenarios [--only RE] [--backend {}]... [--file PATH]... [--output table|json]",
                Kind::ALL.map(Kind::name).join("|")
            );
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<bool> {
    let wanted = arguments(std::env::args().skip(1))?;
    let mut cases: Vec<Case> = if wanted.files.is_empty() {
        scenario::all()?.into_iter().map(|(_, case)| case).collect()
    } else {
        wanted.files.iter().map(|path| scenario::load(Path::new(path))).collect::<Result<_>>()?
    };
    if let Some(only) = &wanted.only {
        cases.retain(|case| only.is_match(&case.id));
        ensure!(!cases.is_empty(), "no scenario's id matches {only}");
    }
    let report = Report::run(cases, &wanted.kinds, &|line| eprintln!("{line}"));
    if wanted.json {
        println!("{}", serde_json::to_string_pretty(&report.json())?);
    } else {
        print!("{}", report.table());
    }
    Ok(report.failures() == 0)
}

/// Without `--backend`: all that this user may run.
fn arguments(mut args: impl Iterator<Item = String>) -> Result<Wanted> {
    let mut wanted = Wanted { only: None, kinds: Vec::new(), files: Vec::new(), json: false };
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--only" => wanted.only = Some(Regex::new(&value()?)?),
            "--backend" => wanted.kinds.push(value()?.parse().map_err(anyhow::Error::msg)?),
            "--file" => wanted.files.push(value()?),
            "--output" => match value()?.as_str() {
                "json" => wanted.json = true,
                "table" => wanted.json = false,
                other => bail!("there is no output {other:?}"),
            },
            other => bail!("there is no option {other:?}"),
        }
    }
    if wanted.kinds.is_empty() {
        // SAFETY: geteuid has no precondition and cannot fail.
        let root = unsafe { libc::geteuid() } == 0;
        wanted.kinds = Kind::ALL.into_iter().filter(|kind| root || !kind.needs_root()).collect();
    }
    Ok(wanted)
}
