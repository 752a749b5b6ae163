//! Large worlds get the same answers as small ones: thousands of policies in a namespace, thousands of addresses in a
//! peer, many pods with equal labels.

use serde_json::{Value, json};

use policy_common::abi::action;

use super::rng::Rng;
use super::samples::{Expected, Sample, expected, samples};
use crate::desired::Endpoint;
use crate::limits::Limits;
use crate::mem::tables::MemTables;
use crate::model::ObjectKey;
use crate::plan::Op;
use crate::planner::Planner;
use crate::read;
use crate::rule_ids::RuleIds;
use crate::tables::Tables;
use crate::world::{Delta, World};

const POLICIES: usize = 2_000;
const REMOTE: usize = 10_000;
const LOCAL: usize = 50;
const PORTS: usize = 97;

fn put(world: &mut World, object: &Value) {
    for read in read::objects(object) {
        assert!(read.problems.is_empty(), "{:?}", read.problems);
        world.apply(read.delta.expect("an object of a known kind"));
    }
}

fn pod(namespace: &str, number: usize, node: &str, app: &str) -> Value {
    let ip = format!("10.{}.{}.{}", if node == "n1" { 1 } else { 2 }, number / 250, number % 250 + 1);
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": format!("{node}-{number}"), "uid": ip,
            "labels": {"app": app, "n": (number % POLICIES).to_string()}},
        "spec": {"nodeName": node}, "status": {"phase": "Running", "podIPs": [{"ip": ip}]}})
}

fn policy(number: usize) -> Value {
    let port = 1_000 + number % PORTS;
    let peer = match number % 60 {
        0 => json!({"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "many"}}}),
        1..30 => json!({"namespaceSelector": {}, "podSelector": {"matchLabels": {"n": number.to_string()}}}),
        _ => {
            json!({"ipBlock": {"cidr": format!("10.2.{}.0/24", number % 40), "except": [format!("10.2.{}.128/25", number % 40)]}})
        }
    };
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "x", "name": format!("p{number}"), "uid": format!("p{number}")},
        "spec": {"podSelector": {"matchLabels": {"app": "server"}},
            "ingress": [{"from": [peer], "ports": [{"port": port}]}]}})
}

/// A node without the checks of every write, which take too long here.
struct Node {
    planner: Planner,
    kernel: MemTables,
    endpoints: Vec<Endpoint>,
}

impl Node {
    fn new(world: &World) -> Self {
        let limits = Limits::default();
        let mut kernel = MemTables::new(limits);
        let mut endpoints = Vec::new();
        for (slot, pod) in (1..).zip(world.local_pods()) {
            kernel.apply(&Op::Endpoint { slot, word: Tables::new_endpoint_word() }).unwrap();
            endpoints.push(Endpoint { slot, id: slot.into(), pod: pod.key.clone() });
        }
        Self { planner: Planner::new(limits, Tables::new(limits), RuleIds::default()), kernel, endpoints }
    }

    fn update(&mut self, world: &World) {
        let planned = self.planner.plan(world, &self.endpoints);
        assert!(planned.busy.is_none() && planned.refusals.is_empty(), "{:?}", planned.refusals);
        self.kernel.apply_all(&planned.plan.ops).unwrap();
    }

    /// How many of the samples pass.
    fn check(&self, world: &World, samples: &[Sample]) -> usize {
        let mut passed = 0;
        for s in samples {
            let Some(Expected::Tables(wanted)) = expected(world, &self.endpoints, &self.planner.rules, s)
            else {
                continue;
            };
            assert_eq!(
                self.kernel.verdict(s.slot, s.direction, s.remote, s.protocol, s.port),
                wanted,
                "{s:?}"
            );
            passed += usize::from(wanted.action() == action::ALLOW);
        }
        passed
    }
}

#[test]
fn thousands_of_policies_and_addresses_give_the_same_answers() {
    let mut world = World::new("n1");
    (0..LOCAL).for_each(|n| put(&mut world, &pod("x", n, "n1", "server")));
    (0..REMOTE).for_each(|n| put(&mut world, &pod("y", n, "n2", "many")));
    (0..POLICIES).for_each(|n| put(&mut world, &policy(n)));
    let mut node = Node::new(&world);
    node.update(&world);
    let mut rng = Rng::new(1);
    let mut asked = samples(&mut rng, &world, &node.endpoints, 300);
    for sample in &mut asked {
        sample.port = 1_000 + u16::try_from(rng.below(PORTS + 3)).unwrap();
        sample.protocol = 6;
    }
    let passed = node.check(&world, &asked);
    assert!(passed > 10 && passed < asked.len() - 10, "{passed} of {} pass", asked.len());
    // One policy less and one pod relabelled: a small change of a large world.
    world.apply(Delta::PolicyGone(ObjectKey::new("x", "p3")));
    put(&mut world, &pod("y", 7, "n2", "few"));
    node.update(&world);
    node.check(&world, &asked);
}
