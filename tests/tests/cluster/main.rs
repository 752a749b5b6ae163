//! The DaemonSet on real nodes: its image, its manifests, its permissions; real pods, real policies, real packets.
//!
//! `cargo xtask cluster test [WORD]` runs it. One cluster serves many tests, one after the other.

mod churn;
mod latency;
mod life;
mod manifests;
mod notices;
mod outage;
mod probes;
mod rendered;
mod services;
mod statics;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use policy_tests::cluster::{Cluster, Cni, Proxy, Shape, deploy};

/// A test on a running cluster.
type Test = fn(&Cluster) -> Result<()>;

/// What every cluster must pass, whatever it is like.
const EVERYWHERE: &[(&str, Test)] = &[
    ("seeds_are_enforced_as_the_evaluator_says", manifests::seeds),
    ("services_are_judged_by_their_backends", services::judged),
    ("kubelet_probes_keep_an_isolated_pod_ready", probes::kubelet_probes),
    ("a_static_pod_is_judged_as_its_mirror_says", statics::judged),
];

/// What one cluster shows for all.
const ONCE: &[(&str, Test)] = &[
    ("a_second_agent_is_refused", life::second_agent),
    ("kubectl_events_tells_the_owner_of_a_policy", notices::events),
    ("time_from_apply_to_drop_and_from_delete_to_pass", latency::policies),
    ("time_that_a_new_pod_is_open", latency::new_pods),
    ("two_hundred_churned_pods_are_never_judged_wrongly", churn::pods),
    ("a_rolled_daemonset_judges_no_packet_wrongly", life::rolled),
    ("with_the_cni_plugin_no_new_pod_is_open", latency::new_pods_with_cni),
    // Last: the other controllers take a minute and more to notice that the API server is back.
    ("an_api_server_that_is_away_for_a_minute_changes_no_verdict", outage::survived),
];

struct Suite {
    filter: Option<String>,
    image: PathBuf,
    passed: usize,
    failed: usize,
}

fn main() -> ExitCode {
    // cargo hands on its own flags; the first plain word selects tests.
    let filter = std::env::args().skip(1).find(|word| !word.starts_with('-'));
    let Some(image) = std::env::var_os("POLICY_CLUSTER_IMAGE").map(PathBuf::from) else {
        eprintln!("error: POLICY_CLUSTER_IMAGE names no image archive\nhint: cargo xtask cluster test");
        return ExitCode::FAILURE;
    };
    let mut suite = Suite { filter, image, passed: 0, failed: 0 };
    let ptp = Shape { nodes: 2, ..Shape::default() };
    let bridge = Shape { nodes: 2, cni: Cni::Bridge, proxy: Proxy::Nftables, dual_stack: true };
    suite.run("", "kustomize_and_helm_give_the_same_objects", rendered::alike);
    suite.on(ptp, "ptp_iptables", &[EVERYWHERE, ONCE].concat());
    suite.on(bridge, "bridge_nftables_dual_stack", EVERYWHERE);
    let word = if suite.failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {word}. {} passed; {} failed; 0 ignored; 0 measured; 0 filtered out",
        suite.passed, suite.failed
    );
    if suite.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

impl Suite {
    /// Runs tests on a cluster of this shape; nothing of it is left afterwards.
    fn on(&mut self, shape: Shape, name: &str, tests: &[(&str, Test)]) {
        if !tests.iter().any(|(test, _)| self.selected(&format!("{name}::{test}"))) {
            return;
        }
        let _end = End;
        let mut cluster = None;
        let image = self.image.clone();
        self.run(name, "the_daemonset_becomes_ready", || {
            let made = cluster.insert(Cluster::up(shape)?);
            made.load_image(&image)?;
            deploy::apply(made)
        });
        let Some(cluster) = cluster else { return };
        for (test, run) in tests {
            if self.selected(&format!("{name}::{test}")) {
                self.run(name, test, || run(&cluster));
            }
        }
        if self.failed > 0 {
            println!("{}\n{}", cluster.logs(), deploy::logs(&cluster));
        }
    }

    fn run(&mut self, group: &str, name: &str, test: impl FnOnce() -> Result<()>) {
        let name = if group.is_empty() { name.to_owned() } else { format!("{group}::{name}") };
        let started = Instant::now();
        let result =
            catch_unwind(AssertUnwindSafe(test)).unwrap_or_else(|_| Err(anyhow::anyhow!("panicked")));
        match result.with_context(|| name.clone()) {
            Ok(()) => {
                self.passed += 1;
                println!("test {name} ... ok ({:.1} s)", started.elapsed().as_secs_f32());
            }
            Err(error) => {
                self.failed += 1;
                println!("{error:#}\ntest {name} ... FAILED");
            }
        }
    }

    fn selected(&self, name: &str) -> bool {
        self.filter.as_ref().is_none_or(|filter| name.contains(filter.as_str()))
    }
}

/// Ends the cluster, however the tests end.
struct End;

impl Drop for End {
    fn drop(&mut self) {
        if std::env::var_os("POLICY_CLUSTER_KEEP").is_none()
            && let Err(error) = Cluster::down()
        {
            println!("the cluster does not end: {error:#}");
        }
    }
}
