//! The agent on an API server that holds a large cluster: time to enforce, memory, processor, and the way from the
//! server's answer to the first packet that is judged anew.

mod objects;
mod stream;

use super::report::{Gate, judge, median, table};
use crate::{
    agent::Agent,
    cluster::{ApiServer, Client, Options},
    net::{Attach, Node, Topology},
};
use anyhow::{Context, Result, ensure};
use objects::{LAB, Size, cluster, policy, remote};
use serde_json::json;
use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};
use stream::Stream;

const SIZE: Size = Size { namespaces: 100, nodes: 100, pods: 10_000, policies: 1_000 };
/// Pods of the node under test.
const LOCAL: u8 = 30;
/// Policies that are applied and deleted, one after the other.
const TURNS: usize = 20;
/// Changes a second, and for how long.
const RATE: u32 = 20;
const LONG: Duration = Duration::from_secs(20);
/// Clock ticks of a second in `/proc`.
const TICKS: f64 = 100.0;

/// Measures and prints; false when a gate is broken.
///
/// # Errors
/// What keeps the stage from being built.
pub fn scale() -> Result<bool> {
    if cfg!(debug_assertions) {
        eprintln!(
            "bench: the programs are not optimised: figures of the agent say little (cargo xtask bench scale)"
        );
    }
    let mut node = Node::new(Topology::Ptp)?;
    let mut local = Vec::new();
    for number in 0..LOCAL {
        let (name, address) = (format!("local-{number}"), Ipv4Addr::new(10, 244, 0, 10 + number));
        node.add(&name, Attach::Pod, &[IpAddr::V4(address)])?;
        local.push((name, address));
    }
    eprintln!("bench: an API server with {} pods and {} policies", SIZE.pods, SIZE.policies);
    let flags = vec!["--storage-media-type=application/json".to_owned()];
    let api = node.ns().run(|| {
        let api = ApiServer::start_with(Options { flags, ..Options::default() })?;
        api.store(&cluster(SIZE, &local))?;
        anyhow::Ok(api)
    })?;
    let mut agent = Agent::new(&node)?.kubeconfig(&api.kubeconfig);
    eprintln!("bench: the agent starts");
    let start = Instant::now();
    agent.start()?;
    agent.wait()?;
    let enforced = start.elapsed();
    let pid = agent.pid().context("the agent does not run")?;
    let (resident, most) = memory(pid)?;
    let admin = api.admin();
    eprintln!("bench: policies come and go");
    let (cuts, returns) = turns(&node, &admin)?;
    eprintln!("bench: {RATE} changes a second");
    let share = churn(&node, &admin, pid)?;
    let (resident_after, _) = memory(pid)?;
    println!("\n{} pods, {} policies, {LOCAL} local pods:", SIZE.pods, SIZE.policies);
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    let spread = |mut ms: Vec<f64>| {
        ms.sort_by(f64::total_cmp);
        let (least, most) = (ms.first().copied(), ms.last().copied());
        let number = |n: Option<f64>| n.unwrap_or(f64::NAN);
        format!("median {:.1} ms, {:.1} to {:.1}", median(ms.clone()), number(least), number(most))
    };
    let rows = [
        row("agent start to all enforced", format!("{:.0} ms", enforced.as_secs_f64() * 1e3)),
        row("resident memory, then after the churn", format!("{resident:.0} MB, {resident_after:.0} MB")),
        row("most memory", format!("{most:.0} MB")),
        row("policy applied: answer to first dropped packet", spread(cuts.clone())),
        row("policy deleted: answer to first passed packet", spread(returns.clone())),
        row("processor at 20 changes a second", format!("{:.1} % of one", share * 100.0)),
    ];
    table(&[String::new(), String::new()], &rows);
    let gate = |id, what: &str, value, limit| Gate { id, what: what.to_owned(), value, limit, exact: true };
    Ok(judge(&[
        gate("T15", "agent start to all enforced, s", enforced.as_secs_f64(), 3.0),
        gate("T16", "resident memory, MB", resident.max(resident_after), 60.0),
        gate("T17", "processor at 20 changes a second, % of one", share * 100.0, 3.0),
        gate("", "answer to first dropped packet, median, ms", median(cuts), 10.0),
        gate("", "answer to first passed packet, median, ms", median(returns), 10.0),
    ]))
}

