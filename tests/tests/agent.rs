//! The agent as a process: what it makes of files, of bad input and of a bad environment.
#![expect(clippy::unwrap_used, reason = "a helper of a test that fails is a failed test")]

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use policy_agent::datapath::bpf;
use policy_tests::agent::{Agent, program_path};
use policy_tests::net::{Attach, Echo, Host, Node, Topology, answers, is_answered};
use serde_json::Value;

/// Longest time that anything may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Where `b` answers.
const B: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 244, 0, 11)), 7000);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Two pods on a node, `a` and `b`; `b` answers.
struct Setup {
    // The agent goes first on drop: it must not see its node fall apart.
    agent: Agent,
    a: Arc<Host>,
    b: Arc<Host>,
    node: Node,
    _echo: Echo,
}

impl Setup {
    fn new() -> Self {
        let mut node = Node::new(Topology::Ptp).unwrap();
        let a = node.add("a", Attach::Pod, &[ip("10.244.0.10")]).unwrap();
        let b = node.add("b", Attach::Pod, &[ip("10.244.0.11")]).unwrap();
        let agent = Agent::new(&node).unwrap();
        let echo = Echo::new(&b.ns, B).unwrap();
        Self { agent, a, b, node, _echo: echo }
    }

    /// With the pods' objects in place and the agent running.
    fn started() -> Self {
        let mut setup = Self::new();
        setup.agent.write_manifest("pods.yaml", PODS).unwrap();
        setup.agent.start().unwrap();
        setup.agent.wait().unwrap();
        setup
    }

    /// Whether one of three datagrams from `a` to `b` is answered.
    fn reaches(&self) -> bool {
        answers(&self.a.ns, ip("10.244.0.10"), B).unwrap()
    }

    /// The same where it must be, however long it takes.
    fn must_reach(&self, why: &str) {
        let answered = is_answered(&self.a.ns, ip("10.244.0.10"), B).unwrap();
        assert!(answered, "{why}; log:\n{}", self.agent.log());
    }

    /// Waits until traffic flows, or does not.
    fn until_reaches(&self, wanted: bool) {
        let end = Instant::now() + PATIENCE;
        while self.reaches() != wanted {
            assert!(Instant::now() < end, "a -> b never became {wanted}; log:\n{}", self.agent.log());
        }
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.agent.ctl(arguments.iter().copied().chain(["--output", "json"])).unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn problems(&self) -> String {
        self.json(&["status"])["problems"].to_string()
    }

    fn until_problem(&self, wanted: &str) {
        let end = Instant::now() + PATIENCE;
        while !self.problems().contains(wanted) {
            assert!(Instant::now() < end, "no problem {wanted:?} in {}", self.problems());
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.agent.manifests().join(name)
    }
}

const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: shop, labels: {app: a}}
spec: {nodeName: node-1}
status: {phase: Running, podIPs: [{ip: 10.244.0.10}]}
---
apiVersion: v1
kind: Pod
metadata: {name: b, namespace: shop, labels: {app: b}}
spec: {nodeName: node-1}
status: {phase: Running, podIPs: [{ip: 10.244.0.11}]}
";

/// A policy for pod b.
fn policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec:\n  podSelector: {{matchLabels: {{app: b}}}}\n  policyTypes: [Ingress]\n{spec}"
    )
}

fn deny() -> String {
    policy("guard", "")
}

fn allow() -> String {
    policy("guard", "  ingress: [{from: [{podSelector: {matchLabels: {app: a}}}]}]\n")
}

