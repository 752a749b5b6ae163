//! How long changes took inside the agent: its histogram, between two moments.

use crate::net::Node;
use anyhow::{Context, Result, ensure};
use std::process::Command;

/// Where the agent serves its metrics, inside the node.
pub(super) const ADDRESS: &str = "127.0.0.1:9641";
const NAME: &str = "policy_agent_change_duration_seconds_bucket{le=\"";

/// {bound in seconds, changes that took no longer}, by bound.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Delays(Vec<(f64, f64)>);

impl Delays {
    /// As they are now, since the agent's start.
    pub(super) fn read(node: &Node) -> Result<Self> {
        let mut curl = Command::new("curl");
        node.ns().enter_command(&mut curl)?;
        let url = format!("http://{ADDRESS}/metrics");
        let output = curl.args(["--silent", "--noproxy", "*", &url]).output().context("run curl")?;
        Self::parse(&String::from_utf8_lossy(&output.stdout))
    }

    fn parse(text: &str) -> Result<Self> {
        let bucket = |line: &str| {
            let (bound, count) = line.strip_prefix(NAME)?.split_once("\"} ")?;
            let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().ok()? };
            Some((bound, count.parse().ok()?))
        };
        let buckets: Vec<(f64, f64)> = text.lines().filter_map(bucket).collect();
        ensure!(!buckets.is_empty(), "the agent tells nothing of its changes: {text}");
        Ok(Self(buckets))
    }

    /// Those that came after `before`.
    pub(super) fn since(&self, before: &Self) -> Self {
        Self(self.0.iter().zip(&before.0).map(|((bound, now), (_, then))| (*bound, now - then)).collect())
    }

    /// How many there are.
    pub(super) fn count(&self) -> f64 {
        self.0.last().map_or(0.0, |(_, count)| *count)
    }

    /// The time within which this share of them was done, in milliseconds; even within a bucket.
    pub(super) fn quantile(&self, share: f64) -> f64 {
        let rank = share * self.count();
        let (mut bound, mut below) = (0.0, 0.0);
        for (upper, count) in &self.0 {
            if *count >= rank && *count > below {
                return (bound + (upper - bound) * (rank - below) / (count - below)) * 1e3;
            }
            (bound, below) = (*upper, *count);
        }
        f64::NAN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_read_off_buckets() {
        let text = |counts: [u32; 3]| {
            let bounds = ["0.001", "0.002", "+Inf"];
            bounds.iter().zip(counts).map(|(b, c)| format!("{NAME}{b}\"}} {c}\n")).collect::<String>()
        };
        let before = Delays::parse(&text([5, 5, 5])).unwrap();
        let delays = Delays::parse(&text([5, 15, 15])).unwrap().since(&before);
        assert_eq!(delays.count(), 10.0);
        assert!((delays.quantile(0.5) - 1.5).abs() < 1e-9 && (delays.quantile(1.0) - 2.0).abs() < 1e-9);
        let late = Delays::parse(&text([5, 15, 25])).unwrap().since(&before);
        assert!(late.quantile(0.99).is_infinite(), "beyond the last bound");
        assert!(Delays::parse("nothing").is_err());
    }
}
