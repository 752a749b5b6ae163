//! An API server and a node with two pods, and what the tests ask and change there.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use policy_tests::agent::{Agent, program_path};
use policy_tests::cluster::{ApiServer, Client, Options};
use policy_tests::net::{Attach, Echo, Host, Node, Topology, answers, is_answered};
use policy_tests::scenario::root;
use serde_json::{Value, json};

/// Longest that anything may take on a machine that is busy with other suites.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const PORT: u16 = 7000;
pub(crate) const A: &str = "10.244.0.10";
pub(crate) const B: &str = "10.244.0.11";
/// The account whose role is the shipped one.
pub(crate) const USER: &str = "agent";

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// An API server and a node with two pods, `a` and `b`; `b` answers. The server listens inside the node.
pub(crate) struct Setup {
    // The agent goes first on drop: it must not see its node fall apart.
    pub(crate) agent: Agent,
    pub(crate) api: ApiServer,
    a: Arc<Host>,
    pub(crate) node: Node,
    _echo: Echo,
}

impl Setup {
    /// Without an agent, and without objects but the node's.
    pub(crate) fn new() -> Self {
        Self::with(&[])
    }

    /// With further flags of the API server.
    pub(crate) fn with(flags: &[&str]) -> Self {
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        Self::on(Options { flags, ..Options::default() })
    }

    /// With such an API server.
    pub(crate) fn on(options: Options) -> Self {
        let mut node = Node::new(Topology::Ptp).unwrap();
        let a = node.add("a", Attach::Pod, &[ip(A)]).unwrap();
        let b = node.add("b", Attach::Pod, &[ip(B)]).unwrap();
        let options = Options { users: vec![USER.to_owned()], ..options };
        let api = node.ns().run(|| ApiServer::start_with(options)).unwrap();
        let agent = Agent::new(&node).unwrap().kubeconfig(&api.kubeconfig);
        let echo = Echo::new(&b.ns, SocketAddr::new(ip(B), PORT)).unwrap();
        let setup = Self { agent, api, a, node, _echo: echo };
        setup.admin(|admin| {
            admin
                .create(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}}))
                .unwrap();
            admin.create(&namespace(&json!({"team": "a"}))).unwrap();
        });
        setup
    }

    /// With the pods `a` and `b`, and the agent enforcing.
    pub(crate) fn started() -> Self {
        let mut setup = Self::new();
        setup.pod("a", A);
        setup.pod("b", B);
        setup.agent.start().unwrap();
        setup.agent.wait().unwrap();
        setup
    }

    /// Asks the API server as its administrator.
    pub(crate) fn admin<T: Send>(&self, ask: impl FnOnce(&Client) -> T + Send) -> T {
        let client = self.api.admin();
        self.node.ns().run(|| ask(&client))
    }

    /// Stops, starts or cuts the API server.
    pub(crate) fn server<T: Send>(&mut self, act: impl FnOnce(&mut ApiServer) -> T + Send) -> T {
        let api = &mut self.api;
        self.node.ns().run(|| act(api))
    }

    pub(crate) fn apply(&self, object: &Value) {
        self.admin(|admin| admin.apply(object)).unwrap();
    }

    pub(crate) fn delete(&self, kind: &str, name: &str) {
        let version = if kind == "NetworkPolicy" { "networking.k8s.io/v1" } else { "v1" };
        let object =
            json!({"apiVersion": version, "kind": kind, "metadata": {"namespace": "shop", "name": name}});
        self.admin(|admin| admin.delete(&object)).unwrap();
    }

    /// A running pod of this node.
    pub(crate) fn pod(&self, name: &str, address: &str) {
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": "shop", "name": name, "labels": {"app": name}},
            "spec": {"nodeName": "node-1", "containers": [{"name": "c", "image": "i"}]}});
        self.admin(|admin| admin.create(&pod)).unwrap();
        pod["status"] = json!({"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]});
        self.admin(|admin| admin.merge_status(&pod)).unwrap();
    }

    pub(crate) fn label(&self, kind: &str, name: &str, labels: &Value) {
        let mut metadata = json!({"name": name, "labels": labels});
        if kind == "Pod" {
            metadata["namespace"] = "shop".into();
        }
        let patch = json!({"apiVersion": "v1", "kind": kind, "metadata": metadata});
        self.admin(|admin| admin.merge(&patch)).unwrap();
    }

    /// Whether one of three datagrams from `a` to `b` is answered.
    pub(crate) fn reaches(&self) -> bool {
        answers(&self.a.ns, ip(A), SocketAddr::new(ip(B), PORT)).unwrap()
    }

    /// The same where one must be, however long it takes.
    pub(crate) fn must_reach(&self, why: &str) {
        let reached = self.reaches_at(SocketAddr::new(ip(B), PORT), true);
        assert!(reached, "{why}; log:\n{}", self.agent.log());
    }

    /// Whether datagrams from `a` to another address, of which `b` answers, are answered, where that is `wanted` or not:
    /// what must be answered may take as long as it likes.
    pub(crate) fn reaches_at(&self, to: SocketAddr, wanted: bool) -> bool {
        let ask = if wanted { is_answered } else { answers };
        ask(&self.a.ns, ip(A), to).unwrap()
    }

    /// Enforced as the API server has it now.
    pub(crate) fn expect(&mut self, reaches: bool, why: &str) {
        self.agent.wait().unwrap();
        let reached = self.reaches_at(SocketAddr::new(ip(B), PORT), reaches);
        assert_eq!(reached, reaches, "{why}; log:\n{}", self.agent.log());
    }

    pub(crate) fn status(&self) -> Value {
        let output = self.agent.ctl(["status", "--output", "json"]).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Waits until the status, as text, says so.
    pub(crate) fn until_status(&self, wanted: impl Fn(&Value) -> bool, what: &str) {
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

    pub(crate) fn source(&self) -> Value {
        self.status()["sources"][0].clone()
    }

    pub(crate) fn plan(&self) -> Value {
        self.status()["enforcement"].clone()
    }

    /// The shipped ClusterRole with one of its rules changed, given to the agent's account.
    pub(crate) fn role(&self, change: impl Fn(&mut Value)) {
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
    pub(crate) fn run(&self, arguments: &[&str], change: impl FnOnce(&mut Command)) -> Output {
        let mut command = Command::new(program_path("policy-agent").unwrap());
        self.node.ns().enter_command(&mut command).unwrap();
        command.args(["run", "--node-name", "node-1", "--once"]).args(arguments);
        command.arg("--bpffs").arg(self.agent.bpffs()).arg("--state-dir").arg(self.agent.state_dir());
        command.arg("--socket").arg(self.agent.socket()).stdin(Stdio::null()).env("NO_COLOR", "1");
        change(&mut command);
        command.output().unwrap()
    }

    pub(crate) fn kubeconfig(&self, name: &str, token: &str) -> std::path::PathBuf {
        let path = self.api.kubeconfig.with_file_name(name);
        fs::write(&path, self.api.kubeconfig_for(token).unwrap()).unwrap();
        path
    }
}

pub(crate) fn namespace(labels: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": labels}})
}

pub(crate) fn policy(spec: &Value) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "shop", "name": "p"}, "spec": spec})
}

/// Only these may reach `b`.
pub(crate) fn from(peer: &Value) -> Value {
    policy(&json!({"podSelector": {"matchLabels": {"app": "b"}}, "ingress": [{"from": [peer]}]}))
}

pub(crate) fn deny() -> Value {
    policy(&json!({"podSelector": {}}))
}
