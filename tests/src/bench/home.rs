//! This process in a control group of its own, so that the sockets that a benchmark makes are an endpoint's.

use crate::group::ControlGroup;
use anyhow::{Context, Result};
use policy_agent::cgroup::Hierarchy;
use std::{fs, path::PathBuf};

/// The group. On drop the process goes back to where it was.
pub(super) struct Home {
    before: PathBuf,
    /// The group.
    pub(super) group: ControlGroup,
}

impl Home {
    /// Moves this process.
    pub(super) fn new() -> Result<Self> {
        let hierarchy = Hierarchy::find(None).context("find the cgroup v2 hierarchy")?;
        let own = fs::read_to_string("/proc/self/cgroup").context("read this process's group")?;
        let own =
            own.lines().find_map(|line| line.strip_prefix("0::/")).context("this process has no group")?;
        let before = hierarchy.root().join(own).join("cgroup.procs");
        let group = ControlGroup::new()?;
        group.take(std::process::id())?;
        Ok(Self { before, group })
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Err(error) = fs::write(&self.before, std::process::id().to_string()) {
            eprintln!("bench: cannot go back to {}: {error}", self.before.display());
        }
    }
}
