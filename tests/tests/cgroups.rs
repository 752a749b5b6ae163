//! Workloads that are control groups, from manifests to real sockets: the agent as a process, services of one host that
//! share its addresses, and whoever is outside.
#![expect(clippy::unwrap_used, reason = "a helper of a test that fails is a failed test")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use policy_agent::datapath::spec::MapId;
use policy_tests::agent::Agent;
use policy_tests::group::ControlGroup;
use policy_tests::net::{Attach, Host, Netns, Node, Topology};
use policy_tests::tamper::Tamper;
use serde_json::Value;

/// Longest time that anything may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a connection that must not come about is waited for, in milliseconds.
const TRY: i64 = 400;
/// How long one that must come about may take.
const LONG: i64 = 60_000;
const OUTSIDE: &str = "198.51.100.7";

/// Two services and a third one on a host, and somebody outside.
struct Setup {
    agent: Agent,
    web: ControlGroup,
    db: ControlGroup,
    other: ControlGroup,
    host: Arc<Netns>,
    outside: Arc<Host>,
    address: String,
    _node: Node,
}

/// Objects: `web`, `db` and `other` of namespace `shop`.
fn workloads(web: &str, db: &str, other: &str) -> String {
    let one = |name: &str, group: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: shop\n  labels: {{app: {name}}}\n  \
             annotations: {{policy-agent.io/cgroup: {group}}}\nspec:\n  nodeName: node-1\n"
        )
    };
    format!("{}{}{}", one("web", web), one("db", db), one("other", other))
}

/// Only `web` may connect to `db`, to port 5432; `web` may only connect there.
const POLICIES: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Ingress]
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: 5432}, {port: 5432, protocol: UDP}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Egress]
  egress:
  - to: [{podSelector: {matchLabels: {app: db}}}]
";

impl Setup {
    fn new(arguments: &[&str]) -> Self {
        let mut node = Node::new(Topology::Ptp).unwrap();
        let outside = node.add("outside", Attach::Outside, &[OUTSIDE.parse().unwrap()]).unwrap();
        let address = node.as_host().ips.iter().find(|ip| ip.is_ipv4()).unwrap().to_string();
        let agent = Agent::new(&node).unwrap().arguments(arguments);
        let [web, db, other] = [(); 3].map(|()| ControlGroup::new().unwrap());
        let host = node.ns().clone();
        agent.write_manifest("pods.yaml", &workloads(web.path(), db.path(), other.path())).unwrap();
        Self { agent, web, db, other, host, outside, address, _node: node }
    }

    fn started(arguments: &[&str], policies: &str) -> Self {
        let mut setup = Self::new(arguments);
        setup.agent.write_manifest("policies.yaml", policies).unwrap();
        setup.agent.start().unwrap();
        setup.agent.wait().unwrap();
        setup
    }

    /// Address of the host with a port.
    fn at(&self, port: u16) -> String {
        format!("{}:{port}", self.address)
    }

    fn json(&self, arguments: &[&str]) -> Value {
        self.agent.json(arguments).unwrap()
    }

    fn endpoint(&self, name: &str) -> Value {
        let found = self.agent.endpoint(name).unwrap();
        assert!(!found.is_null(), "no {name}");
        found
    }
}

/// A process of the host that is no workload's connects.
fn stranger(ns: &Netns, to: &str, milliseconds: u64) -> bool {
    ns.reaches(to, Duration::from_millis(milliseconds))
}

fn connects(group: &ControlGroup, ns: &Netns, to: &str, milliseconds: i64) -> bool {
    group.connect(ns, to, milliseconds).unwrap().is_ok()
}

