//! A node of namespaces without a kubelet: the test makes and ends its pods.

use super::{Amount, Kubelets, Report, lock, rules, run, watch::Watch};
use crate::{
    agent::Agent,
    cluster::Client,
    net::{Attach, Host, Netns, Node, Rtnl},
    scenario::State,
};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::{
    net::{IpAddr, Ipv4Addr},
    process::Command,
    sync::{Arc, Mutex},
};

struct Alone<'a> {
    node: Mutex<&'a mut Node>,
    ns: Arc<Netns>,
    names: [String; 1],
    admin: Client,
    free: Mutex<Vec<IpAddr>>,
    agent: &'a Agent,
}

/// Churns the pods of a node whose agent runs, without other pods.
///
/// # Errors
/// A request, an interface or the promise of the agent fails.
pub fn alone(node: &mut Node, admin: Client, agent: &Agent, amount: Amount) -> Result<Report> {
    let ns = node.ns().clone();
    let made = ns.run(|| rules::objects().iter().try_for_each(|object| admin.apply(object).map(drop)));
    made.context("make the namespaces and policies")?;
    // Hardly an address more than pods that are there at once: each is soon another pod's.
    let addresses = (0..2 + amount.at_once + 1).map(|n| Ipv4Addr::new(10, 244, 0, 20 + n as u8).into());
    let kubelets = Alone {
        node: Mutex::new(node),
        ns,
        names: [State::NODE.to_owned()],
        admin: admin.clone(),
        free: Mutex::new(addresses.rev().collect()),
        agent,
    };
    run(&kubelets, admin, amount)
}

/// Nobody asks for a neighbour: what waits for the answer is judged when it comes, and a question that is lost, as while a
/// filter's qdisc is added to the interface, is repeated after a second. By then the policies are others.
fn acquaint(node: &Node, host: &Host, address: IpAddr) -> Result<()> {
    let outer = node.rtnl().link(&host.host_link)?.index;
    node.rtnl().add_neighbour(outer, address, host.mac)?;
    host.ns.run(|| {
        let rtnl = Rtnl::open()?;
        let inner = rtnl.link(Node::POD_LINK)?.index;
        rtnl.add_neighbour(inner, Node::GATEWAY4.into(), host.gateway_mac)
    })
}

impl Kubelets for Alone<'_> {
    fn nodes(&self) -> &[String] {
        &self.names
    }

    fn ns(&self) -> &Netns {
        &self.ns
    }

    fn spec(&self, node: &str) -> Value {
        // There is nobody who would end it: what ends it at last is a deletion without grace.
        json!({"nodeName": node, "terminationGracePeriodSeconds": 30, "containers": [{"name": "c", "image": "i"}]})
    }

    fn start(
        &self,
        pod: &Value,
        _: &Watch,
        begun: &mut dyn FnMut(&Netns, IpAddr) -> Result<()>,
    ) -> Result<()> {
        let name = pod["metadata"]["name"].as_str().context("a pod without name")?;
        let address = lock(&self.free).pop().context("no address is free")?;
        let host = {
            let mut node = lock(&self.node);
            let host = node.add(name, Attach::Pod, &[address])?;
            acquaint(&node, &host, address)?;
            host
        };
        begun(&host.ns, address)?;
        let told = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": pod["metadata"]["namespace"], "name": name},
            "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}});
        self.admin.merge_status(&told).map(drop)
    }

    fn end(&self, pod: &Value, _: &Watch) -> Result<()> {
        let name = pod["metadata"]["name"].as_str().context("a pod without name")?;
        lock(&self.node).remove(name)?;
        // As with a real network plugin the next pod may get the address before the object is gone.
        let address = pod["status"]["podIP"].as_str().context("a pod without address")?;
        lock(&self.free).push(address.parse()?);
        self.admin.delete(pod)
    }

    fn ctl(&self, _: usize) -> Result<Command> {
        self.agent.ctl_command()
    }
}
