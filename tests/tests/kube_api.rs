//! The agent on a real API server: lists, watches, outages, lost history, permissions and credentials, with real packets.
#![expect(clippy::unwrap_used, reason = "a helper of a test that fails is a failed test")]

use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use policy_tests::agent::{Agent, program_path};
use policy_tests::cluster::{ApiServer, Client, Options};
use policy_tests::net::{Attach, Host, Node, Topology};
use policy_tests::scenario::root;
use serde_json::{Value, json};

/// Longest that anything may take on a machine that is busy with other suites.
const PATIENCE: Duration = Duration::from_secs(60);
const PORT: u16 = 7000;
const A: &str = "10.244.0.10";
const B: &str = "10.244.0.11";
/// The account whose role is the shipped one.
const USER: &str = "agent";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// An API server and a node with two pods, `a` and `b`; `b` answers. The server listens inside the node.
struct Setup {
    // The agent goes first on drop: it must not see its node fall apart.
    agent: Agent,
    api: ApiServer,
    a: Arc<Host>,
    node: Node,
    ending: Arc<AtomicBool>,
    echo: Option<JoinHandle<()>>,
}

impl Setup {
    /// Without an agent, and without objects but the node's.
    fn new() -> Self {
        Self::with(&[])
    }

    /// With further flags of the API server.
    fn with(flags: &[&str]) -> Self {
        let mut node = Node::new(Topology::Ptp).unwrap();
        let a = node.add("a", Attach::Pod, &[ip(A)]).unwrap();
        let b = node.add("b", Attach::Pod, &[ip(B)]).unwrap();
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let options = Options { users: vec![USER.to_owned()], flags };
        let api = node.ns().run(|| ApiServer::start_with(options)).unwrap();
        let agent = Agent::new(&node).unwrap().kubeconfig(&api.kubeconfig);
        let ending = Arc::new(AtomicBool::new(false));
        let stop = ending.clone();
        let socket = b.ns.run(|| UdpSocket::bind((B, PORT)).unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let echo = thread::spawn(move || {
            let mut bytes = [0; 64];
            while !stop.load(Ordering::Relaxed) {
                if let Ok((n, from)) = socket.recv_from(&mut bytes) {
                    drop(socket.send_to(&bytes[..n], from));
                }
            }
        });
        let setup = Self { agent, api, a, node, ending, echo: Some(echo) };
        setup.admin(|admin| {
            admin
                .create(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}}))
                .unwrap();
            admin.create(&namespace(&json!({"team": "a"}))).unwrap();
        });
        setup
    }

    /// With the pods `a` and `b`, and the agent enforcing.
    fn started() -> Self {
        let mut setup = Self::new();
        setup.pod("a", A);
        setup.pod("b", B);
        setup.agent.start().unwrap();
        setup.agent.wait().unwrap();
        setup
    }

    /// Asks the API server as its administrator.
    fn admin<T: Send>(&self, ask: impl FnOnce(&Client) -> T + Send) -> T {
        let client = self.api.admin();
        self.node.ns().run(|| ask(&client))
    }

    /// Stops, starts or cuts the API server.
    fn server<T: Send>(&mut self, act: impl FnOnce(&mut ApiServer) -> T + Send) -> T {
        let api = &mut self.api;
        self.node.ns().run(|| act(api))
    }

    fn apply(&self, object: &Value) {
        self.admin(|admin| admin.apply(object)).unwrap();
    }

    fn delete(&self, kind: &str, name: &str) {
        let version = if kind == "NetworkPolicy" { "networking.k8s.io/v1" } else { "v1" };
        let object =
            json!({"apiVersion": version, "kind": kind, "metadata": {"namespace": "shop", "name": name}});
        self.admin(|admin| admin.delete(&object)).unwrap();
    }

    /// A running pod of this node.
    fn pod(&self, name: &str, address: &str) {
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": "shop", "name": name, "labels": {"app": name}},
            "spec": {"nodeName": "node-1", "containers": [{"name": "c", "image": "i"}]}});
        self.admin(|admin| admin.create(&pod)).unwrap();
        pod["status"] = json!({"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]});
        self.admin(|admin| admin.merge_status(&pod)).unwrap();
    }

    fn label(&self, kind: &str, name: &str, labels: &Value) {
        let mut metadata = json!({"name": name, "labels": labels});
        if kind == "Pod" {
            metadata["namespace"] = "shop".into();
        }
        let patch = json!({"apiVersion": "v1", "kind": kind, "metadata": metadata});
        self.admin(|admin| admin.merge(&patch)).unwrap();
    }

    /// Whether a datagram from `a` to `b` is answered: three tries, in case one got lost.
    fn reaches(&self) -> bool {
        let socket = self.a.ns.run(|| UdpSocket::bind((A, 0)).unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        (0..3).any(|_| {
            socket.send_to(b"ping", SocketAddr::new(ip(B), PORT)).unwrap();
            socket.recv(&mut [0; 16]).is_ok()
        })
    }

    /// Enforced as the API server has it now.
    fn expect(&mut self, reaches: bool, why: &str) {
        self.agent.wait().unwrap();
        assert_eq!(self.reaches(), reaches, "{why}; log:\n{}", self.agent.log());
    }

    fn status(&self) -> Value {
        let output = self.agent.ctl(["status", "--output", "json"]).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Waits until the status, as text, says so.
    fn until_status(&self, wanted: impl Fn(&Value) -> bool, what: &str) {
        let end = Instant::now() + PATIENCE;
        loop {
            let status = self.status();
            if wanted(&status) {
                return;
            }
            assert!(Instant::now() < end, "{what}: {status}\nlog:\n{}", self.agent.log());
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn source(&self) -> Value {
        self.status()["sources"][0].clone()
    }

    fn plan(&self) -> Value {
        self.status()["enforcement"].clone()
    }

    /// The shipped ClusterRole with one of its rules changed, given to the agent's account.
    fn role(&self, change: impl Fn(&mut Value)) {
        let text = fs::read_to_string(root().join("deploy/base/rbac.yaml")).unwrap();
        let mut documents = serde_norway::Deserializer::from_str(&text)
            .map(|document| <Value as serde::Deserialize>::deserialize(document).unwrap());
        let mut role = documents.find(|document| document["kind"] == "ClusterRole").unwrap();
        role["metadata"] = json!({"name": "policy-agent"});
        role["rules"].as_array_mut().unwrap().iter_mut().for_each(change);
        self.apply(&role);
        self.node.ns().run(|| self.api.bind(USER, "policy-agent")).unwrap();
    }

    /// Runs `policy-agent run` on the node to its end.
    fn run(&self, arguments: &[&str], change: impl FnOnce(&mut Command)) -> Output {
        let mut command = Command::new(program_path("policy-agent").unwrap());
        self.node.ns().enter_command(&mut command).unwrap();
        command.args(["run", "--node-name", "node-1", "--once"]).args(arguments);
        command.arg("--bpffs").arg(self.agent.bpffs()).arg("--state-dir").arg(self.agent.state_dir());
        command.arg("--socket").arg(self.agent.socket()).stdin(Stdio::null()).env("NO_COLOR", "1");
        change(&mut command);
        command.output().unwrap()
    }

    fn kubeconfig(&self, name: &str, token: &str) -> std::path::PathBuf {
        let path = self.api.kubeconfig.with_file_name(name);
        fs::write(&path, self.api.kubeconfig_for(token).unwrap()).unwrap();
        path
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        drop(self.echo.take().map(JoinHandle::join));
    }
}

fn namespace(labels: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": labels}})
}

fn policy(spec: &Value) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "shop", "name": "p"}, "spec": spec})
}

