//! Flows with a history and packets that sockets do not send, through the real agent on real interfaces.

use policy_tests::{
    lab::Lab,
    net::{Family, Topology},
    pkt::{Frame, IcmpError, Ip, Packet, Tcp, flags},
    probe::{Link, Probe},
};
use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

/// Longest wait for something that must come.
const PATIENCE: Duration = Duration::from_secs(60);
const BOTH: [Family; 2] = [Family::V4, Family::V6];
const CLUSTER: &str = "{pods: {x/a: {labels: {app: a}}, x/b: {labels: {app: b}}, x/c: {labels: {app: c}}}, \
                       external: {web: {}}}";
/// Nothing may come in but the packet that ends a test's wait.
const ONLY_FENCE: &str = "{podSelector: {matchLabels: {app: a}}, policyTypes: [Ingress], \
                          ingress: [{ports: [{port: 9, protocol: UDP}]}]}";

fn topologies() -> [Topology; 2] {
    [Topology::Ptp, Topology::Bridge]
}

#[test]
fn errors_about_allowed_flows_pass_and_others_do_not() {
    for topology in topologies() {
        let mut lab = Lab::new(topology, CLUSTER).unwrap();
        lab.policy(ONLY_FENCE).unwrap();
        for family in BOTH {
            let (a, b) = (lab.ip("x/a", family).unwrap(), lab.ip("x/b", family).unwrap());
            let web = lab.ip("ext:web", family).unwrap();
            let opened = Ip::new(a, b).udp(5000, 7000, b"opened by a");
            assert_eq!(
                lab.arrived("x/a", "x/b", std::slice::from_ref(&opened), &["opened by a"]).unwrap(),
                [true]
            );
            let never = Ip::new(a, b).udp(5001, 7000, b"never sent by a");
            let errors = [
                Ip::new(b, a).error(IcmpError::PortUnreachable, &opened),
                Ip::new(b, a).error(IcmpError::PortUnreachable, &never),
            ];
            let seen = lab.arrived("x/b", "x/a", &errors, &["opened by a", "never sent by a"]).unwrap();
            assert_eq!(seen, [true, false], "{family:?} {topology:?}");
            // A router on the way reports under its own address.
            let errors = [
                Ip::new(web, a).error(IcmpError::TooBig(1280), &opened),
                Ip::new(web, a).error(IcmpError::TimeExceeded, &never),
            ];
            let seen = lab.arrived("ext:web", "x/a", &errors, &["opened by a", "never sent by a"]).unwrap();
            assert_eq!(seen, [true, false], "{family:?} {topology:?}");
        }
        lab.expect_drop("icmp_no_flow");
    }
}

#[test]
fn fragments_follow_their_first() {
    let mut lab = Lab::new(Topology::Ptp, CLUSTER).unwrap();
    lab.policy(
        "{podSelector: {matchLabels: {app: a}}, policyTypes: [Ingress], \
         ingress: [{ports: [{port: 9, protocol: UDP}, {port: 5000, protocol: UDP}]}]}",
    )
    .unwrap();
    for (n, family) in BOTH.into_iter().enumerate() {
        let (a, b) = (lab.ip("x/a", family).unwrap(), lab.ip("x/b", family).unwrap());
        let number = |k: u32| 100 * (n as u32 + 1) + k;
        let datagram = |port: u16, mark: &str| {
            // Three parts with a marker in each.
            let mut payload = mark.repeat(1 + 2800 / mark.len()).into_bytes();
            payload.truncate(2800);
            Ip::new(b, a).udp(40_001, port, &payload)
        };
        let allowed = datagram(5000, "<allowed>").fragments(1500, number(1));
        let denied = datagram(5001, "<denied>").fragments(1500, number(2));
        let orphans = datagram(5000, "<orphan>").fragments(1500, number(3));
        let mut packets = allowed.clone();
        packets.extend(denied);
        packets.extend(orphans.into_iter().skip(1));
        let seen = lab.arrived("x/b", "x/a", &packets, &["<allowed>", "<denied>", "<orphan>"]).unwrap();
        assert_eq!(seen, [true, false, false], "{family:?}");
        // All parts of the allowed one, not only the first.
        let tail = Ip::new(b, a).id(number(1)).fragment(2752, false).packet(17, b"the last part");
        let mut late = tail.clone();
        late.bytes = Ip::new(b, a).id(number(4)).fragment(2752, false).packet(17, b"of nothing").bytes;
        let seen = lab.arrived("x/b", "x/a", &[tail, late], &["the last part", "of nothing"]).unwrap();
        assert_eq!(seen, [true, false], "{family:?}");
        // Too short for its ports, whatever the rest would say.
        let tiny = Ip::new(b, a).id(number(5)).fragment(0, true).packet(6, b"tiny!..!");
        assert_eq!(lab.arrived("x/b", "x/a", &[tiny], &["tiny!..!"]).unwrap(), [false], "{family:?}");
    }
    lab.expect_drop("fragment_unknown");
    lab.expect_drop("fragment_tiny");
}

