//! Workloads that are control groups beside what else there is: programs of others at the same group, and everything
//! that tells of an endpoint.
#![expect(clippy::unwrap_used, reason = "a helper of a test that fails is a failed test")]

use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::{size_of, zeroed};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use aya_obj::generated::bpf_attach_type::{BPF_CGROUP_INET_EGRESS, BPF_CGROUP_INET_INGRESS};
use aya_obj::generated::{bpf_attr, bpf_cmd};
use policy_agent::cgroup::Hierarchy;
use policy_agent::datapath::bpf;
use policy_tests::agent::Agent;
use policy_tests::group::ControlGroup;
use policy_tests::net::{Netns, Node, Topology};
use serde_json::Value;

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(400);
const HOST: &str = "192.0.2.1";
const METRICS: &str = "127.0.0.1:9462";

/// Nobody but `web` may ask `db`, and `db` asks nobody.
const OBJECTS: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Ingress, Egress]
  ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: sql}]}]
";

struct Setup {
    agent: Agent,
    web: ControlGroup,
    db: ControlGroup,
    host: Arc<Netns>,
    _node: Node,
}

fn pod(name: &str, group: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: shop\n  labels: {{app: {name}}}\n  \
         annotations: {{policy-agent.io/cgroup: {group}}}\nspec:\n  nodeName: node-1\n  \
         containers: [{{name: c, ports: [{{name: sql, containerPort: 5432}}]}}]\n"
    )
}

impl Setup {
    /// The agent does not run yet.
    fn new() -> Self {
        let node = Node::new(Topology::Ptp).unwrap();
        let agent = Agent::new(&node).unwrap().arguments(&["--metrics-address", METRICS]);
        let [web, db] = [(); 2].map(|()| ControlGroup::new().unwrap());
        let objects = [OBJECTS.to_owned(), pod("web", web.path()), pod("db", db.path())].concat();
        agent.write_manifest("all.yaml", &objects).unwrap();
        Self { agent, web, db, host: node.ns().clone(), _node: node }
    }

    fn asks(&self, from: &ControlGroup, port: u16) -> bool {
        let limit = i64::try_from(LONG.as_millis()).unwrap();
        from.connect(&self.host, &format!("{HOST}:{port}"), limit).unwrap().is_ok()
    }

    fn stranger(&self, port: u16, limit: Duration) -> bool {
        self.host.reaches(&format!("{HOST}:{port}"), limit)
    }

    fn metrics(&self) -> String {
        self.host.run(|| {
            let mut stream = TcpStream::connect(METRICS).unwrap();
            write!(stream, "GET /metrics HTTP/1.0\r\n\r\n").unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        })
    }
}

/// A program of somebody else that passes everything or nothing.
fn program(passes: bool) -> OwnedFd {
    let code = [bpf::instruction(0xb7, 0, 0, i32::from(passes)), bpf::instruction(0x95, 0, 0, 0)];
    bpf::load_group("somebody_else", &code).unwrap()
}

/// Attaches a program to the way into a group so that no other may be there: without a flag, and without a link.
fn attach_alone(program: BorrowedFd<'_>, group: BorrowedFd<'_>) {
    // SAFETY: integers: all zeroes is a value.
    let mut attr: bpf_attr = unsafe { zeroed() };
    // SAFETY: all parts of the union are plain integers.
    let attach = unsafe { &mut attr.__bindgen_anon_5 };
    attach.__bindgen_anon_1.target_fd = group.as_raw_fd() as u32;
    attach.attach_bpf_fd = program.as_raw_fd() as u32;
    attach.attach_type = BPF_CGROUP_INET_INGRESS as u32;
    let command = bpf_cmd::BPF_PROG_ATTACH as u32;
    // SAFETY: the attribute outlives the call, with the size given.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut attr, size_of::<bpf_attr>()) };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
}

