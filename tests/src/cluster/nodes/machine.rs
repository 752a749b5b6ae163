//! A node as a machine of its own: namespaces of all kinds with a first process, in which the servers run.
//!
//! Everything that a node leaves behind is in its namespaces: mounts, interfaces, rules, pins, processes. So a node is
//! removed by ending its first process, whatever state it is in.

use super::{PREFIX, STATE, lan, lan::output, node_name};
use crate::cluster::{program, programs};
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// The first process of a node: makes the places that a distribution would have, then waits and reaps.
const INIT: &str = r#"
set -e
hostname "$NODE"
mount --make-rshared /
mount -t tmpfs tmpfs /run
mkdir -p /run/netns /run/lock
mount -t tmpfs tmpfs /var/lib
mkdir -p /var/lib/kubelet /var/lib/cni
mount --bind "$DIR/log" /var/log
mount --bind "$DIR/opt" /opt
mount -t overlay -o "lowerdir=/etc,upperdir=$DIR/etc,workdir=$DIR/work" overlay /etc
mount -t bpf bpf /sys/fs/bpf
echo "$NODE" > "$DIR/ready"
exec "$PAUSE"
"#;

/// A running machine.
#[derive(Debug, Clone)]
pub struct Machine {
    name: String,
    /// Its first process, as the machine outside knows it.
    init: u32,
}

impl Machine {
    /// Starts the machine of a node whose network is there.
    pub(super) fn start(number: u8) -> Result<Self> {
        let name = node_name(number);
        let dir = folder(&name);
        for part in ["log", "opt/cni/bin", "etc/cni/net.d", "etc/kubernetes/manifests", "work"] {
            fs::create_dir_all(dir.join(part)).context("make a node's folders")?;
        }
        for entry in fs::read_dir(programs::folder().join("cni")).context("list the CNI plugins")? {
            let from = entry?.path();
            let to = dir.join("opt/cni/bin").join(from.file_name().unwrap_or_default());
            fs::copy(&from, &to).with_context(|| format!("copy {}", from.display()))?;
        }
        cgroups(&name)?;
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", lan::namespace(&name).display()));
        command.args(["unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child"]);
        command.args(["--mount-proc", "--propagation", "slave", "sh", "-c", INIT]);
        command.env("NODE", &name).env("DIR", &dir).env("PAUSE", program("pause")?);
        let mut child = detached(&mut command, &dir.join("init.log"))?.spawn().context("start a node")?;
        let end = Instant::now() + PATIENCE;
        while !dir.join("ready").exists() {
            let log = || fs::read_to_string(dir.join("init.log")).unwrap_or_default();
            ensure!(child.try_wait()?.is_none(), "the node {name} ended:\n{}", log());
            ensure!(Instant::now() < end, "the node {name} does not start:\n{}", log());
            std::thread::sleep(Duration::from_millis(10));
        }
        Self::find(number)
    }

    /// The machine of a node that was started, perhaps by another process.
    pub(super) fn find(number: u8) -> Result<Self> {
        let name = node_name(number);
        let init = members(&name)?.into_iter().find(|id| is_first(*id));
        let init =
            init.with_context(|| format!("the node {name} does not run\nhint: cargo xtask cluster up"))?;
        Ok(Self { name, init })
    }

