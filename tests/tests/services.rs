//! Services on real packets, translated by nftables as kube-proxy does it, through the real agent: egress is judged where
//! the destination is real, ingress by who really sends.
#![expect(clippy::unwrap_used, reason = "a test that can't go on has failed")]

use aya::programs::{
    SchedClassifier, TcAttachType,
    tc::{self, NlOptions, TcAttachOptions, TcHandle},
};
use policy_agent::datapath::bpf::{self, instruction};
use policy_tests::{
    lab::Lab,
    nat::{Forward, Front, translate},
    net::{Family, Netns, Node, Topology},
    probe::{Link, Outcome, Probe, Want, ask_all, verdicts},
};
use std::{
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    time::Duration,
};

const CLUSTER: &str = "{nodes: {far: {}}, pods: {\
    x/client: {labels: {app: client}}, x/other: {labels: {app: other}}, \
    x/good: {labels: {app: good}, containers: [{name: c, ports: [{name: http, port: 8080}]}]}, \
    x/bad: {labels: {app: bad}, containers: [{name: c, ports: [{name: http, port: 8080}]}]}, \
    x/shut: {labels: {app: shut}}, \
    x/far-good: {node: far, labels: {app: good}, containers: [{name: c, ports: [{name: http, port: 8080}]}]}, \
    x/far-bad: {node: far, labels: {app: bad}}}, external: {web: {}}}";
/// The client may open to the port that pods labelled `good` call `http`; `shut` takes in the client alone.
const POLICIES: &str = "[{apply: {apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, \
    metadata: {namespace: x, name: client}, spec: {podSelector: {matchLabels: {app: client}}, \
    policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: good}}}], \
    ports: [{port: http, protocol: TCP}]}, {to: [{podSelector: {matchLabels: {app: shut}}}]}]}}}, \
    {apply: {apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, \
    metadata: {namespace: x, name: shut}, spec: {podSelector: {matchLabels: {app: shut}}, \
    policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}}}]";
const BOTH: [Family; 2] = [Family::V4, Family::V6];
/// Patience with a connection that must live, and with one that must not.
const ALIVE: Duration = Duration::from_secs(8);
const CUT: Duration = Duration::from_millis(400);

/// What should become of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Should {
    Pass,
    Vanish,
    BeRefused,
}
use Should::{BeRefused, Pass, Vanish};

/// Address number `n` of the Services.
fn cluster_ip(family: Family, n: u8) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([10, 96, 0, n]),
        Family::V6 => IpAddr::from([0xfd00, 0x96, 0, 0, 0, 0, 0, u16::from(n)]),
    }
}

/// An address outside the cluster's ranges.
fn balancer(family: Family, n: u8) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([198, 51, 100, n]),
        Family::V6 => IpAddr::from([0x2001, 0xdb8, 0x51, 0, 0, 0, 0, u16::from(n)]),
    }
}

struct Cluster {
    lab: Lab,
    forwards: Vec<Forward>,
}

impl Cluster {
    fn new(topology: Topology, arguments: &[&str]) -> Self {
        let mut lab = Lab::with_arguments(topology, CLUSTER, arguments).unwrap();
        let node = lab.node();
        // Addresses of Services lead out of the pod and, untranslated, out of the node.
        for family in BOTH {
            for ip in (1..30).flat_map(|n| [cluster_ip(family, n), balancer(family, n)]) {
                let uplink = node.rtnl().link("uplink0").unwrap().index;
                node.rtnl().add_route(ip.into(), uplink, None).unwrap();
            }
        }
        lab.act(&services()).unwrap();
        Self { lab, forwards: Vec::new() }
    }

    /// Leads the front of each family to a port of these pods.
    fn forward(&mut self, front: impl Fn(Family) -> Front, pods: &[&str], port: u16) {
        self.forwards.retain(|old| BOTH.iter().all(|family| old.front != front(*family)));
        for family in BOTH {
            let front = front(family);
            let backend = |pod: &&str| SocketAddr::new(self.lab.ip(pod, family).unwrap(), port);
            let backends: Vec<_> = pods.iter().map(backend).collect();
            match self.forwards.iter_mut().find(|forward| forward.front == front) {
                Some(forward) => forward.backends.extend(backends),
                None => self.forwards.push(Forward { front, backends }),
            }
        }
        translate(self.lab.node().ns(), &self.forwards).unwrap();
    }

    fn service(&mut self, n: u8, port: u16, pods: &[&str], target: u16) {
        self.forward(|f| Front::Address(SocketAddr::new(cluster_ip(f, n), port)), pods, target);
    }

    fn listen(&self, pods: &[&str], ports: &[u16]) {
        for port in ports {
            for name in ["TCP", "UDP"] {
                let port = format!("{name}/{port}").parse().unwrap();
                for pod in pods {
                    self.lab.listen(pod, &[port]).unwrap();
                }
            }
        }
    }

