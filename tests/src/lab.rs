//! A node with the real agent for suites that say in code what a scenario file cannot.

use crate::{
    agent::Agent,
    backend::{Backend, Wire},
    net::{Family, Host, LinkSocket, Node, Topology},
    pkt::{Frame, Ip, Packet},
    probe::{Outcome, Probe, Want, verdicts},
    scenario::{Action, Case, Place, State},
};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

/// Port on which every host answers fences.
const FENCE_PORT: u16 = 9;
/// Longest wait for something that must come.
const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster of one enforced node, changed by the actions of scenario files.
#[derive(Debug)]
pub struct Lab {
    wire: Wire,
    state: State,
}

impl Lab {
    /// A cluster, given as the `cluster` of a scenario file; returns once it is in force.
    pub fn new(topology: Topology, cluster: &str) -> Result<Self> {
        let case: Case = serde_norway::from_str(&format!(
            "{{schema: netpol-case/v1, id: lab, title: lab, cluster: {cluster}, steps: []}}"
        ))?;
        let mut lab = Self { wire: Wire::start(topology)?, state: State::new(&case)? };
        lab.wire.sync(&lab.state)?;
        Ok(lab)
    }

    /// The same with further arguments for the agent.
    pub fn with_arguments(topology: Topology, cluster: &str, arguments: &[&str]) -> Result<Self> {
        let mut lab = Self::new(topology, cluster)?;
        if !arguments.is_empty() {
            lab.agent().kill()?;
            lab.agent().set_arguments(arguments);
            lab.agent().start()?;
            lab.agent().wait()?;
        }
        Ok(lab)
    }

    /// The agent's pin directory.
    pub fn pins(&self) -> std::path::PathBuf {
        self.wire.agent_pins()
    }

    /// Lets a place answer on these ports.
    pub fn listen(&self, name: &str, ports: &[crate::scenario::Port]) -> Result<()> {
        self.wire.responder().listen(&*self.host(name)?, ports)
    }

    /// Makes changes, given as a list of actions, and returns once they are in force.
    pub fn act(&mut self, actions: &str) -> Result<()> {
        self.act_without_waiting(actions)?;
        self.agent().wait()
    }

    /// Makes changes without waiting for the agent.
    pub fn act_without_waiting(&mut self, actions: &str) -> Result<()> {
        let actions: Vec<Action> = serde_norway::from_str(actions)?;
        for action in &actions {
            self.state.act(action)?;
        }
        self.wire.put(&self.state)
    }

    /// Applies a policy of the namespace `x`, named `p`, with this spec.
    pub fn policy(&mut self, spec: &str) -> Result<()> {
        self.act(&format!(
            "[{{apply: {{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, \
             metadata: {{namespace: x, name: p}}, spec: {spec}}}}}]"
        ))
    }

    /// The agent.
    pub fn agent(&mut self) -> &mut Agent {
        self.wire.agent_process()
    }

    /// The node.
    pub fn node(&self) -> &Node {
        self.wire.node()
    }

    /// The host of a place.
    pub fn host(&self, name: &str) -> Result<Arc<Host>> {
        self.wire.host_of(&self.place(name)?)
    }

    /// Address of a place.
    pub fn ip(&self, name: &str, family: Family) -> Result<IpAddr> {
        self.place(name)?.ip(family).with_context(|| format!("{name} has no address of {family:?}"))
    }

    /// What becomes of a new connection, with a responder on its port.
    pub fn ask(&self, from: &str, to: &str, port: &str, family: Family, want: Want) -> Result<Outcome> {
        let port = port.parse().map_err(anyhow::Error::msg)?;
        self.wire.responder().listen(&*self.host(to)?, &[port])?;
        let ns = self.host(from)?.ns.clone();
        let probe = Probe {
            ns,
            from: self.ip(from, family)?,
            to: self.ip(to, family)?,
            port,
            size: 8,
            unconnected: false,
        };
        Ok(verdicts(&[probe], &[want])?.remove(0))
    }

