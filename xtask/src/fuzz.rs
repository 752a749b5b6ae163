//! `fuzz`: the fuzzer, built so that it can tell which code an input reached.

use std::{env, os::unix::process::CommandExt, process::Command};

use anyhow::{Context, Result};

use crate::{command, tally::Tally};

/// What the compiler is told: any stable one can.
const COUNT: &str = "-Cinstrument-coverage";
/// A build of its own.
const FOLDER: &str = "target/fuzz";
/// Set while this program stands between cargo and the compiler.
const BETWEEN: &str = "POLICY_FUZZ_RUSTC";

/// `cargo xtask fuzz [TARGET]... [--seconds N | --runs N] [--seed N] [--save]`
pub(crate) fn task(args: &[String]) -> Result<()> {
    let mut cargo = command::cargo();
    cargo.args(["build", "--locked", "--package", "policy-fuzz", "--features", "coverage"]);
    cargo.args(["--target-dir", FOLDER]).env("LLVM_PROFILE_FILE", "/dev/null");
    // All counters are read after each input: only the workspace's own crates have them, not those that they use.
    let own = env::current_exe().context("where this program is")?;
    cargo.env("RUSTC_WORKSPACE_WRAPPER", own).env(BETWEEN, "1");
    command::run(&mut cargo)?;
    let program = command::root().join(FOLDER).join("debug/policy-fuzz");
    let mut fuzz = command::new(&program.to_string_lossy());
    // The counters are read while it runs; nobody asks for the file at its end.
    command::run(fuzz.args(args).env("LLVM_PROFILE_FILE", "/dev/null"))
}

/// A short run of every target, as a stage of all tests: the same inputs each time, so that a change is judged by
/// what it changed. New seeds are for `fuzz` by itself.
pub(crate) fn short() -> Tally {
    let args = ["--runs", "50000", "--seed", "1"].map(str::to_owned);
    let mut tally = Tally::default();
    match task(&args) {
        Ok(()) => tally.passed = 1,
        Err(error) => {
            eprintln!("{error:#}");
            tally.failed = 1;
            tally.failures.push("guided fuzzing: cargo xtask fuzz".to_owned());
        }
    }
    tally
}

/// In the place of the compiler, for a crate of the workspace: the compiler, told to count. `None`: this is no such call.
pub(crate) fn between(args: &[String]) -> Option<Result<()>> {
    let (compiler, rest) = args.split_first().filter(|_| env::var_os(BETWEEN).is_some())?;
    let error = Command::new(compiler).args(rest).arg(COUNT).exec();
    Some(Err(error).with_context(|| format!("cannot run {compiler}")))
}
