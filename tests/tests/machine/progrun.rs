//! The kernel's programs against the in-memory datapath: histories of one flow under every pair of policies, and random
//! packets, policies and moves. Needs nothing but a kernel, so it runs in VMs too.

use policy_common::abi::{
    Direction::{self, Egress, Ingress},
    EndpointWord, HostWord, Interval, Outcome, ROW_CLOSED, ROW_OPEN, RuleSet, action, endpoint_config,
    host_flags, tag,
};
use policy_common::reason::Reason;
use policy_engine::{address, mem::datapath::Way, plan::Op, testing::rng::Rng};
use policy_tests::{
    pkt::{Extension, Frame, IcmpError, Ip, Packet, Sctp, Tcp, ethertype, flags, proto},
    twin::{At, SLOT, Twin},
};
use std::{env, net::IpAddr, time::Duration};

const POD: [&str; 2] = ["10.9.0.2", "fd00:9::2"];
const POD_FURTHER: [&str; 2] = ["10.9.0.3", "fe80::9"];
/// Known one by one, with classes 1 to 3.
const PEERS: [[&str; 3]; 2] =
    [["10.9.1.1", "10.9.1.2", "10.9.1.3"], ["fd00:9:1::1", "fd00:9:1::2", "fd00:9:1::3"]];
const NODE: [&str; 2] = ["10.9.0.1", "fd00:9::1"];
/// Inside the prefix of class 4, and outside everything.
const STRANGERS: [[&str; 2]; 2] = [["10.9.8.8", "192.0.2.7"], ["fd00:9:8::8", "2001:db8::7"]];
const PREFIXES: [&str; 2] = ["10.9.8.0/21", "fd00:9:8::/48"];

/// Rows 2 to 5: every combination of what the classes get.
const ROWS: [[u16; 5]; 4] = [[0, 1, 2, 3, 4], [0, 2, 0, 1, 1], [2, 3, 4, 0, 0], [0, 0, 2, 2, 3]];
const ALLOW_ALL: u16 = 2;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn frame(packet: &Packet) -> Vec<u8> {
    packet.ethernet([2; 6], [4; 6]).bytes
}

/// Rule sets: 1 some ports, 2 everything, 3 a denying rule, 4 protocols without ports alone.
fn rules() -> Vec<Op> {
    let allow = |rule| Outcome::new(action::ALLOW, rule);
    let interval = |low, high, outcome| Interval { low, high, outcome };
    let values = vec![
        interval(80, 80, allow(5)),
        interval(443, 445, allow(6)),
        interval(53, 53, allow(5)),
        interval(1, 90, allow(7)),
    ];
    let some = RuleSet { base: 0, n_tcp: 2, n_udp: 1, n_sctp: 1, ..RuleSet::default() };
    let all = RuleSet { other: allow(8), default: allow(8), ..RuleSet::default() };
    let deny = Outcome::new(action::DROP, 9);
    let none = RuleSet { other: deny, default: deny, ..RuleSet::default() };
    let other = RuleSet { other: allow(10), ..RuleSet::default() };
    let mut ops = vec![Op::Intervals { base: 0, values }];
    for (id, value) in (1..).zip([some, all, none, other]) {
        ops.push(Op::RuleSet { id, value });
    }
    for (row, cells) in (2..).zip(ROWS) {
        ops.push(Op::Row { row, cells: cells.to_vec() });
    }
    // Everyone at once, for the histories: class 0 is allowed everything.
    ops.push(Op::Row { row: 6, cells: vec![ALLOW_ALL; 6] });
    ops
}

fn hosts() -> Vec<Op> {
    let mut ops = Vec::new();
    let mut slot = 0;
    for family in 0..2 {
        for (class, address) in (1..).zip(PEERS[family]) {
            slot += 1;
            ops.extend(host(slot, ip(address), class, host_flags::POD));
        }
        slot += 1;
        ops.extend(host(slot, ip(NODE[family]), 1, host_flags::OWN_NODE));
        slot += 1;
        ops.push(Op::HostWord { slot, word: HostWord { check: 0, class: 4, flags: 0 } });
        ops.push(Op::PrefixInsert { prefix: PREFIXES[family].parse().unwrap(), slot });
    }
    ops
}

fn host(slot: u32, address: IpAddr, class: u16, flags: u16) -> [Op; 2] {
    let word = HostWord { check: address::check(address), class, flags };
    [Op::HostWord { slot, word }, Op::HostInsert { address, slot }]
}

