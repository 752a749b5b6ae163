//! The real agent and its command line as children, inside the namespace of a node under test.

use crate::{net::Node, scenario::State, shortage::Shortage};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::{
    ffi::{CString, OsStr},
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant, SystemTime},
};

/// Where the kernel's pins live.
const BPFFS: &str = "/sys/fs/bpf";
/// Longest time that anything may take which is not being measured, on a machine that is slow and busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// An agent on a node: its folders, its pins, and its process while it runs.
#[derive(Debug)]
pub struct Agent {
    dir: tempfile::TempDir,
    bpffs: PathBuf,
    child: Option<Child>,
    node: std::sync::Arc<crate::net::Netns>,
    kubeconfig: Option<PathBuf>,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    wrapper: Vec<String>,
    asks_for_maps: Option<bool>,
    shortage: Option<Shortage>,
}

impl Agent {
    /// Folders for an agent of this node; it is not started yet.
    pub fn new(node: &Node) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        mount_bpffs()?;
        let dir = tempfile::Builder::new()
            .prefix("policy-test-")
            .tempdir()
            .context("make a folder for the agent")?;
        for part in ["manifests", "staging"] {
            fs::create_dir(dir.path().join(part)).context("make a folder for the agent")?;
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let bpffs = Path::new(BPFFS).join(format!("policy-test-agent-{}-{number}", std::process::id()));
        let node = node.ns().clone();
        Ok(Self {
            dir,
            bpffs,
            child: None,
            node,
            kubeconfig: None,
            arguments: Vec::new(),
            environment: Vec::new(),
            wrapper: Vec::new(),
            asks_for_maps: None,
            shortage: None,
        })
    }

    /// Objects come from an API server, not from the folder of manifests.
    pub fn kubeconfig(mut self, path: &Path) -> Self {
        self.kubeconfig = Some(path.to_path_buf());
        self
    }