    fn probe(&self, from: &str, to: IpAddr, port: &str) -> Probe {
        let family = Family::of(to);
        let ns = self.lab.host(from).unwrap().ns.clone();
        let own = self.lab.ip(from, family).unwrap();
        Probe { ns, from: own, to, port: port.parse().unwrap(), size: 8 }
    }

    fn check(&self, from: &str, to: impl Fn(Family) -> IpAddr, port: &str, should: Should) {
        let probes = BOTH.map(|family| self.probe(from, to(family), port));
        let outcomes = match should {
            Pass => verdicts(&probes, &[Want::Answer; 2]).unwrap(),
            Vanish => verdicts(&probes, &[Want::Silence; 2]).unwrap(),
            BeRefused => ask_all(&probes, ALIVE).unwrap(),
        };
        for (family, outcome) in BOTH.into_iter().zip(outcomes) {
            let fits = match &outcome {
                Outcome::Answered(_) => should == Pass,
                Outcome::Silent => should == Vanish,
                Outcome::Refused(_) => should == BeRefused,
            };
            let topology = self.lab.node().topology();
            assert!(fits, "{from} -> {} {port} {topology:?}: {should:?}, seen {outcome:?}", to(family));
        }
    }
}

/// Objects of all Services: the agent learns their addresses, and nothing of their backends.
fn services() -> String {
    let list = |ips: Vec<IpAddr>| ips.iter().map(|ip| format!("'{ip}'")).collect::<Vec<_>>().join(", ");
    let cluster = (1..30).flat_map(|n| BOTH.map(|f| cluster_ip(f, n))).collect();
    let outer = (1..30).flat_map(|n| BOTH.map(|f| balancer(f, n))).collect();
    format!(
        "[{{apply: {{apiVersion: v1, kind: Service, metadata: {{namespace: x, name: all}}, \
         spec: {{clusterIPs: [{}], externalIPs: [{}]}}}}}}]",
        list(cluster),
        list(outer)
    )
}

fn topologies() -> [Topology; 2] {
    [Topology::Ptp, Topology::Bridge]
}

const PODS: &[&str] = &["x/client", "x/other", "x/good", "x/bad", "x/shut", "x/far-good", "x/far-bad"];

#[test]
fn every_kind_of_service_is_judged_by_its_backend() {
    for topology in topologies() {
        let mut c = Cluster::new(topology, &[]);
        c.listen(PODS, &[8080, 9090]);
        c.service(1, 80, &["x/good"], 8080);
        c.service(2, 80, &["x/bad"], 8080);
        c.service(1, 81, &["x/good"], 9090);
        c.service(3, 80, &["x/far-good"], 8080);
        c.service(4, 80, &["x/far-bad"], 8080);
        c.service(5, 80, &["x/client"], 8080);
        if topology == Topology::Bridge {
            hairpin(&c, "x/client");
        }
        c.service(6, 80, &[], 8080);
        c.service(7, 80, &["x/shut"], 8080);
        c.forward(|f| Front::Address(SocketAddr::new(balancer(f, 1), 80)), &["x/good"], 8080);
        c.forward(|f| Front::Address(SocketAddr::new(balancer(f, 2), 80)), &["x/bad"], 8080);
        for (port, pod) in [(30_080, "x/good"), (30_081, "x/bad"), (30_082, "x/shut"), (30_083, "x/far-bad")]
        {
            c.forward(|_| Front::NodePort(port), &[pod], 8080);
        }
        for (port, pod) in [(8088, "x/good"), (8089, "x/bad"), (8090, "x/shut")] {
            c.forward(|_| Front::HostPort(port), &[pod], 8080);
        }
        let own = BOTH.map(|f| c.lab.ip("node:node-1", f).unwrap());
        let node = |f: Family| own[usize::from(f == Family::V6)];
        let vip = |n| move |f| cluster_ip(f, n);
        // Without any policy every way is open, so a denial means something.
        for port in ["TCP/80", "UDP/80"] {
            for n in [1, 2, 3, 4, 5, 7] {
                c.check("x/client", vip(n), port, Pass);
            }
        }
        for port in [30_080, 30_081, 30_082, 30_083, 8088, 8089, 8090] {
            c.check("x/client", node, &format!("TCP/{port}"), Pass);
        }
        c.check("x/client", vip(1), "TCP/81", Pass);
        c.check("x/client", vip(6), "TCP/80", BeRefused);
        c.check("ext:web", node, "TCP/30082", Pass);
        c.lab.act(POLICIES).unwrap();
        for (n, port, should) in [
            (1, "TCP/80", Pass),
            (1, "UDP/80", Vanish),
            (1, "TCP/81", Vanish),
            (2, "TCP/80", Vanish),
            (2, "UDP/80", Vanish),
            (3, "TCP/80", Pass),
            (4, "TCP/80", Vanish),
            // Back to itself.
            (5, "TCP/80", Pass),
            (6, "TCP/80", BeRefused),
            (7, "UDP/80", Pass),
        ] {
            c.check("x/client", vip(n), port, should);
        }
        c.check("x/other", vip(2), "TCP/80", Pass);
        c.check("x/other", vip(7), "TCP/80", Vanish);
        c.check("x/client", |f| balancer(f, 1), "TCP/80", Pass);
        c.check("x/client", |f| balancer(f, 2), "TCP/80", Vanish);
        // The node's ports bypass neither policy, though its source address is the node's own.
        for (from, port, should) in [
            ("x/client", 30_080, Pass),
            ("x/client", 30_081, Vanish),
            ("x/client", 30_082, Pass),
            ("x/client", 30_083, Vanish),
            ("x/client", 8088, Pass),
            ("x/client", 8089, Vanish),
            ("x/client", 8090, Pass),
            ("x/other", 30_081, Pass),
            ("x/other", 30_082, Vanish),
            ("x/other", 8090, Vanish),
            ("ext:web", 30_081, Pass),
            ("ext:web", 30_082, Vanish),
            ("ext:web", 8090, Vanish),
        ] {
            c.check(from, node, &format!("TCP/{port}"), should);
        }
        // A process of the node is nobody's pod, through a Service too.
        c.check("node:node-1", vip(7), "TCP/80", Pass);
        c.lab.expect_drop("no_rule_matched");
        assert_eq!(untagged(&mut c), 0, "{topology:?}");
    }
}

