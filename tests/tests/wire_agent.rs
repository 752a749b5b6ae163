//! The life of the agent on a node: killed under traffic, full tables, cleaned up behind.

#![expect(clippy::unwrap_used, reason = "a step that fails fails the test")]

use aya::programs::{SchedClassifier, tc::TcAttachType};
use policy_tests::{
    lab::Lab,
    net::{Attach, Family, Topology},
    pkt::Ip,
    probe::{Link, Outcome, Probe, Want, pace},
};
use std::{
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

const CLUSTER: &str =
    "{pods: {x/a: {labels: {app: a}}, x/b: {labels: {app: b}}, x/c: {labels: {app: c}}, y/d: {}}}";
const FROM_B: &str = "{podSelector: {matchLabels: {app: a}}, policyTypes: [Ingress], \
                      ingress: [{from: [{podSelector: {matchLabels: {app: b}}}]}]}";

/// Longest wait for something that must come.
const PATIENCE: Duration = Duration::from_secs(60);

fn socket(lab: &Lab, name: &str, family: Family, port: u16) -> UdpSocket {
    let address = SocketAddr::new(lab.ip(name, family).unwrap(), port);
    lab.host(name).unwrap().ns.run(|| UdpSocket::bind(address).unwrap())
}

/// Room for what comes while nobody reads, and a moment to look up in.
fn prepare(server: &UdpSocket) {
    let size: libc::c_int = 8 << 20;
    // SAFETY: pointer and size are of one live integer.
    let done = unsafe {
        let size = (&raw const size).cast();
        libc::setsockopt(server.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, size, 4)
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    server.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
}

fn link(lab: &Lab, from: &str, to: &str, family: Family) -> Link {
    lab.expect(from, to, "TCP/80", true);
    let probe = Probe {
        ns: lab.host(from).unwrap().ns.clone(),
        from: lab.ip(from, family).unwrap(),
        to: lab.ip(to, family).unwrap(),
        port: "TCP/80".parse().unwrap(),
        size: 8,
        unconnected: false,
    };
    Link::open(&probe, PATIENCE).unwrap().expect("it opens")
}

#[test]
fn killed_and_started_under_traffic_no_packet_is_judged_differently() {
    for topology in [Topology::Ptp, Topology::Bridge] {
        let mut lab = Lab::new(topology, CLUSTER).unwrap();
        lab.policy(FROM_B).unwrap();
        let mut connection = link(&lab, "x/b", "x/a", Family::V6);
        let server = socket(&lab, "x/a", Family::V4, 7000);
        prepare(&server);
        let (friend, stranger) =
            (socket(&lab, "x/b", Family::V4, 6001), socket(&lab, "x/c", Family::V4, 6002));
        let (to, stop, ended) =
            (server.local_addr().unwrap(), AtomicBool::new(false), AtomicBool::new(false));
        let (sent, heard, strange) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let sender = scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    friend.send_to(b"friend", to).unwrap();
                    stranger.send_to(b"stranger", to).unwrap();
                    sent.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
            scope.spawn(|| {
                let mut buffer = [0; 16];
                while !ended.load(Ordering::Relaxed) {
                    if let Ok((length, _)) = server.recv_from(&mut buffer) {
                        let count = if &buffer[..length] == b"friend" { &heard } else { &strange };
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
            let life = (0..3).try_for_each(|_| {
                lab.agent().kill()?;
                std::thread::sleep(Duration::from_millis(50));
                lab.agent().start()?;
                lab.agent().wait()
            });
            stop.store(true, Ordering::Relaxed);
            let sender = sender.join();
            // All that was sent is heard, or nothing more comes.
            let end = Instant::now() + PATIENCE;
            while heard.load(Ordering::Relaxed) < sent.load(Ordering::Relaxed) && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(1));
            }
            let quiet = pace::quiet(Duration::from_millis(300));
            ended.store(true, Ordering::Relaxed);
            life.and(quiet).unwrap();
            sender.unwrap();
        });
        let (sent, heard) = (sent.into_inner(), heard.into_inner());
        assert_eq!(strange.into_inner(), 0, "{topology:?}: a stranger was heard among {sent} packets");
        assert!(sent > 100, "only {sent} packets were sent");
        assert_eq!(heard, sent, "{topology:?}: packets of the friend that were heard");
        assert!(connection.is_alive(PATIENCE).unwrap(), "{topology:?}: the connection lives on");
        lab.expect("x/b", "x/a", "TCP/81", true);
        lab.expect("x/c", "x/a", "TCP/81", false);
    }
}

#[test]
fn what_changed_while_the_agent_was_away_holds_when_it_is_back() {
    let mut lab = Lab::new(Topology::Ptp, CLUSTER).unwrap();
    lab.policy(FROM_B).unwrap();
    lab.agent().kill().unwrap();
    lab.act_without_waiting(
        "[{delete: {kind: NetworkPolicy, namespace: x, name: p}}, \
          {apply: {apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: x, name: q}, \
                   spec: {podSelector: {matchLabels: {app: c}}, policyTypes: [Ingress]}}}, \
          {pod: {remove: x/b, add: {x/new: {labels: {app: c}}}}}]",
    )
    .unwrap();
    lab.agent().start().unwrap();
    lab.agent().wait().unwrap();
    lab.expect("x/c", "x/a", "TCP/80", true);
    lab.expect("x/a", "x/c", "TCP/80", false);
    lab.expect("x/a", "x/new", "TCP/80", false);
}

#[test]
fn a_namespace_that_fills_a_table_hurts_only_itself() {
    let mut lab = Lab::new(Topology::Ptp, CLUSTER).unwrap();
    lab.policy(FROM_B).unwrap();
    let blocks: Vec<String> = (0..40_000u32)
        .map(|n| format!("{{ipBlock: {{cidr: 100.{}.{}.{}/32}}}}", 64 + n / 65_536, n / 256 % 256, n % 256))
        .collect();
    // Every block is a peer list of its own, so that none can be told from another by less than its prefix.
    lab.act_without_waiting(&format!(
        "[{{apply: {{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{namespace: y, name: huge}}, \
         spec: {{podSelector: {{}}, policyTypes: [Ingress], ingress: [{{from: [{}]}}]}}}}}}]",
        blocks.join(", ")
    ))
    .unwrap();
    let end = Instant::now() + 2 * PATIENCE;
    loop {
        let status = lab.agent().ctl(["status", "--output", "json"]).unwrap();
        let text = String::from_utf8(status.stdout).unwrap();
        if text.contains("do not fit: prefixes") {
            break;
        }
        assert!(Instant::now() < end, "status says nothing of it:\n{text}\n{}", lab.agent().log());
        std::thread::sleep(Duration::from_millis(50));
    }
    lab.expect("x/b", "y/d", "TCP/80", false);
    lab.expect("x/c", "x/a", "TCP/80", false);
    // Others go on changing.
    lab.act_without_waiting(
        "[{apply: {apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: x, name: p}, \
          spec: {podSelector: {matchLabels: {app: a}}, policyTypes: [Ingress], \
                 ingress: [{from: [{podSelector: {matchLabels: {app: c}}}]}]}}}]",
    )
    .unwrap();
    // Not everything is enforced, so `wait` would not return.
    let passes = |lab: &Lab| lab.ask("x/c", "x/a", "TCP/80", Family::V4, Want::Silence).unwrap();
    let end = Instant::now() + 2 * PATIENCE;
    while !matches!(passes(&lab), Outcome::Answered(_)) {
        assert!(Instant::now() < end, "the change does not come:\n{}", lab.agent().log());
    }
    lab.expect("x/c", "x/a", "TCP/80", true);
    lab.expect("x/b", "x/a", "TCP/80", false);
    lab.act("[{delete: {kind: NetworkPolicy, namespace: y, name: huge}}]").unwrap();
    lab.expect("x/b", "y/d", "TCP/80", true);
}

#[test]
fn a_pod_that_opens_many_flows_evicts_only_its_own() {
    let mut lab = Lab::new(Topology::Ptp, CLUSTER).unwrap();
    lab.policy(FROM_B).unwrap();
    let mut connection = link(&lab, "x/b", "x/a", Family::V4);
    // Replies to x/b's own flows need its state: its ingress is closed.
    lab.act(
        "[{apply: {apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: x, name: q}, \
          spec: {podSelector: {matchLabels: {app: b}}, policyTypes: [Ingress]}}}]",
    )
    .unwrap();
    let frames = lab.frames("x/c").unwrap();
    let (c, d) = (lab.ip("x/c", Family::V4).unwrap(), lab.ip("y/d", Family::V4).unwrap());
    for n in 0..100_000u32 {
        let (sport, dport) = (1024 + (n % 60_000) as u16, 7000 + (n / 60_000) as u16);
        frames
            .send(&lab.frame("x/c", "y/d", &Ip::new(c, d).udp(sport, dport, b"flood")).unwrap().bytes)
            .unwrap();
    }
    assert!(connection.is_alive(PATIENCE).unwrap(), "another pod's flood cuts the connection");
    lab.expect("x/c", "y/d", "TCP/80", true);
    lab.expect("x/c", "x/b", "TCP/80", false);
}

#[test]
fn cleaning_up_leaves_nothing_behind() {
    for topology in [Topology::Ptp, Topology::Bridge] {
        let mut lab = Lab::new(topology, CLUSTER).unwrap();
        lab.policy(FROM_B).unwrap();
        lab.expect("x/c", "x/a", "TCP/80", false);
        let links: Vec<String> = lab
            .node()
            .hosts()
            .filter(|host| host.attach == Attach::Pod)
            .map(|host| host.host_link.clone())
            .collect();
        assert_eq!(programs(&lab, &links), 2 * links.len(), "one program for each direction of each pod");
        lab.agent().kill().unwrap();
        assert_eq!(programs(&lab, &links), 2 * links.len(), "they stay when the agent is gone");
        lab.expect("x/c", "x/a", "TCP/80", false);
        lab.agent().cleanup().unwrap();
        assert_eq!(programs(&lab, &links), 0);
        assert!(!lab.agent().bpffs().exists(), "pins are left in {}", lab.agent().bpffs().display());
        assert!(!lab.agent().socket().exists(), "the socket is left");
        assert!(!lab.agent().state_dir().exists(), "the state is left");
        lab.expect("x/c", "x/a", "TCP/80", true);
        // Twice is as good as once, and a new start is a first start.
        lab.agent().cleanup().unwrap();
        lab.agent().start().unwrap();
        lab.agent().wait().unwrap();
        lab.expect("x/c", "x/a", "TCP/80", false);
    }
}

/// Programs of the newer kind on these links of the node.
fn programs(lab: &Lab, links: &[String]) -> usize {
    lab.node().ns().run(|| {
        let count = |link: &String, direction| SchedClassifier::query_tcx(link, direction).unwrap().1.len();
        links.iter().map(|link| count(link, TcAttachType::Ingress) + count(link, TcAttachType::Egress)).sum()
    })
}

#[test]
fn a_kind_of_another_product_is_reported_and_changes_nothing() {
    let mut lab = Lab::new(Topology::Ptp, CLUSTER).unwrap();
    lab.policy(FROM_B).unwrap();
    lab.act("[{file: seeds/cilium-l7-policy.yaml}]").unwrap();
    let status = lab.agent().ctl(["status", "--output", "json"]).unwrap();
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    let told = status["problems"].as_array().into_iter().flatten();
    let named = told.filter(|problem| problem["object"] == "CiliumNetworkPolicy production/l7-policy");
    assert_eq!(named.count(), 1, "{status:#}");
    lab.expect("x/b", "x/a", "TCP/80", true);
    lab.expect("x/c", "x/a", "TCP/80", false);
}