#[test]
fn services_of_one_host_that_share_its_address_are_told_apart() {
    let setup = Setup::started(&[], POLICIES);
    let Setup { web, db, other, host, .. } = &setup;
    let listener = db.listener(host, "0.0.0.0:5432").unwrap();
    let _second = db.listener(host, "0.0.0.0:80").unwrap();
    let _theirs = other.listener(host, "0.0.0.0:81").unwrap();
    let to = setup.at(5432);
    let mut there = web.connect(host, &to, LONG).unwrap().unwrap();
    let (mut here, _) = listener.accept().unwrap();
    there.write_all(b"ask").unwrap();
    let mut bytes = [0; 3];
    here.read_exact(&mut bytes).unwrap();
    here.write_all(b"own").unwrap();
    there.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"own");
    assert!(!connects(other, host, &to, TRY), "another service");
    assert!(!stranger(host, &to, 400), "a process that is no workload's");
    assert!(!stranger(&setup.outside.ns, &to, 400), "from outside");
    assert!(!connects(web, host, &setup.at(80), TRY), "another port");
    assert!(!connects(web, host, &setup.at(81), TRY), "another service, by egress");
    assert!(stranger(host, &setup.at(81), 60_000), "no policy selects it");
    // Loopback addresses are exempt.
    assert!(stranger(host, "127.0.0.1:5432", 60_000));
    assert!(connects(other, host, "127.0.0.1:5432", LONG));
    let status = setup.json(&["status"]);
    assert!(status.to_string().contains("drop"), "{status}");
}

#[test]
fn what_a_socket_may_not_send_it_is_told() {
    let setup = Setup::started(&[], POLICIES);
    let Setup { web, db, other, host, .. } = &setup;
    let open = web.udp(host, "0.0.0.0:0").unwrap();
    let refused = open.send_to(b"x", "198.51.100.7:53").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
    let connected = web.udp(host, "0.0.0.0:0").unwrap();
    connected.connect("198.51.100.7:53").unwrap();
    assert_eq!(connected.send(b"x").unwrap_err().kind(), ErrorKind::PermissionDenied);
    assert_eq!(setup.endpoint("web")["hooks"], "cgroup");
    // A datagram between services, and its answer.
    let server = db.udp(host, "0.0.0.0:5432").unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let to = setup.at(5432);
    open.send_to(b"ping", &to).unwrap();
    let (_, from) = server.recv_from(&mut [0; 8]).unwrap();
    server.set_read_timeout(Some(Duration::from_millis(1500))).unwrap();
    server.send_to(b"pong", from).unwrap();
    open.set_read_timeout(Some(PATIENCE)).unwrap();
    open.recv_from(&mut [0; 8]).unwrap();
    let theirs = other.udp(host, "0.0.0.0:0").unwrap();
    theirs.send_to(b"ping", &to).unwrap();
    assert!(server.recv_from(&mut [0; 8]).is_err(), "another service's datagram came through");
    let outside = setup.outside.ns.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    outside.send_to(b"ping", &to).unwrap();
    assert!(server.recv_from(&mut [0; 8]).is_err(), "a datagram from outside came through");
}

#[test]
fn loopback_addresses_are_judged_on_request() {
    let setup = Setup::started(&["--loopback", "judge"], POLICIES);
    let Setup { web, db, other, host, .. } = &setup;
    let _four = db.listener(host, "127.0.0.1:5432").unwrap();
    let _six = db.listener(host, "[::1]:5432").unwrap();
    for to in ["127.0.0.1:5432", "[::1]:5432"] {
        assert!(connects(web, host, to, LONG), "{to}");
        assert!(!connects(other, host, to, TRY), "{to}");
        assert!(!stranger(host, to, 400), "{to}");
    }
}

#[test]
fn blocks_of_addresses_name_who_is_outside() {
    let policy = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Ingress, Egress]
  ingress:
  - from: [{ipBlock: {cidr: 198.51.100.0/24}}]
    ports: [{port: 5432}]
";
    let setup = Setup::started(&[], policy);
    let Setup { web, db, host, .. } = &setup;
    let listener = db.listener(host, "0.0.0.0:5432").unwrap();
    let to = setup.at(5432);
    assert!(stranger(&setup.outside.ns, &to, 60_000));
    let (mut here, _) = listener.accept().unwrap();
    here.write_all(b"an answer needs no rule").unwrap();
    assert!(!connects(web, host, &to, TRY));
    let refused = db.udp(host, "0.0.0.0:0").unwrap().send_to(b"x", "198.51.100.7:53").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
}