fn twin(config: u16) -> Twin {
    let addresses: Vec<IpAddr> = POD.into_iter().chain(POD_FURTHER).map(ip).collect();
    let mut twin = Twin::new(&addresses, config).unwrap();
    twin.apply(rules()).unwrap();
    twin.apply(hosts()).unwrap();
    twin
}

/// Steps of the test, which gives every change of rows a new epoch.
struct Steps {
    twin: Twin,
    epoch: u32,
}

impl Steps {
    fn new(config: u16) -> Self {
        let mut steps = Self { twin: twin(config), epoch: 1 };
        steps.rows(ROW_CLOSED, ROW_CLOSED);
        steps
    }

    fn rows(&mut self, ingress_row: u16, egress_row: u16) {
        self.epoch += 1;
        let word = EndpointWord { epoch: self.epoch, ingress_row, egress_row };
        self.twin.apply(vec![Op::Endpoint { slot: SLOT, word }]).unwrap();
    }

    fn passes(&mut self, direction: Direction, way: &Way, packet: &Packet) -> bool {
        self.twin.judge(At::Pod(direction), way, &frame(packet)).unwrap().passes
    }

    fn reason(&mut self, direction: Direction, way: &Way, frame: &[u8]) -> (bool, Option<Reason>) {
        let judged = self.twin.judge(At::Pod(direction), way, frame).unwrap();
        (judged.passes, judged.verdict.map(policy_common::verdict::Verdict::reason))
    }
}

/// A segment of the connection between the pod's `local` port and the peer's `remote` port.
fn segment(family: usize, peer: &str, direction: Direction, ports: (u16, u16), bits: u8) -> Packet {
    let (pod, peer, (local, remote)) = (ip(POD[family]), ip(peer), ports);
    match direction {
        Ingress => Ip::new(peer, pod).tcp(&Tcp::new(remote, local, bits)),
        Egress => Ip::new(pod, peer).tcp(&Tcp::new(local, remote, bits)),
    }
}

/// Came in somewhere else: no process of the node made it.
const FORWARDED: Way = Way { ingress_ifindex: 7, socket: true, tag: 0, vlan: false };

/// Not isolated, everything allowed, nothing allowed.
const POLICIES: [u16; 3] = [ROW_OPEN, 6, ROW_CLOSED];

fn allows(row: u16) -> bool {
    row != ROW_CLOSED
}

/// Whoever opened a flow, under whatever policy, and whatever policy came then: the current policy's word on the
/// opener decides, for both directions and whichever speaks first.
#[test]
fn every_history_of_opener_and_policies() {
    let mut steps = Steps::new(endpoint_config::ANTI_SPOOF);
    let mut port = 20_000;
    let mut histories = 0;
    let rows = || POLICIES.into_iter().flat_map(|a| POLICIES.map(|b| (a, b)));
    for (before, after) in rows().flat_map(|b| rows().map(move |a| (b, a))) {
        for (family, opener, first) in [0, 1].into_iter().flat_map(|f| {
            [Some(Ingress), Some(Egress), None]
                .into_iter()
                .flat_map(move |o| [(f, o, Ingress), (f, o, Egress)])
        }) {
            port += 1;
            histories += 1;
            let peer = STRANGERS[family][1];
            let ports = (port, 4000);
            let of = |word: (u16, u16), d| if d == Ingress { allows(word.0) } else { allows(word.1) };
            steps.rows(before.0, before.1);
            let opened = match opener {
                Some(opener) => {
                    let syn = segment(family, peer, opener, ports, flags::SYN);
                    let opened = steps.passes(opener, &FORWARDED, &syn);
                    assert_eq!(opened, of(before, opener), "{before:?} {opener:?}");
                    let answer = segment(family, peer, opener.reverse(), ports, flags::SYN | flags::ACK);
                    if opened {
                        assert!(
                            steps.passes(opener.reverse(), &FORWARDED, &answer),
                            "the answer: {before:?} {opener:?}"
                        );
                    }
                    opened
                }
                None => {
                    steps.twin.pick_up(Duration::from_secs(3600)).unwrap();
                    let data = segment(family, peer, first, ports, flags::ACK);
                    let opened = steps.passes(first, &FORWARDED, &data);
                    assert_eq!(opened, of(before, Ingress) || of(before, Egress), "picked up: {before:?}");
                    steps.twin.pick_up(Duration::ZERO).unwrap();
                    opened
                }
            };
            steps.rows(after.0, after.1);
            for direction in [first, first.reverse(), first] {
                let passes =
                    steps.passes(direction, &FORWARDED, &segment(family, peer, direction, ports, flags::ACK));
                let expected = match (opened, opener) {
                    (true, Some(opener)) => of(after, opener),
                    (true, None) => of(after, Ingress) && of(after, Egress),
                    // Nobody's: judged by itself, and a pass gives no right to an answer.
                    (false, _) => of(after, direction),
                };
                assert_eq!(passes, expected, "{before:?} {after:?} {opener:?} {first:?}, then {direction:?}");
            }
        }
    }
    println!("{histories} histories");
    steps.twin.compare_counters().unwrap();
}