#[test]
fn files_are_followed_however_they_are_written() {
    let setup = Setup::started();
    setup.must_reach("no policy");
    // In place, in two writes with the file open between them.
    let path = setup.file("policy.yaml");
    let text = deny();
    {
        use std::io::Write;
        let (first, second) = text.split_at(text.len() / 2);
        let mut file = fs::File::create(&path).unwrap();
        file.write_all(first.as_bytes()).unwrap();
        file.flush().unwrap();
        file.write_all(second.as_bytes()).unwrap();
    }
    setup.until_reaches(false);
    // By rename over it.
    setup.agent.write_manifest("policy.yaml", &allow()).unwrap();
    setup.until_reaches(true);
    // In a folder that is new.
    setup.agent.remove_manifest("policy.yaml").unwrap();
    fs::create_dir(setup.file("sub")).unwrap();
    fs::write(setup.file("sub/deny.json"), serde_json::to_string(&yaml(&deny())).unwrap()).unwrap();
    setup.until_reaches(false);
    fs::remove_dir_all(setup.file("sub")).unwrap();
    setup.until_reaches(true);
    // Through links, as a mounted ConfigMap changes.
    fs::create_dir(setup.file("..1")).unwrap();
    fs::write(setup.file("..1/p.yaml"), deny()).unwrap();
    std::os::unix::fs::symlink("..1", setup.file("..data")).unwrap();
    std::os::unix::fs::symlink("..data/p.yaml", setup.file("p.yaml")).unwrap();
    setup.until_reaches(false);
    fs::create_dir(setup.file("..2")).unwrap();
    fs::write(setup.file("..2/p.yaml"), allow()).unwrap();
    std::os::unix::fs::symlink("..2", setup.file("..data_tmp")).unwrap();
    fs::rename(setup.file("..data_tmp"), setup.file("..data")).unwrap();
    setup.until_reaches(true);
}

fn yaml(text: &str) -> Value {
    serde_norway::from_str(text).unwrap()
}

#[test]
fn the_last_good_version_stays_when_files_break_or_vanish_as_a_whole() {
    let setup = Setup::started();
    fs::write(setup.file("policy.yaml"), deny()).unwrap();
    setup.until_reaches(false);
    fs::write(setup.file("policy.yaml"), "apiVersion: [\n").unwrap();
    setup.until_problem("policy.yaml:");
    assert!(!setup.reaches(), "an unreadable file opens nothing");
    fs::write(setup.file("policy.yaml"), "").unwrap();
    setup.until_problem("holds no object");
    assert!(!setup.reaches(), "an emptied file opens nothing");
    fs::rename(setup.agent.manifests(), setup.agent.manifests().with_file_name("gone")).unwrap();
    setup.until_problem("cannot be read");
    assert!(!setup.reaches(), "a directory that is gone opens nothing");
    // Another directory comes in its place: what it does not hold is gone.
    fs::create_dir(setup.agent.manifests()).unwrap();
    fs::write(setup.file("pods.yaml"), PODS).unwrap();
    setup.until_reaches(true);
    fs::write(setup.file("policy.yaml"), deny()).unwrap();
    setup.until_reaches(false);
    fs::remove_file(setup.file("policy.yaml")).unwrap();
    setup.until_reaches(true);
}

#[test]
fn a_wrong_field_is_told_and_the_policy_isolates_or_its_last_version_stays() {
    let mut setup = Setup::started();
    let cases = [
        ("endPort", "  ingress: [{ports: [{port: 7000, endPort: 6000}]}]\n", "endPort"),
        (
            "operator",
            "  ingress: [{from: [{podSelector: {matchExpressions: [{key: app, operator: Like, values: [a]}]}}]}]\n",
            "operator",
        ),
        (
            "except",
            "  ingress: [{from: [{ipBlock: {cidr: 10.244.0.0/24, except: [10.9.0.0/16]}}]}]\n",
            "except",
        ),
        ("named", "  ingress: [{ports: [{port: http, endPort: 7000}]}]\n", "endPort"),
        ("selector", "  ingress: [{from: [{podSelector: {matchLabels: 5}}]}]\n", "matchLabels"),
    ];
    for (name, spec, field) in cases {
        fs::write(setup.file("policy.yaml"), policy("guard", spec)).unwrap();
        setup.until_problem(field);
        setup.until_reaches(false);
        assert!(setup.problems().contains("policy.yaml:1"), "{name}: {}", setup.problems());
        assert!(setup.problems().contains("NetworkPolicy shop/guard"), "{name}: {}", setup.problems());
        assert!(setup.agent.log().contains(field), "{name}: {}", setup.agent.log());
        let list = setup.json(&["get", "policies"]);
        assert_eq!(list["policies"][0]["problems"].as_u64(), Some(1), "{name}: {list}");
        // With a good version before it, that one stays; other objects go on.
        fs::write(setup.file("policy.yaml"), allow()).unwrap();
        // Told once it is in force, and not before.
        setup.agent.wait().unwrap();
        setup.must_reach(name);
        assert_eq!(setup.problems(), "[]", "{name}");
        fs::write(setup.file("policy.yaml"), policy("guard", spec)).unwrap();
        setup.until_problem("last good version stays");
        setup.must_reach(&format!("{name}: the last good version allows"));
        setup.agent.write_manifest("other.yaml", &policy("other", "").replace("app: b", "app: a")).unwrap();
        setup.agent.wait().unwrap();
        assert_eq!(setup.json(&["get", "policies"])["policies"].as_array().unwrap().len(), 2, "{name}");
        setup.agent.remove_manifest("other.yaml").unwrap();
        setup.agent.remove_manifest("policy.yaml").unwrap();
        // The policy allows as well: only the agent can tell that it is gone.
        setup.agent.wait().unwrap();
    }
}

