//! `bench`: benchmarks of the datapath, by a program of the tests' crate.

use anyhow::Result;

use crate::{build, command, fail, setup};

/// The benchmarks.
const ALL: &str = "cargo xtask bench micro\ncargo xtask bench path\ncargo xtask bench scale";

/// `cargo xtask bench micro|path|scale`
pub(crate) fn task(args: &[String]) -> Result<()> {
    let name = match args {
        [name] if matches!(name.as_str(), "micro" | "path" | "scale") => name,
        [] => return Err(fail::hint("which benchmark?", ALL)),
        [other, ..] => return Err(fail::argument("bench", other)),
    };
    if !command::is_root() {
        let hint = format!("sudo -E env \"PATH=$PATH\" cargo xtask bench {name}");
        return Err(fail::hint("benchmarks load programs into the kernel: they need root", hint));
    }
    setup::ensure(setup::Scope::Bench)?;
    if name == "scale" {
        return scale();
    }
    // What is measured runs in the kernel, whose object is always optimised; the program around it need not be.
    build::binaries(false)?;
    command::run(command::new(&command::built("bench").to_string_lossy()).arg(name))
}

/// What is measured runs in the agent: everything is optimised.
fn scale() -> Result<()> {
    setup::ensure(setup::Scope::Api)?;
    let mut cargo = command::cargo();
    cargo.args(["build", "--locked", "--release", "--package", "policy-agent", "--package", "policy-tests"]);
    cargo.args(["--bin", "policy-agent", "--bin", "policyctl", "--bin", "bench"]);
    command::run(&mut cargo)?;
    let program = command::root().join("target/release/bench");
    command::run(command::new(&program.to_string_lossy()).arg("scale"))
}