#[test]
fn a_syn_is_never_a_reply_and_a_syn_ack_makes_the_opener() {
    let mut steps = Steps::new(0);
    let (peer, ports) = (STRANGERS[0][1], (3000, 4000));
    let send = |s: &mut Steps, d, bits| s.passes(d, &FORWARDED, &segment(0, peer, d, ports, bits));
    // The pod opens; the peer's SYN on the same ports is judged as new.
    steps.rows(ROW_CLOSED, ROW_OPEN);
    assert!(send(&mut steps, Egress, flags::SYN));
    assert!(!send(&mut steps, Ingress, flags::SYN));
    assert!(send(&mut steps, Ingress, flags::SYN | flags::ACK), "the flow is untouched");
    // Allowed now, and accepted by the pod: the peer is the opener, so closing egress does not cut it.
    steps.rows(6, 6);
    assert!(send(&mut steps, Ingress, flags::SYN));
    assert!(send(&mut steps, Egress, flags::SYN | flags::ACK));
    steps.rows(6, ROW_CLOSED);
    assert!(send(&mut steps, Egress, flags::ACK) && send(&mut steps, Ingress, flags::ACK));
    steps.rows(ROW_CLOSED, 6);
    assert!(!send(&mut steps, Egress, flags::ACK) && !send(&mut steps, Ingress, flags::ACK));
    // A policy that flaps cuts and mends.
    steps.rows(6, ROW_CLOSED);
    assert!(send(&mut steps, Egress, flags::ACK) && send(&mut steps, Ingress, flags::ACK));
    // A reset denies nothing.
    assert!(send(&mut steps, Ingress, flags::RST) && send(&mut steps, Egress, flags::ACK));
    // An unasked SYN-ACK.
    let stray = segment(0, peer, Ingress, (1, 2), flags::SYN | flags::ACK);
    steps.rows(6, ROW_OPEN);
    assert_eq!(steps.reason(Ingress, &FORWARDED, &frame(&stray)), (false, Some(Reason::NoFlow)));
}

#[test]
fn keeping_flows_is_one_comparison() {
    let mut steps = Steps::new(endpoint_config::KEEP);
    steps.rows(6, ROW_OPEN);
    let packet = |bits| segment(1, STRANGERS[1][0], Ingress, (80, 4000), bits);
    assert!(steps.passes(Ingress, &FORWARDED, &packet(flags::SYN)));
    steps.rows(ROW_CLOSED, ROW_OPEN);
    assert!(steps.passes(Ingress, &FORWARDED, &packet(flags::ACK)), "kept");
    assert!(!steps.passes(Ingress, &FORWARDED, &packet(flags::SYN)), "a new one is not");
    steps.twin.configure(0).unwrap();
    assert!(!steps.passes(Ingress, &FORWARDED, &packet(flags::ACK)));
}

