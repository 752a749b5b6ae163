//! Scenarios: clusters, policies and the truth about them, as files that every back end runs.
//!
//! A file in the format `netpol-case/v1` describes a cluster, steps that change it, and after each step a truth table
//! of (from, to, protocol, port, family). [`load`] reads one; [`State`] is the cluster at a point of its steps.

mod expect;
mod objects;
mod port;
mod schema;
mod services;
mod state;
mod step;
mod template;

pub use expect::{Expected, How, Pair};
pub use port::{Port, Transport};
pub use schema::{Admission, Case, Container, Kind, Loopback, PodSpec, Services, Workloads};
pub use services::{Translation, Translations};
pub use state::{Place, State, Where};
pub use step::{
    Action, AgentAction, Answer, Dir, Expect, Level, PodAction, Regroup, Session, SessionExpect, SessionOpen,
    SessionSend, SessionState, Side, Step,
};

use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};

/// The repository's root, where scenario files and examples are found: the one that this was built in, or the one that
/// `POLICY_REPOSITORY` names.
pub fn root() -> PathBuf {
    if let Some(root) = std::env::var_os("POLICY_REPOSITORY") {
        return root.into();
    }
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// Reads one scenario file; an unknown field is an error that names its path.
pub fn load(path: &Path) -> Result<Case> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    parse(&text).with_context(|| path.display().to_string())
}

/// Reads a scenario from its text.
pub fn parse(text: &str) -> Result<Case> {
    let case: Case = serde_norway::from_str(text)?;
    ensure!(case.schema == "netpol-case/v1", "schema: {} is not netpol-case/v1", case.schema);
    case.check()?;
    Ok(case)
}

/// All scenario files below `tests/scenarios`, in the order of their paths.
pub fn all() -> Result<Vec<(PathBuf, Case)>> {
    let mut paths = Vec::new();
    collect(&root().join("tests/scenarios"), &mut paths)?;
    paths.sort();
    paths.into_iter().map(|path| load(&path).map(|case| (path, case))).collect()
}

fn collect(dir: &Path, paths: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, paths)?;
        } else if path.extension().is_some_and(|ext| ext == "yaml") {
            paths.push(path);
        }
    }
    Ok(())
}