#[test]
fn a_group_that_comes_back_is_hooked_before_its_first_socket() {
    let mut setup = Setup::started(&[], POLICIES);
    let path = setup.db.directory().to_owned();
    for _ in 0..3 {
        std::fs::remove_dir(&path).unwrap();
        let end = Instant::now() + PATIENCE;
        while setup.endpoint("db")["state"].to_string().contains("ENFORCED\"")
            && !setup.endpoint("db")["state"].to_string().contains("UNENFORCED")
        {
            assert!(Instant::now() < end, "a group that is gone stays enforced");
            thread::sleep(Duration::from_millis(5));
        }
        std::fs::create_dir(&path).unwrap();
        setup.agent.wait().unwrap();
        let _listener = setup.db.listener(&setup.host, "0.0.0.0:5432").unwrap();
        let to = setup.at(5432);
        assert!(!stranger(&setup.host, &to, 300));
        assert!(connects(&setup.web, &setup.host, &to, LONG));
        assert!(!setup.endpoint("db")["started_unprotected"].as_bool().unwrap_or(false));
    }
}

#[test]
fn enforcement_outlives_the_agent_and_cleanup_ends_it() {
    let mut setup = Setup::started(&[], POLICIES);
    let listener = setup.db.listener(&setup.host, "0.0.0.0:5432").unwrap();
    let to = setup.at(5432);
    let mut there = setup.web.connect(&setup.host, &to, LONG).unwrap().unwrap();
    let (mut here, _) = listener.accept().unwrap();
    for _ in 0..2 {
        setup.agent.kill().unwrap();
        assert!(!stranger(&setup.host, &to, 300), "without an agent");
        setup.agent.start().unwrap();
        setup.agent.wait().unwrap();
        assert!(!stranger(&setup.host, &to, 300));
        there.write_all(b"x").unwrap();
        here.read_exact(&mut [0]).unwrap();
    }
    setup.agent.kill().unwrap();
    setup.agent.cleanup().unwrap();
    assert!(stranger(&setup.host, &to, 60_000), "after cleanup");
    assert!(!setup.agent.bpffs().exists());
}

/// The shipped example, with the test's groups in place of the units.
#[test]
fn the_example_of_two_services_does_what_it_says() {
    let mut setup = Setup::new(&["--loopback", "judge"]);
    let read = |name: &str| {
        let path = policy_tests::scenario::root().join("deploy/systemd/example").join(name);
        std::fs::read_to_string(path).unwrap()
    };
    let unit = |text: String, unit: &str, group: &ControlGroup| {
        let annotation = format!("policy-agent.io/unit: {unit}");
        assert!(text.contains(&annotation), "{unit}");
        text.replace(&annotation, &format!("policy-agent.io/cgroup: {}", group.path()))
    };
    let services = unit(read("services.yaml"), "nginx.service", &setup.web);
    let services = unit(services, "postgresql@15-main.service", &setup.db);
    let services = services.replace("nodeName: this-host", "nodeName: node-1");
    setup.agent.write_manifest("pods.yaml", &services).unwrap();
    setup.agent.write_manifest("policies.yaml", &read("policies.yaml")).unwrap();
    setup.agent.start().unwrap();
    setup.agent.wait().unwrap();
    let Setup { web, db, host, outside, .. } = &setup;
    let _nginx = web.listener(host, "0.0.0.0:80").unwrap();
    let _admin = web.listener(host, "0.0.0.0:8080").unwrap();
    let _postgres = db.listener(host, "0.0.0.0:5432").unwrap();
    let _other = db.listener(host, "0.0.0.0:5433").unwrap();
    for address in [setup.address.as_str(), "127.0.0.1"] {
        let at = |port: u16| format!("{address}:{port}");
        assert!(connects(web, host, &at(5432), LONG), "nginx asks the database at {address}");
        assert!(!connects(web, host, &at(5433), TRY), "at another port");
        assert!(!connects(db, host, &at(80), TRY), "the database asks nobody");
        assert!(stranger(host, &at(80), 60_000), "everybody asks nginx");
        assert!(!stranger(host, &at(8080), 300), "at this port");
        assert!(!stranger(host, &at(5432), 300), "nobody else asks the database");
    }
    assert!(stranger(&outside.ns, &setup.at(80), 60_000), "from outside");
    assert!(!stranger(&outside.ns, &setup.at(5432), 300), "from outside");
    let out = web.udp(host, "0.0.0.0:0").unwrap().send_to(b"x", "198.51.100.7:53").unwrap_err();
    assert_eq!(out.kind(), ErrorKind::PermissionDenied, "nginx asks nobody outside");
}