/// Only these may reach `b`.
fn from(peer: &Value) -> Value {
    policy(&json!({"podSelector": {"matchLabels": {"app": "b"}}, "ingress": [{"from": [peer]}]}))
}

fn deny() -> Value {
    policy(&json!({"podSelector": {}}))
}

#[test]
fn what_the_api_server_holds_is_enforced_and_every_change_of_it() {
    let mut setup = Setup::new();
    setup.apply(&deny());
    setup.pod("a", A);
    setup.pod("b", B);
    setup.agent.start().unwrap();
    setup.expect(false, "the policy was there before the agent");
    assert_eq!(setup.source()["kind"], "kubernetes");

    setup.apply(&from(&json!({"podSelector": {"matchLabels": {"app": "a"}}})));
    setup.expect(true, "the policy changed");
    setup.label("Pod", "a", &json!({"app": "other"}));
    setup.expect(false, "the pod has another label");
    setup.label("Pod", "a", &json!({"app": "a"}));
    setup.expect(true, "and its own again");
    setup.apply(&from(&json!({"namespaceSelector": {"matchLabels": {"team": "b"}}})));
    setup.expect(false, "the namespace has another label");
    setup.label("Namespace", "shop", &json!({"team": "b"}));
    setup.expect(true, "the namespace's label changed");

    // The client finishes, and a pod with another label gets its address at once.
    setup.apply(&from(&json!({"podSelector": {"matchLabels": {"app": "a"}}})));
    setup.expect(true, "the client may");
    let done = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "shop", "name": "a"},
        "status": {"phase": "Succeeded"}});
    setup.admin(|admin| admin.merge_status(&done)).unwrap();
    setup.pod("next", A);
    setup.expect(false, "the address is another pod's now");
    setup.delete("Pod", "a");
    setup.expect(false, "the first pod's end changes nothing");
    setup.delete("Pod", "next");
    setup.pod("a", A);
    setup.expect(true, "a pod of the same name and address, made again");
    let claim = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "shop", "name": "b",
        "annotations": {"policy-agent.io/interface": "lo"}}});
    setup.admin(|admin| admin.merge(&claim)).unwrap();
    setup.apply(&deny());
    setup.expect(false, "a tenant's annotation does not move the hook");
    setup.delete("NetworkPolicy", "p");
    setup.expect(true, "no policy any more");
}

