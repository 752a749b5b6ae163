//! Pods whose packets pass no interface of the node, here with a macvlan of their own: reported, or judged at the sockets
//! of the control groups that a kubelet makes, as both of its drivers spell them. And pods on the host's network.
#![expect(clippy::unwrap_used, reason = "a helper of a test that fails is a failed test")]

use std::io::ErrorKind;
use std::net::IpAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use policy_tests::agent::Agent;
use policy_tests::group::ControlGroup;
use policy_tests::net::{Attach, Host, Netns, Node, Rtnl, Topology};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);
/// How long a connection that must not come about is waited for, in milliseconds.
const TRY: i64 = 400;
/// How long one that must come about may take.
const LONG: i64 = 60_000;
const OUTSIDE: &str = "198.51.100.7";
const A: &str = "192.0.2.50";
const B: &str = "192.0.2.51";

/// Nothing in and nothing out; `a` may ask `b` at port 80.
const POLICIES: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny, namespace: x}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: b, namespace: x}
spec:
  podSelector: {matchLabels: {app: b}}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {matchLabels: {app: a}}}], ports: [{port: 80}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: a, namespace: x}
spec:
  podSelector: {matchLabels: {app: a}}
  policyTypes: [Egress]
  egress: [{to: [{podSelector: {matchLabels: {app: b}}}]}]
";

/// How a kubelet spells the groups of pods.
#[derive(Clone, Copy, Debug)]
enum Driver {
    /// Under a root of its own.
    Cgroupfs,
    Systemd,
}

/// The groups of a kubelet. What is inside goes first.
struct Kubelet {
    pods: Vec<Pod>,
    parents: Vec<ControlGroup>,
    driver: Driver,
}

/// A pod's group with its container's.
struct Pod {
    container: ControlGroup,
    group: ControlGroup,
    uid: String,
}

impl Kubelet {
    fn new(driver: Driver) -> Self {
        let parents = match driver {
            Driver::Cgroupfs => {
                let root = ControlGroup::new().unwrap();
                let pods = root.inside("kubepods").unwrap();
                vec![pods.inside("burstable").unwrap(), pods, root]
            }
            Driver::Systemd => {
                let root = ControlGroup::slice().unwrap();
                let stem = root.path().trim_start_matches('/').trim_end_matches(".slice").to_owned();
                let pods = root.inside(&format!("{stem}-kubepods.slice")).unwrap();
                vec![pods.inside(&format!("{stem}-kubepods-burstable.slice")).unwrap(), pods, root]
            }
        };
        Self { pods: Vec::new(), parents, driver }
    }

    fn add(&mut self) -> &Pod {
        self.make(format!("{:08x}-0000-4000-8000-{:012x}", std::process::id(), number()))
    }

    /// A static pod, whose UID is a hash that the kubelet makes.
    fn add_static(&mut self) -> &Pod {
        self.make(format!("{:08x}{:024x}", std::process::id(), number()))
    }

    fn make(&mut self, uid: String) -> &Pod {
        let class = &self.parents[0];
        let name = match self.driver {
            Driver::Cgroupfs => format!("pod{uid}"),
            Driver::Systemd => {
                let slice = class.path().rsplit('/').next().unwrap().trim_end_matches(".slice");
                format!("{slice}-pod{}.slice", uid.replace('-', "_"))
            }
        };
        let group = class.inside(&name).unwrap();
        let container = group.inside("container").unwrap();
        self.pods.push(Pod { container, group, uid });
        self.pods.last().unwrap()
    }
}

fn number() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// What stands for a static pod in the API since a day of January 2024: the kubelet's UID is in an annotation.
fn mirror(name: &str, uid: &str, of: &str, day: u32, rest: &str) -> String {
    let more = format!(
        "creationTimestamp: \"2024-01-{day:02}T00:00:00Z\", \
         annotations: {{kubernetes.io/config.hash: {of}, kubernetes.io/config.mirror: {of}}}, labels"
    );
    manifest(name, uid, rest).replacen("labels", &more, 1)
}

