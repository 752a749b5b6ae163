//! A `policyctl monitor` that runs beside a test, and the lines it has shown.

use crate::agent::Agent;
use anyhow::{Context, Result, bail};
use std::{
    ffi::OsStr,
    io::{BufRead, BufReader},
    process::Child,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// Ends with its owner.
pub struct Monitor {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Monitor {
    /// Starts it; `shown` is called with each line. A stream holds what happens after its beginning, which nobody
    /// tells: whoever needs all of it has to see a first line ([`Monitor::begun`]).
    pub fn start<A: AsRef<OsStr>>(
        agent: &Agent,
        arguments: impl IntoIterator<Item = A>,
        shown: impl Fn(&str) + Send + 'static,
    ) -> Result<Self> {
        let mut child = agent.ctl_child(arguments)?;
        let lines = Arc::new(Mutex::new(Vec::new()));
        let output = BufReader::new(child.stdout.take().context("the monitor's output is a pipe")?);
        let kept = lines.clone();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                shown(&line);
                kept.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        Ok(Self { child, lines })
    }

    /// Repeats what makes an event until one is shown.
    pub fn begun(&self, patience: Duration, mut event: impl FnMut() -> Result<()>) -> Result<()> {
        let end = Instant::now() + patience;
        while self.lines().is_empty() {
            event()?;
            if Instant::now() > end {
                bail!("the monitor shows nothing within {patience:?}");
            }
        }
        Ok(())
    }

    /// Waits for a line with all these parts.
    pub fn shows(&self, parts: &[&str], patience: Duration) -> bool {
        let end = Instant::now() + patience;
        let all = |line: &String| parts.iter().all(|part| line.contains(part));
        loop {
            if self.lines().iter().any(all) {
                return true;
            }
            if Instant::now() > end {
                return false;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// The lines until now, oldest first.
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Forgets the lines until now.
    pub fn clear(&self) {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
