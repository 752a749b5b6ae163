//! The agent on an API server that holds a large cluster: time to enforce, memory, processor, and the way from the
//! server's answer to the first packet that is judged anew.

mod delays;
mod machine;
mod objects;
mod pods;
mod stream;

use super::report::{Gate, judge, median, table};
use crate::{
    agent::Agent,
    cluster::{ApiServer, Client, Options},
    net::{Attach, Node, Topology},
};
use anyhow::{Context, Result, ensure};
use delays::Delays;
use machine::{Turns, load};
use objects::{LAB, Size, cluster, policy, remote};
use serde_json::{Value, json};
use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};
use stream::Stream;

const SIZE: Size = Size { namespaces: 100, nodes: 100, pods: 10_000, policies: 1_000 };
/// Pods of the node under test.
const LOCAL: u8 = 30;
/// Policies that are applied and deleted, one after the other; enough to see the tail.
const TURNS: usize = 200;
/// The same while pods change.
const TURNS_UNDER_LOAD: usize = 40;
/// Changes of pods a second meanwhile, and how many.
const LOAD: u32 = 100;
const LOADS: usize = 2_000;
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
    let mut agent =
        Agent::new(&node)?.kubeconfig(&api.kubeconfig).arguments(&["--metrics-address", delays::ADDRESS]);
    eprintln!("bench: the agent starts");
    let start = Instant::now();
    agent.start()?;
    agent.wait()?;
    let enforced = start.elapsed();
    let since_list = since_list(&agent);
    let mut loads = vec![load()];
    let pid = agent.pid().context("the agent does not run")?;
    let (resident, _) = memory(pid)?;
    let admin = api.admin();
    eprintln!("bench: policies come and go, {TURNS} times");
    let (before, turns_before) = (Delays::read(&node)?, Turns::of_writer(pid)?);
    let (cuts, returns) = turns(&node, &admin, TURNS)?;
    let quiet = Delays::read(&node)?.since(&before);
    let busy = Turns::of_writer(pid)?.per_change(turns_before, quiet.count());
    loads.push(load());
    eprintln!("bench: the same with {LOAD} changes of pods a second");
    let (loaded, loaded_cuts) = under_load(&node, &admin)?;
    loads.push(load());
    eprintln!("bench: {RATE} changes a second");
    let share = churn(&node, &admin, pid)?;
    let (resident_after, most) = memory(pid)?;
    eprintln!("bench: new pods");
    let new = pods::measure(&mut node, &api, &agent)?;
    loads.push(load());
    println!("\n{} pods, {} policies, {LOCAL} local pods:", SIZE.pods, SIZE.policies);
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    let inside = |delays: &Delays| {
        let [p50, p99] = [0.5, 0.99].map(|share| delays.quantile(share));
        format!("p50 {p50:.2} ms, p99 {p99:.2}, of {:.0}", delays.count())
    };
    let together = format!("{} pods at once until all are enforced", pods::together());
    let rows = [
        row("load of the machine at the end of each part", loads.join(", ")),
        row("agent start to all enforced", format!("{:.0} ms", enforced.as_secs_f64() * 1e3)),
        row("of that, since the lists were complete", format!("{since_list:.0} ms")),
        row("resident memory, then after the churn", format!("{resident:.0} MB, {resident_after:.0} MB")),
        row("most memory", format!("{most:.0} MB")),
        row("policy applied: answer to first dropped packet", spread(&cuts)),
        row("policy deleted: answer to first passed packet", spread(&returns)),
        row("change told to the agent until written", inside(&quiet)),
        row("processor of the writing thread per change", busy),
        row("policy applied, under load", spread(&loaded_cuts)),
        row("change told to the agent until written, under load", inside(&loaded)),
        row("processor at 20 changes a second", format!("{:.1} % of one", share * 100.0)),
        row("new pod: address in the API until enforced", spread(&new.single)),
        row(&together, format!("{:.0} ms", new.together)),
    ];
    table(&[String::new(), String::new()], &rows);
    let gate = |id, what: &str, value, limit| Gate { id, what: what.to_owned(), value, limit, exact: true };
    Ok(judge(&[
        gate("T12", "change told until written, p50, ms", quiet.quantile(0.5), 2.0),
        gate("T12", "change told until written, p99, ms", quiet.quantile(0.99), 10.0),
        gate("T13", "the same under 100 pod changes a second, p99, ms", loaded.quantile(0.99), 20.0),
        gate("T14", "new pod until enforced, p99, ms", quantile(&new.single, 0.99), 80.0),
        gate("T14", &together, new.together, 1000.0),
        gate("T15", "lists complete until all is enforced, ms", since_list, 1000.0),
        gate("T16", "resident memory, MB", resident.max(resident_after), 60.0),
        gate("T17", "processor at 20 changes a second, % of one", share * 100.0, 3.0),
        gate("", "answer to first dropped packet, median, ms", median(cuts), 10.0),
        gate("", "answer to first passed packet, median, ms", median(returns), 10.0),
    ]))
}