#[test]
fn the_node_is_known_by_the_way_of_its_packets() {
    let mut steps = Steps::new(endpoint_config::ANTI_SPOOF);
    steps.rows(ROW_CLOSED, ROW_CLOSED);
    let process = Way { ingress_ifindex: 0, ..FORWARDED };
    for (family, node) in NODE.into_iter().enumerate() {
        let packet = |d, bits| segment(family, node, d, (8080, 5000), bits);
        assert_eq!(
            steps.reason(Ingress, &process, &frame(&packet(Ingress, flags::SYN))),
            (true, Some(Reason::OwnNode))
        );
        assert!(steps.passes(Egress, &FORWARDED, &packet(Egress, flags::SYN | flags::ACK)));
        let syn = segment(family, node, Ingress, (8080, 5001), flags::SYN);
        if steps.twin.ways {
            let got = steps.reason(Ingress, &FORWARDED, &frame(&syn));
            assert_eq!(got, (false, Some(Reason::NoRuleMatched)), "masqueraded by the node");
            steps.twin.configure(endpoint_config::MASQUERADED_ALLOW).unwrap();
            assert!(steps.passes(Ingress, &FORWARDED, &syn));
            steps.twin.configure(endpoint_config::ANTI_SPOOF).unwrap();
        }
        // A new epoch: the pod's answer keeps the last verdict until the opener's next packet.
        steps.rows(ROW_CLOSED, ROW_CLOSED);
        assert!(steps.passes(Egress, &FORWARDED, &packet(Egress, flags::ACK)));
        assert!(steps.passes(Ingress, &process, &packet(Ingress, flags::ACK)));
        // From the pod to its node.
        let out = segment(family, node, Egress, (5002, 53), flags::SYN);
        assert_eq!(steps.reason(Egress, &FORWARDED, &frame(&out)), (true, Some(Reason::OwnNode)));
    }
}

#[test]
fn forged_sources_and_own_tags() {
    let mut steps = Steps::new(endpoint_config::ANTI_SPOOF);
    steps.rows(ROW_OPEN, ROW_OPEN);
    for family in 0..2 {
        let (pod, peer) = (ip(POD[family]), ip(PEERS[family][0]));
        let syn = |from, to| frame(&Ip::new(from, to).tcp(&Tcp::new(1000, 80, flags::SYN)));
        let spoofed = (false, Some(Reason::SpoofedSource));
        assert_eq!(steps.reason(Egress, &FORWARDED, &syn(peer, pod)), spoofed);
        assert!(steps.reason(Egress, &FORWARDED, &syn(ip(POD_FURTHER[family]), peer)).0);
        // Its own address towards the pod: only when the pod's own tag says that it came back through a Service.
        assert_eq!(steps.reason(Ingress, &FORWARDED, &syn(pod, pod)), spoofed);
        let back = Way { tag: tag::new(SLOT, 1), ..FORWARDED };
        assert!(steps.reason(Ingress, &back, &syn(pod, pod)).0);
        let stale = Way { tag: tag::new(SLOT, 9), ..FORWARDED };
        let other = frame(&Ip::new(pod, pod).tcp(&Tcp::new(1001, 80, flags::SYN)));
        assert_eq!(steps.reason(Ingress, &stale, &other), spoofed);
    }
    steps.twin.configure(0).unwrap();
    let forged = Ip::new(ip(PEERS[0][0]), ip(PEERS[0][1])).udp(1, 2, &[]);
    assert!(steps.passes(Egress, &FORWARDED, &forged), "checked only where it is asked for");
}

#[test]
fn errors_and_fragments_go_with_their_flow() {
    let mut steps = Steps::new(endpoint_config::ANTI_SPOOF);
    for family in 0..2 {
        steps.rows(ROW_CLOSED, 6);
        let (pod, peer, router) = (ip(POD[family]), ip(STRANGERS[family][1]), ip(STRANGERS[family][0]));
        let sent = Ip::new(pod, peer).udp(7000, 53, &[0; 64]);
        let error = frame(&Ip::new(router, pod).error(IcmpError::TooBig(1400), &sent));
        assert_eq!(steps.reason(Ingress, &FORWARDED, &error), (false, Some(Reason::IcmpNoFlow)));
        assert!(steps.passes(Egress, &FORWARDED, &sent));
        assert!(steps.reason(Ingress, &FORWARDED, &error).0);
        steps.rows(ROW_CLOSED, ROW_CLOSED);
        assert_eq!(steps.reason(Ingress, &FORWARDED, &error), (false, Some(Reason::Revoked)));
        // Fragments of an answer: the first carries the ports.
        steps.rows(ROW_CLOSED, 6);
        let out = Ip::new(pod, peer).udp(7001, 53, &[]);
        assert!(steps.passes(Egress, &FORWARDED, &out));
        let parts = Ip::new(peer, pod).udp(53, 7001, &[0; 900]).fragments(600, 77);
        assert_eq!(
            steps.reason(Ingress, &FORWARDED, &frame(&parts[1])),
            (false, Some(Reason::FragmentUnknown))
        );
        assert!(parts.iter().all(|part| steps.passes(Ingress, &FORWARDED, part)));
        let tiny = frame(&Ip::new(peer, pod).id(3).fragment(0, true).packet(proto::TCP, &[0; 8]));
        assert_eq!(steps.reason(Ingress, &FORWARDED, &tiny), (false, Some(Reason::FragmentTiny)));
    }
    steps.twin.compare_counters().unwrap();
}