#[test]
fn an_outage_and_a_lost_history_change_nothing_but_what_changed() {
    let mut setup = Setup::started();
    setup.apply(&deny());
    setup.expect(false, "denied");
    let plan = setup.plan();
    setup.server(ApiServer::stop);
    setup.until_status(
        |s| s["sources"][0]["error"].as_str().is_some_and(|e| e.contains("cannot be reached")),
        "told",
    );
    assert!(!setup.reaches(), "still denied");
    let output = setup.agent.ctl(["wait", "--timeout", "300ms"]).unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "what the server holds is not known: {told}");
    assert!(told.contains("cannot be reached") && told.contains("has arrived"), "{told}");
    assert_eq!((setup.status()["ready"].clone(), setup.plan()), (true.into(), plan.clone()));
    setup.server(ApiServer::restart).unwrap();
    setup.expect(false, "and the same when the server is back");
    assert_eq!(setup.plan(), plan, "nothing was written");
    setup.apply(&from(&json!({"podSelector": {}})));
    setup.expect(true, "changes arrive again");

    // While the agent sleeps the policy goes and comes under another name, and all history is lost.
    let pid = setup.agent.pid().unwrap().cast_signed();
    // SAFETY: a signal to a child that runs.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGSTOP) }, 0);
    setup.delete("NetworkPolicy", "p");
    let mut other = deny();
    other["metadata"]["name"] = "q".into();
    setup.apply(&other);
    setup.server(|api| {
        api.stop();
        api.compact().unwrap();
        api.restart().unwrap();
    });
    // SAFETY: as above.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGCONT) }, 0);
    setup.expect(false, "the difference of the new list is in force");
    let policies = setup.agent.ctl(["get", "policies", "--output", "json"]).unwrap();
    let policies = String::from_utf8_lossy(&policies.stdout).into_owned();
    assert!(policies.contains("\"q\"") && !policies.contains("\"p\""), "{policies}");
    let endpoints = setup.status()["endpoints"].clone();
    assert_eq!(endpoints["enforced"], 2, "{endpoints}");
}