#[test]
fn the_nearest_workload_decides_and_the_inner_one_outlives_the_outer() {
    let mut setup = Setup::new(&[]);
    let inner = setup.db.inside("inner").unwrap();
    let below = inner.inside("below").unwrap();
    let pods = workloads(setup.web.path(), setup.db.path(), inner.path());
    setup.agent.write_manifest("pods.yaml", &pods).unwrap();
    setup.agent.write_manifest("policies.yaml", POLICIES).unwrap();
    setup.agent.start().unwrap();
    setup.agent.wait().unwrap();
    let _outer = setup.db.listener(&setup.host, "0.0.0.0:5432").unwrap();
    let _inner = below.listener(&setup.host, "0.0.0.0:5433").unwrap();
    assert!(!stranger(&setup.host, &setup.at(5432), 300));
    assert!(stranger(&setup.host, &setup.at(5433), 60_000), "`other` is not isolated, `db` above it is");
    // Now the inner one is isolated, and the outer one is no workload any more.
    let policies = POLICIES.replace("app: db", "app: other");
    setup.agent.write_manifest("policies.yaml", &policies).unwrap();
    setup.agent.wait().unwrap();
    assert!(stranger(&setup.host, &setup.at(5432), 60_000));
    assert!(!stranger(&setup.host, &setup.at(5433), 300));
    let one = pods.split("---\n").filter(|part| !part.contains("name: db\n")).collect::<Vec<_>>();
    setup.agent.write_manifest("pods.yaml", &one.join("---\n")).unwrap();
    setup.agent.wait().unwrap();
    assert!(!stranger(&setup.host, &setup.at(5433), 300), "its own programs");
}

#[test]
fn what_cannot_be_hooked_is_told_and_nothing_stays_attached() {
    let mut setup = Setup::new(&[]);
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap().to_owned();
    let paths = ["/no-such-group-anywhere", "/../etc", &own];
    setup.agent.write_manifest("pods.yaml", &workloads(paths[0], paths[1], paths[2])).unwrap();
    setup.agent.start().unwrap();
    let waited = setup.agent.ctl(["wait", "--timeout", "1s"]).unwrap();
    assert!(!waited.status.success());
    setup.agent.wait_for_detail("web", "there is no control group /no-such-group-anywhere").unwrap();
    setup.agent.wait_for_detail("db", "is no path of a control group").unwrap();
    setup.agent.wait_for_detail("other", "this agent").unwrap();
    let links = std::fs::read_dir(setup.agent.bpffs().join("links")).unwrap();
    let groups = links.flatten().filter(|link| link.file_name().to_string_lossy().starts_with("group-"));
    assert_eq!(groups.count(), 0);
}

/// Whoever starts the agent here has taken every mount of the hierarchy away.
const WITHOUT_CGROUPS: [&str; 8] = [
    "unshare",
    "--mount",
    "--propagation",
    "private",
    "sh",
    "-c",
    "umount --lazy --all --types cgroup2; exec \"$@\"",
    "sh",
];

