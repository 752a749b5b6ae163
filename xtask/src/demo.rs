//! `demo`: builds everything and runs the demo of the tests' crate.

use std::os::unix::process::CommandExt;

use anyhow::Result;

use crate::{build, command, fail, setup};

/// `cargo xtask demo`
pub(crate) fn task(args: &[String]) -> Result<()> {
    if let Some(other) = args.first() {
        return Err(fail::argument("demo", other));
    }
    if !command::is_root() {
        let hint = "sudo -E env \"PATH=$PATH\" cargo xtask demo";
        return Err(fail::hint(
            "the demo makes network namespaces and loads kernel programs: it needs root",
            hint,
        ));
    }
    setup::ensure(setup::Scope::Test)?;
    eprintln!("building policy-agent, policyctl and the demo");
    build::binaries(false)?;
    // In place of this process: on Ctrl-C the demo cleans up, and nobody returns to the shell before it.
    let mut demo = command::new(&command::built("demo").to_string_lossy());
    let error = demo.exec();
    Err(fail::hint(format!("cannot start the demo: {error}"), "cargo xtask build"))
}
