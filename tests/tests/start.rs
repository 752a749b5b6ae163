//! Pods that start while the agent runs: nothing of an isolated pod goes before its policy, and whoever waits is told.
#![expect(clippy::unwrap_used, reason = "a helper of a test that fails is a failed test")]

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use policy_tests::agent::{Agent, program_path};
use policy_tests::net::{Attach, Host, Node, Topology};
use policy_tests::probe::pace::quiet;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);
/// How long the plugin waits for what must come, in seconds.
const LONG: u64 = 60;
const PORT: u16 = 7000;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn pod(name: &str, uid: &str, addresses: &[&str]) -> String {
    let addresses: Vec<String> = addresses.iter().map(|ip| format!("{{ip: {ip}}}")).collect();
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, uid: {uid}, labels: {{app: {name}}}}}\n\
         spec: {{nodeName: node-1}}\nstatus: {{phase: Pending, podIPs: [{}]}}\n",
        addresses.join(", ")
    )
}

/// Isolates pod `new`; pod `friend` may talk to it.
const POLICY: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
    metadata: {name: guard, namespace: shop}\nspec:\n  podSelector: {matchLabels: {app: new}}\n  \
    policyTypes: [Ingress, Egress]\n  ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}]}]\n";

/// Pods `friend` and `stranger` run; pod `new` is known and has no address.
struct Setup {
    // The agent goes first on drop: it must not see its node fall apart.
    agent: Agent,
    friend: Arc<Host>,
    stranger: Arc<Host>,
    node: Node,
}

impl Setup {
    fn new(policy: &str, arguments: &[&str]) -> Self {
        let mut node = Node::new(Topology::Ptp).unwrap();
        let friend = node.add("friend", Attach::Pod, &[ip("10.244.0.10")]).unwrap();
        let stranger = node.add("stranger", Attach::Pod, &[ip("10.244.0.11")]).unwrap();
        let mut agent = Agent::new(&node).unwrap().arguments(arguments);
        agent.write_manifest("friend.yaml", &pod("friend", "u-1", &["10.244.0.10"])).unwrap();
        agent.write_manifest("stranger.yaml", &pod("stranger", "u-2", &["10.244.0.11"])).unwrap();
        agent.write_manifest("new.yaml", &pod("new", "u-3", &[])).unwrap();
        agent.write_manifest("policy.yaml", policy).unwrap();
        agent.start().unwrap();
        agent.wait().unwrap();
        Self { agent, friend, stranger, node }
    }

    /// The runtime makes the interface of pod `new`, and a process answers in it.
    fn begin(&mut self) -> (Arc<Host>, UdpSocket) {
        let host = self.node.add("new", Attach::Pod, &[ip("10.244.0.12")]).unwrap();
        let socket = host.ns.run(|| UdpSocket::bind(("10.244.0.12", PORT)).unwrap());
        socket.set_nonblocking(true).unwrap();
        (host, socket)
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.agent.ctl(arguments.iter().copied().chain(["--output", "json"])).unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
    }

    fn programs(&self, host: &Host) -> usize {
        use aya_obj::generated::bpf_attach_type::{BPF_TCX_EGRESS, BPF_TCX_INGRESS};
        let index = self.node.rtnl().link(&host.host_link).unwrap().index;
        let query = |hook| policy_agent::datapath::bpf::query_tcx(index, hook).unwrap().len();
        self.node.ns().run(|| [BPF_TCX_INGRESS, BPF_TCX_EGRESS].into_iter().map(query).sum())
    }