#[test]
fn forged_sources_are_dropped_at_the_sender() {
    for topology in topologies() {
        let mut lab = Lab::new(topology, CLUSTER).unwrap();
        let forged = |lab: &Lab| -> Vec<Packet> {
            let ip = |name: &str, family| lab.ip(name, family).unwrap();
            let mut packets = Vec::new();
            for family in BOTH {
                let to = ip("x/b", family);
                packets.push(Ip::new(ip("x/a", family), to).udp(1, 2, b"<own>"));
                packets.push(Ip::new(ip("x/c", family), to).udp(1, 2, b"<other pod>"));
                packets.push(Ip::new(ip("ext:web", family), to).udp(1, 2, b"<world>"));
            }
            packets
        };
        let markers = ["<own>", "<other pod>", "<world>"];
        let packets = forged(&lab);
        assert_eq!(
            lab.arrived("x/a", "x/b", &packets, &markers).unwrap(),
            [true, false, false],
            "{topology:?}"
        );
        // The victim claims its own address as the source: what a pod says to itself never comes from outside.
        lab.policy(ONLY_FENCE).unwrap();
        let land: Vec<Packet> = BOTH
            .map(|family| lab.ip("x/a", family).unwrap())
            .map(|ip| Ip::new(ip, ip).udp(1, 9, b"<land>"))
            .to_vec();
        assert_eq!(lab.arrived("x/b", "x/a", &land, &["<land>"]).unwrap(), [false], "{topology:?}");
        lab.expect_drop("spoofed_source");
        // The same packets arrive where nobody enforces: the test can fail.
        lab.strip().unwrap();
        assert_eq!(
            lab.arrived("x/a", "x/b", &packets, &markers).unwrap(),
            [true, true, true],
            "{topology:?}"
        );
    }
}

#[test]
fn the_node_is_trusted_by_path_and_not_by_address() {
    for topology in topologies() {
        let mut lab = Lab::new(topology, CLUSTER).unwrap();
        lab.policy(ONLY_FENCE).unwrap();
        lab.expect("node:node-1", "x/a", "TCP/80", true);
        lab.expect("ext:web", "x/a", "TCP/80", false);
        // A packet that the node forwards under its own address, as masquerading would make it.
        let forwarded: Vec<Packet> = BOTH
            .map(|family| (lab.ip("node:node-1", family).unwrap(), lab.ip("x/a", family).unwrap()))
            .map(|(node, a)| Ip::new(node, a).udp(40_000, 7000, b"<forwarded>"))
            .to_vec();
        lab.node().ns().run(|| policy_tests::net::sysctl("ipv4/conf/uplink0/accept_local", "1")).unwrap();
        let seen = lab.arrived("ext:web", "x/a", &forwarded, &["<forwarded>"]).unwrap();
        assert_eq!(seen, [false], "{topology:?}: forwarded, so not the node's own");
        lab.policy(
            "{podSelector: {matchLabels: {app: a}}, policyTypes: [Ingress], ingress: [\
             {ports: [{port: 9, protocol: UDP}]}, \
             {from: [{ipBlock: {cidr: '${node.node-1.ip4}/32'}}, {ipBlock: {cidr: '${node.node-1.ip6}/128'}}]}]}",
        )
        .unwrap();
        let seen = lab.arrived("ext:web", "x/a", &forwarded, &["<forwarded>"]).unwrap();
        assert_eq!(seen, [true], "{topology:?}: a block with the node's address names it");
    }
}

