//! New pods of the node: from the moment at which the agent can know of them until they are enforced.

use super::objects::{LAB, NODE, pod};
use crate::{
    agent::Agent,
    cluster::ApiServer,
    net::{Attach, Node},
};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{
    net::{IpAddr, Ipv4Addr},
    process::Command,
    time::{Duration, Instant},
};

/// Pods that come one by one.
const SINGLE: u8 = 40;
/// Pods that come at once: as many as a node has by default.
const TOGETHER: u8 = 110;
/// Longest wait for all of them.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was measured, in milliseconds.
#[derive(Debug)]
pub(super) struct NewPods {
    /// From the API server's knowledge of a pod's address to its enforcement, of pods that came one by one.
    pub(super) single: Vec<f64>,
    /// From the moment at which the agent could know of many to the enforcement of the last.
    pub(super) together: f64,
}

/// How many pods come at once.
pub(super) const fn together() -> u8 {
    TOGETHER
}

fn object(name: &str, address: Ipv4Addr) -> (String, Value) {
    let labels = json!({"app": "app-1", "pod": name});
    (format!("pods/{LAB}/{name}"), pod(LAB, name, &labels, NODE, address))
}

fn make(node: &mut Node, name: &str, address: Ipv4Addr) -> Result<(String, Value)> {
    node.add(name, Attach::Pod, &[IpAddr::V4(address)])?;
    Ok(object(name, address))
}

pub(super) fn measure(node: &mut Node, api: &ApiServer, agent: &Agent) -> Result<NewPods> {
    let store = |node: &Node, objects: &[(String, Value)]| node.ns().run(|| api.store(objects));
    let mut single = Vec::new();
    for number in 0..SINGLE {
        let name = format!("single-{number}");
        let new = make(node, &name, Ipv4Addr::new(10, 244, 0, 60 + number))?;
        let start = Instant::now();
        store(node, &[new])?;
        enforced(agent, start, |pod| pod == name, 1)?;
        single.push(start.elapsed().as_secs_f64() * 1e3);
        std::thread::sleep(Duration::from_millis(100));
    }
    let pid = agent.pid().context("the agent does not run")?.to_string();
    // A stopped agent learns of all of them at one moment, however long it takes to make them.
    signal("STOP", &pid)?;
    let made = (0..TOGETHER)
        .map(|number| make(node, &format!("together-{number}"), Ipv4Addr::new(10, 244, 0, 100 + number)));
    let made = made.collect::<Result<Vec<_>>>().and_then(|made| store(node, &made));
    let start = Instant::now();
    signal("CONT", &pid)?;
    made?;
    enforced(agent, start, |pod| pod.starts_with("together-"), TOGETHER.into())?;
    Ok(NewPods { single, together: start.elapsed().as_secs_f64() * 1e3 })
}

/// Returns once so many of these pods are enforced. Nothing is asked of the API server for it: a promise of `policyctl wait`
/// is one of everything that the server holds, and with many objects takes longer than the pods.
fn enforced(agent: &Agent, start: Instant, which: impl Fn(&str) -> bool, count: usize) -> Result<()> {
    loop {
        let output = agent.ctl(["get", "endpoints", "--output", "json"])?;
        let told: Value = serde_json::from_slice(&output.stdout).context("read the endpoints")?;
        let is_one = |endpoint: &&Value| {
            endpoint["pod"].as_str().is_some_and(&which)
                && endpoint["state"].as_str().is_some_and(|state| state.ends_with("_ENFORCED"))
        };
        if told["endpoints"].as_array().into_iter().flatten().filter(is_one).count() >= count {
            return Ok(());
        }
        ensure!(start.elapsed() < PATIENCE, "pods are not enforced: {told}");
    }
}

fn signal(name: &str, pid: &str) -> Result<()> {
    let status = Command::new("kill").args(["-s", name, pid]).status().context("run kill")?;
    ensure!(status.success(), "kill -s {name}: {status}");
    Ok(())
}
