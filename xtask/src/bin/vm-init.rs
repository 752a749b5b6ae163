//! The first process of a test machine: mounts, loads modules, runs the suites, ends the machine.
//!
//! It prints for each suite the line that cargo prints, so that one reader counts both. The machine ends by a
//! byte written to the port of QEMU's `isa-debug-exit` device: 16 when all passed, 17 otherwise.

use std::{
    ffi::{CStr, CString},
    fs,
    io::{self, Write},
    os::{fd::AsRawFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
    process::Command,
    ptr,
};

const MOUNTS: &[(&CStr, &str)] = &[
    (c"proc", "/proc"),
    (c"sysfs", "/sys"),
    (c"devtmpfs", "/dev"),
    (c"tmpfs", "/tmp"),
    (c"tmpfs", "/run"),
    (c"cgroup2", "/sys/fs/cgroup"),
    (c"bpf", "/sys/fs/bpf"),
    (c"tracefs", "/sys/kernel/tracing"),
];

fn main() {
    for (kind, at) in MOUNTS {
        if let Err(error) = mount(kind, Path::new(at)) {
            say(&format!("vm: cannot mount {at}: {error}"));
        }
    }
    say(&format!("vm: {}", fs::read_to_string("/proc/version").unwrap_or_default().trim()));
    for module in sorted("/modules") {
        if let Err(error) = load(&module) {
            say(&format!("vm: cannot load {}: {error}", module.display()));
        }
    }
    say(&format!(
        "vm: ready after {} s",
        fs::read_to_string("/proc/uptime").unwrap_or_default().split(' ').next().unwrap_or("?")
    ));
    let arguments = fs::read_to_string("/arguments").unwrap_or_default();
    let suites = sorted("/suites");
    let mut passed = !suites.is_empty();
    for suite in suites {
        passed &= run(&suite, &arguments);
    }
    end(if passed { 16 } else { 17 });
}

fn run(suite: &Path, arguments: &str) -> bool {
    let name = suite.file_name().unwrap_or_default().to_string_lossy();
    let name = name.split_once('-').map_or(&*name, |(_, name)| name);
    say(&format!("     Running tests/{name}.rs (suites/{name}-vm)"));
    let mut command = Command::new(suite);
    // Shown also for tests that pass: what the verifier walked is among it.
    command.arg("--show-output").args(arguments.lines()).current_dir("/tmp");
    command.env("RUST_BACKTRACE", "1").env("TERM", "dumb");
    // The suites on this machine's own kernel see more packets; here they are to meet another kernel.
    command.env("POLICY_REPOSITORY", "/repository").env("POLICY_PACKETS", "5000");
    let before = spent();
    let status = command.status();
    let after = spent();
    say(&format!(
        "vm: {name} took {:.1} s of its own and {:.1} s of the kernel",
        after.0 - before.0,
        after.1 - before.1
    ));
    match status {
        Ok(status) if status.success() => true,
        Ok(status) => {
            say(&format!("vm: {name} ended with {status}"));
            false
        }
        Err(error) => {
            say(&format!("vm: cannot run {name}: {error}"));
            false
        }
    }
}

/// Seconds of processor that all suites so far took, for themselves and in the kernel.
fn spent() -> (f64, f64) {
    // SAFETY: the structure is plain numbers, which the call fills.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    (seconds(usage.ru_utime), seconds(usage.ru_stime))
}

fn mount(kind: &CStr, at: &Path) -> io::Result<()> {
    fs::create_dir_all(at)?;
    let target = CString::new(at.as_os_str().as_bytes())?;
    // SAFETY: the strings end with zero and outlive the call; these file systems take no data.
    let result = unsafe { libc::mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, ptr::null()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn load(module: &Path) -> io::Result<()> {
    let file = fs::File::open(module)?;
    // SAFETY: the descriptor is open during the call and the parameter string is a constant.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn sorted(dir: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).map(|entries| entries.flatten().map(|entry| entry.path()).collect());
    let mut paths: Vec<PathBuf> = entries.unwrap_or_default();
    paths.sort();
    paths
}

/// Ends the machine; when it is powered off without a code, that counts as a failure.
fn end(code: u8) {
    write_to_port(code);
    // SAFETY: this is the first process of a machine without any file system that has data to keep.
    unsafe { libc::reboot(libc::RB_POWER_OFF) };
}

#[cfg(target_arch = "x86_64")]
fn write_to_port(code: u8) {
    const PORT: u16 = 0xf4;
    // SAFETY: the port is enabled before it is written, and belongs to a device that only ends the machine.
    unsafe {
        if libc::ioperm(u64::from(PORT), 4, 1) == 0 {
            std::arch::asm!("out dx, al", in("dx") PORT, in("al") code);
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn write_to_port(code: u8) {
    say(&format!("vm: no port for the code {code} on this architecture"));
}

/// A line on the console; there is nobody to tell when that fails.
fn say(line: &str) {
    let mut out = io::stdout();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