    /// Further arguments for `policy-agent run`.
    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments = arguments.iter().map(|text| (*text).to_owned()).collect();
        self
    }

    /// A command that starts the agent: it gets the agent's program and arguments, and becomes it in the end.
    pub fn set_wrapper(&mut self, command: &[&str]) {
        self.wrapper = command.iter().map(|text| (*text).to_owned()).collect();
    }

    /// From the next start on, the test has a say in each new map; whether there is a shortage at the start.
    pub fn ask_for_maps(&mut self, shortage: bool) {
        self.asks_for_maps = Some(shortage);
    }

    /// The test's say, once the process was started to ask for it.
    pub fn shortage(&self) -> Option<&Shortage> {
        self.shortage.as_ref()
    }

    /// Other arguments, from the next start on.
    pub fn set_arguments(&mut self, arguments: &[&str]) {
        self.arguments = arguments.iter().map(|text| (*text).to_owned()).collect();
    }

    /// Variables of the environment, from the next start on.
    pub fn set_environment(&mut self, variables: Vec<(String, String)>) {
        self.environment = variables;
    }

    /// Starts the process and returns once it answers.
    pub fn start(&mut self) -> Result<()> {
        self.spawn()?;
        let end = Instant::now() + PATIENCE;
        loop {
            ensure!(self.is_running()?, "the agent ended at once:\n{}", self.log());
            if std::os::unix::net::UnixStream::connect(self.socket()).is_ok() {
                return Ok(());
            }
            ensure!(Instant::now() < end, "the agent does not listen:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts the process.
    pub fn spawn(&mut self) -> Result<()> {
        ensure!(self.child.is_none(), "the agent runs already");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .context("open the agent's log")?;
        let mut command = self.command("policy-agent")?;
        if let Some((program, arguments)) = self.wrapper.split_first() {
            command = Command::new(program);
            self.node.enter_command(&mut command)?;
            command.args(arguments).arg(program_path("policy-agent")?).env("NO_COLOR", "1");
        }
        command.arg("run");
        match &self.kubeconfig {
            Some(path) => command.arg("--kubeconfig").arg(path),
            None => command.arg("--manifests").arg(self.manifests()),
        };
        command.env("POLICY_AGENT_NODE_NAME", State::NODE).args(["--log", "info"]);
        command.arg("--socket").arg(self.socket());
        command.arg("--bpffs").arg(&self.bpffs);
        command.arg("--state-dir").arg(self.state_dir());
        command.args(&self.arguments).envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdout(log.try_clone()?).stderr(log).stdin(Stdio::null());
        if self.asks_for_maps.is_some() {
            Shortage::prepare(&mut command);
        }
        let child = self.child.insert(command.spawn().context("start policy-agent")?);
        self.shortage = self.asks_for_maps.map(|lasts| Shortage::of(child.id(), lasts)).transpose()?;
        Ok(())
    }

    /// Pins elsewhere, from the next start on.
    pub fn set_bpffs(&mut self, bpffs: &Path) {
        self.bpffs = bpffs.to_path_buf();
    }

    /// Kills the process without a chance to clean up.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the agent does not run")?;
        child.kill().context("kill the agent")?;
        child.wait().context("wait for the killed agent").map(drop)
    }

    /// Takes note that the process has ended by itself.
    pub fn forget(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.wait());
        }
    }

    /// Whether the process runs.
    pub fn is_running(&mut self) -> Result<bool> {
        let Some(child) = &mut self.child else { return Ok(false) };
        Ok(child.try_wait().context("look at the agent")?.is_none())
    }

    /// Process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Returns once the kernel enforces all that the folder holds; at once with an error if the agent is gone.
    pub fn wait(&mut self) -> Result<()> {
        let timeout = format!("{}s", PATIENCE.as_secs());
        let mut waiting = self.ctl_child(["wait", "--timeout", &timeout])?;
        let mut running = true;
        while running && waiting.try_wait().context("look at policyctl wait")?.is_none() {
            std::thread::sleep(Duration::from_millis(2));
            running = self.is_running()?;
        }
        if !running {
            drop(waiting.kill());
        }
        let output = waiting.wait_with_output().context("read what policyctl wait says")?;
        ensure!(
            output.status.success(),
            "policyctl wait: {}\n{}{}agent runs: {running}; its log:\n{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
            self.log()
        );
        Ok(())
    }

    /// Runs `policyctl` against this agent and returns what it printed.
    pub fn ctl<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Result<Output> {
        let mut command = self.ctl_command()?;
        command.args(arguments).stdin(Stdio::null());
        command.output().context("run policyctl")
    }

    /// A `policyctl` to be started, against this agent.
    pub fn ctl_command(&self) -> Result<Command> {
        let mut command = self.command("policyctl")?;
        command.arg("--socket").arg(self.socket());
        Ok(command)
    }

    /// What `policyctl` prints as JSON; it must succeed.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let output = self.ctl(arguments.iter().copied().chain(["--output", "json"]))?;
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "policyctl {arguments:?}: {told}");
        serde_json::from_slice(&output.stdout).with_context(|| format!("policyctl {arguments:?}"))
    }

    /// What `policyctl` tells of a pod's endpoint; null while it knows no such pod.
    pub fn endpoint(&self, pod: &str) -> Result<Value> {
        let all = self.json(&["get", "endpoints"])?;
        let found = all["endpoints"].as_array().into_iter().flatten().find(|one| one["pod"] == pod);
        Ok(found.cloned().unwrap_or_default())
    }

    /// What is told of a pod's endpoint once these words are among it: the agent looks for interfaces and groups beside
    /// everything else, and tells what it knows so far.
    pub fn wait_for_detail(&self, pod: &str, words: &str) -> Result<Value> {
        let told =
            self.wait_for(pod, |told| told["detail"].as_str().is_some_and(|detail| detail.contains(words)));
        told.with_context(|| format!("{pod} is not told as '{words}'"))
    }

    /// What is told of a pod's endpoint once it is as wanted.
    pub fn wait_for(&self, pod: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let end = Instant::now() + PATIENCE;
        loop {
            let endpoint = self.endpoint(pod)?;
            if wanted(&endpoint) {
                return Ok(endpoint);
            }
            ensure!(Instant::now() < end, "{endpoint}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts a `policyctl` that keeps running, with its output in a pipe.
    pub fn ctl_child<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Result<Child> {
        let mut command = self.ctl_command()?;
        command.args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().context("start policyctl")
    }

    /// Runs `policy-agent cleanup`, which must succeed.
    pub fn cleanup(&self) -> Result<()> {
        let mut command = self.command("policy-agent")?;
        command.arg("cleanup").arg("--bpffs").arg(&self.bpffs);
        command.arg("--state-dir").arg(self.state_dir()).arg("--socket").arg(self.socket());
        let output = command.output().context("run policy-agent cleanup")?;
        ensure!(
            output.status.success(),
            "policy-agent cleanup: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// Puts a manifest into the folder in one step: no reader sees half of it.
    pub fn write_manifest(&self, name: &str, text: &str) -> Result<()> {
        let staged = self.dir.path().join("staging").join(name);
        fs::write(&staged, text).with_context(|| format!("write {}", staged.display()))?;
        fs::rename(&staged, self.manifests().join(name))
            .with_context(|| format!("move {name} into the folder"))
    }

    /// Takes a manifest out of the folder.
    pub fn remove_manifest(&self, name: &str) -> Result<()> {
        fs::remove_file(self.manifests().join(name)).with_context(|| format!("remove the manifest {name}"))
    }

    /// The folder of manifests.
    pub fn manifests(&self) -> PathBuf {
        self.dir.path().join("manifests")
    }

    /// The folder of its pins.
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// The folder of its state.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("agent.sock")
    }

    /// The end of its log.
    pub fn log(&self) -> String {
        let text = fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("agent.log")
    }

    fn command(&self, program: &str) -> Result<Command> {
        let mut command = Command::new(program_path(program)?);
        self.node.enter_command(&mut command)?;
        // What a failing test prints must not depend on the caller's terminal.
        command.env("NO_COLOR", "1");
        Ok(command)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
        if self.bpffs.exists()
            && let Err(error) = self.cleanup()
        {
            eprintln!("cleaning up behind a test: {error:#}");
        }
        // Whatever a broken cleanup left: pins are files, and links go with their last pin.
        drop(fs::remove_dir_all(&self.bpffs));
    }
}

/// The program beside this test, which must be newer than its sources.
pub fn program_path(program: &str) -> Result<PathBuf> {
    let test = std::env::current_exe().context("where is this test")?;
    let folder = test.parent().context("a test lies in a folder")?;
    // Tests are in target/<profile>/deps, other programs one above.
    let folder = if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder };
    let path = folder.join(program);
    let hint = "hint: cargo build -p policy-agent --bins";
    let Ok(built) = path.metadata().and_then(|meta| meta.modified()) else {
        bail!("{} is missing\n{hint}", path.display());
    };
    // What cargo noted at its build. Without it, this runs away from its sources: in a virtual machine, for example.
    let Ok(noted) = fs::read_to_string(path.with_extension("d")) else { return Ok(path) };
    let sources = noted.split_once(": ").map_or("", |(_, sources)| sources);
    for source in sources.replace("\\ ", "\0").split_whitespace() {
        let source = PathBuf::from(source.replace('\0', " "));
        if let Some((newest, when)) = newest(&source)?
            && when > built
        {
            bail!("{} is older than {}\n{hint}", path.display(), newest.display());
        }
    }
    Ok(path)
}

/// The newest file at or below a path.
fn newest(path: &Path) -> Result<Option<(PathBuf, SystemTime)>> {
    if !path.is_dir() {
        let read = || format!("look at {}", path.display());
        return Ok(Some((path.to_path_buf(), path.metadata().with_context(read)?.modified()?)));
    }
    let mut found: Option<(PathBuf, SystemTime)> = None;
    for entry in fs::read_dir(path).with_context(|| format!("read {}", path.display()))? {
        let next = newest(&entry?.path())?;
        if next.as_ref().map(|(_, when)| when) > found.as_ref().map(|(_, when)| when) {
            found = next;
        }
    }
    Ok(found)
}

fn mount_bpffs() -> Result<()> {
    let mounts = fs::read_to_string("/proc/mounts").context("read the list of mounts")?;
    if mounts.lines().any(|line| line.split(' ').nth(1) == Some(BPFFS)) {
        return Ok(());
    }
    let (source, target) = (CString::new("bpf")?, CString::new(BPFFS)?);
    // SAFETY: strings that end with zero; no data is passed.
    let done = unsafe { libc::mount(source.as_ptr(), target.as_ptr(), source.as_ptr(), 0, std::ptr::null()) };
    // Another test process may have been faster.
    let error = std::io::Error::last_os_error();
    ensure!(done == 0 || error.raw_os_error() == Some(libc::EBUSY), "mount {BPFFS}: {error}");
    Ok(())
}

/// What an HTTP server says, from the calling thread's network namespace.
pub fn http(address: &str, path: &str) -> Result<String> {
    use std::io::{Read, Write};
    let mut stream =
        std::net::TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text).with_context(|| format!("read from {address}"))?;
    Ok(text)
}
