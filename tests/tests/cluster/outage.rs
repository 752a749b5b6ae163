//! The API server is away for a minute, and its history is lost, while the DaemonSet runs and traffic flows.

use std::collections::HashMap;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use policy_engine::world::World;
use policy_engine::{oracle, verdict::Query};
use policy_tests::churn::{Live, Pace, Probe, Steady, Traffic, written};
use policy_tests::cluster::nodes::{lan, node_name};
use policy_tests::cluster::{Cluster, deploy};
use serde_json::json;

use crate::manifests::world;

/// Seconds without API server, if not these.
const LENGTH: &str = "POLICY_OUTAGE_SECONDS";
const MINUTE: u64 = 60;
/// Packets must meet what is as it was, and what was changed.
const STAY: Duration = Duration::from_secs(1);
const NAMESPACE: &str = "outage";
/// Red ones may send to the first pod of each node.
const ROLES: [&str; 6] = ["blue", "blue", "red", "red", "blue", "blue"];
const UDP: u8 = 17;

/// Every packet is judged as before, the agents catch up by differences, and what changes afterwards is enforced.
pub(crate) fn survived(cluster: &Cluster) -> Result<()> {
    let length = std::env::var(LENGTH).map_or(Ok(MINUTE), |text| text.parse()).context(LENGTH)?;
    let traffic = traffic(cluster)?;
    // Until what the last change left behind is tidied up, too.
    thread::sleep(STAY);
    let before = all_written(cluster)?;
    let lists = relisted(cluster)?;
    let held = world(&cluster.admin())?;

    cluster.stop_api_server()?;
    let stopped = Instant::now();
    cluster.compact()?;
    thread::sleep(Duration::from_secs(length).saturating_sub(stopped.elapsed()));
    let answering = Instant::now();
    cluster.start_api_server()?;
    let back = Instant::now();
    enforced(cluster)?;
    let caught_up = back.elapsed();
    let lists = relisted(cluster)?.saturating_sub(lists);
    ensure!(lists > 0, "no agent says that it read a full list: history was not lost");
    let back_again = all_written(cluster)?;
    ensure!(back_again == before, "plans and writes of each node were {before:?}, and are {back_again:?}");
    thread::sleep(STAY);

    let changed = Instant::now();
    let patch = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": NAMESPACE, "name": "pod4", "labels": {"role": "red"}}});
    cluster.admin().merge(&patch)?;
    enforced(cluster)?;
    let follows = Instant::now();
    let now = world(&cluster.admin())?;
    thread::sleep(STAY);

    let (probes, losses) = traffic.end();
    let early = probes.iter().filter(|probe| probe.after < changed);
    let early = Steady::judge(early, &losses, judge(&held)).context("until the first change")?;
    let late: Vec<&Probe> = probes.iter().filter(|probe| probe.before > follows).collect();
    let newly = late.iter().filter(|probe| probe.pods[0] == 4 && probe.pods[1] < 2 && probe.came.is_some());
    let newly = newly.count();
    let late = Steady::judge(late, &losses, judge(&now)).context("after the first change")?;
    let during = probes.iter().filter(|probe| probe.before > stopped && probe.after < back).count();
    println!(
        "without API server for {:.1} s: {} packets passed and {} were dropped, {during} of them meanwhile, none wrongly, \
         {} lost by the harness ({losses}); both agents have caught up {:.0} ms after it was ready, {:.1} s after its start, \
         with {lists} full lists and no write; the next change was enforced after {:.0} ms",
        (back - stopped).as_secs_f64(),
        early.passed,
        early.dropped,
        early.lost + late.lost,
        caught_up.as_secs_f64() * 1e3,
        (back + caught_up - answering).as_secs_f64(),
        (follows - changed).as_secs_f64() * 1e3,
    );
    ensure!(early.passed > 0 && early.dropped > 0 && during > 0, "nothing was judged: {early:?}");
    ensure!(newly > 0 && late.dropped > 0, "the change had no effect: {newly} {late:?}");
    Ok(())
}

/// Packets between pods of both nodes, the first pod of each being guarded.
fn traffic(cluster: &Cluster) -> Result<Traffic> {
    cluster.namespaces(&[(NAMESPACE, json!({}))])?;
    let nodes = [node_name(1), node_name(2)];
    let names: Vec<String> = (0..ROLES.len()).map(|n| format!("pod{n}")).collect();
    let labels = |n: usize| json!({"role": ROLES[n], "guarded": if n < 2 { "yes" } else { "no" }});
    let wanted: Vec<_> = names
        .iter()
        .enumerate()
        .map(|(n, name)| (NAMESPACE, name.as_str(), nodes[n % 2].as_str(), labels(n)))
        .collect();
    let pods = cluster.idle_pods(&wanted)?;
    cluster.admin().apply(&json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": NAMESPACE, "name": "red-may"},
        "spec": {"podSelector": {"matchLabels": {"guarded": "yes"}}, "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"role": "red"}}}]}]}}))?;
    enforced(cluster)?;
    let live = pods.iter().enumerate().map(|(n, pod)| Ok(Arc::new(Live::new(n, &pod.ns, pod.ips[0])?)));
    let live: Vec<Arc<Live>> = live.collect::<Result<_>>()?;
    let traffic = Traffic::start(Pace { pause: Duration::from_millis(3), random: 3 });
    live.iter().for_each(|pod| traffic.add(pod));
    for (from, to) in [(2, 1), (3, 1), (4, 0), (4, 1)] {
        traffic.watch(&live[from], &live[to]);
    }
    Ok(traffic)
}

/// Returns once both agents enforce everything that the API server holds.
fn enforced(cluster: &Cluster) -> Result<()> {
    cluster.nodes().iter().try_for_each(|node| {
        let output = node.ctl()?.args(["wait", "--timeout", "60s"]).output().context("run policyctl")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: policyctl wait: {said}", node.name());
        Ok(())
    })
}

/// Plans and writes of each node's agent.
fn all_written(cluster: &Cluster) -> Result<Vec<[u64; 2]>> {
    let of = |number: u8| {
        let mut curl = Command::new("nsenter");
        curl.arg(format!("--net={}", lan::namespace(lan::LAN).display()));
        curl.args(["curl", "--silent", "--fail", "--noproxy", "*"]);
        let output = curl.arg(format!("http://{}:9640/metrics", lan::node_ips(number)[0])).output();
        written(&String::from_utf8_lossy(&output.context("run curl")?.stdout))
    };
    (1..).take(cluster.nodes().len()).map(of).collect()
}

/// How often the agents say that they read a full list because history was lost.
fn relisted(cluster: &Cluster) -> Result<usize> {
    let selector = "app.kubernetes.io/name=policy-agent";
    let logs = cluster.kubectl(&[
        "-n",
        deploy::NAMESPACE,
        "logs",
        "-l",
        selector,
        "-c",
        "policy-agent",
        "--tail=-1",
    ])?;
    Ok(logs.matches("a full list is read").count())
}

fn judge(world: &World) -> impl FnMut(&Probe) -> bool + '_ {
    let mut known = HashMap::new();
    move |probe| {
        let ([source, destination], port) = (probe.addresses, probe.port);
        *known.entry((source, destination, port)).or_insert_with(|| {
            let query = Query { source, destination, protocol: UDP, port, from_node_process: false };
            oracle::verdicts(world, &query).allows()
        })
    }
}
