//! Ten thousand changes leave nothing behind, and what a pod, a rule and an endpoint cost is what docs/limits.md says.

#![expect(clippy::unwrap_used, reason = "a step that fails fails the test")]

use policy_agent::datapath::{Map, bpf, spec::MapId};
use policy_tests::{lab::Lab, net::Topology, scenario, tamper::Tamper};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    os::fd::{AsFd, AsRawFd},
    time::{Duration, Instant},
};

const CLUSTER: &str = "{pods: {x/a: {labels: {app: a}}, x/b: {labels: {app: b}}}}";
const FROM_B: &str = "{podSelector: {matchLabels: {app: a}}, policyTypes: [Ingress], \
                      ingress: [{from: [{podSelector: {matchLabels: {app: b}}}]}]}";
/// Policies, and pods of other nodes, in one change of the manifests.
const BATCH: usize = 100;
/// Longest wait for something that must come.
const PATIENCE: Duration = Duration::from_secs(60);
/// Memory that the allocator may keep without a leak.
const SLACK: u64 = 3 << 20;

/// What the agent holds.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Held {
    descriptors: usize,
    pins: usize,
    elements: BTreeMap<&'static str, usize>,
    tables: Vec<(String, u64)>,
}

impl Held {
    /// Whether nothing was added. What had not come to rest before may have gone since; a descriptor more or less is a
    /// client that is just answered.
    fn is_no_more_than(&self, before: &Self) -> bool {
        self.descriptors <= before.descriptors + 2
            && self.pins <= before.pins
            && self.elements.iter().all(|(name, count)| *count <= before.elements[name])
            && self.tables.iter().zip(&before.tables).all(|(now, then)| now.0 == then.0 && now.1 <= then.1)
    }
}

fn status(lab: &mut Lab) -> Value {
    serde_json::from_slice(&lab.agent().ctl(["status", "--output", "json"]).unwrap().stdout).unwrap()
}

fn held(lab: &mut Lab) -> Held {
    let tamper = Tamper::new(lab.agent().bpffs());
    let maps = [MapId::Hosts4, MapId::Hosts6, MapId::Prefix4, MapId::Prefix6, MapId::Locals, MapId::IfaceX];
    let elements = |map: MapId| (map.spec().name, tamper.map(map).unwrap().elements().unwrap().len());
    let status = status(lab);
    let usage = |table: &Value| (table["name"].as_str().unwrap().to_owned(), table["used"].as_u64().unwrap());
    let count = |path: std::path::PathBuf| fs::read_dir(path).unwrap().count();
    Held {
        descriptors: count(format!("/proc/{}/fd", lab.agent().pid().unwrap()).into()),
        pins: ["maps", "links", "qdiscs"].map(|part| count(lab.agent().bpffs().join(part))).iter().sum(),
        elements: maps.into_iter().chain([MapId::Flows4, MapId::Flows6]).map(elements).collect(),
        tables: status["tables"].as_array().unwrap().iter().map(usage).collect(),
    }
}

/// Memory of the process in bytes that no file backs.
fn memory(lab: &mut Lab) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/status", lab.agent().pid().unwrap())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// Policies that select `x/a` and pods of another node; another `version` is another content of all of them.
fn objects(policies: usize, pods: usize, version: usize) -> String {
    let mut text = String::new();
    for n in 0..policies {
        let (port, net) = (1000 + (n * 7 + version * 131) % 40_000, (n * 3 + version * 17) % 250);
        writeln!(
            text,
            "---\n{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{namespace: x, name: churn-{n}}}, \
             spec: {{podSelector: {{matchLabels: {{app: a}}}}, policyTypes: [Ingress], ingress: [{{from: [\
             {{podSelector: {{matchLabels: {{churn: 'n{}'}}}}}}, {{ipBlock: {{cidr: 100.64.{net}.0/24}}}}], \
             ports: [{{port: {port}}}]}}]}}}}",
            (n + version) % 10
        )
        .unwrap();
    }
    for n in 0..pods {
        writeln!(
            text,
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{namespace: x, name: churn-{n}, labels: {{churn: 'n{}'}}}}, \
             spec: {{nodeName: another}}, status: {{podIP: 10.{}.{}.{}, phase: Running}}}}",
            (n + version) % 10,
            100 + n / 60_000,
            n / 250 % 240,
            1 + (n + version) % 250
        )
        .unwrap();
    }
    text
}

fn change(lab: &mut Lab, text: Option<&str>) {
    match text {
        Some(text) => lab.agent().write_manifest("churn.yaml", text).unwrap(),
        None => lab.agent().remove_manifest("churn.yaml").unwrap(),
    }
    lab.agent().wait().unwrap();
}

/// So many changes of policies and pods, all taken back in the end.
fn churn(lab: &mut Lab, changes: usize) {
    let mut done = 0;
    let mut version = 0;
    while done < changes {
        change(lab, Some(&objects(BATCH, BATCH, version)));
        done += 2 * BATCH;
        version += 1;
    }
    change(lab, None);
    for n in 0..(changes / 500).max(1) {
        lab.act(&format!("[{{pod: {{add: {{x/local-{n}: {{labels: {{app: a}}}}}}}}}}]")).unwrap();
        lab.act(&format!("[{{pod: {{remove: x/local-{n}}}}}]")).unwrap();
    }
}

/// What is held once nothing waits for a grace period any more: what stays the same for a while.
fn settled(lab: &mut Lab) -> Held {
    let end = Instant::now() + PATIENCE;
    let mut before = held(lab);
    loop {
        std::thread::sleep(Duration::from_secs(2));
        let now = held(lab);
        if now.elements == before.elements && now.tables == before.tables && now.pins == before.pins {
            return now;
        }
        assert!(Instant::now() < end, "it never comes to rest: {now:#?}");
        before = now;
    }
}