#[test]
fn what_cannot_be_judged_is_dropped_where_a_policy_isolates() {
    let mut steps = Steps::new(0);
    let (pod, peer) = (ip(POD[1]), ip(PEERS[1][0]));
    let syn = Tcp::new(1, 80, flags::SYN);
    let deep = (0..7).fold(Ip::new(pod, peer), |ip, _| ip.extension(Extension::Destination(8)));
    let mapped = Ip::new(pod, ip("::ffff:10.9.1.1")).tcp(&syn);
    let cases = [
        (frame(&Ip::new(pod, peer).tcp(&syn).truncated(50)), Reason::Malformed),
        (frame(&deep.tcp(&syn)), Reason::TooManyExtensionHeaders),
        (frame(&mapped), Reason::MappedAddress),
        (Frame::new([2; 6], [4; 6], 0x88cc, &[0; 60]).bytes, Reason::UnknownEthertype),
        (Ip::new(pod, peer).tcp(&syn).ethernet([2; 6], [4; 6]).vlan(5).bytes, Reason::VlanTagged),
    ];
    for (frame, reason) in &cases {
        steps.rows(ROW_OPEN, ROW_CLOSED);
        assert_eq!(steps.reason(Egress, &FORWARDED, frame), (false, Some(*reason)));
        steps.rows(ROW_CLOSED, ROW_OPEN);
        assert!(steps.reason(Egress, &FORWARDED, frame).0, "{reason:?} of an open pod");
    }
    // Neighbours are never filtered, but a pod is no router.
    steps.rows(ROW_CLOSED, ROW_CLOSED);
    let IpAddr::V6(target) = peer else { panic!("an IPv6 address") };
    let near = |ip: Ip| ip.hop_limit(255);
    let ask = near(Ip::new(pod, peer)).neighbour_solicitation(target, [2; 6]);
    assert!(steps.passes(Egress, &FORWARDED, &ask) && steps.passes(Ingress, &FORWARDED, &ask));
    let advert = frame(&near(Ip::new(pod, peer)).router_advertisement());
    assert_eq!(steps.reason(Egress, &FORWARDED, &advert), (false, Some(Reason::RogueNeighbour)));
    assert!(steps.reason(Ingress, &FORWARDED, &advert).0);
    assert!(steps.reason(Egress, &FORWARDED, &Frame::new([2; 6], [4; 6], ethertype::ARP, &[0; 28]).bytes).0);
    steps.twin.configure(endpoint_config::PENDING).unwrap();
    let pending = segment(0, PEERS[0][0], Ingress, (80, 9), flags::SYN);
    assert_eq!(steps.reason(Ingress, &FORWARDED, &frame(&pending)), (false, Some(Reason::PolicyPending)));
}

fn random_packet(dice: &mut Rng, direction: Direction) -> Packet {
    let family = dice.below(2);
    let pod = match dice.below(12) {
        0 => POD_FURTHER[family],
        1 => PEERS[family][2],
        _ => POD[family],
    };
    let peer = match dice.below(10) {
        0 | 1 => NODE[family],
        2 => POD[family],
        3 | 4 => STRANGERS[family][dice.below(2)],
        _ => PEERS[family][dice.below(3)],
    };
    let (pod, peer) = (ip(pod), ip(peer));
    let local = dice.one([80, 444, 53, 30_000]);
    let remote = dice.one([80, 443, 53, 40_000]);
    let (source, destination) = if direction == Ingress { (peer, pod) } else { (pod, peer) };
    let (from, to) = if direction == Ingress { (remote, local) } else { (local, remote) };
    let mut ip = Ip::new(source, destination).id(dice.below(4) as u32);
    if dice.below(8) == 0 {
        ip = if family == 0 { ip.options(&[1; 8]) } else { ip.extension(Extension::HopByHop) };
    }
    if family == 1 && dice.below(8) == 0 {
        let more = [Extension::Routing, Extension::Destination(16), Extension::Authentication];
        ip = ip.extension(more[dice.below(3)].clone());
    }
    let bits = dice.one([2, 2, 18, 16, 16, 16, 24, 17, 4, 20, 0, 3, 6]);
    let tcp = Tcp::new(from, to, bits).payload(&[7; 20]);
    if dice.below(10) == 0 {
        let offset = dice.one([0, 0, 8, 16, 80]);
        let more = dice.below(2) == 0;
        let ip = ip.fragment(offset, more);
        return if dice.below(3) == 0 { ip.tcp(&tcp) } else { ip.udp(from, to, &[1; 24]) };
    }
    match dice.below(16) {
        0..=6 => ip.tcp(&tcp),
        7..=9 => ip.udp(from, to, b"data"),
        10 => ip.sctp(&Sctp::init(from, to)),
        11 => ip.sctp(&Sctp::data(from, to, b"data")),
        12 => ip.echo_request(dice.below(3) as u16, 1, b"ping"),
        13 => ip.echo_reply(dice.below(3) as u16, 1, b"ping"),
        14 => {
            let about = Ip::new(destination, source);
            let about = if dice.below(2) == 0 {
                about.tcp(&Tcp::new(to, from, 16))
            } else {
                about.udp(to, from, &[0; 8])
            };
            let error =
                dice.one([IcmpError::PortUnreachable, IcmpError::TooBig(1400), IcmpError::TimeExceeded]);
            ip.error(error, &about)
        }
        _ => ip.packet(proto::GRE, &[0; 8]),
    }
}