#[test]
fn without_a_hierarchy_workloads_are_told_with_what_to_do() {
    let mut setup = Setup::new(&[]);
    setup.agent.write_manifest("policies.yaml", POLICIES).unwrap();
    setup.agent.set_wrapper(&WITHOUT_CGROUPS);
    setup.agent.start().unwrap();
    assert!(!setup.agent.ctl(["wait", "--timeout", "1s"]).unwrap().status.success());
    let told = setup.agent.wait_for_detail("db", "no cgroup v2 hierarchy is mounted").unwrap();
    assert!(told.to_string().contains("hint: mount -t cgroup2"), "{told}");
    let status = setup.json(&["status"]).to_string();
    assert!(status.contains("no cgroup v2 hierarchy is mounted"), "{status}");
    assert!(setup.agent.log().contains("control groups are not enforced"), "{}", setup.agent.log());
    let _listener = setup.db.listener(&setup.host, "0.0.0.0:5432").unwrap();
    assert!(stranger(&setup.host, &setup.at(5432), 60_000), "nobody claims to enforce");
    setup.agent.kill().unwrap();

    // A directory that is on none.
    setup.agent.set_wrapper(&[]);
    setup.agent.set_arguments(&["--cgroup-root", "/tmp"]);
    setup.agent.start().unwrap();
    assert!(!setup.agent.ctl(["wait", "--timeout", "1s"]).unwrap().status.success());
    let told = setup.agent.wait_for_detail("db", "/tmp is not on a cgroup v2 hierarchy").unwrap();
    assert!(told.to_string().contains("--cgroup-root"), "{told}");
    setup.agent.kill().unwrap();

    // With the hierarchy everything is enforced.
    setup.agent.set_arguments(&[]);
    setup.agent.start().unwrap();
    setup.agent.wait().unwrap();
    assert!(!stranger(&setup.host, &setup.at(5432), 300));
}

#[test]
fn two_workloads_cannot_have_one_group() {
    let mut setup = Setup::new(&[]);
    let pods = workloads(setup.web.path(), setup.db.path(), setup.db.path());
    setup.agent.write_manifest("pods.yaml", &pods).unwrap();
    setup.agent.write_manifest("policies.yaml", POLICIES).unwrap();
    setup.agent.start().unwrap();
    assert!(!setup.agent.ctl(["wait", "--timeout", "1s"]).unwrap().status.success());
    setup.agent.wait_for_detail("other", "is that of pod shop/db").unwrap();
    let _listener = setup.db.listener(&setup.host, "0.0.0.0:5432").unwrap();
    assert!(!stranger(&setup.host, &setup.at(5432), 300), "the first one is in force");
    assert!(connects(&setup.web, &setup.host, &setup.at(5432), LONG));
}

#[test]
fn what_somebody_else_changed_about_groups_is_found_and_put_right() {
    let setup = Setup::started(&["--self-check", "off"], POLICIES);
    let _listener = setup.db.listener(&setup.host, "0.0.0.0:5432").unwrap();
    let to = setup.at(5432);
    let tamper = Tamper::new(setup.agent.bpffs());
    let groups = tamper.map(MapId::Cgroups).unwrap();
    let (db, web) = (setup.db.id().unwrap().to_ne_bytes(), setup.web.id().unwrap().to_ne_bytes());
    let finds = |what: &str, open: bool| {
        assert_eq!(stranger(&setup.host, &to, 300), open, "the change has no effect: {what}");
        let output = setup.agent.ctl(["verify", "--output", "json"]).unwrap();
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(!output.status.success(), "{what}: {told:#}");
        assert!(told.to_string().contains("CGROUPS"), "{what}: {told:#}");
        assert!(!stranger(&setup.host, &to, 300), "{what} is not put right");
        let again = setup.agent.ctl(["verify", "--output", "json"]).unwrap();
        assert!(again.status.success(), "{what}: {}", String::from_utf8_lossy(&again.stdout));
    };
    let output = setup.agent.ctl(["verify", "--output", "json"]).unwrap();
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(output.status.success() && told["trials"].as_u64() > Some(10), "{told:#}");
    let (ours, theirs) = (groups.get(&db).unwrap().unwrap(), groups.get(&web).unwrap().unwrap());
    groups.remove(&db).unwrap();
    finds("a group less", true);
    groups.insert(&db, &theirs, 0).unwrap();
    finds("a group as another endpoint", true);
    groups.insert(&7u64.to_ne_bytes(), &ours, 0).unwrap();
    finds("a group more", false);
    assert!(connects(&setup.web, &setup.host, &to, LONG));
}

