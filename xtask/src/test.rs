//! `test`: every suite of the workspace, counted in one closing line.

use std::{
    io::{BufRead, BufReader, Write},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{build, cluster, command, fail, fuzz, setup, tally::Tally, vm};

/// Suites that need an API server have names that begin with "kube"; cargo's patterns can only say what to take.
const WITHOUT_KUBE: [&str; 8] =
    ["--lib", "--bins", "--test", "[!k]*", "--test", "k[!u]*", "--test", "ku[!b]*"];

/// `cargo xtask test [FILTER] [--no-vm] [--no-kube] [--cluster]`
pub(crate) fn task(args: &[String]) -> Result<()> {
    let (mut filter, mut vm, mut kube, mut nodes) = (None, true, true, false);
    for arg in args {
        match arg.as_str() {
            "--no-vm" => vm = false,
            "--no-kube" => kube = false,
            "--cluster" => nodes = true,
            flag if flag.starts_with('-') => return Err(fail::argument("test", flag)),
            name if filter.is_none() => filter = Some(name),
            other => return Err(fail::argument("test", other)),
        }
    }
    if !command::is_root() {
        return Err(fail::hint(
            "the tests load programs into the kernel and make network namespaces: they need root",
            "sudo -E env \"PATH=$PATH\" cargo xtask test\nwithout root: cargo test -p policy-engine -p policy-common",
        ));
    }
    setup::ensure(setup::Scope::Test)?;
    if kube {
        setup::kube::provide(setup::kube::Set::Api)?;
    }
    stage("building the binaries");
    build::binaries(false)?;
    stage("running the tests");
    let mut sum = workspace(filter, kube)?;
    if let Some(filter) = filter {
        stage("with a filter nothing is fuzzed and no VM is started");
        if sum.passed + sum.failed == 0 {
            return Err(fail::hint(format!("no test has '{filter}' in its name"), "cargo test -- --list"));
        }
    } else {
        stage("fuzzing, guided by coverage");
        sum.add(&fuzz::short());
        if vm {
            stage("running the kernel suites on other kernels");
            sum.add(&vm::all()?);
        }
    }
    if nodes {
        stage("running the suite on whole Kubernetes nodes");
        let words: Vec<String> = filter.map(str::to_owned).into_iter().collect();
        sum.add(&cluster::suite(&words)?);
    }
    close(&sum)
}

/// All crates but the kernel's, whose code the other suites load.
fn workspace(filter: Option<&str>, kube: bool) -> Result<Tally> {
    let run = |selection: &[&str]| {
        let mut cargo = command::workspace("test");
        cargo.arg("--no-fail-fast").args(selection).args(filter);
        cargo.env("RUST_BACKTRACE", "1").env("CARGO_TERM_COLOR", "never");
        stream(cargo)
    };
    if kube {
        return run(&[]);
    }
    stage("suites that need an API server are left out (--no-kube)");
    let mut sum = run(&WITHOUT_KUBE)?;
    sum.add(&run(&["--doc"])?);
    Ok(sum)
}

/// Runs a command, shows its output as it comes, and counts.
pub(crate) fn stream(mut command: Command) -> Result<Tally> {
    // One pipe for both streams keeps the order: cargo names a suite on stderr, the suite prints on stdout.
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    command.stderr(writer.try_clone().context("cannot copy a pipe's end")?).stdout(writer);
    let mut child = command.spawn().with_context(|| format!("cannot run {}", command::shown(&command)))?;
    // The command holds the pipe's writing ends; they must close for the reader to see the end.
    drop(command);
    let (mut tally, mut line) = (Tally::default(), Vec::new());
    let mut reader = BufReader::new(reader);
    let mut out = std::io::stdout().lock();
    while reader.read_until(b'\n', &mut line).context("cannot read the tests' output")? > 0 {
        out.write_all(&line).context("cannot write to stdout")?;
        tally.line(String::from_utf8_lossy(&line).trim_end());
        line.clear();
    }
    let status = child.wait().context("cannot wait for the tests")?;
    tally.end(status.success());
    Ok(tally)
}

pub(crate) fn close(sum: &Tally) -> Result<()> {
    let Tally { passed, failed, ignored, failures, .. } = sum;
    println!();
    for name in failures {
        println!("FAILED: {name}");
    }
    if *ignored > 0 {
        println!("{ignored} ignored");
    }
    println!("{passed} passed, {failed} failed");
    if *failed > 0 {
        return Err(fail::hint("tests failed", "one of them alone: cargo xtask test NAME"));
    }
    Ok(())
}

fn stage(what: &str) {
    eprintln!("test: {what}");
}