#[test]
fn a_server_that_comes_late_is_waited_for_and_nothing_is_enforced_before() {
    let mut setup = Setup::new();
    setup.pod("a", A);
    setup.pod("b", B);
    setup.apply(&deny());
    setup.server(ApiServer::stop);
    setup.agent.start().unwrap();
    setup.until_status(|s| s["sources"][0]["missing"].to_string().contains("cannot be reached"), "told");
    assert_eq!(setup.source()["missing"].as_array().map(Vec::len), Some(5), "{}", setup.source());
    assert!(setup.reaches(), "nobody knows any policy yet");
    setup.server(ApiServer::restart).unwrap();
    setup.expect(false, "the server came");
    // The next agent finds no server: what the first one left stays.
    setup.agent.kill().unwrap();
    setup.server(ApiServer::stop);
    setup.agent.start().unwrap();
    setup.until_status(|s| s["sources"][0]["missing"].to_string().contains("cannot be reached"), "told");
    assert!(!setup.reaches(), "an agent that knows nothing opens nothing");
    setup.server(ApiServer::restart).unwrap();
    setup.expect(false, "and knows it again");
}

#[test]
fn a_missing_permission_is_named_until_it_is_there() {
    let mut setup = Setup::new();
    setup.pod("a", A);
    setup.pod("b", B);
    setup.apply(&deny());
    let without_watch = |rule: &mut Value| {
        if rule["resources"].to_string().contains("networkpolicies") {
            rule["verbs"].as_array_mut().unwrap().retain(|verb| verb != "watch");
        }
    };
    setup.role(without_watch);
    let file = setup.kubeconfig("user", &format!("{USER}-token"));
    setup.agent = Agent::new(&setup.node).unwrap().kubeconfig(&file);
    setup.agent.start().unwrap();
    let rule =
        r#"{apiGroups: [\"networking.k8s.io\"], resources: [\"networkpolicies\"], verbs: [\"watch\"]}"#;
    let named = |s: &Value| {
        let missing = s["sources"][0]["missing"].to_string();
        // The others are read meanwhile.
        let one = s["sources"][0]["missing"].as_array().map(Vec::len) == Some(1);
        one && missing.contains("forbids to watch networkpolicies (403)") && missing.contains(rule)
    };
    setup.until_status(named, "the missing verb");
    assert!(setup.reaches() && setup.status()["ready"] == false, "nothing is enforced without policies");
    assert!(setup.agent.log().contains("forbids to watch networkpolicies"), "{}", setup.agent.log());
    setup.role(|_| ());
    setup.until_status(|s| s["ready"] == true, "ready with the shipped role");
    setup.expect(false, "and nothing more than the shipped role");
}

#[test]
fn credentials_and_configurations_that_are_wrong_are_told() {
    let setup = Setup::new();
    let wrong = setup.kubeconfig("wrong", "no-such-token");
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let told = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let output = setup.run(&["--kubeconfig", &text(&wrong)], |_| {});
    assert_eq!(output.status.code(), Some(8), "--once: {}", told(&output));
    assert!(
        told(&output).contains("credentials (401)") && told(&output).contains("has expired"),
        "{}",
        told(&output)
    );

    let foreign = setup.kubeconfig("foreign", &setup.api.token);
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&foreign).unwrap()).unwrap();
    config["clusters"][0]["cluster"].as_object_mut().unwrap().remove("certificate-authority");
    fs::write(&foreign, config.to_string()).unwrap();
    let output = setup.run(&["--kubeconfig", &text(&foreign)], |_| {});
    assert_eq!(output.status.code(), Some(8), "{}", told(&output));
    assert!(told(&output).contains("certificate-authority"), "{}", told(&output));

    let broken = setup.kubeconfig("broken", "x");
    fs::write(&broken, "clusters: {").unwrap();
    let good = text(&setup.api.kubeconfig);
    let cases: [&[&str]; 3] = [
        &["--kubeconfig", "/nonexistent/kubeconfig"],
        &["--kubeconfig", &text(&broken)],
        &["--kubeconfig", &good, "--context", "elsewhere"],
    ];
    for case in cases {
        let output = setup.run(case, |_| {});
        assert_eq!(output.status.code(), Some(9), "{case:?}: {}", told(&output));
        assert!(told(&output).contains("hint: give --kubeconfig"), "{case:?}: {}", told(&output));
    }
    let homeless = |command: &mut Command| {
        command.env_remove("KUBECONFIG").env("HOME", "/nonexistent");
    };
    let output = setup.run(&[], homeless);
    assert_eq!(output.status.code(), Some(9), "{}", told(&output));
    assert!(told(&output).contains("--manifests DIR"), "{}", told(&output));
    let output = setup.run(&["--kubeconfig", &good, "--context", "test"], |_| {});
    assert!(output.status.success(), "{}", told(&output));
}

