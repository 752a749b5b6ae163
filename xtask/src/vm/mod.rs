//! `vm-test`: the kernel suites on other kernels, each in an emulated machine that is thrown away.
//!
//! A machine is a kernel of Debian's cloud flavour and an archive in memory with the test binaries; it has no
//! disk, no network and no share of this machine's files. Emulation is slow but the same everywhere, so it
//! needs no KVM.

mod initramfs;
mod kernel;
mod machine;
mod report;
mod suites;

use std::{
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use anyhow::{Context, Result};
use report::Outcome;

use crate::{command, fail, setup, tally::Tally};

/// What the user asked for.
struct Request {
    kernels: Vec<&'static kernel::Kernel>,
    jobs: usize,
    fetch: bool,
    test_args: Vec<String>,
}

/// `cargo xtask vm-test [--kernel K]... [--jobs N] [--fetch] [-- TEST-ARGS]`
pub(crate) fn task(args: &[String]) -> Result<()> {
    let request = parse(args)?;
    let outcomes = run(&request)?;
    report::print(&outcomes);
    let failed = outcomes.iter().filter(|outcome| outcome.failed()).count();
    let passed = outcomes.iter().filter(|outcome| outcome.passed()).count();
    let skipped = outcomes.len() - passed - failed;
    if skipped > 0 {
        println!("vm-test: {skipped} kernels SKIPPED: they could not be fetched");
    }
    println!("vm-test: {passed} passed, {failed} failed");
    if failed > 0 { Err(anyhow::anyhow!("{failed} kernels failed; logs are in target/vm")) } else { Ok(()) }
}

/// All kernels, as a stage of all tests: the tests that ran, and a failure for each kernel that gave none.
pub(crate) fn all() -> Result<Tally> {
    let outcomes = run(&parse(&[])?)?;
    report::print(&outcomes);
    let mut sum = Tally::default();
    for outcome in &outcomes {
        sum.add(&outcome.tally());
    }
    Ok(sum)
}

fn run(request: &Request) -> Result<Vec<Outcome>> {
    setup::ensure(setup::Scope::Vm)?;
    let work = work()?;
    let programs = suites::build(&work)?;
    eprintln!(
        "vm-test: {} programs on {} kernels, {} at a time",
        programs.suites.len(),
        request.kernels.len(),
        request.jobs
    );
    let (next, outcomes) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..request.jobs {
            scope.spawn(|| {
                while let Some(kernel) = request.kernels.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = one(kernel, request, &programs, &work);
                    eprintln!("vm-test: kernel {}", outcome.line());
                    if let Ok(mut outcomes) = outcomes.lock() {
                        outcomes.push(outcome);
                    }
                }
            });
        }
    });
    let mut outcomes = outcomes.into_inner().unwrap_or_default();
    anyhow::ensure!(outcomes.len() == request.kernels.len(), "a kernel's run was lost");
    outcomes.sort_by_key(|outcome| kernel::position(&outcome.kernel));
    Ok(outcomes)
}

/// One kernel from the archive to the verdict; errors become part of the outcome.
fn one(
    kernel: &kernel::Kernel,
    request: &Request,
    programs: &suites::Programs,
    work: &std::path::Path,
) -> Outcome {
    let unpacked = match kernel.fetch(request.fetch) {
        Ok(unpacked) => unpacked,
        Err(error) if kernel.required => return Outcome::failed_early(kernel.name, &error),
        Err(error) => return Outcome::skipped(kernel.name, &error),
    };
    let boot = || -> Result<Outcome> {
        let archive = initramfs::build(&unpacked, programs, &request.test_args)?;
        machine::boot(kernel.name, &unpacked, &archive, work)
    };
    boot().unwrap_or_else(|error| Outcome::failed_early(kernel.name, &error))
}

/// The folder for this checkout's archives and logs; kernels are kept in a cache that checkouts share.
fn work() -> Result<PathBuf> {
    let dir = command::root().join("target/vm");
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}

fn parse(args: &[String]) -> Result<Request> {
    let jobs = thread::available_parallelism().map_or(1, usize::from);
    let mut request = Request { kernels: Vec::new(), jobs, fetch: false, test_args: Vec::new() };
    let mut args = args.iter();
    let value = |args: &mut std::slice::Iter<'_, String>, name: &str| {
        args.next().cloned().ok_or_else(|| fail::hint(format!("{name} needs a value"), "cargo xtask"))
    };
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--kernel" => request.kernels.push(kernel::named(&value(&mut args, "--kernel")?)?),
            "--jobs" => {
                let text = value(&mut args, "--jobs")?;
                let jobs = text.parse().ok().filter(|jobs| *jobs > 0);
                request.jobs =
                    jobs.ok_or_else(|| fail::hint(format!("'{text}' machines at once?"), "--jobs 2"))?;
            }
            "--fetch" => request.fetch = true,
            "--" => request.test_args = args.by_ref().cloned().collect(),
            other => return Err(fail::argument("vm-test", other)),
        }
    }
    if request.kernels.is_empty() {
        // Newer ones take longer: begun first, they do not keep the others waiting at the end.
        request.kernels = kernel::KERNELS.iter().rev().collect();
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn arguments_are_read() {
        let request = parse(&words("--kernel 6.1 --kernel sid --jobs 3 -- --exact a::b")).unwrap();
        assert_eq!(request.kernels.iter().map(|kernel| kernel.name).collect::<Vec<_>>(), ["6.1", "sid"]);
        assert_eq!((request.jobs, request.fetch), (3, false));
        assert_eq!(request.test_args, ["--exact", "a::b"]);
        assert_eq!(parse(&[]).unwrap().kernels.len(), kernel::KERNELS.len());
    }

    #[test]
    fn wrong_arguments_are_errors() {
        for line in ["--kernel 4.19", "--kernel", "--jobs 0", "--jobs x", "--frobnicate"] {
            assert!(parse(&words(line)).is_err(), "{line}");
        }
    }
}