/// A pod as the API has it.
fn manifest(name: &str, uid: &str, rest: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: x, uid: {uid}, labels: {{app: {name}}}}}\n{rest}\n"
    )
}

fn at(address: &str) -> String {
    format!(
        "spec: {{nodeName: node-1}}\nstatus: {{phase: Running, podIP: {address}, podIPs: [{{ip: {address}}}]}}"
    )
}

/// A network namespace with a macvlan on the node's uplink.
fn macvlan(node: &Node, name: &str, address: &str) -> Arc<Netns> {
    let ns = Arc::new(Netns::new().unwrap());
    let mut command = Command::new("ip");
    let file = format!("/proc/{}/fd/{}", std::process::id(), ns.raw_fd());
    command.args(["link", "add", name, "link", "uplink0", "netns", &file]);
    command.args(["type", "macvlan", "mode", "bridge"]);
    node.ns().enter_command(&mut command).unwrap();
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let address: IpAddr = address.parse().unwrap();
    let rtnl = ns.run(Rtnl::open).unwrap();
    let index = rtnl.link(name).unwrap().index;
    rtnl.add_address(index, ipnet::IpNet::new(address, 24).unwrap()).unwrap();
    rtnl.set_up(index).unwrap();
    rtnl.add_route(OUTSIDE.parse::<IpAddr>().unwrap().into(), index, None).unwrap();
    let world = node.outside().run(Rtnl::open).unwrap();
    world.add_route(address.into(), world.link(Node::POD_LINK).unwrap().index, None).unwrap();
    ns
}

struct Setup {
    agent: Agent,
    kubelet: Kubelet,
    a: Arc<Netns>,
    b: Arc<Netns>,
    outside: Arc<Host>,
    node: Node,
}

impl Setup {
    fn new(driver: Driver) -> Self {
        let mut node = Node::new(Topology::Ptp).unwrap();
        let outside = node.add("outside", Attach::Outside, &[OUTSIDE.parse().unwrap()]).unwrap();
        let (a, b) = (macvlan(&node, "mva", A), macvlan(&node, "mvb", B));
        let mut kubelet = Kubelet::new(driver);
        let agent = Agent::new(&node).unwrap();
        let pods = manifest("a", &kubelet.add().uid, &at(A)) + &manifest("b", &kubelet.add().uid, &at(B));
        agent.write_manifest("pods.yaml", &pods).unwrap();
        agent.write_manifest("policies.yaml", POLICIES).unwrap();
        Self { agent, kubelet, a, b, outside, node }
    }

    fn endpoint(&self, name: &str) -> Value {
        self.agent.endpoint(name).unwrap()
    }

    /// The pod is told as not enforced, with these words once it was looked for.
    fn wait_for_detail(&self, name: &str, words: &str) {
        let endpoint = self.agent.wait_for_detail(name, words).unwrap();
        assert!(endpoint["state"].to_string().contains("UNENFORCED"), "{endpoint}");
    }