    /// Filters on both sides of a pod's interface.
    fn filters(&self, host: &Host) -> String {
        let show = |side: &str| {
            let mut tc = Command::new("tc");
            self.node.ns().enter_command(&mut tc).unwrap();
            let output = tc.args(["filter", "show", "dev", &host.host_link, side]).output().unwrap();
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        ["ingress", "egress"].map(show).concat()
    }

    fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !holds() {
            assert!(Instant::now() < end, "never: {what}; log:\n{}", self.agent.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Whether one of three datagrams from one pod arrives at the socket of another.
fn arrives(from: &Host, address: &str, to: &UdpSocket) -> bool {
    let socket = from.ns.run(|| UdpSocket::bind((address, 0)).unwrap());
    let target: SocketAddr = to.local_addr().unwrap();
    (0..3).any(|_| {
        socket.send_to(b"ping", target).unwrap();
        quiet(Duration::from_millis(200)).unwrap();
        to.recv(&mut [0; 16]).is_ok()
    })
}

/// Whether datagrams that are sent now arrive, however long they take.
fn must_arrive(from: &Host, address: &str, to: &UdpSocket) -> bool {
    let socket = from.ns.run(|| UdpSocket::bind((address, 0)).unwrap());
    let target: SocketAddr = to.local_addr().unwrap();
    let end = Instant::now() + PATIENCE;
    (0..3).for_each(|_| assert_eq!(socket.send_to(b"ping", target).unwrap(), 4));
    let mut heard = 0;
    // All of them, so that none is taken for a later one.
    while heard < 3 && Instant::now() < end {
        heard += u32::from(to.recv(&mut [0; 16]).is_ok());
        std::thread::sleep(Duration::from_millis(1));
    }
    heard == 3
}

#[test]
fn an_interface_that_may_be_an_isolated_pods_is_closed_until_the_pod_is_known() {
    let mut setup = Setup::new(POLICY, &[]);
    let (host, socket) = setup.begin();
    setup.until("the new interface is hooked", || setup.programs(&host) == 2);
    assert!(!arrives(&setup.friend, "10.244.0.10", &socket), "nobody is known to be a friend yet");
    assert!(!arrives(&setup.stranger, "10.244.0.11", &socket));
    setup.until("the reason is told", || {
        let flows = setup.agent.ctl(["monitor", "--last", "20", "--output", "json"]).unwrap();
        String::from_utf8_lossy(&flows.stdout).contains("policy_pending")
    });
    let waited = setup.agent.ctl(["wait", "--timeout", "50ms", "--pod", "shop/new"]).unwrap();
    assert_eq!(waited.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&waited.stderr).contains("shop/new is not enforced"), "{waited:?}");
    // The API tells the address: the interface is the pod's, and was it all the time.
    setup.agent.write_manifest("new.yaml", &pod("new", "u-3", &["10.244.0.12"])).unwrap();
    let waited = setup.agent.ctl(["wait", "--timeout", "60s", "--pod", "shop/new"]).unwrap();
    assert!(waited.status.success(), "{waited:?}");
    assert!(must_arrive(&setup.friend, "10.244.0.10", &socket));
    assert!(!arrives(&setup.stranger, "10.244.0.11", &socket));
    let endpoints = setup.json(&["get", "endpoints"]);
    let all = endpoints["endpoints"].as_array().unwrap();
    let new = all.iter().find(|e| e["pod"] == "new").unwrap();
    assert_eq!(
        (&new["state"], &new["started_unprotected"]),
        (&json!("ENDPOINT_STATE_ENFORCED"), &json!(false))
    );
}

/// A network plugin gives an address away before the API forgets the pod that had it.
#[test]
fn a_new_pod_is_not_taken_for_the_ending_one_whose_address_it_has() {
    let mut setup = Setup::new(POLICY, &[]);
    let ending = pod("stranger", "u-2", &["10.244.0.11"])
        .replace("uid: u-2", "uid: u-2, deletionTimestamp: \"2024-01-01T00:00:00Z\"");
    setup.agent.write_manifest("stranger.yaml", &ending).unwrap();
    setup.agent.wait().unwrap();
    setup.node.remove("stranger").unwrap();
    setup.agent.wait().unwrap();
    let host = setup.node.add("new", Attach::Pod, &[ip("10.244.0.11")]).unwrap();
    let socket = host.ns.run(|| UdpSocket::bind(("10.244.0.11", PORT)).unwrap());
    socket.set_nonblocking(true).unwrap();
    setup.until("the new interface is hooked", || setup.programs(&host) == 2);
    assert!(!arrives(&setup.friend, "10.244.0.10", &socket), "nobody isolates the one that is ending");
    setup.agent.write_manifest("new.yaml", &pod("new", "u-3", &["10.244.0.11"])).unwrap();
    let waited = setup.agent.ctl(["wait", "--timeout", "60s", "--pod", "shop/new"]).unwrap();
    assert!(waited.status.success(), "{waited:?}");
    assert!(must_arrive(&setup.friend, "10.244.0.10", &socket), "the new one's policy");
    let stranger = setup.node.add("stranger-2", Attach::Pod, &[ip("10.244.0.13")]).unwrap();
    assert!(!arrives(&stranger, "10.244.0.13", &socket));
}

#[test]
fn pods_that_no_policy_isolates_and_interfaces_of_others_are_not_held_up() {
    let mut setup = Setup::new("", &[]);
    let (host, socket) = setup.begin();
    assert!(must_arrive(&setup.stranger, "10.244.0.11", &socket), "no policy: nothing to wait for");
    assert_eq!(setup.programs(&host), 0);
    let mut setup = Setup::new(POLICY, &["--unknown-pods", "pass"]);
    let (host, socket) = setup.begin();
    assert!(must_arrive(&setup.stranger, "10.244.0.11", &socket), "as the setting says");
    assert_eq!(setup.programs(&host), 0);
}

#[test]
fn what_passed_before_the_first_hook_is_told() {
    let mut node = Node::new(Topology::Ptp).unwrap();
    let talker = node.add("friend", Attach::Pod, &[ip("10.244.0.10")]).unwrap();
    node.add("stranger", Attach::Pod, &[ip("10.244.0.11")]).unwrap();
    let socket = talker.ns.run(|| UdpSocket::bind(("10.244.0.10", 0)).unwrap());
    for _ in 0..100 {
        socket.send_to(b"early", ("10.244.0.11", PORT)).unwrap();
    }
    let mut agent = Agent::new(&node).unwrap();
    agent.write_manifest("friend.yaml", &pod("friend", "u-1", &["10.244.0.10"])).unwrap();
    agent.start().unwrap();
    agent.wait().unwrap();
    let output = agent.ctl(["get", "endpoints", "--output", "json"]).unwrap();
    let endpoints: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(endpoints["endpoints"][0]["started_unprotected"], true, "{endpoints}");
}

/// Runs the plugin as a runtime does.
fn plugin(setup: &Setup, command: &str, uid: &str, address: &str, timeout: u64) -> Output {
    let config = json!({
        "cniVersion": "1.0.0", "name": "net", "type": "policy-agent-cni",
        "socket": setup.agent.socket(), "timeoutSeconds": timeout,
        "prevResult": {"cniVersion": "1.0.0",
            "interfaces": [{"name": "eth0", "sandbox": "/run/netns/x"}],
            "ips": [{"address": format!("{address}/32"), "interface": 0}]}
    });
    let mut child = Command::new(program_path("policy-agent-cni").unwrap())
        .env_clear()
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", "c")
        .env("CNI_IFNAME", "eth0")
        .env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=new;K8S_POD_UID={uid}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn the_plugin_returns_when_the_policy_is_in_force_though_the_api_knows_no_address() {
    let mut setup = Setup::new(POLICY, &["--unknown-pods", "pass"]);
    let (host, socket) = setup.begin();
    let output = plugin(&setup, "ADD", "u-3", "10.244.0.12", LONG);
    assert!(output.status.success(), "{output:?}\n{}", setup.agent.log());
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["ips"][0]["address"], "10.244.0.12/32", "the earlier plugins' result");
    // No waiting from here on: the word of the plugin is the promise.
    assert!(!arrives(&setup.stranger, "10.244.0.11", &socket));
    assert!(must_arrive(&setup.friend, "10.244.0.10", &socket));
    if policy_agent::datapath::tcx_supported() {
        setup.until("links are in the place of filters", || {
            setup.programs(&host) == 2 && setup.filters(&host).is_empty()
        });
        assert!(!arrives(&setup.stranger, "10.244.0.11", &socket));
        assert!(must_arrive(&setup.friend, "10.244.0.10", &socket));
    }
    assert!(plugin(&setup, "CHECK", "u-3", "10.244.0.12", LONG).status.success());
    // The API catches up, and nothing changes.
    setup.agent.write_manifest("new.yaml", &pod("new", "u-3", &["10.244.0.12"])).unwrap();
    setup.agent.wait().unwrap();
    assert!(!arrives(&setup.stranger, "10.244.0.11", &socket));
    assert!(must_arrive(&setup.friend, "10.244.0.10", &socket));
    assert!(plugin(&setup, "DEL", "u-3", "10.244.0.12", 1).status.success());
}

#[test]
fn the_plugin_fails_when_nobody_can_promise_anything() {
    let mut setup = Setup::new(POLICY, &[]);
    let refused = |output: Output, why: &str| {
        assert!(!output.status.success(), "{output:?}");
        let error: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&error["code"], &error["cniVersion"]), (&json!(100), &json!("1.0.0")));
        assert!(error["details"].as_str().unwrap().contains(why), "{why:?} in {error}");
    };
    refused(plugin(&setup, "ADD", "u-3", "10.244.0.12", 0), "no interface of this node leads to 10.244.0.12");
    let (_host, socket) = setup.begin();
    assert!(plugin(&setup, "ADD", "u-3", "10.244.0.12", LONG).status.success());
    assert!(!arrives(&setup.stranger, "10.244.0.11", &socket));
    setup.agent.kill().unwrap();
    refused(plugin(&setup, "ADD", "u-3", "10.244.0.12", 0), "cannot reach the agent");
    assert!(plugin(&setup, "DEL", "u-3", "10.244.0.12", 0).status.success(), "a pod can always be removed");
}
