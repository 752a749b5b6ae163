//! Daemons of the machine's own packages, run as systemd would: in a control group that is made for them, which goes
//! with everything in it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::{group::ControlGroup, net::Netns};

/// Longest time that a start or an end may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process in a control group and a network namespace. On drop everything in the group is killed.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    group: PathBuf,
}

impl Daemon {
    /// Starts `command` in the group; what it prints goes to `log`.
    ///
    /// # Errors
    /// It can't be started.
    pub fn start(mut command: Command, group: &ControlGroup, ns: &Netns, log: &Path) -> Result<Self> {
        let log = File::options().create(true).append(true).open(log).context("open a log")?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        enter(&mut command, group.directory(), ns)?;
        let child = command.spawn().with_context(|| format!("start {:?}", command.get_program()))?;
        Ok(Self { child, group: group.directory().to_owned() })
    }

    /// Waits until somebody listens at a TCP port of the network namespace. Nobody is asked: no policy matters.
    ///
    /// # Errors
    /// The daemon ended, or nobody listens in time.
    pub fn listens(&mut self, ns: &Netns, port: u16) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while !ns.run(|| listening(port))? {
            let status = self.child.try_wait().context("look at a daemon")?;
            ensure!(status.is_none(), "the daemon that should listen at {port} ended: {status:?}");
            ensure!(Instant::now() < end, "nobody listens at {port}");
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Kills all that is in its group, and returns once nothing is.
    ///
    /// # Errors
    /// Something does not end.
    pub fn stop(&mut self) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            drop(self.child.try_wait());
            let processes = processes(&self.group);
            if processes.is_empty() {
                return self.child.wait().context("wait for a daemon").map(drop);
            }
            ensure!(Instant::now() < end, "{processes:?} do not end");
            for process in processes {
                // SAFETY: no pointers. They are in a group that only this test puts processes into.
                unsafe { libc::kill(process, libc::SIGKILL) };
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("ending a daemon behind a test: {error:#}");
        }
    }
}

/// Whether a TCP socket of the calling thread's network namespace listens at the port.
fn listening(port: u16) -> Result<bool> {
    let text = fs::read_to_string("/proc/thread-self/net/tcp").context("read the list of sockets")?;
    let at = format!(":{port:04X}");
    Ok(text.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        // Local address, remote address, state: 0A listens.
        words.get(1).is_some_and(|local| local.ends_with(&at)) && words.get(3) == Some(&"0A")
    }))
}

/// Processes of a group; none if it is gone.
pub fn processes(group: &Path) -> Vec<i32> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Makes the child that `command` starts run in the group of this directory and in the namespace.
///
/// # Errors
/// The group is gone.
pub fn enter(command: &mut Command, group: &Path, ns: &Netns) -> Result<()> {
    let procs = group.join("cgroup.procs");
    let mut procs =
        File::options().write(true).open(&procs).with_context(|| format!("open {}", procs.display()))?;
    // SAFETY: between fork and exec only a write runs, on a descriptor that the closure owns.
    unsafe {
        command.pre_exec(move || procs.write_all(b"0"));
    }
    ns.enter_command(command)
}

/// Runs a command in the group to its end.
///
/// # Errors
/// It can't be started.
pub fn run(mut command: Command, group: &Path, ns: &Netns) -> Result<Output> {
    enter(&mut command, group, ns)?;
    command.stdin(Stdio::null()).output().with_context(|| format!("run {:?}", command.get_program()))
}

/// What an HTTP server says to a request, head and body; none if it cannot be reached within the limit.
///
/// # Errors
/// The address is none.
pub fn http(ns: &Netns, at: &str, path: &str, limit: Duration) -> Result<Option<String>> {
    let at: SocketAddr = at.parse().with_context(|| format!("{at} is no address"))?;
    Ok(ns.run(|| {
        let mut stream = TcpStream::connect_timeout(&at, limit).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text)
    }))
}

/// What the PostgreSQL server at a host answers to a query from a process of the group; none if it does not.
///
/// # Errors
/// The client can't be run.
pub fn query(group: &Path, ns: &Netns, host: &str, sql: &str, limit: Duration) -> Result<Option<String>> {
    let mut psql = Command::new("timeout");
    psql.arg(limit.as_secs_f32().to_string()).args(["psql", "-XAtq", "-U", "postgres", "-d", "postgres"]);
    psql.args(["-h", host.trim_matches(['[', ']']), "-c", sql]).current_dir("/").env("PGSSLMODE", "disable");
    let output = run(psql, group, ns)?;
    Ok(output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned()))
}

/// How often a port was tried, and how often somebody answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Knocks {
    /// Connections that were tried.
    pub tried: u32,
    /// Connections that came about.
    pub open: u32,
}

/// Tries a TCP port from each of these namespaces, over and over, while `work` is done.
pub fn knock<T>(from: &[&Arc<Netns>], at: SocketAddr, work: impl FnOnce() -> T) -> (T, Knocks) {
    struct Ends<'a>(&'a AtomicBool);
    impl Drop for Ends<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let (end, tried, open) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
    let done = thread::scope(|scope| {
        // Nobody may knock for ever behind work that panics.
        let _ends = Ends(&end);
        for ns in from {
            scope.spawn(|| {
                while !end.load(Ordering::Relaxed) {
                    let answered =
                        ns.run(|| TcpStream::connect_timeout(&at, Duration::from_millis(3)).is_ok());
                    open.fetch_add(u32::from(answered), Ordering::Relaxed);
                    tried.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        work()
    });
    (done, Knocks { tried: tried.into_inner(), open: open.into_inner() })
}

/// A command of PostgreSQL, which refuses to run as root.
///
/// # Errors
/// It is not installed.
pub fn postgres(name: &str) -> Result<Command> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let found =
        versions.map(|version| version.path().join("bin").join(name)).filter(|path| path.exists()).max();
    let Some(program) = found else { bail!("PostgreSQL's {name} is missing\nhint: cargo xtask setup") };
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups"]).arg(program);
    // Its own folder may be closed to that user.
    command.current_dir("/").env("LC_ALL", "C");
    Ok(command)
}
