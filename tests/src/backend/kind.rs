//! Back ends by name, and many scenarios on one of them.

use super::{
    evaluator::Evaluator,
    groups::Groups,
    kernel::Kernel,
    memory::Memory,
    run::{Backend, run},
    wire::Wire,
};
use crate::{
    net::Topology,
    scenario::{self, Case},
};
use anyhow::Result;
use std::{
    fmt,
    str::FromStr,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

/// A sort of back end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// What the API's words say.
    Evaluator,
    /// Compiled tables under the programs' code, in memory.
    Tables,
    /// The kernel's maps and programs, by `BPF_PROG_TEST_RUN`.
    TestRun,
    /// Real packets between namespaces that are routed, under the real agent.
    Wire,
    /// The same behind a bridge.
    WireBridge,
    /// Sockets in control groups of one host, under the real agent.
    Cgroup,
}

impl Kind {
    /// Every back end.
    pub const ALL: [Self; 6] =
        [Self::Evaluator, Self::Tables, Self::TestRun, Self::Wire, Self::WireBridge, Self::Cgroup];

    /// Name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Evaluator => "evaluator",
            Self::Tables => "tables",
            Self::TestRun => "testrun",
            Self::Wire => "wire",
            Self::WireBridge => "wire-bridge",
            Self::Cgroup => "cgroup",
        }
    }

    /// Whether it needs root.
    pub const fn needs_root(self) -> bool {
        match self {
            Self::Evaluator | Self::Tables => false,
            Self::TestRun | Self::Wire | Self::WireBridge | Self::Cgroup => true,
        }
    }

    /// One of its sort, with an empty cluster.
    pub fn start(self) -> Result<Box<dyn Backend>> {
        Ok(match self {
            Self::Evaluator => Box::new(Evaluator::new()),
            Self::Tables => Box::new(Memory::new()),
            Self::TestRun => Box::new(Kernel::new()?),
            Self::Wire => Box::new(Wire::start(Topology::Ptp)?),
            Self::WireBridge => Box::new(Wire::start(Topology::Bridge)?),
            Self::Cgroup => Box::new(Groups::start()?),
        })
    }

    /// Whether it has something to say about a scenario.
    pub fn runs(self, case: &Case) -> bool {
        let groups = self == Self::Cgroup;
        case.kind != scenario::Kind::Admission
            && (groups || case.workloads.is_none())
            && (!groups || Groups::can_run(case))
    }

    /// Whether scenarios run one after another on one back end, as on a node that lives long.
    const fn lives_on(self) -> bool {
        self.needs_root()
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = || Self::ALL.map(Self::name).join(", ");
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| format!("{text:?} is none of {}", names()))
    }
}

/// Runs all scenarios, on so many back ends side by side. For each scenario, in order, what differed; an error is a
/// difference too. `done` hears of each scenario that is through.
pub fn run_all(
    kind: Kind,
    cases: &[Case],
    side_by_side: usize,
    done: &(dyn Fn(&Case, &[String]) + Sync),
) -> Vec<Vec<String>> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(vec![Vec::new(); cases.len()]);
    std::thread::scope(|scope| {
        for _ in 0..side_by_side.clamp(1, cases.len().max(1)) {
            scope.spawn(|| {
                let mut backend: Option<Box<dyn Backend>> = None;
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    let Some(case) = cases.get(n) else { break };
                    let found = one(kind, case, &mut backend);
                    done(case, &found);
                    if let Ok(mut results) = results.lock() {
                        results[n] = found;
                    }
                }
            });
        }
    });
    results.into_inner().unwrap_or_default()
}

/// What went wrong must not make the next scenario fail too: the back end is kept only when all went well.
fn one(kind: Kind, case: &Case, kept: &mut Option<Box<dyn Backend>>) -> Vec<String> {
    let mut backend = match kept.take().map_or_else(|| kind.start(), Ok) {
        Ok(backend) => backend,
        Err(error) => return vec![format!("the back end does not start: {error:#}")],
    };
    let mut found = run(case, &mut *backend).unwrap_or_else(|error| vec![format!("{error:#}")]);
    if found.is_empty() && kind.lives_on() {
        *kept = Some(backend);
    } else if !found.is_empty()
        && let Some(log) = backend.log()
    {
        found.push(log);
    }
    found
}