/// From the last complete list to the enforcement of all of it, in milliseconds, as the agent tells; no number if it does
/// not.
fn since_list(agent: &Agent) -> f64 {
    const TOLD: &str = "all that the sources hold is enforced milliseconds=";
    let log = agent.log();
    let told = log.lines().find_map(|line| line.split_once(TOLD)?.1.trim().parse().ok());
    told.unwrap_or(f64::NAN)
}

/// Median, 99th percentile and the range.
fn spread(ms: &[f64]) -> String {
    let [least, p50, p99, most] = [0.0, 0.5, 0.99, 1.0].map(|share| quantile(ms, share));
    format!("median {p50:.1} ms, p99 {p99:.1}, {least:.1} to {most:.1}, of {}", ms.len())
}

/// The value that this share of them does not exceed.
fn quantile(ms: &[f64], share: f64) -> f64 {
    let mut sorted = ms.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len() as f64 * share).ceil().max(1.0) as usize;
    sorted.get(at - 1).copied().unwrap_or(f64::NAN)
}

/// Policies come and go while pods elsewhere change labels by which local pods' policies know them.
fn under_load(node: &Node, admin: &Client) -> Result<(Delays, Vec<f64>)> {
    let patches: Vec<Value> = (0..LOADS).map(relabel).collect();
    let before = Delays::read(node)?;
    let start = Instant::now();
    let child = node.ns().run(|| admin.merge_paced(&patches, LOAD))?;
    let (cuts, _) = turns(node, admin, TURNS_UNDER_LOAD)?;
    let output = child.wait_with_output().context("read what curl says")?;
    let (text, elapsed) = (String::from_utf8_lossy(&output.stdout).into_owned(), start.elapsed());
    let fine = text.lines().filter(|line| *line == "200").count();
    ensure!(fine == LOADS, "{fine} of {LOADS} changes were made");
    let rate = LOADS as f64 / elapsed.as_secs_f64();
    ensure!(rate > f64::from(LOAD) * 0.8, "the API server took only {rate:.0} changes a second");
    Ok((Delays::read(node)?.since(&before), cuts))
}

/// A pod of a namespace with local pods that moves to other rules.
fn relabel(number: usize) -> Value {
    let namespace = 2 + number % 28;
    let pod = remote(SIZE, namespace + SIZE.namespaces * (number / 28 % (SIZE.pods / SIZE.namespaces)));
    let meta = &pod["metadata"];
    let labels = json!({"app": format!("app-{}", number * 7 % 20)});
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": meta["namespace"], "name": meta["name"], "labels": labels}})
}

/// {time from the answer to the cut, time from the answer to the return} in milliseconds. Less than nothing: the kernel
/// was faster than the answer.
fn turns(node: &Node, admin: &Client, turns: usize) -> Result<(Vec<f64>, Vec<f64>)> {
    let address = |host: u8| SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 244, 0, host)), 7000);
    let host = |name: &str| node.host(name).with_context(|| format!("no pod {name}"));
    let (a, b) = (host("local-0")?, host("local-1")?);
    let stream = Stream::start(&a.ns, address(10), &b.ns, address(11))?;
    stream.changes(0, true)?;
    let spec = json!({"podSelector": {"matchLabels": {"pod": "local-1"}}, "policyTypes": ["Ingress"]});
    let deny = policy(LAB, "turn", &spec);
    let (mut cuts, mut returns) = (Vec::new(), Vec::new());
    for turn in 0..turns {
        for (passes, times) in [(false, &mut cuts), (true, &mut returns)] {
            // At all moments of whatever may go round in the agent.
            std::thread::sleep(Duration::from_millis(60 + turn as u64 * 37 % 100));
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