/// Packets whose tag was lost, as `policyctl status` counts them since the maps were made.
fn untagged(c: &mut Cluster) -> u64 {
    let output = c.lab.agent().ctl(["status", "--output", "json"]).unwrap();
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let losses = status["losses"].as_array().expect("status lists losses");
    let loss = losses.iter().find(|loss| loss["name"] == "untagged_from_pod");
    let loss = loss.expect("status knows the counter");
    loss["count"].as_u64().expect("a count")
}

/// The agent watches no backends: whatever the translation chooses is what is judged, and a policy that tightens cuts.
#[test]
fn backends_and_policies_change_under_connections() {
    for topology in topologies() {
        let mut c = Cluster::new(topology, &[]);
        c.listen(PODS, &[8080]);
        c.lab.act(POLICIES).unwrap();
        c.service(1, 80, &["x/good"], 8080);
        let vip = |f| cluster_ip(f, 1);
        let mut links: Vec<Link> = BOTH
            .iter()
            .map(|f| Link::open(&c.probe("x/client", vip(*f), "TCP/80"), ALIVE).unwrap().expect("it opens"))
            .collect();
        c.service(1, 80, &["x/bad"], 8080);
        c.check("x/client", vip, "TCP/80", Vanish);
        assert!(links.iter_mut().all(|link| link.is_alive(ALIVE).unwrap()), "what is open stays open");
        c.service(1, 80, &["x/good"], 8080);
        c.check("x/client", vip, "TCP/80", Pass);
        c.lab.act("[{set-labels: {pod: x/good, labels: {app: gone}}}]").unwrap();
        c.check("x/client", vip, "TCP/80", Vanish);
        assert!(links.iter_mut().all(|link| !link.is_alive(CUT).unwrap()), "{topology:?}: cut at once");
        c.lab.act("[{set-labels: {pod: x/good, labels: {app: good}}}]").unwrap();
        assert!(links.iter_mut().all(|link| link.is_alive(ALIVE).unwrap()), "and mended");
        // The agent goes; the exits stay hooked, and the next agent takes them over.
        c.lab.agent().kill().unwrap();
        c.check("x/client", vip, "TCP/80", Pass);
        c.service(1, 80, &["x/bad"], 8080);
        c.check("x/client", vip, "TCP/80", Vanish);
        c.lab.agent().start().unwrap();
        c.lab.agent().wait().unwrap();
        c.check("x/client", vip, "TCP/80", Vanish);
        c.lab.act("[{delete: {kind: NetworkPolicy, namespace: x, name: client}}]").unwrap();
        c.check("x/client", vip, "TCP/80", Pass);
    }
}