    /// Name of the node.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that runs on this machine.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init.to_string(), "--mount", "--net", "--pid", "--ipc", "--uts"]);
        command.arg("--").arg(program);
        command
    }

    /// `policyctl` of the agent on this machine, as the image has it, to be started outside of any container.
    ///
    /// # Errors
    /// No agent runs here.
    pub fn ctl(&self) -> Result<Command> {
        let agent = self.process("policy-agent").context("no agent runs")?;
        let mut command = Command::new(format!("/proc/{agent}/root/bin/policyctl"));
        command.arg("--socket").arg(format!("/proc/{}/root/run/policy-agent/agent.sock", self.init));
        Ok(command)
    }

    /// The id of a process on the host's network of this machine, by its command's name.
    ///
    /// # Errors
    /// There is none.
    pub fn process(&self, name: &str) -> Result<u32> {
        let is = |id: &u32| {
            fs::read_to_string(format!("/proc/{id}/comm")).is_ok_and(|found| found.trim_end() == name)
        };
        let found = members(&self.name)?.into_iter().find(is);
        found.with_context(|| format!("{name} does not run on {}", self.name))
    }

    /// Kills a server and returns once it is gone.
    ///
    /// # Errors
    /// None runs, or it does not end.
    pub fn kill(&self, name: &str) -> Result<()> {
        let id = self.process(name)?;
        // SAFETY: a signal to a process that is on this node's network, as was looked up just now.
        unsafe { libc::kill(id.cast_signed(), libc::SIGKILL) };
        let end = Instant::now() + PATIENCE;
        while self.process(name).is_ok() {
            ensure!(Instant::now() < end, "{name} does not end on {}", self.name);
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Starts a server on this machine; it ends with it.
    pub(super) fn server(&self, name: &str, mut command: Command) -> Result<()> {
        let log = self.folder().join(format!("{name}.log"));
        detached(&mut command, &log)?.spawn().with_context(|| format!("start {name}"))?;
        Ok(())
    }

    /// Where its files and logs are, by the same path inside and outside.
    pub fn folder(&self) -> PathBuf {
        folder(&self.name)
    }

    /// A path of this machine, as the machine outside opens it.
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.init))
    }

    /// The end of a server's log.
    pub fn log(&self, server: &str) -> String {
        let text = fs::read_to_string(self.folder().join(format!("{server}.log"))).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

/// Ends every machine and removes what outlives its processes.
pub(super) fn end_all() -> Result<()> {
    let end = Instant::now() + PATIENCE;
    for number in 1..=2 {
        let name = node_name(number);
        if !lan::namespace(&name).exists() {
            continue;
        }
        loop {
            let members = members(&name)?;
            if members.is_empty() {
                break;
            }
            ensure!(Instant::now() < end, "processes {members:?} of the node {name} do not end");
            for id in members {
                // SAFETY: a signal to a process that is in the node's own namespace, as was looked up just now.
                unsafe { libc::kill(id.cast_signed(), libc::SIGKILL) };
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        remove_cgroups(&name, end)?;
    }
    Ok(())
}

/// Processes whose network is this node's.
fn members(name: &str) -> Result<Vec<u32>> {
    use std::os::unix::fs::MetadataExt;
    let wanted = fs::metadata(lan::namespace(name)).context("the node has no network")?.ino();
    let processes = fs::read_dir("/proc").context("list processes")?;
    let ids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let here = |id: &u32| fs::metadata(format!("/proc/{id}/ns/net")).is_ok_and(|found| found.ino() == wanted);
    Ok(ids.filter(here).collect())
}

/// Whether a process is the first of its namespace, one below this one.
fn is_first(id: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    line.is_some_and(|ids| ids.split_whitespace().count() == 2 && ids.ends_with("\t1"))
}

fn folder(name: &str) -> PathBuf {
    Path::new(STATE).join(name)
}

/// A process that outlives this one, with a log.
fn detached<'a>(command: &'a mut Command, log: &Path) -> Result<&'a mut Command> {
    let file = fs::File::options().create(true).append(true).open(log).context("open a server's log")?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    Ok(command.process_group(0))
}

/// Places where control groups are mounted.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("read the mounts")?;
    let groups = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        let place = words.next()?;
        words.next().is_some_and(|kind| kind.starts_with("cgroup")).then(|| PathBuf::from(place))
    });
    Ok(groups.collect())
}

/// The kubelet wants its group to exist in every hierarchy, with processors where these are divided.
fn cgroups(name: &str) -> Result<()> {
    for place in hierarchies()? {
        let group = place.join(format!("{PREFIX}{name}"));
        fs::create_dir_all(&group).with_context(|| format!("make {}", group.display()))?;
        for file in ["cpuset.cpus", "cpuset.mems"] {
            // Only the first version of control groups has these in its root.
            if let Ok(value) = fs::read_to_string(place.join(file)) {
                fs::write(group.join(file), value.trim()).context("give a group its processors")?;
            }
        }
        if let Ok(controllers) = fs::read_to_string(group.join("cgroup.controllers")) {
            for controller in controllers.split_whitespace() {
                // The second version hands a controller down only on request; one that is in use stays out.
                drop(fs::write(group.join("cgroup.subtree_control"), format!("+{controller}")));
            }
        }
    }
    Ok(())
}

fn remove_cgroups(name: &str, end: Instant) -> Result<()> {
    for place in hierarchies()? {
        let group = place.join(format!("{PREFIX}{name}"));
        while group.exists() && !remove_group(&group) {
            ensure!(Instant::now() < end, "{} does not empty", group.display());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    Ok(())
}

/// A group goes after its children, once its last process is gone.
fn remove_group(group: &Path) -> bool {
    let children = fs::read_dir(group).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut done = true;
    for child in children.filter(|path| path.is_dir()) {
        done &= remove_group(&child);
    }
    done && fs::remove_dir(group).is_ok()
}

/// The programs' images and what they are named.
pub(super) fn import(machine: &Machine, archive: &Path) -> Result<()> {
    let mut ctr = machine.command(&program("ctr")?);
    ctr.args(["--namespace", "k8s.io", "images", "import"]).arg(archive);
    output(&mut ctr).map(drop)
}