/// Once packets are tried, all programs are loaded: behind that the agent gives memory back that it does not again.
fn tried(lab: &mut Lab) {
    let end = Instant::now() + PATIENCE;
    while status(lab)["self_check"]["trials"].as_u64() == Some(0) {
        assert!(Instant::now() < end, "no packets are tried: {:#}", status(lab));
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// No more than before, after whatever waits for a grace period; else what differs.
fn comes_back(lab: &mut Lab, before: &Held) {
    let end = Instant::now() + PATIENCE;
    loop {
        let now = held(lab);
        if now.is_no_more_than(before) {
            return;
        }
        assert!(Instant::now() < end, "before {before:#?}\nnow {now:#?}\n{}", lab.agent().log());
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn ten_thousand_changes_leave_nothing_behind() {
    let changes = std::env::var("POLICY_LEAK_CHANGES").ok().and_then(|n| n.parse().ok()).unwrap_or(10_000);
    let mut lab = Lab::with_arguments(Topology::Ptp, CLUSTER, &["--self-check", "1s"]).unwrap();
    lab.policy(FROM_B).unwrap();
    tried(&mut lab);
    // The first changes fill what is kept for good: the history of plans, the allocator's own lists.
    churn(&mut lab, changes);
    let (before, started) = (settled(&mut lab), memory(&mut lab));
    churn(&mut lab, changes);
    comes_back(&mut lab, &before);
    let ended = memory(&mut lab);
    assert!(ended < started + SLACK, "memory grew from {started} to {ended} bytes in {changes} changes");
    lab.expect("x/b", "x/a", "TCP/80", true);
    let verify = lab.agent().ctl(["verify"]).unwrap();
    assert!(verify.status.success(), "{}", String::from_utf8_lossy(&verify.stdout));
    eprintln!("{changes} changes: memory {started} -> {ended} bytes, {before:?}");
}

/// Numbers of the table in docs/limits.md, by the words of its first column.
fn published() -> BTreeMap<String, u64> {
    let page = fs::read_to_string(scenario::root().join("docs/limits.md")).unwrap();
    let row = |line: &str| {
        let mut cells = line.strip_prefix("| ")?.split(" | ");
        let (name, bytes) = (cells.next()?, cells.next()?);
        Some((name.to_owned(), bytes.trim_end_matches(" |").replace(',', "").parse().ok()?))
    };
    page.lines().filter_map(row).collect()
}

/// Bytes that the kernel charges for a map.
fn charged(map: &impl AsFd) -> u64 {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_fd().as_raw_fd())).unwrap();
    info.lines().find_map(|line| line.strip_prefix("memlock:")).unwrap().trim().parse().unwrap()
}

#[test]
fn what_pods_rules_and_endpoints_cost_is_what_the_page_says() {
    let published = published();
    let told =
        |name: &str| *published.get(name).unwrap_or_else(|| panic!("no row {name:?} in {published:?}"));
    let mut lab = Lab::with_arguments(Topology::Ptp, CLUSTER, &["--self-check", "off"]).unwrap();
    lab.policy(FROM_B).unwrap();
    let tamper = Tamper::new(lab.agent().bpffs());
    let per_cpu = bpf::possible_cpus().unwrap() as u64;
    let mut measured: Vec<(&str, u64)> = Vec::new();
    let is_per_cpu = |map: &MapId| matches!(map, MapId::EpStat | MapId::Counters | MapId::RuleHits);
    let maps = |wanted: &dyn Fn(&MapId) -> bool| {
        MapId::ALL.into_iter().filter(wanted).map(|map| charged(&tamper.map(map).unwrap())).sum::<u64>()
    };
    measured.push(("all maps of the node", maps(&|map| !is_per_cpu(map))));
    measured.push(("all maps of the node, for each processor", maps(&is_per_cpu) / per_cpu));
    let flows = |map: MapId| {
        let outer: Map = tamper.map(map).unwrap();
        let id = outer.elements().unwrap().into_values().next().unwrap();
        charged(&bpf::map_by_id(u32::from_ne_bytes(id.try_into().unwrap())).unwrap())
    };
    measured.push(("an endpoint: its flows, IPv4", flows(MapId::Flows4)));
    measured.push(("an endpoint: its flows, IPv6", flows(MapId::Flows6)));
    const PODS: usize = 5_000;
    const RULES: usize = 1_000;
    let grows = |lab: &mut Lab, policies: usize, pods: usize| {
        // A new process: what the allocator has kept from earlier would hide the growth.
        lab.agent().kill().unwrap();
        lab.agent().start().unwrap();
        lab.agent().wait().unwrap();
        let before = memory(lab);
        change(lab, Some(&objects(policies, pods, 0)));
        let after = memory(lab);
        change(lab, None);
        after.saturating_sub(before)
    };
    measured.push(("the agent: a pod of another node", grows(&mut lab, 0, PODS) / PODS as u64));
    measured.push(("the agent: a rule", grows(&mut lab, RULES, 0) / RULES as u64));
    for (name, bytes) in &measured {
        eprintln!("| {name} | {bytes} |");
    }
    for (name, bytes) in measured {
        let limit = told(name);
        assert!(bytes <= limit, "{name}: {bytes} bytes, the page says {limit}");
        // A page that says far more than is true helps nobody; what a test can't see from outside is left out.
        let is_agent = name.starts_with("the agent");
        assert!(is_agent || bytes * 2 > limit, "{name}: {bytes} bytes, the page says {limit}");
    }
}