#[test]
fn what_was_waited_for_is_told_at_once() {
    let mut setup = Setup::started();
    for round in 0..40 {
        let name = format!("p{round}");
        setup.agent.write_manifest("policy.yaml", &policy(&name, "")).unwrap();
        setup.agent.wait().unwrap();
        let told = setup.json(&["get", "policies"]);
        assert_eq!(told["policies"][0]["name"], name.as_str(), "round {round}: {told}");
    }
}

#[test]
fn pods_and_interfaces_come_and_go() {
    let mut setup = Setup::started();
    setup.agent.write_manifest("policy.yaml", &deny()).unwrap();
    setup.until_reaches(false);
    // A pod without an interface is told, with the reason, and waited for.
    let third = PODS.replace("name: a,", "name: c,").replace("10.244.0.10", "10.244.0.12");
    setup.agent.write_manifest("third.yaml", third.split("---").next().unwrap()).unwrap();
    setup.agent.wait_for_detail("c", "no interface").unwrap();
    let output = setup.agent.ctl(["wait", "--timeout", "300ms"]).unwrap();
    assert_eq!(output.status.code(), Some(2));
    let told =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("shop/c") && told.contains("no interface"), "{told}");
    // Its interface appears: found without any further file.
    setup.node.add("c", Attach::Pod, &[ip("10.244.0.12")]).unwrap();
    setup.agent.wait().unwrap();
    let count = |setup: &Setup| setup.json(&["get", "endpoints"])["endpoints"].as_array().unwrap().len();
    assert_eq!(count(&setup), 3);
    // The interface goes: told again; then the pod goes too.
    setup.node.remove("c").unwrap();
    let output = setup.agent.ctl(["wait", "--timeout", "300ms"]).unwrap();
    assert_eq!(output.status.code(), Some(2));
    setup.agent.remove_manifest("third.yaml").unwrap();
    setup.agent.wait().unwrap();
    assert_eq!(count(&setup), 2);
    // A finished pod is no subject of policy any more.
    setup.agent.write_manifest("pods.yaml", &PODS.replace("Running", "Succeeded")).unwrap();
    setup.agent.wait().unwrap();
    // Nothing is judged there from here on; the programs themselves go beside the writer.
    let end = Instant::now() + PATIENCE;
    while hooked(&setup.b, &setup.node) > 0 {
        assert!(Instant::now() < end, "hooks stay; log:\n{}", setup.agent.log());
        thread::sleep(Duration::from_millis(10));
    }
}

/// Programs at both hooks of the pod's interface on the node.
fn hooked(host: &Host, node: &Node) -> usize {
    use aya_obj::generated::bpf_attach_type::{BPF_TCX_EGRESS, BPF_TCX_INGRESS};
    let index = node.rtnl().link(&host.host_link).unwrap().index;
    node.ns().run(|| {
        [BPF_TCX_INGRESS, BPF_TCX_EGRESS]
            .into_iter()
            .map(|hook| bpf::query_tcx(index, hook).unwrap().len())
            .sum()
    })
}

