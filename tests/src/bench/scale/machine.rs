//! What the machine was doing meanwhile: without it a time says little where processors are shared.

use anyhow::{Context, Result};
use std::fs;

/// Processor time and waiting of one thread of the agent.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Turns {
    /// Nanoseconds on a processor.
    ran: f64,
    /// Nanoseconds ready to run, without a processor.
    waited: f64,
}

impl Turns {
    /// Of the thread that makes and writes plans, since its start.
    pub(super) fn of_writer(pid: u32) -> Result<Self> {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).context("read the agent's threads")?;
        for task in tasks {
            let path = task.context("read the agent's threads")?.path();
            let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
            if name.trim() != "writer" {
                continue;
            }
            let text = fs::read_to_string(path.join("schedstat")).context("read a thread's times")?;
            let mut numbers = text.split_whitespace().filter_map(|number| number.parse().ok());
            let mut next = || numbers.next().context("times of a thread");
            return Ok(Self { ran: next()?, waited: next()? });
        }
        anyhow::bail!("the agent has no thread named writer")
    }

    /// Both per change, in words.
    pub(super) fn per_change(self, before: Self, changes: f64) -> String {
        let [ran, waited] =
            [self.ran - before.ran, self.waited - before.waited].map(|time| time / changes / 1e6);
        format!("{ran:.2} ms, and {waited:.2} ms without one")
    }
}

/// Processes that ran or were ready to run, on average over the last minute.
pub(super) fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}
