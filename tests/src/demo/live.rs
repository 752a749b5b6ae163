//! The second part: drops that explain themselves, and a policy that goes and comes back under a running connection.

use super::stop;
use crate::{
    agent::Agent,
    monitor::Monitor,
    net::{Attach, Host, Node, Topology},
    probe::{Link, Probe, Responder, ask_all},
    scenario::{self, Port, State, Transport},
};
use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

/// Longest time that a change may take to be seen in the stream or on the wire.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long an unanswered question is waited for.
const SILENCE: Duration = Duration::from_millis(200);
/// Pods of the three-tier application, with the label that its policies select.
const PODS: &[(&str, &str, &str, u8)] = &[
    ("production", "frontend", "app=frontend", 11),
    ("production", "backend", "app=backend", 12),
    ("production", "database", "app=database", 13),
    ("production", "batch", "app=batch", 14),
    ("kube-system", "dns", "k8s-app=kube-dns", 15),
];

/// Shows it. `false`: the stream did not say what it should.
pub(super) fn show() -> Result<bool> {
    println!("== drops that explain themselves (policyctl monitor --follow)");
    let mut stage = Stage::set()?;
    let mut good = true;
    stage.ask("frontend", "database", 5432, "the frontend goes around the backend")?;
    good &= stage.told(&["DROP egress", "production/database:5432", "frontend-policy egress", "nearest"])?;
    stage.ask("batch", "database", 5432, "a pod that no rule names")?;
    good &= stage.told(&["DROP egress production/batch", "isolated by", "default-deny-egress"])?;
    stage.ask("dns", "database", 5432, "the right port from the wrong pod")?;
    good &= stage.told(&[
        "DROP ingress kube-system/dns",
        "isolated by",
        "production/database-policy",
        "production/default-deny-ingress",
        "nearest production/database-policy ingress[0]",
    ])?;
    stage.ask("dns", "frontend", 8443, "the wrong port")?;
    good &= stage
        .told(&["DROP ingress kube-system/dns", "nearest production/frontend-policy ingress[0]: port"])?;

    println!("\n== a policy goes and comes back under a running connection");
    let probe = stage.probe("frontend", "backend", 8080)?;
    let mut link = Link::open(&probe, PATIENCE)?.context("frontend does not reach backend")?;
    println!("   connection frontend -> backend:8080 is open");
    stop::check()?;
    stage.agent.remove_manifest("backend-policy.json")?;
    let time = until(|| link.is_alive(SILENCE).map(|alive| !alive))?;
    println!("   backend-policy removed: the default deny cuts the connection (noticed after {time} ms)");
    good &= stage.told(&["DROP ingress production/frontend", "production/backend:8080"])?;
    stage.agent.write_manifest("backend-policy.json", &stage.backend_policy.to_string())?;
    let time = until(|| link.is_alive(PATIENCE))?;
    println!("   backend-policy added again: the same connection goes on (noticed after {time} ms)");
    stop::check()?;
    Ok(good)
}

/// Milliseconds until `done` says yes.
fn until(mut done: impl FnMut() -> Result<bool>) -> Result<u128> {
    let start = Instant::now();
    while !done()? {
        stop::check()?;
        anyhow::ensure!(start.elapsed() < PATIENCE, "nothing changed within {} s", PATIENCE.as_secs());
    }
    Ok(start.elapsed().as_millis())
}

/// The application on a node, and a monitor whose lines are shown as they come.
struct Stage {
    monitor: Monitor,
    agent: Agent,
    _responder: Responder,
    node: Node,
    backend_policy: Value,
}

impl Stage {
    fn set() -> Result<Self> {
        let mut node = Node::new(Topology::Ptp)?;
        let mut agent = Agent::new(&node)?;
        let responder = Responder::start();
        let mut objects = Vec::new();
        for (namespace, name, label, last) in PODS {
            let address = IpAddr::V4(Ipv4Addr::new(10, 244, 0, *last));
            let host = node.add(name, Attach::Pod, &[address])?;
            responder.listen(&host, &[tcp(5432), tcp(8080), tcp(8443)])?;
            let (key, value) = label.split_once('=').context("a label is key=value")?;
            objects.push(json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"namespace": namespace, "name": name, "labels": {key: value}},
                "spec": {"nodeName": State::NODE, "containers": [{"name": "app"}]},
                "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
            }));
        }
        agent.write_manifest(
            "pods.json",
            &json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string(),
        )?;
        let mut backend_policy = Value::Null;
        for file in ["three-tier.yaml", "production-default-deny.yaml"] {
            for policy in documents(file)? {
                let name = policy["metadata"]["name"].as_str().context("a policy has a name")?.to_owned();
                agent.write_manifest(&format!("{name}.json"), &policy.to_string())?;
                if name == "backend-policy" {
                    backend_policy = policy;
                }
            }
        }
        agent.start()?;
        agent.wait()?;
        let monitor =
            Monitor::start(&agent, ["monitor", "--follow"], |line| println!("   monitor | {line}"))?;
        let stage = Self { monitor, agent, _responder: responder, node, backend_policy };
        stage.subscribed()?;
        Ok(stage)
    }

    /// Drops are made until one is shown.
    fn subscribed(&self) -> Result<()> {
        self.monitor.begun(PATIENCE, || {
            stop::check()?;
            self.send("batch", "dns", 5432)
        })
    }

    fn host(&self, name: &str) -> Result<&Arc<Host>> {
        self.node.host(name).with_context(|| format!("no pod {name}"))
    }

    fn probe(&self, from: &str, to: &str, port: u16) -> Result<Probe> {
        let (source, target) = (self.host(from)?, self.host(to)?);
        let first = |host: &Host| host.ips.first().copied().context("a pod has an address");
        Ok(Probe {
            ns: source.ns.clone(),
            from: first(source)?,
            to: first(target)?,
            port: tcp(port),
            size: 8,
            unconnected: false,
        })
    }

    fn send(&self, from: &str, to: &str, port: u16) -> Result<()> {
        ask_all(&[self.probe(from, to, port)?], SILENCE).map(drop)
    }

    /// Asks a question that must stay unanswered, after the lines so far have been put aside.
    fn ask(&mut self, from: &str, to: &str, port: u16, why: &str) -> Result<()> {
        stop::check()?;
        println!("   {from} -> {to}:{port}, {why}");
        self.monitor.clear();
        self.send(from, to, port)
    }

    /// Whether a line with all these parts comes.
    fn told(&self, parts: &[&str]) -> Result<bool> {
        let shown = self.monitor.shows(parts, PATIENCE);
        if !shown {
            stop::check()?;
            println!("   MISSING a line with {parts:?}");
        }
        Ok(shown)
    }
}

fn tcp(number: u16) -> Port {
    Port { transport: Transport::Tcp, number }
}

fn documents(file: &str) -> Result<Vec<Value>> {
    let path = scenario::root().join("deploy/examples/seeds").join(file);
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    serde_norway::Deserializer::from_str(&text)
        .map(|document| Value::deserialize(document).with_context(|| path.display().to_string()))
        .collect()
}