#[test]
fn a_killed_agent_leaves_its_policy_in_force_and_a_new_one_takes_over() {
    let mut setup = Setup::started();
    setup.agent.write_manifest("policy.yaml", &deny()).unwrap();
    setup.until_reaches(false);
    let before = setup.json(&["get", "endpoints"]);
    setup.agent.kill().unwrap();
    assert!(!setup.reaches(), "nobody is there and the policy holds");
    setup.agent.start().unwrap();
    assert!(!setup.reaches());
    setup.agent.wait().unwrap();
    assert!(!setup.reaches());
    let after = setup.json(&["get", "endpoints"]);
    for field in ["id", "slot", "ifindex"] {
        let of = |list: &Value| -> Vec<Value> {
            list["endpoints"].as_array().unwrap().iter().map(|e| e[field].clone()).collect()
        };
        assert_eq!(of(&before), of(&after), "{field} stays");
    }
    assert_eq!(
        (hooked(&setup.a, &setup.node), hooked(&setup.b, &setup.node)),
        (2, 2),
        "taken over, not added"
    );
    // What went while nobody looked goes now.
    setup.agent.kill().unwrap();
    setup.agent.remove_manifest("policy.yaml").unwrap();
    setup.agent.start().unwrap();
    setup.until_reaches(true);
}

/// Runs `policy-agent` on the node with these arguments.
fn run(setup: &Setup, arguments: &[&str], change: impl FnOnce(&mut Command)) -> Output {
    let mut command = Command::new(program_path("policy-agent").unwrap());
    setup.node.ns().enter_command(&mut command).unwrap();
    command.args(arguments).stdin(Stdio::null()).env("NO_COLOR", "1");
    change(&mut command);
    command.output().unwrap()
}

fn arguments<'a>(setup: &'a Setup, dir: &'a Path, other: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec!["run", "--node-name", "node-1", "--once"];
    let text = |path: &'a Path| path.to_str().unwrap();
    if !other.contains(&"--manifests") {
        all.extend(["--manifests", dir.to_str().unwrap()]);
    }
    if !other.contains(&"--bpffs") {
        all.extend(["--bpffs", text(setup.agent.bpffs())]);
    }
    all.extend(other);
    all
}

#[test]
fn a_bad_environment_is_named_before_anything_is_changed() {
    let setup = Setup::new();
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let socket = dir.path().join("s.sock");
    let own = ["--state-dir", state.to_str().unwrap(), "--socket", socket.to_str().unwrap()];
    let elsewhere = dir.path().join("pins");
    let cases: [(&[&str], i32, &str); 4] = [
        (&["--bpffs", elsewhere.to_str().unwrap()], 5, "not on a BPF file system"),
        (&["--manifests", "/nonexistent/dir"], 7, "/nonexistent/dir"),
        (&["--log", "=nonsense=,"], 2, "hint:"),
        (&["--attach", "glue"], 2, "--attach"),
    ];
    for (other, code, wanted) in cases {
        let all: Vec<&str> = own.iter().chain(other).copied().collect();
        let output = run(&setup, &arguments(&setup, dir.path(), &all), |_| {});
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{other:?}: {told}");
        assert!(told.contains(wanted), "{other:?}: {told}");
    }
    // Without rights.
    let all: Vec<&str> = own.to_vec();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(dir.path(), open).unwrap();
    let public = dir.path().join("policy-agent");
    fs::copy(program_path("policy-agent").unwrap(), &public).unwrap();
    let mut command = Command::new(&public);
    command.args(arguments(&setup, dir.path(), &all)).uid(65534).gid(65534);
    let output = command.output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{told}");
    assert!(told.contains("CAP_NET_ADMIN") && told.contains("hint: run as root"), "{told}");
    assert!(!state.exists() && !socket.exists() && !elsewhere.exists() && !setup.agent.bpffs().exists());
    assert_eq!(hooked(&setup.a, &setup.node), 0);
}

