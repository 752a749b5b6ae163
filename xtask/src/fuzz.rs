//! `fuzz`: the fuzzer, built so that it can tell which code an input reached.

use anyhow::Result;

use crate::command;

/// What the compiler is told: any stable one can.
const COUNT: &str = "-Cinstrument-coverage";
/// A build of its own, since everything in it counts.
const FOLDER: &str = "target/fuzz";

/// `cargo xtask fuzz [TARGET]... [--seconds N] [--seed N] [--save]`
pub(crate) fn task(args: &[String]) -> Result<()> {
    let mut cargo = command::cargo();
    cargo.args(["build", "--locked", "--package", "policy-fuzz", "--features", "coverage"]);
    // Build scripts count too, and would leave a file each.
    cargo.args(["--target-dir", FOLDER]).env("RUSTFLAGS", COUNT).env("LLVM_PROFILE_FILE", "/dev/null");
    command::run(&mut cargo)?;
    let program = command::root().join(FOLDER).join("debug/policy-fuzz");
    let mut fuzz = command::new(&program.to_string_lossy());
    // The counters are read while it runs; nobody asks for the file at its end.
    command::run(fuzz.args(args).env("LLVM_PROFILE_FILE", "/dev/null"))
}