#[test]
fn drops_between_services_of_a_host_name_both() {
    type Fits = fn(&Value) -> bool;
    let setup = Setup::started(&[], POLICIES);
    let mut monitor = setup.agent.ctl_child(["monitor", "--output", "json"]).unwrap();
    let heard = BufReader::new(monitor.stdout.take().unwrap());
    let _listener = setup.db.listener(&setup.host, "0.0.0.0:5432").unwrap();
    // The stream may begin after the first packets, so there are always more.
    let ended = AtomicBool::new(false);
    let wanted: [(&str, Fits); 3] = [
        ("a service to another", |f| {
            f["source"]["pod_name"] == "other" && f["destination"]["pod_name"] == "db"
        }),
        ("a stranger to a service", |f| {
            f["source"]["labels"].to_string().contains("reserved:host")
                && f["destination"]["pod_name"] == "db"
        }),
        ("a service to a stranger", |f| f["source"]["pod_name"] == "web"),
    ];
    let mut found = BTreeMap::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            let end = Instant::now() + PATIENCE;
            while !ended.load(Ordering::Relaxed) && Instant::now() < end {
                assert!(!connects(&setup.other, &setup.host, &setup.at(5432), TRY / 4));
                assert!(!stranger(&setup.host, &setup.at(5432), 100));
                let out = setup.web.udp(&setup.host, "0.0.0.0:0").unwrap();
                assert_eq!(out.send_to(b"x", setup.at(9)).unwrap_err().kind(), ErrorKind::PermissionDenied);
            }
            monitor.kill().unwrap();
            monitor.wait().unwrap();
        });
        for line in heard.lines() {
            let flow: Value = serde_json::from_str(&line.unwrap()).unwrap();
            let flow = flow.get("flow").unwrap_or(&flow).clone();
            let fits = wanted.iter().filter(|(_, fits)| fits(&flow));
            found.extend(fits.map(|(what, _)| (*what, flow.clone())));
            ended.store(found.len() == wanted.len(), Ordering::Relaxed);
        }
    });
    for (what, denied_by) in wanted.map(|(what, _)| what).into_iter().zip(["\"db\"", "\"db\"", "\"web\""]) {
        let flow = found.get(what).unwrap_or_else(|| panic!("nothing is told of {what}"));
        let policies = format!("{}{}", flow["ingress_denied_by"], flow["egress_denied_by"]);
        // The evaluator finds what happened.
        assert!(policies.contains(denied_by) && !flow.to_string().contains("evaluator"), "{what}: {flow:#}");
    }
}

#[test]
fn settings_of_the_next_agent_reach_workloads_that_it_takes_over() {
    let mut setup = Setup::started(&[], POLICIES);
    let to = "127.0.0.1:5432";
    let _listener = setup.db.listener(&setup.host, to).unwrap();
    assert!(stranger(&setup.host, to, 60_000), "exempt");
    for (arguments, passes) in [(&["--loopback", "judge"][..], false), (&[], true)] {
        setup.agent.kill().unwrap();
        setup.agent.set_arguments(arguments);
        setup.agent.start().unwrap();
        setup.agent.wait().unwrap();
        assert_eq!(stranger(&setup.host, to, if passes { 60_000 } else { 300 }), passes, "{arguments:?}");
    }
}