#[test]
fn the_owner_of_a_policy_is_told_once_what_is_wrong_with_it() {
    // Older API servers let such blocks in, and policies outlive their servers.
    let mut setup = Setup::with(&["--feature-gates=StrictIPCIDRValidation=false"]);
    setup.role(|_| ());
    let file = setup.kubeconfig("user", &format!("{USER}-token"));
    setup.agent = Agent::new(&setup.node)
        .unwrap()
        .kubeconfig(&file)
        .arguments(&["--metrics-address", "127.0.0.1:9640"]);
    setup.apply(&policy(&json!({"podSelector": {}, "policyTypes": ["Ingress"], "egress": [{}]})));
    let mut odd = from(&json!({"ipBlock": {"cidr": "::ffff:10.0.0.0/80"}}));
    odd["metadata"]["name"] = "odd".into();
    setup.apply(&odd);
    setup.agent.start().unwrap();
    let told = |setup: &Setup| -> Vec<[String; 4]> {
        let list = setup.admin(|admin| admin.get("/apis/events.k8s.io/v1/namespaces/shop/events")).unwrap();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let event = |event: &Value| {
            ["type", "note"]
                .map(|field| text(&event[field]))
                .into_iter()
                .chain(["name", "resourceVersion"].map(|field| text(&event["regarding"][field])))
        };
        let events = list["items"].as_array().unwrap().iter();
        let mut all: Vec<[String; 4]> =
            events.map(|e| event(e).collect::<Vec<_>>().try_into().unwrap()).collect();
        all.sort();
        all
    };
    let until = |setup: &Setup, count: usize| {
        let end = Instant::now() + PATIENCE;
        while told(setup).len() < count {
            assert!(Instant::now() < end, "{:?}; log:\n{}", told(setup), setup.agent.log());
            thread::sleep(Duration::from_millis(50));
        }
        told(setup)
    };
    let first = until(&setup, 2);
    let [[kind, note, name, version], [odd_kind, odd_note, ..]] = &first[..] else { panic!("{first:?}") };
    assert_eq!((kind.as_str(), name.as_str()), ("Normal", "p"));
    assert!(note.contains("spec.egress: has no effect") && !version.is_empty(), "{first:?}");
    assert_eq!(odd_kind, "Warning");
    assert!(odd_note.contains("spec.ingress[0].from[0].ipBlock.cidr"), "{first:?}");

    // The next agent, or that of another node, finds them there.
    setup.agent.kill().unwrap();
    setup.agent.start().unwrap();
    let end = Instant::now() + PATIENCE;
    loop {
        let mut curl = Command::new("curl");
        setup.node.ns().enter_command(&mut curl).unwrap();
        let output = curl.args(["--silent", "http://127.0.0.1:9640/metrics"]).output().unwrap();
        let metrics = String::from_utf8_lossy(&output.stdout).into_owned();
        if metrics.contains("kubernetes_events_total{outcome=\"present\"} 2") {
            assert!(metrics.contains("kubernetes_events_total{outcome=\"written\"} 0"), "{metrics}");
            break;
        }
        assert!(Instant::now() < end, "{metrics}\nlog:\n{}", setup.agent.log());
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(told(&setup), first);
    // A new version that is still wrong is told again.
    odd["spec"]["policyTypes"] = json!(["Ingress"]);
    odd["spec"]["podSelector"] = json!({});
    setup.apply(&odd);
    assert_eq!(until(&setup, 3).len(), 3);
}
