//! The API server goes away for some time, and its history with it: every packet is judged as before, and what it says when
//! it is back is a difference, not a new beginning.

use std::env;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use policy_tests::churn::{self, Live, Pace, Probe, Steady, Traffic};
use policy_tests::cluster::ApiServer;
use policy_tests::net::Attach;
use serde_json::json;

use crate::setup::{PATIENCE, Setup, ip, policy};

/// Seconds without API server, if not these.
const LENGTH: &str = "POLICY_OUTAGE_SECONDS";
const SHORT: u64 = 4;
const METRICS: &str = "127.0.0.1:9640";
/// Pod 0 takes packets from red ones only.
const ROLES: [&str; 4] = ["blue", "red", "blue", "red"];

fn allowed(roles: &[&str], probe: &Probe) -> bool {
    probe.pods[1] != 0 || roles[probe.pods[0]] == "red"
}

fn pods(setup: &mut Setup) -> Vec<Arc<Live>> {
    let mut made = Vec::new();
    for (n, role) in ROLES.iter().enumerate() {
        let address = format!("10.244.0.{}", 20 + n);
        let host = setup.node.add(&format!("p{n}"), Attach::Pod, &[ip(&address)]).unwrap();
        setup.pod(&format!("p{n}"), &address);
        setup.label("Pod", &format!("p{n}"), &json!({"role": role}));
        made.push(Arc::new(Live::new(n, &host.ns, host.ips[0]).unwrap()));
    }
    made
}

/// Plans, and writes of all plans, since the agent's start.
fn written(setup: &Setup) -> [u64; 2] {
    let mut curl = Command::new("curl");
    setup.node.ns().enter_command(&mut curl).unwrap();
    let output = curl.args(["--silent", &format!("http://{METRICS}/metrics")]).output().unwrap();
    churn::written(&String::from_utf8_lossy(&output.stdout)).unwrap()
}

/// Waits until packets were sent, of each watched pair some.
fn some_packets(traffic: &Traffic) {
    let (wanted, end) = (traffic.probes().len() + 300, Instant::now() + PATIENCE);
    while traffic.probes().len() < wanted {
        assert!(Instant::now() < end, "nobody sends");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn packets_are_judged_alike_while_the_api_server_is_away_and_it_is_caught_up_with_by_differences() {
    let length = env::var(LENGTH).map_or(SHORT, |text| text.parse().unwrap());
    let mut setup = Setup::new();
    setup.agent.set_arguments(&["--metrics-address", METRICS]);
    let pods = pods(&mut setup);
    setup.apply(&policy(&json!({"podSelector": {"matchLabels": {"app": "p0"}}, "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"role": "red"}}}]}]})));
    setup.agent.start().unwrap();
    setup.agent.wait().unwrap();
    let traffic = Traffic::start(Pace::default());
    pods.iter().for_each(|pod| traffic.add(pod));
    traffic.watch(&pods[1], &pods[0]);
    traffic.watch(&pods[2], &pods[0]);
    some_packets(&traffic);
    let before = written(&setup);
    // History goes on after the agent's last news: what it has seen of it is lost with the rest.
    for n in 0..5 {
        setup.apply(&json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"namespace": "shop", "name": format!("c{n}")}}));
    }
    setup.server(ApiServer::stop);
    let stopped = Instant::now();
    setup.until_status(|s| s["sources"][0]["error"] != "", "told");
    setup.server(|api| api.compact()).unwrap();
    thread::sleep(Duration::from_secs(length).saturating_sub(stopped.elapsed()));
    setup.server(ApiServer::restart).unwrap();
    let (away, back) = (stopped.elapsed(), Instant::now());
    setup.until_status(|s| s["sources"][0]["error"] == "" && s["ready"] == true, "connected again");
    setup.agent.wait().unwrap();
    let caught_up = back.elapsed();
    assert!(setup.agent.log().contains("a full list is read"), "history was lost: {}", setup.agent.log());
    let back_again = written(&setup);
    assert_eq!(back_again, before, "the kernel holds what it should: nothing is written");
    some_packets(&traffic);

    let changed = Instant::now();
    setup.label("Pod", "p2", &json!({"role": "red"}));
    setup.agent.wait().unwrap();
    let after = written(&setup);
    let enforced = Instant::now();
    some_packets(&traffic);
    let (probes, losses) = traffic.end();
    let until = probes.iter().filter(|probe| probe.after < changed);
    let steady = Steady::judge(until, &losses, |probe| allowed(&ROLES, probe)).unwrap();
    let during = probes.iter().filter(|probe| probe.before > stopped && probe.before < back).count();
    let late = probes.iter().filter(|probe| probe.before > enforced);
    let late = Steady::judge(late, &losses, |probe| allowed(&["blue", "red", "red", "red"], probe)).unwrap();
    let Steady { passed, dropped, lost } = steady;
    println!(
        "without API server for {:.1} s: {passed} packets passed and {dropped} were dropped, {during} of them meanwhile, \
         none wrongly, {} lost by the harness ({losses}); caught up {:.0} ms after it answered again, with {} plans and {} \
         writes; the next change took {} and {}",
        away.as_secs_f64(),
        lost + late.lost,
        caught_up.as_secs_f64() * 1e3,
        back_again[0] - before[0],
        back_again[1] - before[1],
        after[0] - before[0],
        after[1] - before[1],
    );
    assert!(dropped > 0 && passed > 0 && during > 0 && late.dropped == 0 && late.passed > 0, "{late:?}");
    assert!(after[1] - before[1] < before[1] / 2, "a change is a difference: {before:?}, then {after:?}");
}
