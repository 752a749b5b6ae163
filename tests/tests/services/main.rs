//! Services on real packets, translated by nftables as kube-proxy does it, through the real agent: egress is judged where
//! the destination is real, ingress by who really sends; or before the translation, by all backends.
#![expect(clippy::unwrap_used, reason = "a test that can't go on has failed")]

mod backends;
mod cluster;
mod tunnel;

use cluster::*;
use policy_agent::datapath::bpf::instruction;
use policy_tests::{
    nat::Front,
    net::{Family, Node, Topology},
    probe::Link,
};
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

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
    let end = Instant::now() + ALIVE;
    // Drops are told a moment after they happened.
    let line = loop {
        let output = c.lab.agent().ctl(["monitor", "--last", "100", "--output", "json"]).unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        if let Some(line) = text.lines().find(|line| line.contains("behind a Service")) {
            break line.to_owned();
        }
        assert!(Instant::now() < end, "{text}");
        std::thread::sleep(Duration::from_millis(20));
    };
    let flow: serde_json::Value = serde_json::from_str(&line).unwrap();
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
