//! `soak`: random worlds and malformed packets for as long as asked, by a program of the tests' crate.

use anyhow::Result;

use crate::{build, command, setup};

/// `cargo xtask soak [--pairs N] [--malformed N] [--repeat N] [--seed N] [--replay FILE]`
pub(crate) fn task(args: &[String]) -> Result<()> {
    setup::ensure(setup::Scope::Test)?;
    build::binaries(false)?;
    let mut program = command::new(&command::built("soak").to_string_lossy());
    command::run(program.args(args))
}
