//! The cluster of this suite: two nodes' worth of pods, Services that nftables translates, programs of strangers.

use aya::programs::{
    SchedClassifier, TcAttachType,
    tc::{self, NlOptions, TcAttachOptions, TcHandle},
};
use policy_agent::datapath::bpf::{self, instruction};
use policy_tests::{
    lab::Lab,
    nat::{Forward, Front, translate},
    net::{Family, Netns, Topology},
    probe::{Outcome, Probe, Want, ask_all, verdicts},
};
use std::{
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    time::Duration,
};

pub(crate) const CLUSTER: &str = "{nodes: {far: {}}, pods: {\
    x/client: {labels: {app: client}}, x/other: {labels: {app: other}}, \
    x/good: {labels: {app: good}, containers: [{name: c, ports: [{name: http, port: 8080}]}]}, \
    x/bad: {labels: {app: bad}, containers: [{name: c, ports: [{name: http, port: 8080}]}]}, \
    x/shut: {labels: {app: shut}}, \
    x/far-good: {node: far, labels: {app: good}, containers: [{name: c, ports: [{name: http, port: 8080}]}]}, \
    x/far-bad: {node: far, labels: {app: bad}}}, external: {web: {}}}";
/// The client may open to the port that pods labelled `good` call `http`; `shut` takes in the client alone.
pub(crate) const POLICIES: &str = "[{apply: {apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, \
    metadata: {namespace: x, name: client}, spec: {podSelector: {matchLabels: {app: client}}, \
    policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: good}}}], \
    ports: [{port: http, protocol: TCP}]}, {to: [{podSelector: {matchLabels: {app: shut}}}]}]}}}, \
    {apply: {apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, \
    metadata: {namespace: x, name: shut}, spec: {podSelector: {matchLabels: {app: shut}}, \
    policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}}}]";
pub(crate) const PODS: &[&str] =
    &["x/client", "x/other", "x/good", "x/bad", "x/shut", "x/far-good", "x/far-bad"];
pub(crate) const BOTH: [Family; 2] = [Family::V4, Family::V6];
/// Patience with a connection that must live, and with one that must not.
pub(crate) const ALIVE: Duration = Duration::from_secs(60);
pub(crate) const CUT: Duration = Duration::from_millis(400);

/// What should become of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Should {
    Pass,
    Vanish,
    BeRefused,
}
pub(crate) use Should::{BeRefused, Pass, Vanish};

/// Address number `n` of the Services.
pub(crate) fn cluster_ip(family: Family, n: u8) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([10, 96, 0, n]),
        Family::V6 => IpAddr::from([0xfd00, 0x96, 0, 0, 0, 0, 0, u16::from(n)]),
    }
}

/// An address outside the cluster's ranges.
pub(crate) fn balancer(family: Family, n: u8) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([198, 51, 100, n]),
        Family::V6 => IpAddr::from([0x2001, 0xdb8, 0x51, 0, 0, 0, 0, u16::from(n)]),
    }
}

pub(crate) struct Cluster {
    pub(crate) lab: Lab,
    pub(crate) forwards: Vec<Forward>,
}

impl Cluster {
    pub(crate) fn new(topology: Topology, arguments: &[&str]) -> Self {
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
    pub(crate) fn forward(&mut self, front: impl Fn(Family) -> Front, pods: &[&str], port: u16) {
        self.forwards.retain(|old| BOTH.iter().all(|family| old.front != front(*family)));
        for family in BOTH {
            let front = front(family);
            let backend = |pod: &&str| SocketAddr::new(self.lab.ip(pod, family).unwrap(), port);
            let backends: Vec<_> = pods.iter().map(backend).collect();
            match self.forwards.iter_mut().find(|forward| forward.front == front) {
                Some(forward) => forward.backends.extend(backends),
                None => self.forwards.push(Forward { front, protocols: vec!["tcp", "udp"], backends }),
            }
        }
        translate(self.lab.node().ns(), &self.forwards).unwrap();
    }

    pub(crate) fn service(&mut self, n: u8, port: u16, pods: &[&str], target: u16) {
        self.forward(|f| Front::Address(SocketAddr::new(cluster_ip(f, n), port)), pods, target);
    }

    pub(crate) fn listen(&self, pods: &[&str], ports: &[u16]) {
        for port in ports {
            for name in ["TCP", "UDP"] {
                let port = format!("{name}/{port}").parse().unwrap();
                for pod in pods {
                    self.lab.listen(pod, &[port]).unwrap();
                }
            }
        }
    }

    pub(crate) fn probe(&self, from: &str, to: IpAddr, port: &str) -> Probe {
        let family = Family::of(to);
        let ns = self.lab.host(from).unwrap().ns.clone();
        let own = self.lab.ip(from, family).unwrap();
        Probe { ns, from: own, to, port: port.parse().unwrap(), size: 8, unconnected: false }
    }

    pub(crate) fn check(&self, from: &str, to: impl Fn(Family) -> IpAddr, port: &str, should: Should) {
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
pub(crate) fn services() -> String {
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

pub(crate) fn topologies() -> [Topology; 2] {
    [Topology::Ptp, Topology::Bridge]
}

/// Packets whose tag was lost, as `policyctl status` counts them since the maps were made.
pub(crate) fn untagged(c: &mut Cluster) -> u64 {
    let output = c.lab.agent().ctl(["status", "--output", "json"]).unwrap();
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let losses = status["losses"].as_array().expect("status lists losses");
    let loss = losses.iter().find(|loss| loss["name"] == "untagged_from_pod");
    let loss = loss.expect("status knows the counter");
    loss["count"].as_u64().expect("a count")
}

/// Another program behind ours that answers "OK", by which clsact takes the tag.
pub(crate) fn accept_everything(c: &Cluster, link: &str) {
    let code = [instruction(0xb7, 0, 0, 0), instruction(0x95, 0, 0, 0)];
    attach(c, c.lab.node().ns(), link, &code);
}

/// A program of somebody else on what comes in by a link.
pub(crate) fn attach(c: &Cluster, ns: &Netns, link: &str, code: &[u64]) {
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
pub(crate) fn hairpin(c: &Cluster, pod: &str) {
    let link = c.lab.host(pod).unwrap().host_link.clone();
    let mut command = std::process::Command::new("bridge");
    command.args(["link", "set", "dev", &link, "hairpin", "on"]);
    c.lab.node().ns().enter_command(&mut command).unwrap();
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