#[test]
fn programs_of_others_run_beside_ours_and_stay() {
    let mut setup = Setup::new();
    let directory = File::open(setup.db.directory()).unwrap();
    let (yes, no) = (program(true), program(false));
    let attach =
        |program: &OwnedFd, side| bpf::attach_group(program.as_fd(), directory.as_fd(), side).unwrap();
    // One before ours and one behind.
    let _before = attach(&yes, BPF_CGROUP_INET_INGRESS);
    setup.agent.start().unwrap();
    setup.agent.wait().unwrap();
    let _behind = attach(&yes, BPF_CGROUP_INET_EGRESS);
    let _listener = setup.db.listener(&setup.host, "0.0.0.0:5432").unwrap();
    assert!(!setup.stranger(5432, SHORT), "that another program lets it pass opens nothing");
    assert!(setup.asks(&setup.web, 5432));
    let denying = attach(&no, BPF_CGROUP_INET_INGRESS);
    assert!(
        setup.web.connect(&setup.host, &format!("{HOST}:5432"), 400).unwrap().is_err(),
        "the other one denies"
    );
    bpf::detach_link(denying.as_fd()).unwrap();
    assert!(setup.asks(&setup.web, 5432));
    // Ours go alone.
    let denying = attach(&no, BPF_CGROUP_INET_INGRESS);
    setup.agent.kill().unwrap();
    setup.agent.cleanup().unwrap();
    assert!(!setup.stranger(5432, SHORT), "the other program is still there");
    bpf::detach_link(denying.as_fd()).unwrap();
    assert!(setup.stranger(5432, LONG), "nothing of ours is");
}

#[test]
fn a_program_that_wants_to_be_alone_is_told_and_left_alone() {
    let mut setup = Setup::new();
    let directory = File::open(setup.db.directory()).unwrap();
    attach_alone(program(true).as_fd(), directory.as_fd());
    setup.agent.start().unwrap();
    assert!(!setup.agent.ctl(["wait", "--timeout", "1s"]).unwrap().status.success());
    setup.agent.wait_for_detail("db", "not permitted").unwrap();
    // Each workload is hooked in its turn.
    setup.agent.wait_for("web", |told| told["hooks"] == "cgroup").unwrap();
    let links = std::fs::read_dir(setup.agent.bpffs().join("links")).unwrap().flatten();
    let names: Vec<String> = links.map(|link| link.file_name().into_string().unwrap()).collect();
    let id = setup.db.id().unwrap().to_string();
    assert!(names.iter().all(|name| !name.contains(&id)), "half of it is attached: {names:?}");
    assert!(names.iter().any(|name| name.starts_with("group-")), "the other workload: {names:?}");
}

#[test]
fn what_tells_of_pods_tells_of_workloads() {
    let mut setup = Setup::new();
    setup.agent.start().unwrap();
    setup.agent.wait().unwrap();
    let _listener = setup.db.listener(&setup.host, "0.0.0.0:5432").unwrap();
    assert!(!setup.stranger(5432, SHORT) && setup.asks(&setup.web, 5432));
    let told = setup.agent.endpoint("db").unwrap();
    assert_eq!((&told["interface"], &told["hooks"]), (&setup.db.path().into(), &"cgroup".into()), "{told}");
    assert_eq!(told["ingress_isolated_by"], serde_json::json!(["shop/db"]), "{told}");
    let metrics = setup.metrics();
    assert!(metrics.contains("policy_agent_endpoints{state=\"enforced\"} 2"), "{metrics}");
    let dropped = "policy_agent_dropped_packets_total{reason=\"no_rule_matched\",direction=\"ingress\"} ";
    let dropped = metrics.lines().find_map(|line| line.strip_prefix(dropped)).unwrap();
    assert_ne!(dropped, "0");
    let status = setup.agent.json(&["status"]).unwrap();
    let feature = status["features"].as_array().unwrap().iter().find(|one| one["name"] == "cgroup v2");
    let (available, told) = (&feature.unwrap()["available"], feature.unwrap()["detail"].to_string());
    assert_eq!(*available, true, "{status}");
    let hybrid = Hierarchy::find(None).unwrap().is_hybrid();
    assert_eq!(told.contains("beside version 1"), hybrid, "{told}");
    // Who may ask whom, by the names of workloads, as the kernel has just shown.
    let manifests = setup.agent.manifests();
    let explain = |from: &str, port: &str| -> Value {
        let folder = manifests.to_str().unwrap();
        let question = ["explain", "--manifests", folder, "--from", from, "--to", "shop/db", "--port", port];
        let output = setup.agent.ctl(question.into_iter().chain(["--output", "json"])).unwrap();
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)))
    };
    let (allowed, denied) = (explain("shop/web", "5432/TCP"), explain("shop/web", "5433/TCP"));
    assert_ne!(allowed["verdict"], denied["verdict"], "{allowed:#}\n{denied:#}");
    assert!(denied.to_string().contains("shop/db"), "{denied:#}");
}
