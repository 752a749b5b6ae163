//! `build`: both binaries, with the kernel object inside.

use anyhow::Result;

use crate::{command, fail, setup};

/// `cargo xtask build [--release]`
pub(crate) fn task(args: &[String]) -> Result<()> {
    let mut release = false;
    for arg in args {
        match arg.as_str() {
            "--release" => release = true,
            other => return Err(fail::argument("build", other)),
        }
    }
    setup::ensure(setup::Scope::Build)?;
    binaries(release)?;
    let folder = if release { "target/release" } else { "target/debug" };
    eprintln!("built {folder}/policy-agent and {folder}/policyctl");
    Ok(())
}

/// Builds `policy-agent` and `policyctl`, and without `release` every other program of the workspace; cargo shows
/// the progress.
pub(crate) fn binaries(release: bool) -> Result<()> {
    let mut cargo = command::workspace("build");
    cargo.arg("--bins");
    if release {
        cargo = command::cargo();
        cargo.args(["build", "--locked", "--release", "--package", "policy-agent", "--bins"]);
    }
    command::run(&mut cargo)
}