/// Named in the drop: the pod that sent it, the backend that the Service chose, and the rule that came nearest.
#[test]
fn a_drop_behind_a_service_names_the_backend() {
    let mut c = Cluster::new(Topology::Ptp, &[]);
    c.listen(PODS, &[8080]);
    c.lab.act(POLICIES).unwrap();
    c.service(1, 80, &["x/bad"], 8080);
    c.check("x/client", |f| cluster_ip(f, 1), "TCP/80", Vanish);
    let output = c.lab.agent().ctl(["monitor", "--last", "100", "--output", "json"]).unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find(|line| line.contains("behind a Service")).expect(&text);
    let flow: serde_json::Value = serde_json::from_str(line).unwrap();
    let flow = flow.get("flow").unwrap_or(&flow);
    assert_eq!(flow["source"]["pod_name"], "client", "{line}");
    assert_eq!(flow["destination"]["pod_name"], "bad", "{line}");
    assert!(line.contains("nearest x/client egress[0]"), "{line}");
}

/// What somebody takes the tag from is counted, and closed where it cannot be told from what policy forbids.
#[test]
fn a_lost_tag_opens_nothing() {
    for topology in topologies() {
        let mut c = Cluster::new(topology, &["--attach", "clsact"]);
        c.listen(PODS, &[8080]);
        c.lab.act(POLICIES).unwrap();
        c.service(1, 80, &["x/good"], 8080);
        c.service(2, 80, &["x/bad"], 8080);
        c.check("x/client", |f| cluster_ip(f, 1), "TCP/80", Pass);
        assert_eq!(untagged(&mut c), 0, "{topology:?}: no program but ours is there");
        let link = c.lab.host("x/client").unwrap().host_link.clone();
        accept_everything(&c, &link);
        c.check("x/client", |f| cluster_ip(f, 2), "TCP/80", Vanish);
        let dropped = untagged(&mut c);
        // A refused segment is sent again: at least one of each family.
        assert!(dropped >= 2, "{topology:?}: {dropped}");
        c.check("x/other", |f| cluster_ip(f, 2), "TCP/80", Pass);
        assert_eq!(untagged(&mut c), dropped, "{topology:?}: the interfaces of others keep their tags");
        c.check("x/client", |f| cluster_ip(f, 1), "TCP/80", Pass);
        // Each family: the segment that opens, and all that follow it.
        assert!(untagged(&mut c) >= dropped + 4, "{topology:?}: {dropped}, then {}", untagged(&mut c));
    }
}

#[test]
fn a_tag_ends_with_the_node() {
    for (topology, how) in topologies().into_iter().zip(["tcx", "clsact"]) {
        let mut c = Cluster::new(topology, &["--attach", how]);
        c.listen(PODS, &[8080]);
        c.lab.act(POLICIES).unwrap();
        c.service(3, 80, &["x/far-good"], 8080);
        // Whatever is noted on a packet crosses a pair of interfaces: here it would be lost with it.
        let code = [
            instruction(0x61, 0x12, 44, 0), // r2 = tc_index
            instruction(0xb7, 0, 0, 2),     // drop
            instruction(0x55, 2, 1, 0),     // if r2 != 0
            instruction(0xb7, 0, 0, 0),     // else pass
            instruction(0x95, 0, 0, 0),
        ];
        attach(&c, c.lab.node().outside(), Node::POD_LINK, &code);
        c.check("x/other", |f| c.lab.ip("x/far-good", f).unwrap(), "TCP/8080", Pass);
        c.check("x/client", |f| cluster_ip(f, 3), "TCP/80", Pass);
    }
}

/// Another program behind ours that answers "OK", by which clsact takes the tag.
fn accept_everything(c: &Cluster, link: &str) {
    let code = [instruction(0xb7, 0, 0, 0), instruction(0x95, 0, 0, 0)];
    attach(c, c.lab.node().ns(), link, &code);
}

/// A program of somebody else on what comes in by a link.
fn attach(c: &Cluster, ns: &Netns, link: &str, code: &[u64]) {
    let program = bpf::load_tc("stranger", code).unwrap();
    let path = c.lab.pins().join("stranger");
    bpf::pin(program.as_fd(), &path).unwrap();
    let mut stranger = SchedClassifier::from_pin(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let options = NlOptions { priority: 9, handle: TcHandle::new(0, 9), classid: None };
    ns.run(|| {
        drop(tc::qdisc_add_clsact(link));
        let options = TcAttachOptions::Netlink(options);
        let id = stranger.attach_with_options(link, TcAttachType::Ingress, options).unwrap();
        std::mem::forget(stranger.take_link(id).unwrap());
    });
}

/// A frame that the translation sends back to where it came from leaves a bridge only by a port in this mode, which CNI
/// plugins set.
fn hairpin(c: &Cluster, pod: &str) {
    let link = c.lab.host(pod).unwrap().host_link.clone();
    let mut command = std::process::Command::new("bridge");
    command.args(["link", "set", "dev", &link, "hairpin", "on"]);
    c.lab.node().ns().enter_command(&mut command).unwrap();
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
