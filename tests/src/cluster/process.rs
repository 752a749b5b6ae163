//! A server as a child: its log in a file, an end for certain.

use anyhow::{Context, Result, bail, ensure};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// How long a server has to end by itself before it is killed.
const GRACE: Duration = Duration::from_secs(5);

/// A running server; it ends with the value.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a server that writes to `DIR/NAME.log`, after what an earlier one wrote.
    ///
    /// It stays in this process's group, so that Ctrl-C, which ends a test without a chance to clean up, ends it too.
    pub fn start(name: &str, dir: &Path, mut command: Command) -> Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log).context("open a server's log")?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).current_dir(dir);
        let child = command.spawn().with_context(|| format!("start {name}"))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// Returns once `ready` says so.
    ///
    /// # Errors
    /// The server ended, or was not ready in time; with the end of its log.
    pub fn until(&mut self, patience: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
        let end = Instant::now() + patience;
        while !ready() {
            if let Some(status) = self.child.try_wait().context("look at a server")? {
                bail!("{} ended ({status}):\n{}", self.name, self.log());
            }
            ensure!(Instant::now() < end, "{} is not ready:\n{}", self.name, self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The end of its log.
    pub fn log(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// Asks it to end, and kills it if it does not.
    pub fn stop(&mut self) {
        // SAFETY: a signal to a child that was not waited for yet: its number cannot belong to another process.
        unsafe { libc::kill(self.child.id().cast_signed(), libc::SIGTERM) };
        let end = Instant::now() + GRACE;
        while Instant::now() < end {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.kill();
    }

    /// Kills it.
    pub fn kill(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.kill();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_ends_is_told_with_its_log() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo no port left; exit 3"]);
        let mut process = Process::start("server", dir.path(), command).unwrap();
        let error = process.until(GRACE, || false).unwrap_err().to_string();
        assert!(error.contains("server ended") && error.contains("no port left"), "{error}");
    }

    #[test]
    fn a_server_ends_with_its_value() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("sleep");
        command.arg("1000");
        let process = Process::start("server", dir.path(), command).unwrap();
        let place = PathBuf::from(format!("/proc/{}", process.id()));
        assert!(place.exists());
        drop(process);
        assert!(!place.exists());
    }
}