    /// Panics unless a new connection passes, or does not, as expected.
    pub fn expect(&self, from: &str, to: &str, port: &str, allow: bool) {
        for family in [Family::V4, Family::V6] {
            let want = if allow { Want::Answer } else { Want::Silence };
            let outcome = self.ask(from, to, port, family, want).expect("the question can be asked");
            let fits = match &outcome {
                Outcome::Answered(_) => allow,
                Outcome::Silent => !allow,
                Outcome::Refused(_) => false,
            };
            assert!(fits, "{from} -> {to} {port} {family:?}: allow={allow} expected, seen {outcome:?}");
        }
    }

    /// A socket for whole frames at a pod's own interface.
    pub fn frames(&self, name: &str) -> Result<LinkSocket> {
        LinkSocket::open(&self.host(name)?.ns, Node::POD_LINK)
    }

    /// The frame in which `from` would send a packet towards `to`.
    pub fn frame(&self, from: &str, to: &str, packet: &Packet) -> Result<Frame> {
        let (from, to) = (self.host(from)?, self.host(to)?);
        let direct = self.node().topology() == Topology::Bridge && to.attach == from.attach;
        Ok(packet.ethernet(from.mac, if direct { to.mac } else { from.gateway_mac }))
    }

    /// Sends packets from a pod's interface, and returns which of them arrived at `to`: those whose payload holds the
    /// marker. A last packet that policy must let pass ends the wait, so nothing depends on time.
    pub fn arrived(&self, from: &str, to: &str, packets: &[Packet], markers: &[&str]) -> Result<Vec<bool>> {
        let (sender, receiver) = (self.frames(from)?, self.frames(to)?);
        for packet in packets {
            sender.send(&self.frame(from, to, packet)?.bytes)?;
        }
        let (src, dst) = (self.ip(from, Family::V4)?, self.ip(to, Family::V4)?);
        let fence = Ip::new(src, dst).udp(40_000, FENCE_PORT, b"the fence");
        sender.send(&self.frame(from, to, &fence)?.bytes)?;
        let mut seen = vec![false; markers.len()];
        let ended = receiver.find(PATIENCE, |frame| {
            for (n, marker) in markers.iter().enumerate() {
                seen[n] |= contains(frame, marker.as_bytes());
            }
            contains(frame, b"the fence")
        })?;
        ensure!(
            ended.is_some(),
            "the fence from {from} did not reach {to}; its port {FENCE_PORT} must be open"
        );
        Ok(seen)
    }

    /// Takes the agent and all its traces away: from now on nothing is enforced.
    pub fn strip(&mut self) -> Result<()> {
        let agent = self.agent();
        if agent.is_running()? {
            agent.kill()?;
        }
        agent.cleanup()
    }

    /// Waits until a drop with this reason has been reported.
    pub fn expect_drop(&mut self, reason: &str) {
        let end = Instant::now() + PATIENCE;
        let mut told = Vec::new();
        while Instant::now() < end {
            told = self.drop_reasons().expect("policyctl monitor works");
            if told.iter().any(|found| found == reason) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("no drop with reason {reason} was reported, only {told:?}\n{}", self.agent().log());
    }

    /// Reasons of the drops that the agent remembers.
    pub fn drop_reasons(&mut self) -> Result<Vec<String>> {
        let output = self.agent().ctl(["monitor", "--last", "1000", "--output", "json"])?;
        ensure!(output.status.success(), "policyctl monitor: {}", String::from_utf8_lossy(&output.stderr));
        let mut reasons = Vec::new();
        for line in String::from_utf8(output.stdout).context("the stream is text")?.lines() {
            find(
                &serde_json::from_str(line).context("a line of the stream is JSON")?,
                "reason",
                &mut reasons,
            );
        }
        Ok(reasons)
    }

    fn place(&self, name: &str) -> Result<Place> {
        self.state
            .places()
            .into_iter()
            .find(|place| place.name == name)
            .with_context(|| format!("no place {name}"))
    }
}

/// Whether the bytes hold the marker.
pub fn contains(bytes: &[u8], marker: &[u8]) -> bool {
    bytes.windows(marker.len()).any(|window| window == marker)
}

/// All strings under `key`, however deep.
fn find(value: &Value, key: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                match field {
                    Value::String(text) if name == key => found.push(text.clone()),
                    _ => find(field, key, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| find(item, key, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
