//! Traffic whose verdicts are to stay as they are, whatever happens meanwhile.

use super::{Losses, Probe};
use anyhow::{Context, Result, ensure};

/// How many packets were judged rightly.
#[derive(Debug, Clone, Copy, Default)]
pub struct Steady {
    /// They had to pass, and came.
    pub passed: usize,
    /// They had to be dropped, and did not come within half a second.
    pub dropped: usize,
    /// They had to pass and did not come, and the harness itself lost as many.
    pub lost: usize,
}

impl Steady {
    /// Judges packets.
    ///
    /// # Errors
    /// A packet was judged wrongly; the first few are told.
    pub fn judge<'a>(
        probes: impl IntoIterator<Item = &'a Probe>,
        losses: &Losses,
        mut allowed: impl FnMut(&Probe) -> bool,
    ) -> Result<Self> {
        let (mut steady, mut lost) = (Self::default(), Vec::new());
        for probe in probes {
            match (probe.came.is_some(), allowed(probe)) {
                (true, true) => steady.passed += 1,
                (false, false) => steady.dropped += 1,
                (true, false) => anyhow::bail!("let through: {probe:?}"),
                (false, true) => lost.push(probe),
            }
        }
        // What had no room in the harness was dropped by nobody.
        steady.lost = lost.len();
        ensure!(
            lost.len() <= losses.total(),
            "{} packets lost ({losses}), among them {:?}",
            lost.len(),
            &lost[..lost.len().min(5)]
        );
        Ok(steady)
    }
}

/// Plans, and writes of all plans, since an agent's start, as its metrics tell them.
pub fn written(metrics: &str) -> Result<[u64; 2]> {
    let count = |name: &str| {
        let start = format!("policy_agent_{name}_total ");
        let text = metrics.lines().find_map(|line| line.strip_prefix(&start));
        text.and_then(|text| text.parse().ok()).with_context(|| format!("no {name} in {metrics}"))
    };
    Ok([count("plans")?, count("writes")?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn each_kind_of_wrong_verdict_is_told() {
        let now = Instant::now();
        let address = [[10, 0, 0, 1].into(), [10, 0, 0, 2].into()];
        let probe = |came| Probe { pods: [0, 1], addresses: address, port: 1, before: now, after: now, came };
        let (came, silent) = (probe(Some(now)), probe(None));
        let right = Steady::judge([&came], &Losses::default(), |_| true).unwrap();
        assert_eq!((right.passed, right.dropped, right.lost), (1, 0, 0));
        assert!(Steady::judge([&came], &Losses::default(), |_| false).is_err());
        assert!(Steady::judge([&silent], &Losses::default(), |_| true).is_err());
        let losses = Losses { sockets: 1, queues: 0 };
        assert_eq!(Steady::judge([&silent], &losses, |_| true).unwrap().lost, 1);
        assert!(Steady::judge([&silent, &silent], &losses, |_| true).is_err());
    }

    #[test]
    fn counts_are_read_from_metrics() {
        let text = "# HELP x y\npolicy_agent_plans_total 3\npolicy_agent_writes_total 41\n";
        assert_eq!(written(text).unwrap(), [3, 41]);
        assert!(written("policy_agent_plans_total 3\n").is_err());
    }
}