#[test]
fn a_second_agent_is_refused_and_the_first_goes_on() {
    let mut setup = Setup::started();
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let pid = setup.agent.pid().unwrap().to_string();
    let own = ["--state-dir", state.to_str().unwrap(), "--socket", "/nonexistent/s.sock"];
    let output = run(&setup, &arguments(&setup, dir.path(), &own), |_| {});
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(6), "{told}");
    assert!(told.contains(&pid) && told.contains("hint: stop it"), "{told}");
    let output = run(&setup, &["cleanup", "--state-dir", state.to_str().unwrap()], |_| {});
    assert_eq!(output.status.code(), Some(6), "cleanup under a running agent");
    assert!(setup.agent.is_running().unwrap());
    setup.agent.write_manifest("policy.yaml", &deny()).unwrap();
    setup.until_reaches(false);
}

#[test]
fn once_leaves_the_policy_in_force_and_cleanup_leaves_nothing() {
    let setup = Setup::new();
    setup.agent.write_manifest("pods.yaml", PODS).unwrap();
    setup.agent.write_manifest("policy.yaml", &deny()).unwrap();
    for attach in ["clsact", "tcx"] {
        let manifests = setup.agent.manifests();
        let dir = tempfile::tempdir().unwrap();
        let (state, socket) = (dir.path().join("state"), dir.path().join("s.sock"));
        let own = [
            "--attach",
            attach,
            "--state-dir",
            state.to_str().unwrap(),
            "--socket",
            socket.to_str().unwrap(),
        ];
        let output = run(&setup, &arguments(&setup, &manifests, &own), |_| {});
        assert!(output.status.success(), "{attach}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(!setup.reaches(), "{attach}: the policy holds without an agent");
        assert!(!socket.exists());
        let bpffs = setup.agent.bpffs().to_str().unwrap().to_owned();
        let output =
            run(&setup, &["cleanup", "--bpffs", &bpffs, "--state-dir", state.to_str().unwrap()], |_| {});
        assert!(output.status.success(), "{attach}: {}", String::from_utf8_lossy(&output.stderr));
        setup.must_reach(attach);
        assert!(!state.exists() && !setup.agent.bpffs().exists(), "{attach}");
        assert_eq!(hooked(&setup.a, &setup.node) + hooked(&setup.b, &setup.node), 0, "{attach}");
        let qdiscs = run_tc(&setup, &setup.b.host_link);
        assert!(!qdiscs.contains("clsact"), "{attach}: {qdiscs}");
        // A second time there is nothing to do.
        let output =
            run(&setup, &["cleanup", "--bpffs", &bpffs, "--state-dir", state.to_str().unwrap()], |_| {});
        assert!(output.status.success(), "{attach}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Queueing disciplines of a link; empty where there is no `tc` to ask.
fn run_tc(setup: &Setup, link: &str) -> String {
    let mut command = Command::new("tc");
    setup.node.ns().enter_command(&mut command).unwrap();
    let output = command.args(["qdisc", "show", "dev", link]).output();
    output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default()
}

#[test]
fn metrics_count_drops_problems_and_endpoints() {
    let mut setup = Setup::new();
    let address = "127.0.0.1:9479";
    setup.agent = Agent::new(&setup.node).unwrap().arguments(&["--metrics-address", address]);
    setup.agent.write_manifest("pods.yaml", PODS).unwrap();
    setup.agent.write_manifest("policy.yaml", &deny()).unwrap();
    setup.agent.write_manifest("bad.yaml", "kind: [").unwrap();
    setup.agent.start().unwrap();
    setup.agent.wait().unwrap();
    assert!(!setup.reaches());
    let text = get(&setup, address, "/metrics");
    for wanted in [
        "policy_agent_dropped_packets_total{reason=\"no_rule_matched\",direction=\"ingress\"} 3",
        "policy_agent_endpoints{state=\"enforced\"} 2",
        "policy_agent_problems 1",
        "policy_agent_plan_duration_seconds_count",
        "policy_agent_table_used{table=\"rows\"} 1",
    ] {
        assert!(text.contains(wanted), "{wanted} not in\n{text}");
    }
    assert!(get(&setup, address, "/readyz").contains("200 OK"));
    assert!(get(&setup, address, "/healthz").contains("200 OK"));
}

fn get(setup: &Setup, address: &str, path: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = setup.node.ns().run(|| std::net::TcpStream::connect(address).unwrap());
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}
