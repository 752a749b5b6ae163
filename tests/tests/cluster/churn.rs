//! Pods of real kubelets that come, change and go under load: every packet gets the verdict of a world that may be in force.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use policy_tests::churn::{self, Amount, Pace};
use policy_tests::cluster::Cluster;

/// Pods in all, if not these.
const PODS: &str = "POLICY_CHURN_PODS";
const MANY: usize = 200;
/// Wrong verdicts that are told.
const TOLD: usize = 20;

/// Many of them, on both nodes.
pub(crate) fn pods(cluster: &Cluster) -> Result<()> {
    let pods = std::env::var(PODS).map_or(Ok(MANY), |text| text.parse()).context(PODS)?;
    let pace = Pace { pause: Duration::from_millis(4), random: 10 };
    let amount = Amount { pods, at_once: 24, stay: Duration::from_millis(1500), pace };
    let report = churn::on_nodes(cluster, amount)?;
    println!("{pods} pods: {report}");
    let told = &report.wrong[..report.wrong.len().min(TOLD)];
    ensure!(told.is_empty(), "{} wrong verdicts:\n{}", report.wrong.len(), told.join("\n"));
    // Of each pod some packets must have told something, and a judge that excuses most packets would see nothing.
    ensure!(report.passed > pods && report.dropped > pods, "hardly a packet was judged: {report}");
    ensure!(report.windows.len() > pods / 2 && report.judged() > 0.25, "too little was judged: {report}");
    Ok(())
}