#[test]
fn a_revoked_client_hears_nothing_more() {
    let mut lab = Lab::new(Topology::Ptp, CLUSTER).unwrap();
    lab.policy(
        "{podSelector: {matchLabels: {app: a}}, policyTypes: [Ingress], \
         ingress: [{from: [{podSelector: {}}]}]}",
    )
    .unwrap();
    let flows: Vec<(Family, UdpSocket, UdpSocket, SocketAddr)> = BOTH
        .map(|family| {
            let bind = |name: &str, port: u16| {
                let address = SocketAddr::new(lab.ip(name, family).unwrap(), port);
                let socket = lab.host(name).unwrap().ns.run(|| UdpSocket::bind(address).unwrap());
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
                socket
            };
            let (server, client) = (bind("x/a", 7000), bind("x/b", 0));
            client.send_to(b"hello", server.local_addr().unwrap()).unwrap();
            let (_, peer) = server.recv_from(&mut [0; 16]).unwrap();
            server.send_to(b"welcome", peer).unwrap();
            client.recv(&mut [0; 16]).unwrap();
            (family, server, client, peer)
        })
        .into();
    lab.policy(ONLY_FENCE).unwrap();
    for (family, server, client, peer) in &flows {
        // The server's own egress is free, but this flow was the client's.
        server.send_to(b"late", peer).unwrap();
        client.send_to(b"late", server.local_addr().unwrap()).unwrap();
        assert_eq!(lab.arrived("x/a", "x/b", &[], &["late"]).unwrap(), [false], "{family:?}");
        assert_eq!(lab.arrived("x/b", "x/a", &[], &["late"]).unwrap(), [false], "{family:?}");
        client.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        assert!(
            client.recv(&mut [0; 16]).is_err(),
            "{family:?}: the client hears from a flow that was revoked"
        );
        server.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        assert!(
            server.recv(&mut [0; 16]).is_err(),
            "{family:?}: the server hears from a flow that was revoked"
        );
    }
    // What the server opens itself is another flow.
    lab.expect("x/a", "x/b", "UDP/7001", true);
    lab.expect_drop("revoked");
}

#[test]
fn segments_without_a_connection_do_not_enter() {
    let mut lab = Lab::new(Topology::Ptp, CLUSTER).unwrap();
    lab.policy(ONLY_FENCE).unwrap();
    for family in BOTH {
        let (a, b) = (lab.ip("x/a", family).unwrap(), lab.ip("x/b", family).unwrap());
        let segment = |bits: u8, mark: &str| {
            Ip::new(b, a).tcp(&Tcp::new(80, 50_000, bits).numbers(7, 7).payload(mark.as_bytes()))
        };
        let kinds = [
            ("<syn>", flags::SYN),
            ("<syn-ack>", flags::SYN | flags::ACK),
            ("<ack>", flags::ACK),
            ("<rst>", flags::RST),
            ("<fin>", flags::FIN | flags::ACK),
            ("<none>", 0),
        ];
        let packets: Vec<Packet> = kinds.iter().map(|(mark, bits)| segment(*bits, mark)).collect();
        let marks: Vec<&str> = kinds.iter().map(|(mark, _)| *mark).collect();
        // New pods have no window in which strangers are picked up.
        let seen = lab.arrived("x/b", "x/a", &packets, &marks).unwrap();
        assert_eq!(seen, vec![false; marks.len()], "{family:?}");
    }
    lab.expect_drop("no_rule_matched");
}

