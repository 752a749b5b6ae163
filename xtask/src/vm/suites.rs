//! Which suites run in a VM, built and made small.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::{build, command};

/// The integration tests of `policy-tests` that need only a kernel and [`FILES`]: no programs, no other machine.
const SUITES: &[&str] = &["machine"];
/// What the suites read, below the root of this checkout; in the machine, below `/repository`.
pub(super) const FILES: &[&str] = &["tests/scenarios", "deploy/examples"];

/// The harness does most of the work between two system calls, and emulation makes it several times as slow: making it
/// faster takes less time than the five machines save. The agent's library takes too long for that.
const FASTER: &str = "profile.dev.package.policy-tests.opt-level=1";

/// The programs of a VM.
pub(super) struct Programs {
    /// The first process.
    pub(super) init: PathBuf,
    /// Suites by name, in the order they run.
    pub(super) suites: Vec<(&'static str, PathBuf)>,
}

/// Builds the first process and the suites.
pub(super) fn build(work: &Path) -> Result<Programs> {
    build::binaries(false)?;
    let mut cargo = command::workspace("test");
    cargo.args(["--no-run", "--color", "never", "--config", FASTER]);
    for suite in SUITES {
        cargo.args(["--test", suite]);
    }
    eprintln!("vm-test: building the suites {}", SUITES.join(", "));
    let built = cargo.output().context("cannot run cargo")?;
    let said = String::from_utf8_lossy(&built.stderr);
    if !built.status.success() {
        bail!("the suites do not build:\n{said}");
    }
    let bin = work.join("bin");
    fs::create_dir_all(&bin).with_context(|| format!("cannot make {}", bin.display()))?;
    let init = small(&command::built("vm-init"), &bin.join("init"))?;
    let mut suites = Vec::new();
    for name in SUITES {
        let Some(binary) = executable(&said, name) else { bail!("cargo built no suite '{name}':\n{said}") };
        suites.push((*name, small(&command::root().join(binary), &bin.join(name))?));
    }
    Ok(Programs { init, suites })
}

/// The path in cargo's "Executable tests/machine/main.rs (target/debug/deps/machine-0123)".
fn executable(said: &str, suite: &str) -> Option<PathBuf> {
    let start = format!("Executable tests/{suite}/main.rs (");
    let line = said.lines().find_map(|line| line.trim_start().strip_prefix(&start))?;
    Some(PathBuf::from(line.strip_suffix(')')?))
}

/// A copy without debug information: the emulated kernel unpacks every byte.
fn small(binary: &Path, to: &Path) -> Result<PathBuf> {
    command::output(command::new("strip").arg("--strip-debug").arg("-o").arg(to).arg(binary))?;
    Ok(to.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_names_the_binary() {
        let said = "   Compiling x\n  Executable tests/machine/main.rs (target/debug/deps/machine-01)\n";
        assert_eq!(executable(said, "machine"), Some(PathBuf::from("target/debug/deps/machine-01")));
        assert_eq!(executable(said, "kernel"), None);
    }
}
