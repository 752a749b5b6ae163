//! Prints how long compiling and planning take for a large cluster: `cargo run --release -p policy-engine --example
//! timings [pods] [policies]`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use policy_engine::desired::Endpoint;
use policy_engine::limits::Limits;
use policy_engine::model::{
    ContainerPort, Labels, NAMESPACE_NAME_LABEL, Namespace, NamespaceScope, ObjectKey, Peer, Peers, Phase,
    Pod, Policy, PortMatch, Ports, Protocol, Requirement, Rule, Selector,
};
use policy_engine::planner::Planner;
use policy_engine::rule_ids::RuleIds;
use policy_engine::tables::Tables;
use policy_engine::world::{Delta, World};

const NAMESPACES: usize = 100;
const APPS: usize = 5;
const LOCAL: usize = 110;

fn main() {
    let mut arguments = std::env::args().skip(1).filter_map(|a| a.parse::<usize>().ok());
    let (pods, policies) = (arguments.next().unwrap_or(10_000), arguments.next().unwrap_or(1_000));
    let mut world = World::new("n0");
    for i in 0..NAMESPACES {
        world.apply(Delta::Namespace(namespace(i)));
    }
    for i in 0..pods {
        world.apply(Delta::Pod(pod(i, i, pods / LOCAL)));
    }
    for i in 0..policies {
        world.apply(Delta::Policy(policy(i, 80)));
    }
    let endpoints: Vec<Endpoint> = (1..)
        .zip(world.local_pods().take(1000))
        .map(|(slot, pod)| Endpoint { slot, id: u32::from(slot), pod: pod.key.clone() })
        .collect();
    println!("{pods} pods, {policies} policies, {} endpoints", endpoints.len());
    let limits = Limits::default();
    let mut planner = Planner::new(limits, Tables::new(limits), RuleIds::default());
    step(&mut planner, &world, &endpoints, "from nothing");
    step(&mut planner, &world, &endpoints, "no change");
    for i in 0..3 {
        world.apply(Delta::Pod(pod(pods + i, pods + i, usize::MAX)));
        step(&mut planner, &world, &endpoints, "pod added");
    }
    for i in 0..3 {
        world.apply(Delta::Pod(pod(7 + i, 9 + i, pods / LOCAL)));
        step(&mut planner, &world, &endpoints, "pod relabelled");
    }
    let pod = endpoints.first().and_then(|e| world.pods.get(&e.pod)).cloned();
    let selects = |i: &usize| {
        pod.as_ref().is_some_and(|pod| {
            let policy = policy(*i, 80);
            policy.key.namespace == pod.key.namespace && policy.pod_selector.matches(&pod.labels)
        })
    };
    let (relevant, others): (Vec<usize>, Vec<usize>) = (0..policies).partition(selects);
    for (list, what) in [(&relevant, "policy of a local pod"), (&others, "policy of others")] {
        for i in list.iter().take(2) {
            world.apply(Delta::Policy(policy(*i, 443)));
            step(&mut planner, &world, &endpoints, what);
            world.apply(Delta::PolicyGone(policy(*i, 80).key));
            step(&mut planner, &world, &endpoints, what);
        }
    }
    let relabelled = Namespace { labels: labels(&[("team", "other")]), ..namespace(3) };
    world.apply(Delta::Namespace(relabelled));
    step(&mut planner, &world, &endpoints, "namespace relabelled");
}

fn step(planner: &mut Planner, world: &World, endpoints: &[Endpoint], what: &str) {
    let start = Instant::now();
    let planned = planner.plan(world, endpoints);
    let plan = start.elapsed();
    let start = Instant::now();
    let number = planner.tables.number();
    let collected = planner.collect(number);
    println!(
        "{what:24} plan {plan:10.2?} {:6} writes, collect {:10.2?} {:6} writes, refused {}, busy {:?}",
        planned.plan.ops.len(),
        start.elapsed(),
        collected.ops.len(),
        planned.refusals.len(),
        planned.busy,
    );
    if what == "from nothing" {
        for usage in planner.tables.usage() {
            println!("    {:12} {:6} of {}", usage.table.name(), usage.used, usage.limit);
        }
    }
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    let pairs = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    Arc::new(pairs.collect::<BTreeMap<_, _>>())
}

fn namespace(i: usize) -> Namespace {
    let name = format!("ns{i}");
    Namespace {
        labels: labels(&[(NAMESPACE_NAME_LABEL, &name), ("team", &format!("t{}", i % 10))]),
        name: name.as_str().into(),
    }
}

/// One pod in `every` is local.
fn pod(i: usize, app: usize, every: usize) -> Pod {
    let app = app / NAMESPACES % APPS;
    let number = u32::try_from(i).unwrap_or(0);
    // Pods of a deployment share it; every fifth pod is a job's or a stateful set's and has one of its own.
    let hash = if i.is_multiple_of(5) { format!("{i:x}") } else { format!("app{app}") };
    Pod {
        key: ObjectKey::new(&format!("ns{}", i % NAMESPACES), &format!("pod{i}")),
        uid: format!("uid{i}").into(),
        labels: labels(&[("app", &format!("app{app}")), ("pod-template-hash", &hash), ("tier", "back")]),
        node: Some(if every > 0 && i.is_multiple_of(every) { "n0" } else { "n1" }.into()),
        mirror_of: None,
        host_network: false,
        phase: Phase::Running,
        terminating: false,
        addresses: vec![IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + number))],
        ports: vec![ContainerPort {
            name: "http".into(),
            port: 8080 + u16::from(app == 0),
            protocol: Protocol::Tcp,
        }],
        created: "2024-01-01T00:00:00Z".into(),
        interface: None,
    }
}

fn policy(i: usize, port: u16) -> Policy {
    let is =
        |key: &str, value: String| Selector { requirements: vec![Requirement::In(key.into(), vec![value])] };
    let pods = |namespaces, pods| Peer::Pods { namespaces, pods };
    let own = pods(NamespaceScope::Own, is("app", format!("app{}", (i + 1) % APPS)));
    let team = NamespaceScope::Selector(is("team", format!("t{}", i % 10)));
    let block = Peer::Block {
        cidr: format!("10.{}.0.0/16", i % 200).parse().unwrap_or_default(),
        except: format!("10.{}.{}.0/24", i % 200, i % 100).parse().into_iter().collect(),
    };
    let tcp = PortMatch::Range(Protocol::Tcp, port, port);
    let ingress = vec![
        Rule { peers: Peers::Any(vec![own.clone()]), ports: Ports::Any(vec![tcp.clone()]) },
        Rule {
            peers: Peers::Any(vec![pods(team, is("app", format!("app{}", i % APPS))), block]),
            ports: Ports::Any(vec![tcp, PortMatch::Range(Protocol::Tcp, 9000, 9100)]),
        },
    ];
    let egress = vec![
        Rule {
            peers: Peers::Any(vec![own]),
            ports: Ports::Any(vec![PortMatch::Named(Protocol::Tcp, "http".into())]),
        },
        Rule { peers: Peers::All, ports: Ports::Any(vec![PortMatch::Range(Protocol::Udp, 53, 53)]) },
    ];
    Policy {
        key: ObjectKey::new(&format!("ns{}", i % NAMESPACES), &format!("policy{i}")),
        uid: format!("policy{i}").into(),
        pod_selector: is("app", format!("app{}", i / NAMESPACES % APPS)),
        ingress: Some(ingress),
        egress: i.is_multiple_of(2).then_some(egress),
    }
}