/// Rows, moves of peers, configuration: whatever may change under running flows.
fn random_change(dice: &mut Rng, steps: &mut Steps) {
    match dice.below(6) {
        0 => {
            let (family, peer) = (dice.below(2), dice.below(3));
            let slot = (family * 5 + peer + 1) as u32;
            let check = address::check(ip(PEERS[family][peer]));
            let word = HostWord { check, class: dice.below(5) as u16, flags: host_flags::POD };
            steps.twin.apply(vec![Op::HostWord { slot, word }]).unwrap();
        }
        1 => {
            use endpoint_config::{ANTI_SPOOF, KEEP, MASQUERADED_ALLOW, PENDING, REVIVE};
            let bits = [ANTI_SPOOF, PENDING, REVIVE, KEEP, MASQUERADED_ALLOW];
            let config = bits.into_iter().filter(|_| dice.below(4) == 0).sum();
            steps.twin.configure(config).unwrap();
        }
        2 => {
            let window = if dice.below(2) == 0 { Duration::from_secs(3600) } else { Duration::ZERO };
            steps.twin.pick_up(window).unwrap();
        }
        _ => {}
    }
    let row = |dice: &mut Rng| dice.below(7) as u16;
    let (ingress, egress) = (row(dice), row(dice));
    steps.rows(ingress, egress);
}

#[test]
fn random_packets_under_random_policies() {
    let number = |name: &str| env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("POLICY_SEED").unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(1, |d| d.as_nanos() as u64 | 1)
    });
    println!("POLICY_SEED={seed}");
    let mut dice = Rng::new(seed);
    let mut steps = Steps::new(endpoint_config::ANTI_SPOOF);
    let (mut passed, mut dropped) = (0, 0);
    for _ in 0..number("POLICY_PACKETS").unwrap_or(20_000) {
        if dice.below(12) == 0 {
            random_change(&mut dice, &mut steps);
        }
        let direction = dice.one([Ingress, Egress]);
        let mut bytes = frame(&random_packet(&mut dice, direction));
        if dice.below(12) == 0 {
            let at = 12 + dice.below(bytes.len() - 12);
            bytes[at] = dice.below(256) as u8;
        }
        if dice.below(20) == 0 {
            // Newer kernels refuse to run on less than an IP header.
            let least = if bytes[12] == 0x86 { 54 } else { 34 };
            if bytes.len() > least {
                let length = least + dice.below(bytes.len() - least);
                bytes.truncate(length);
            }
        }
        let way = Way {
            ingress_ifindex: dice.one([0, 7, 7]),
            socket: true,
            tag: dice.one([0, 0, 0, tag::new(SLOT, 1), tag::new(SLOT, 2), tag::new(9, 1), 0x1234]),
            vlan: false,
        };
        let judged = steps.twin.judge(At::Pod(direction), &way, &bytes);
        let judged = judged.unwrap_or_else(|error| panic!("POLICY_SEED={seed}: {error:#}"));
        *if judged.passes { &mut passed } else { &mut dropped } += 1;
    }
    println!("{passed} passed, {dropped} dropped");
    assert!(passed > 1_000 && dropped > 1_000, "a test that sees one answer only is none");
    steps.twin.compare_counters().unwrap();
}