/// {time from the answer to the cut, time from the answer to the return} in milliseconds. Less than nothing: the kernel
/// was faster than the answer.
fn turns(node: &Node, admin: &Client) -> Result<(Vec<f64>, Vec<f64>)> {
    let address = |host: u8| SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 244, 0, host)), 7000);
    let host = |name: &str| node.host(name).with_context(|| format!("no pod {name}"));
    let (a, b) = (host("local-0")?, host("local-1")?);
    let stream = Stream::start(&a.ns, address(10), &b.ns, address(11))?;
    stream.changes(0, true)?;
    let spec = json!({"podSelector": {"matchLabels": {"pod": "local-1"}}, "policyTypes": ["Ingress"]});
    let deny = policy(LAB, "turn", &spec);
    let (mut cuts, mut returns) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        for (passes, times) in [(false, &mut cuts), (true, &mut returns)] {
            std::thread::sleep(Duration::from_millis(200));
            let from = stream.count();
            let answered = node.ns().run(|| {
                if passes {
                    admin.delete(&deny)?;
                } else {
                    drop(admin.create(&deny)?);
                }
                anyhow::Ok(Instant::now())
            })?;
            let at = stream.changes(from, passes)?;
            let late = at.saturating_duration_since(answered).as_secs_f64();
            let early = answered.saturating_duration_since(at).as_secs_f64();
            times.push((late - early) * 1e3);
        }
    }
    Ok((cuts, returns))
}

/// The agent's share of one processor while pods elsewhere change their labels and policies come and go.
fn churn(node: &Node, admin: &Client, pid: u32) -> Result<f64> {
    let (before, start) = (ticks(pid)?, Instant::now());
    let mut number = 0_usize;
    while start.elapsed() < LONG {
        let due = start + Duration::from_secs(1) / RATE * u32::try_from(number).unwrap_or(u32::MAX);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let mut pod = remote(SIZE, number * 97 % SIZE.pods);
        let name = pod["metadata"]["name"].clone();
        let labels = json!({"release": if number.is_multiple_of(2) { "canary" } else { "stable" }});
        pod["metadata"] = json!({"namespace": pod["metadata"]["namespace"], "name": name, "labels": labels});
        let patch = json!({"apiVersion": "v1", "kind": "Pod", "metadata": pod["metadata"]});
        node.ns().run(|| admin.merge(&patch)).with_context(|| format!("change pod {name}"))?;
        number += 1;
    }
    let elapsed = start.elapsed().as_secs_f64();
    let made = f64::from(u32::try_from(number)?);
    ensure!(
        made / elapsed > f64::from(RATE) * 0.8,
        "the API server took only {:.1} a second",
        made / elapsed
    );
    Ok((ticks(pid)? - before) / TICKS / elapsed)
}

/// Processor time of a process in ticks.
fn ticks(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("read the agent's times")?;
    // The name may hold spaces: fields are counted behind it; user and system time are the 14th and 15th of all.
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let field =
        |n: usize| fields.get(n).and_then(|text| text.parse::<f64>().ok()).context("times of a process");
    Ok(field(11)? + field(12)?)
}

/// {resident now, most ever} in MB.
fn memory(pid: u32) -> Result<(f64, f64)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("read the agent's memory")?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kilobytes = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<f64>().ok());
        kilobytes.map(|kilobytes| kilobytes / 1024.0).with_context(|| format!("no {name}"))
    };
    Ok((field("VmRSS:")?, field("VmHWM:")?))
}
