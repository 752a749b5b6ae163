//! One emulated machine: QEMU, its time limit, and what its end means.

use std::{
    env, fs,
    io::{Read, Write},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{
    initramfs,
    kernel::Unpacked,
    report::{Outcome, Verdict},
};
use crate::command;

/// The first process writes 16 or 17 to a port; QEMU ends with twice that and one.
const ALL_PASSED: i32 = 33;
const SOME_FAILED: i32 = 35;
const SECONDS: u64 = 900;
/// Everything that can be emulated but fast string instructions: the kernel clears and copies memory by them where they
/// are said to be fast, and the emulation of one goes byte by byte.
const CPU: &str = "max,-erms,-fsrm";
/// The third of them, which the kernel finds by the processor's model: X86_FEATURE_REP_GOOD.
const SLOW_STRINGS: &str = "clearcpuid=112";

/// Runs the archive's suites on the kernel, and keeps the console's log beside the archive.
pub(super) fn boot(name: &str, kernel: &Unpacked, archive: &[u8], work: &Path) -> Result<Outcome> {
    let file = |extension: &str| work.join(format!("{name}.{extension}"));
    fs::write(file("initrd"), archive).context("cannot write the archive")?;
    let limit = variable("VM_TIMEOUT", &SECONDS.to_string());
    let limit =
        Duration::from_secs(limit.parse().with_context(|| format!("VM_TIMEOUT={limit} is no number"))?);
    let started = Instant::now();
    let mut child =
        qemu(&initramfs::image(kernel)?, &file("initrd")).spawn().context("cannot run qemu-system-x86_64")?;
    let console = child.stdout.take().context("the machine has no console")?;
    let log = fs::File::create(file("log")).context("cannot write the log")?;
    let reader = thread::spawn(move || keep(console, log));
    let code = wait(&mut child, started, limit)?;
    let log = reader.join().unwrap_or_default();
    let verdict = match code {
        Some(ALL_PASSED) => Verdict::Passed,
        Some(SOME_FAILED) => Verdict::Failed("tests failed".to_owned()),
        // A panic with `-no-reboot` ends QEMU with success: 0 means nothing good.
        Some(0) => Verdict::Failed("the kernel panicked, or powered off without a verdict".to_owned()),
        Some(other) => Verdict::Failed(format!("QEMU ended with {other}")),
        None => Verdict::Failed(format!("not finished after {} s", limit.as_secs())),
    };
    Ok(Outcome::new(name, &kernel.package, verdict, &log, started.elapsed()))
}

/// Reads the console to its end. The log is written as it comes: it shows where a machine stands, also one that is
/// stopped by hand.
fn keep(mut console: impl Read, mut log: fs::File) -> String {
    let (mut bytes, mut part) = (Vec::new(), [0; 4096]);
    // What was read before an error is still the log.
    while let Ok(count @ 1..) = console.read(&mut part) {
        bytes.extend(part[..count].iter().filter(|byte| **byte != b'\r'));
        // The copy in memory is what the verdict comes from.
        let _ = log.write_all(&part[..count]);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn qemu(image: &Path, archive: &Path) -> Command {
    let mut qemu = command::new("qemu-system-x86_64");
    // Emulation even where /dev/kvm opens: nested, it may be unusable.
    qemu.args([
        "-M",
        "pc",
        "-accel",
        &variable("VM_ACCEL", "tcg,thread=multi"),
        "-cpu",
        &variable("VM_CPU", CPU),
    ])
    .args([
        "-smp",
        "1",
        "-m",
        &variable("VM_MEM", "1024"),
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
    ])
    .args(["-serial", "stdio", "-no-reboot", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"])
    .arg("-kernel")
    .arg(image)
    .arg("-initrd")
    .arg(archive)
    .args([
        "-append",
        &format!(
            "console=ttyS0 quiet panic=-1 oops=panic rcupdate.rcu_expedited=1 {SLOW_STRINGS} {}",
            variable("VM_APPEND", "")
        ),
    ])
    .stdout(Stdio::piped());
    qemu
}

/// The exit code, or none when the time was over or a signal ended it.
fn wait(child: &mut Child, started: Instant, limit: Duration) -> Result<Option<i32>> {
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for QEMU")? {
            return Ok(status.code());
        }
        if started.elapsed() > limit {
            child.kill().context("cannot end QEMU")?;
            child.wait().context("cannot wait for QEMU")?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn variable(name: &str, default: &str) -> String {
    env::var(name).unwrap_or_else(|_| default.to_owned())
}
