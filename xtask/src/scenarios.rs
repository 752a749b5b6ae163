//! `scenarios`: truth tables on all back ends, by a program of the tests' crate.

use anyhow::Result;

use crate::{build, command, setup};

/// `cargo xtask scenarios [--only RE] [--backend B]... [--file PATH]... [--output table|json]`
pub(crate) fn task(args: &[String]) -> Result<()> {
    setup::ensure(setup::Scope::Test)?;
    build::binaries(false)?;
    let mut program = command::new(&command::built("scenarios").to_string_lossy());
    command::run(program.args(args))
}
