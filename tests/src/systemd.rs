//! A systemd of a test's own: process 1 of its own namespaces, in a control group that the test made, on the network of
//! a node under test. Units, their groups and their restarts are those of a real host; the host's own are not touched.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::agent::program_path;
use crate::daemon::{enter, processes};
use crate::group::ControlGroup;
use crate::net::Netns;

/// Longest time that a start or an end may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Name of the host, as the shipped example has it.
pub const HOST_NAME: &str = "this-host";

/// Makes the host's file system a host of its own, then becomes its first process. What is written to `/etc`, `/var` and
/// `/usr/local` stays in memory. The whole hierarchy of control groups is there, as on a host, and systemd keeps to the
/// part in which it is started. Units are the test's own and those of Debian's packages that it names: a whole host
/// would start logging, logins and hardware.
const PREPARE: &str = r#"
set -e
folder=$1; programs=$2
mount --make-rprivate /
mount -t proc proc /proc
umount --lazy /sys/fs/cgroup || true
mount -t cgroup2 none /sys/fs/cgroup
mount -t bpf none /sys/fs/bpf
mount -t tmpfs none "$folder/layers"
for part in etc var usr/local; do
    mkdir -p "$folder/layers/$part/upper" "$folder/layers/$part/work"
    mount -t overlay none -o "lowerdir=/$part,upperdir=$folder/layers/$part/upper,workdir=$folder/layers/$part/work" "/$part"
done
mount -t tmpfs none /run
mount -t tmpfs none /etc/systemd/system
mount --bind "$folder/console" /dev/console
mkdir -p /usr/local/bin
for program in policy-agent policyctl; do
    : > "/usr/local/bin/$program"
    mount --bind "$programs/$program" "/usr/local/bin/$program"
done
echo this-host > /etc/hostname
for target in basic multi-user network network-online network-pre shutdown sysinit; do
    printf '[Unit]\nDefaultDependencies=no\n' > "/etc/systemd/system/$target.target"
done
export container=policy-test SYSTEMD_UNIT_PATH=/etc/systemd/system SYSTEMD_GENERATOR_PATH=/run/none
exec /lib/systemd/systemd --system --unit=multi-user.target --log-target=console
"#;

/// The running systemd. On drop everything that it started is killed, and its groups are removed.
#[derive(Debug)]
pub struct Systemd {
    child: Child,
    /// Its process, as this one sees it.
    main: i32,
    ns: Arc<Netns>,
    folder: tempfile::TempDir,
    slice: ControlGroup,
}

impl Systemd {
    /// Starts one in this network namespace, and waits until it takes orders.
    ///
    /// # Errors
    /// It does not come up; its console is in the error.
    pub fn start(ns: &Arc<Netns>) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("policy-test-systemd-").tempdir()?;
        fs::create_dir(folder.path().join("layers"))?;
        fs::write(folder.path().join("console"), "")?;
        let slice = ControlGroup::slice()?;
        let programs = program_path("policy-agent")?;
        program_path("policyctl")?;
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--uts", "--ipc"]);
        command.args(["sh", "-c", PREPARE, "sh"]).arg(folder.path());
        command.arg(programs.parent().context("a program lies in a folder")?);
        let log = fs::File::create(folder.path().join("start"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        enter(&mut command, slice.directory(), ns)?;
        let child = command.spawn().context("start systemd by unshare")?;
        let mut systemd = Self { child, main: 0, ns: ns.clone(), folder, slice };
        systemd.wait()?;
        Ok(systemd)
    }

    fn wait(&mut self) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            // It moves there before it does anything else.
            self.main = processes(&self.slice.directory().join("init.scope")).into_iter().min().unwrap_or(0);
            if self.main != 0 && self.ctl(["is-active", "multi-user.target"])?.status.success() {
                return Ok(());
            }
            let ended = self.child.try_wait().context("look at systemd")?;
            ensure!(
                ended.is_none() && Instant::now() < end,
                "systemd is not up ({ended:?}):\n{}",
                self.log()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// A path of its file system as this process reaches it.
    pub fn path(&self, path: &str) -> PathBuf {
        Path::new("/proc").join(self.main.to_string()).join("root").join(path.trim_start_matches('/'))
    }

    /// Writes a file, with the folders above it.
    ///
    /// # Errors
    /// It can't be written.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        let at = self.path(path);
        fs::create_dir_all(at.parent().context("a file lies in a folder")?)?;
        fs::write(&at, text).with_context(|| format!("write {path} for systemd"))
    }

    /// A command that sees its file system, processes and network, but is in the group of nobody's unit.
    ///
    /// # Errors
    /// It can't be prepared.
    pub fn command<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Result<Command> {
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--pid", "--uts", "--ipc", "--target", &self.main.to_string(), "--"]);
        command.args(arguments).stdin(Stdio::null()).env("NO_COLOR", "1");
        self.ns.enter_command(&mut command)?;
        Ok(command)
    }

    /// Runs `systemctl`.
    ///
    /// # Errors
    /// It can't be run.
    pub fn ctl<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Result<Output> {
        self.command([OsStr::new("systemctl"), OsStr::new("--no-pager")])?
            .args(arguments)
            .output()
            .context("run systemctl")
    }

    /// Runs `systemctl`, which must succeed; its output.
    ///
    /// # Errors
    /// It fails; the console is in the error.
    pub fn must<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Result<String> {
        let output = self.ctl(arguments)?;
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "systemctl: {told}\n{}", self.log());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Directory of a unit's control group; none while it has none.
    ///
    /// # Errors
    /// The manager does not answer.
    pub fn group(&self, unit: &str) -> Result<Option<PathBuf>> {
        let path = self.must(["show", "--property=ControlGroup", "--value", unit])?;
        let path = path.trim();
        let root = self.slice.directory().parent().context("a slice has a root")?;
        Ok((!path.is_empty()).then(|| root.join(path.trim_start_matches('/'))))
    }

    /// What it and the units say.
    pub fn log(&self) -> String {
        let read = |name: &str| fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
        format!("{}{}", read("start"), read("console"))
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        // The first process of a namespace takes all others with it; unshare kills it if it is not known yet.
        drop(self.child.kill());
        if self.main != 0 {
            // SAFETY: no pointers; the process is a child's child, and the child has not been waited for.
            unsafe { libc::kill(self.main, libc::SIGKILL) };
        }
        drop(self.child.wait());
    }
}