    fn wait_for_state(&self, name: &str, state: &str) -> Value {
        let end = Instant::now() + PATIENCE;
        loop {
            let endpoint = self.endpoint(name);
            let now = endpoint["state"].as_str().and_then(|now| now.rsplit("STATE_").next());
            if now.is_some_and(|now| now.eq_ignore_ascii_case(state)) {
                return endpoint;
            }
            assert!(Instant::now() < end, "{name} does not become {state}: {endpoint}");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn asks(ns: &Netns, to: &str, milliseconds: i64) -> bool {
    ns.reaches(to, Duration::from_millis(u64::try_from(milliseconds).unwrap()))
}

fn pods_are_judged_by_their_groups(driver: Driver) {
    let mut setup = Setup::new(driver);
    let to_b = format!("{B}:80");
    let [first, second] = &setup.kubelet.pods[..] else { panic!() };
    let listener = second.container.listener(&setup.b, "0.0.0.0:80").unwrap();
    setup.agent.start().unwrap();
    setup.wait_for_detail("b", "no interface of this node leads to");
    assert!(asks(&setup.outside.ns, &to_b, LONG), "nobody claims to enforce");
    setup.agent.kill().unwrap();

    setup.agent.set_arguments(&["--unhookable", "cgroup"]);
    setup.agent.start().unwrap();
    setup.agent.wait().unwrap();
    let told = setup.endpoint("b");
    assert_eq!(told["hooks"], "cgroup", "{told}");
    assert_eq!(told["interface"], second.group.path(), "{told}");
    assert!(first.container.connect(&setup.a, &to_b, LONG).unwrap().is_ok(), "a asks b");
    assert!(!asks(&setup.outside.ns, &to_b, TRY), "outside asks b");
    let _web = first.container.listener(&setup.a, "0.0.0.0:80").unwrap();
    assert!(second.container.connect(&setup.b, &format!("{A}:80"), TRY).unwrap().is_err(), "b asks a");
    let refused =
        first.container.udp(&setup.a, "0.0.0.0:0").unwrap().send_to(b"x", (OUTSIDE, 53)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::PermissionDenied);

    // A pod's group goes and comes back, as when a kubelet makes it anew.
    drop(listener);
    std::fs::remove_dir(second.container.directory()).unwrap();
    std::fs::remove_dir(second.group.directory()).unwrap();
    setup.wait_for_detail("b", "no control group of a pod with UID");
    std::fs::create_dir(second.group.directory()).unwrap();
    setup.agent.wait().unwrap();
    std::fs::create_dir(second.container.directory()).unwrap();
    let _listener = second.container.listener(&setup.b, "0.0.0.0:80").unwrap();
    assert!(!asks(&setup.outside.ns, &to_b, TRY), "outside asks b again");
    assert!(first.container.connect(&setup.a, &to_b, LONG).unwrap().is_ok(), "a asks b again");

    setup.agent.kill().unwrap();
    setup.agent.cleanup().unwrap();
    assert!(asks(&setup.outside.ns, &to_b, LONG), "after cleanup");
}

#[test]
fn pods_with_a_macvlan_are_judged_by_the_groups_of_the_cgroupfs_driver() {
    pods_are_judged_by_their_groups(Driver::Cgroupfs);
}

#[test]
fn pods_with_a_macvlan_are_judged_by_the_groups_of_the_systemd_driver() {
    pods_are_judged_by_their_groups(Driver::Systemd);
}

#[test]
fn a_group_that_cannot_be_found_or_told_apart_is_reported() {
    let mut setup = Setup::new(Driver::Cgroupfs);
    let mut other = Kubelet::new(Driver::Systemd);
    other.add();
    let twin = other.parents[0].inside(&format!("pod{}", setup.kubelet.pods[0].uid)).unwrap();
    let unknown = "99999999-0000-4000-8000-000000000000";
    setup.agent.write_manifest("more.yaml", &manifest("c", unknown, &at("192.0.2.52"))).unwrap();
    setup.agent.set_arguments(&["--unhookable", "cgroup"]);
    setup.agent.start().unwrap();
    setup.wait_for_detail("a", "several control groups");
    setup.wait_for_detail("c", "no control group of a pod with UID");
    setup.wait_for_state("b", "ENFORCED");
    let waited = setup.agent.ctl(["wait", "--timeout", "1s"]).unwrap();
    assert!(!waited.status.success(), "what is not enforced is not waited for in vain");
    drop(twin);
    setup.wait_for_state("a", "ENFORCED");
    assert!(setup.agent.log().contains("control group hooked"));
}

#[test]
fn pods_on_the_hosts_network_are_judged_on_request_and_their_node_reaches_them() {
    let mut setup = Setup::new(Driver::Systemd);
    let host = setup.kubelet.add();
    let rest = "spec: {nodeName: node-1, hostNetwork: true}\nstatus: {phase: Running, podIP: 192.0.2.1, podIPs: [{ip: 192.0.2.1}]}";
    setup.agent.write_manifest("host.yaml", &manifest("host", &host.uid, rest)).unwrap();
    let ns = setup.node.ns().clone();
    let _listener = host.container.listener(&ns, "0.0.0.0:80").unwrap();
    let to = "192.0.2.1:80";
    setup.agent.set_arguments(&["--unhookable", "cgroup"]);
    setup.agent.start().unwrap();
    setup.agent.wait().unwrap();
    assert!(asks(&setup.outside.ns, to, LONG), "no policy applies to it");
    setup.agent.kill().unwrap();

    setup.agent.set_arguments(&["--host-network", "cgroup", "--unhookable", "cgroup"]);
    setup.agent.start().unwrap();
    setup.agent.wait().unwrap();
    assert_eq!(setup.endpoint("host")["hooks"], "cgroup");
    assert!(!asks(&setup.outside.ns, to, TRY), "from outside");
    assert!(asks(&ns, to, LONG), "a probe of its node's kubelet");
    let host = &setup.kubelet.pods[2];
    let refused = host.container.udp(&ns, "0.0.0.0:0").unwrap().send_to(b"x", (OUTSIDE, 53)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
}

fn static_pods_are_judged_by_the_groups_of_their_kubelets_uid(driver: Driver) {
    let mut setup = Setup::new(driver);
    let judged = setup.kubelet.add_static().uid.clone();
    let own = "77777777-0000-4000-8000-000000000000";
    let rest = "spec: {nodeName: node-1, hostNetwork: true}\nstatus: {phase: Running, podIP: 192.0.2.1, podIPs: [{ip: 192.0.2.1}]}";
    setup.agent.write_manifest("static.yaml", &mirror("static", own, &judged, 1, rest)).unwrap();
    let group = &setup.kubelet.pods[2];
    let ns = setup.node.ns().clone();
    let _listener = group.container.listener(&ns, "0.0.0.0:80").unwrap();
    let to = "192.0.2.1:80";
    setup.agent.set_arguments(&["--host-network", "cgroup", "--unhookable", "cgroup"]);
    setup.agent.start().unwrap();
    setup.agent.wait().unwrap();
    assert_eq!(setup.endpoint("static")["interface"], group.group.path(), "{driver:?}");
    assert!(!asks(&setup.outside.ns, to, TRY), "from outside");
    assert!(asks(&ns, to, LONG), "from its node");
    let refused = group.container.udp(&ns, "0.0.0.0:0").unwrap().send_to(b"x", (OUTSIDE, 53)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::PermissionDenied);

    // Another object says that it is this pod too, and another one's: neither changes whose the groups are.
    let (to_b, b) = (format!("{B}:80"), setup.kubelet.pods[1].uid.clone());
    let _web = setup.kubelet.pods[1].container.listener(&setup.b, "0.0.0.0:80").unwrap();
    let liars = mirror("a-liar", "88888888-0000-4000-8000-000000000000", &judged, 2, rest)
        + &mirror("a-thief", "99999999-0000-4000-8000-000000000000", &b, 1, &at("192.0.2.52"));
    setup.agent.write_manifest("liars.yaml", &liars.replace("app: a-", "free: a-")).unwrap();
    setup.agent.write_manifest(
        "free.yaml",
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: free, namespace: x}\nspec: {podSelector: {matchExpressions: [{key: free, operator: Exists}]}, policyTypes: [Ingress, Egress], ingress: [{}], egress: [{}]}\n",
    ).unwrap();
    setup.wait_for_detail("a-liar", "is that of pod x/static");
    setup.wait_for_detail("a-thief", "is that of pod x/b");
    assert_eq!(setup.endpoint("b")["interface"], setup.kubelet.pods[1].group.path());
    assert!(!asks(&setup.outside.ns, to, TRY), "from outside, to the static pod");
    assert!(!asks(&setup.outside.ns, &to_b, TRY), "from outside, to b");
}

#[test]
fn static_pods_are_judged_by_the_groups_of_the_cgroupfs_driver() {
    static_pods_are_judged_by_the_groups_of_their_kubelets_uid(Driver::Cgroupfs);
}

#[test]
fn static_pods_are_judged_by_the_groups_of_the_systemd_driver() {
    static_pods_are_judged_by_the_groups_of_their_kubelets_uid(Driver::Systemd);
}
