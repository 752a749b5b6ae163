//! `bench`: benchmarks of the datapath, by a program of the tests' crate.

use anyhow::Result;

use crate::{build, command, fail, setup};

/// `cargo xtask bench micro|path`
pub(crate) fn task(args: &[String]) -> Result<()> {
    let name = match args {
        [name] if matches!(name.as_str(), "micro" | "path") => name,
        [] => return Err(fail::hint("which benchmark?", "cargo xtask bench micro\ncargo xtask bench path")),
        [other, ..] => return Err(fail::argument("bench", other)),
    };
    if !command::is_root() {
        let hint = format!("sudo -E env \"PATH=$PATH\" cargo xtask bench {name}");
        return Err(fail::hint("benchmarks load programs into the kernel: they need root", hint));
    }
    setup::ensure(setup::Scope::Bench)?;
    // What is measured runs in the kernel, whose object is always optimised; the program around it need not be.
    build::binaries(false)?;
    command::run(command::new(&command::built("bench").to_string_lossy()).arg(name))
}