#[test]
fn frames_that_policy_cannot_read_do_not_leave_an_isolated_pod() {
    // On a bridge every frame reaches the other pod unless somebody stops it.
    let mut lab = Lab::new(Topology::Bridge, CLUSTER).unwrap();
    let (a, b) = (lab.host("x/a").unwrap(), lab.host("x/b").unwrap());
    let v6 = |name: &str| lab.ip(name, Family::V6).unwrap();
    let inner = Ip::new(lab.ip("x/a", Family::V4).unwrap(), lab.ip("x/b", Family::V4).unwrap());
    let frames = [
        ("<vlan>", inner.clone().udp(1, 2, b"<vlan>").ethernet(a.mac, b.mac).vlan(7)),
        (
            "<odd type>",
            Frame::new(a.mac, b.mac, 0x88b5, b"<odd type> and some padding behind it, as Ethernet wants"),
        ),
        ("<options>", inner.clone().options(&[1; 8]).udp(1, 2, b"<options>").ethernet(a.mac, b.mac)),
        (
            "<advert>",
            Ip::new(v6("x/a"), v6("x/b")).hop_limit(255).icmp(134, 0, b"<advert>....").ethernet(a.mac, b.mac),
        ),
        ("<plain>", inner.udp(1, 2, b"<plain>").ethernet(a.mac, b.mac)),
    ];
    let send = |lab: &Lab| -> Vec<bool> {
        let (sender, marks) = (lab.frames("x/a").unwrap(), frames.each_ref().map(|(mark, _)| *mark));
        let receiver = lab.frames("x/b").unwrap();
        for (_, frame) in &frames {
            sender.send(&frame.bytes).unwrap();
        }
        let fence = Ip::new(lab.ip("x/a", Family::V4).unwrap(), lab.ip("x/b", Family::V4).unwrap()).udp(
            3,
            9,
            b"the fence",
        );
        sender.send(&fence.ethernet(a.mac, b.mac).bytes).unwrap();
        let mut seen = vec![false; marks.len()];
        let end = receiver.find(PATIENCE, |frame| {
            for (n, mark) in marks.iter().enumerate() {
                seen[n] |= policy_tests::lab::contains(frame, mark.as_bytes());
            }
            policy_tests::lab::contains(frame, b"the fence")
        });
        assert!(end.unwrap().is_some(), "the fence arrives");
        seen
    };
    lab.policy(
        "{podSelector: {matchLabels: {app: a}}, policyTypes: [Egress], \
         egress: [{ports: [{port: 9, protocol: UDP}]}]}",
    )
    .unwrap();
    assert_eq!(send(&lab), [false; 5], "isolated");
    for reason in ["vlan_tagged", "unknown_ethertype", "rogue_neighbour"] {
        lab.expect_drop(reason);
    }
    lab.strip().unwrap();
    assert_eq!(send(&lab), [true; 5], "free");
}

#[test]
fn a_connection_lives_through_policies_that_do_not_concern_it() {
    let mut lab = Lab::new(Topology::Bridge, CLUSTER).unwrap();
    let mut links = Vec::new();
    for family in BOTH {
        lab.expect("x/b", "x/a", "TCP/80", true);
        let probe = Probe {
            ns: lab.host("x/b").unwrap().ns.clone(),
            from: lab.ip("x/b", family).unwrap(),
            to: lab.ip("x/a", family).unwrap(),
            port: "TCP/80".parse().unwrap(),
            size: 8,
            unconnected: false,
        };
        links.push(Link::open(&probe, PATIENCE).unwrap().expect("it opens"));
    }
    for round in 0..10 {
        let port = 1000 + round;
        lab.policy(&format!(
            "{{podSelector: {{}}, policyTypes: [Ingress, Egress], \
             ingress: [{{ports: [{{port: 80}}, {{port: {port}}}]}}], egress: [{{ports: [{{port: 80}}]}}]}}"
        ))
        .unwrap();
        for link in &mut links {
            assert!(link.is_alive(PATIENCE).unwrap(), "round {round}");
        }
    }
    lab.expect("x/c", "x/a", "TCP/81", false);
    lab.expect("x/c", "x/a", "TCP/80", true);
}
