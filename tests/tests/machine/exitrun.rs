//! What a pod sends to a Service: left to be judged by the pod's hook, judged where the destination is real. The kernel's
//! programs against the in-memory datapath. Needs nothing but a kernel, so it runs in VMs too.

use policy_agent::datapath::Executor;
use policy_common::abi::{
    Direction::{self, Egress, Ingress},
    EndpointWord, HostWord, Interval, Outcome, ROW_CLOSED, ROW_OPEN, RuleSet, action, endpoint_config,
    host_flags, meta_flags, tag,
};
use policy_common::{event::event_flags, reason::Reason};
use policy_engine::{
    address,
    mem::datapath::{Judged, Way},
    plan::Op,
    testing::rng::Rng,
};
use policy_tests::{
    pkt::{Extension, IcmpError, Ip, Packet, Tcp, flags},
    twin::{At, OTHER, SLOT, Twin},
};
use std::{env, net::IpAddr};

const POD: [&str; 2] = ["10.9.0.2", "fd00:9::2"];
const OTHER_POD: [&str; 2] = ["10.9.0.5", "fd00:9::5"];
const NODE: [&str; 2] = ["10.9.0.1", "fd00:9::1"];
const FRONTEND: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
/// An address of the node with a port, 81, that leads to something forbidden.
const PORTS: [&str; 2] = ["10.9.0.9", "fd00:9::9"];
/// A backend of class 1, to which row 2 allows port 80, and one of class 2, to which it allows nothing.
const GOOD: [&str; 2] = ["10.9.1.1", "fd00:9:1::1"];
const BAD: [&str; 2] = ["10.9.1.2", "fd00:9:1::2"];
/// Row 2 allows class 1 port 80 of TCP and UDP and everything without ports; row 3 allows class 3 all.
const SOME: u16 = 2;
const FROM_OTHER: u16 = 3;
/// Interface of a bridge with ports of pods.
const BRIDGE: u32 = 11;
/// Not the node's own process.
const FORWARDED: Way = Way { ingress_ifindex: 7, socket: true, tag: 0, vlan: false };

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn tables() -> Vec<Op> {
    let allow = Outcome::new(action::ALLOW, 5);
    let one = Interval { low: 80, high: 80, outcome: allow };
    let some = RuleSet { base: 0, n_tcp: 1, n_udp: 1, other: allow, ..RuleSet::default() };
    let all = RuleSet { other: allow, default: allow, ..RuleSet::default() };
    let closed = Interval { low: 81, high: 81, outcome: Outcome::DROP };
    let open = Outcome::new(action::ALLOW, 0);
    let ports = RuleSet { base: 2, n_tcp: 1, other: open, default: open, ..RuleSet::default() };
    let mut ops = vec![
        Op::Intervals { base: 0, values: vec![one, one, closed] },
        Op::RuleSet { id: 3, value: ports },
        Op::RuleSet { id: 1, value: some },
        Op::RuleSet { id: 2, value: all },
        Op::Row { row: SOME, cells: vec![0, 1, 0, 0, 3] },
        Op::Row { row: FROM_OTHER, cells: vec![0, 0, 0, 2] },
    ];
    let mut slot = 0;
    for family in 0..2 {
        for (text, class, flags) in [
            (GOOD[family], 1, host_flags::POD),
            (BAD[family], 2, host_flags::POD),
            (OTHER_POD[family], 3, host_flags::POD),
            (NODE[family], 0, host_flags::OWN_NODE),
            (FRONTEND[family], 0, host_flags::FRONTEND),
            (PORTS[family], 4, host_flags::OWN_NODE | host_flags::NODE_PORTS),
        ] {
            slot += 1;
            let address = ip(text);
            let word = HostWord { check: address::check(address), class, flags };
            ops.extend([Op::HostWord { slot, word }, Op::HostInsert { address, slot }]);
        }
    }
    ops
}

/// Two pods of one node; every change of rows has an epoch of its own.
struct Node {
    twin: Twin,
    epoch: u32,
}

impl Node {
    fn new() -> Self {
        let mut twin = Twin::new(&POD.map(ip), endpoint_config::ANTI_SPOOF).unwrap();
        twin.add_other(&OTHER_POD.map(ip), endpoint_config::ANTI_SPOOF).unwrap();
        twin.bridge(BRIDGE).unwrap();
        twin.apply(tables()).unwrap();
        let mut node = Self { twin, epoch: 1 };
        node.rows(SLOT, ROW_CLOSED, ROW_CLOSED);
        node.rows(OTHER.0, ROW_CLOSED, ROW_CLOSED);
        node
    }

    fn rows(&mut self, slot: u16, ingress_row: u16, egress_row: u16) {
        self.epoch += 1;
        let word = EndpointWord { epoch: self.epoch, ingress_row, egress_row };
        self.twin.apply(vec![Op::Endpoint { slot, word }]).unwrap();
    }

    fn judge(&mut self, at: At, way: Way, packet: &Packet) -> Judged {
        self.twin.judge(at, &way, &packet.ethernet([2; 6], [4; 6]).bytes).unwrap()
    }

    fn reason(&mut self, at: At, way: Way, packet: &Packet) -> (bool, Option<Reason>) {
        let judged = self.judge(at, way, packet);
        (judged.passes, judged.verdict.map(policy_common::verdict::Verdict::reason))
    }
}

fn tagged(slot: u16) -> Way {
    Way { tag: tag::new(slot, 1), ..FORWARDED }
}

fn deferred(slot: u16) -> Way {
    Way { tag: tag::new(slot, 1) | tag::DEFERRED, ..FORWARDED }
}

fn segment(from: &str, to: &str, ports: (u16, u16), bits: u8) -> Packet {
    Ip::new(ip(from), ip(to)).tcp(&Tcp::new(ports.0, ports.1, bits))
}

const DENIED: (bool, Option<Reason>) = (false, Some(Reason::NoRuleMatched));
const OUT: At = At::Pod(Egress);
const IN: At = At::Pod(Ingress);

/// What a pod opens to them is judged at its own hook, what comes from them is not.
#[test]
fn ports_of_the_node_that_lead_to_services_are_judged_by_its_word() {
    let mut node = Node::new();
    node.rows(SLOT, SOME, SOME);
    for family in 0..2 {
        for (port, passes) in [(80, true), (81, false), (82, true)] {
            let packet = segment(POD[family], PORTS[family], (1000 + port, port), flags::SYN);
            let judged = node.judge(OUT, FORWARDED, &packet);
            assert_eq!(judged.passes, passes, "{port}");
            let reason = if passes { Reason::Allowed } else { Reason::NoRuleMatched };
            assert_eq!(judged.verdict.unwrap().reason(), reason);
            // Nobody knows all that the node's ports lead to.
            assert_eq!(judged.tag & tag::DEFERRED != 0, passes);
        }
        // The class of the word would let it in. Where the kernel cannot be told the way, a process seems to send it.
        if node.twin.ways {
            let forwarded = segment(PORTS[family], POD[family], (7, 80), flags::SYN);
            assert_eq!(node.reason(IN, FORWARDED, &forwarded), DENIED);
        }
        let process = Way { ingress_ifindex: 0, ..FORWARDED };
        let packet = segment(PORTS[family], POD[family], (8, 80), flags::SYN);
        assert_eq!(node.reason(IN, process, &packet), (true, Some(Reason::OwnNode)));
    }
    node.twin.compare_counters().unwrap();
}

/// Where the pods' own hooks judge traffic to Services, a packet without tag has been judged.
#[test]
fn without_a_tag_nothing_is_left_where_backends_are_judged() {
    let mut node = Node::new();
    node.rows(OTHER.0, ROW_CLOSED, SOME);
    let way = Way { ingress_ifindex: OTHER.1, ..FORWARDED };
    for (flags, passes) in [(0, false), (meta_flags::BACKENDS, true), (0, false)] {
        node.twin.switch(flags).unwrap();
        for family in 0..2 {
            let packet = segment(OTHER_POD[family], BAD[family], (1000, 80), flags::SYN);
            // Some kernels cannot be told how a packet came in.
            assert_eq!(node.judge(At::Exit, way, &packet).passes, passes || !node.twin.ways);
        }
    }
}

#[test]
fn an_isolated_pod_leaves_the_judgement_to_the_exit() {
    let mut node = Node::new();
    for family in 0..2 {
        for (to, reason) in [(FRONTEND[family], Reason::Deferred), (NODE[family], Reason::OwnNode)] {
            node.rows(SLOT, ROW_CLOSED, SOME);
            for (bits, reason) in [(flags::SYN, reason), (flags::ACK, Reason::Established)] {
                let judged = node.judge(OUT, FORWARDED, &segment(POD[family], to, (1000, 80), bits));
                assert!(judged.passes && judged.verdict.unwrap().is_deferred());
                assert_eq!(judged.verdict.unwrap().reason(), reason);
                assert_eq!(judged.tag, tag::new(SLOT, 1) | tag::DEFERRED);
            }
            // The answer belongs to the flow; what the pod answers to others is not deferred.
            assert!(node.judge(IN, FORWARDED, &segment(to, POD[family], (80, 1000), flags::ACK)).passes);
            // A change of policy keeps the mark, whoever speaks first.
            node.rows(SLOT, ROW_CLOSED, SOME);
            assert!(node.judge(IN, FORWARDED, &segment(to, POD[family], (80, 1000), flags::ACK)).passes);
            let judged = node.judge(OUT, FORWARDED, &segment(POD[family], to, (1000, 80), flags::ACK));
            assert_eq!(judged.tag, tag::new(SLOT, 1) | tag::DEFERRED);
            node.rows(SLOT, ROW_CLOSED, ROW_OPEN);
            let judged = node.judge(OUT, FORWARDED, &segment(POD[family], to, (1000, 80), flags::ACK));
            assert_eq!((judged.passes, judged.tag), (true, tag::new(SLOT, 1)), "not isolated any more");
        }
        node.rows(SLOT, ROW_OPEN, SOME);
        assert!(node.judge(IN, FORWARDED, &segment(GOOD[family], POD[family], (9, 90), flags::SYN)).passes);
        let answer = segment(POD[family], GOOD[family], (90, 9), flags::SYN | flags::ACK);
        assert_eq!(node.judge(OUT, FORWARDED, &answer).tag, tag::new(SLOT, 1));
        let plain = segment(POD[family], GOOD[family], (1001, 80), flags::SYN);
        assert_eq!(node.judge(OUT, FORWARDED, &plain).tag, tag::new(SLOT, 1));
    }
    node.twin.compare_counters().unwrap();
}

#[test]
fn the_exit_judges_the_real_destination() {
    let mut node = Node::new();
    for family in 0..2 {
        let to = |to: &str, port| segment(NODE[family], to, (1000, port), flags::ACK);
        node.rows(SLOT, ROW_OPEN, SOME);
        let good = node.judge(At::Exit, deferred(SLOT), &to(GOOD[family], 80));
        assert_eq!((good.passes, good.tag), (true, tag::new(SLOT, 1)), "judged once");
        assert!(node.judge(At::Exit, tagged(SLOT), &to(BAD[family], 80)).passes, "judged before");
        assert!(node.judge(At::Exit, FORWARDED, &to(BAD[family], 80)).passes, "no pod's");
        assert_eq!(node.reason(At::Exit, deferred(SLOT), &to(GOOD[family], 81)), DENIED);
        assert_eq!(
            node.reason(At::Exit, deferred(SLOT), &to(FRONTEND[family], 80)),
            DENIED,
            "not translated"
        );
        assert!(node.judge(At::Exit, deferred(SLOT), &to(POD[family], 9)).passes, "back to itself");
        let bad = node.judge(At::Exit, deferred(SLOT), &to(BAD[family], 80));
        let event = bad.event.unwrap();
        assert_eq!((event.slot, event.direction, event.endpoint), (SLOT, Egress as u8, 77));
        assert_ne!(event.flags & event_flags::EXIT, 0);
        // A policy that tightens cuts at once, and one that goes lets everything pass.
        node.rows(SLOT, ROW_OPEN, ROW_CLOSED);
        assert_eq!(node.reason(At::Exit, deferred(SLOT), &to(GOOD[family], 80)), DENIED);
        node.rows(SLOT, ROW_OPEN, ROW_OPEN);
        let open = node.judge(At::Exit, deferred(SLOT), &to(BAD[family], 80));
        assert_eq!((open.passes, open.tag), (true, tag::new(SLOT, 1)));
        for stale in [tag::new(SLOT, 2), tag::new(40, 1)] {
            let way = Way { tag: stale | tag::DEFERRED, ..FORWARDED };
            let gone = (false, Some(Reason::StaleTag));
            assert_eq!(node.reason(At::Exit, way, &to(GOOD[family], 80)), gone);
            assert_eq!(node.reason(IN, way, &to(POD[family], 80)), gone);
        }
    }
    node.twin.compare_counters().unwrap();
}

/// Where flows are kept when a policy tightens, what goes to a Service is not: only the exit knows what it goes to.
#[test]
fn kept_flows_are_judged_behind_services_all_the_same() {
    let mut node = Node::new();
    node.twin.configure(endpoint_config::ANTI_SPOOF | endpoint_config::KEEP).unwrap();
    for family in 0..2 {
        let out = |to: &str, bits| segment(POD[family], to, (1000, 80), bits);
        node.rows(SLOT, ROW_CLOSED, SOME);
        assert!(node.judge(OUT, FORWARDED, &out(FRONTEND[family], flags::SYN)).passes);
        assert!(node.judge(OUT, FORWARDED, &out(GOOD[family], flags::SYN)).passes);
        assert!(node.judge(At::Exit, deferred(SLOT), &out(GOOD[family], flags::ACK)).passes);
        node.rows(SLOT, ROW_CLOSED, ROW_CLOSED);
        assert!(node.judge(OUT, FORWARDED, &out(GOOD[family], flags::ACK)).passes, "kept");
        let kept = node.judge(OUT, FORWARDED, &out(FRONTEND[family], flags::ACK));
        assert_eq!((kept.passes, kept.tag), (true, tag::new(SLOT, 1) | tag::DEFERRED));
        assert_eq!(node.reason(At::Exit, deferred(SLOT), &out(GOOD[family], flags::ACK)), DENIED);
    }
    node.twin.compare_counters().unwrap();
}

#[test]
fn errors_and_fragments_are_judged_at_the_exit() {
    let mut node = Node::new();
    node.rows(SLOT, ROW_OPEN, SOME);
    for family in 0..2 {
        let (pod, good, bad) = (ip(POD[family]), ip(GOOD[family]), ip(BAD[family]));
        let error = |about: IpAddr| {
            Ip::new(pod, about).error(IcmpError::PortUnreachable, &Ip::new(about, pod).udp(80, 5000, &[0; 8]))
        };
        assert!(node.judge(At::Exit, deferred(SLOT), &error(good)).passes);
        assert_eq!(node.reason(At::Exit, deferred(SLOT), &error(bad)), DENIED);
        let parts = |to, id| Ip::new(pod, to).udp(5000, 80, &[0; 900]).fragments(600, id);
        let unknown = (false, Some(Reason::FragmentUnknown));
        assert_eq!(node.reason(At::Exit, deferred(SLOT), &parts(good, 7)[1]), unknown);
        assert!(parts(good, 8).iter().all(|part| node.judge(At::Exit, deferred(SLOT), part).passes));
        assert!(parts(bad, 9).iter().all(|part| node.reason(At::Exit, deferred(SLOT), part) == DENIED));
        let cut = segment(POD[family], GOOD[family], (1, 80), flags::ACK).truncated(if family == 0 {
            36
        } else {
            56
        });
        assert_eq!(node.reason(At::Exit, deferred(SLOT), &cut), (false, Some(Reason::Malformed)));
        let long = (0..7).fold(Ip::new(pod, good), |ip, _| ip.extension(Extension::Destination(8)));
        if family == 1 {
            let long = long.tcp(&Tcp::new(1, 80, flags::ACK));
            let reason = Some(Reason::TooManyExtensionHeaders);
            assert_eq!(node.reason(At::Exit, deferred(SLOT), &long), (false, reason));
        }
    }
    node.twin.compare_counters().unwrap();
}

/// Where the backend is a pod of the node and no device lies between: its hook judges both pods' policies.
#[test]
fn a_local_pod_is_an_exit_too() {
    let mut node = Node::new();
    for family in 0..2 {
        let syn = |from: &str, port| segment(from, POD[family], (4000, port), flags::SYN);
        node.rows(OTHER.0, ROW_OPEN, SOME);
        node.rows(SLOT, ROW_OPEN, ROW_OPEN);
        let judged = node.judge(IN, deferred(OTHER.0), &syn(OTHER_POD[family], 80));
        assert!(!judged.passes, "the sender's egress does not allow it");
        let event = judged.event.unwrap();
        assert_eq!((event.slot, event.direction), (OTHER.0, Egress as u8));
        assert!(node.judge(IN, tagged(OTHER.0), &syn(OTHER_POD[family], 80)).passes, "judged before");
        node.rows(OTHER.0, ROW_OPEN, ROW_OPEN);
        node.rows(SLOT, SOME, ROW_OPEN);
        assert_eq!(
            node.reason(IN, deferred(OTHER.0), &syn(OTHER_POD[family], 81)),
            DENIED,
            "its own ingress"
        );
        // Its own tag: it came back through a Service.
        node.rows(SLOT, ROW_CLOSED, ROW_CLOSED);
        assert!(node.judge(IN, deferred(SLOT), &syn(POD[family], 82)).passes);
        assert!(node.judge(IN, deferred(SLOT), &syn(NODE[family], 83)).passes, "masqueraded");
    }
    node.twin.compare_counters().unwrap();
}

#[test]
fn a_masqueraded_sender_is_known_by_its_tag_and_a_forged_one_too() {
    let mut node = Node::new();
    node.rows(OTHER.0, ROW_OPEN, ROW_OPEN);
    for family in 0..2 {
        let syn = |from: &str, port| segment(from, POD[family], (4000, port), flags::SYN);
        node.rows(SLOT, FROM_OTHER, ROW_CLOSED);
        assert!(node.judge(IN, tagged(OTHER.0), &syn(NODE[family], 70)).passes);
        let answer = segment(POD[family], NODE[family], (70, 4000), flags::SYN | flags::ACK);
        assert!(node.judge(OUT, FORWARDED, &answer).passes);
        // A kernel that cannot be told where a packet came in takes each for one of the node's own processes.
        if node.twin.ways {
            assert_eq!(node.reason(IN, FORWARDED, &syn(NODE[family], 71)), DENIED, "from anywhere");
            // Revoked by the opener's next packet; the answer keeps the last verdict until then.
            node.rows(SLOT, SOME, ROW_CLOSED);
            let answer = segment(POD[family], NODE[family], (70, 4000), flags::ACK);
            assert!(node.judge(OUT, FORWARDED, &answer).passes);
            let more = segment(NODE[family], POD[family], (4000, 70), flags::ACK);
            assert_eq!(node.reason(IN, tagged(OTHER.0), &more), (false, Some(Reason::Revoked)));
            assert!(!node.judge(OUT, FORWARDED, &answer).passes);
        }
        node.rows(SLOT, SOME, ROW_CLOSED);
        let spoofed = (false, Some(Reason::SpoofedSource));
        assert_eq!(node.reason(IN, tagged(OTHER.0), &syn(GOOD[family], 80)), spoofed);
        assert!(node.judge(IN, FORWARDED, &syn(GOOD[family], 80)).passes, "that pod itself");
    }
    node.twin.compare_counters().unwrap();
}

#[test]
fn a_lost_tag_is_counted_and_closes() {
    let mut node = Node::new();
    if !node.twin.ways {
        println!("skipped: this kernel cannot be told where a test packet came in");
        return;
    }
    let mut untagged = 0;
    for family in 0..2 {
        for came in [OTHER.1, BRIDGE] {
            node.rows(OTHER.0, ROW_OPEN, SOME);
            node.rows(SLOT, ROW_OPEN, ROW_OPEN);
            let way = Way { ingress_ifindex: came, ..FORWARDED };
            let from = |to: &str, ports| segment(OTHER_POD[family], to, ports, flags::ACK);
            assert!(node.judge(At::Exit, way, &from(GOOD[family], (1, 80))).passes);
            assert_eq!(node.reason(At::Exit, way, &from(BAD[family], (1, 80))), DENIED);
            assert_eq!(node.reason(IN, way, &from(POD[family], (1, 80))), DENIED);
            untagged += 2;
        }
        // A stranger over the same bridge is nobody's.
        let way = Way { ingress_ifindex: BRIDGE, ..FORWARDED };
        assert!(node.judge(At::Exit, way, &segment(GOOD[family], BAD[family], (1, 1), flags::ACK)).passes);
    }
    let count = |d: Direction| node.twin.kernel.datapath.executor.untagged(d).unwrap().packets;
    assert_eq!((count(Egress), count(Ingress)), (untagged, untagged / 2));
    node.twin.compare_counters().unwrap();
}

#[test]
fn what_came_before_the_hooks_has_not_lost_a_tag() {
    let mut node = Node::new();
    if !node.twin.ways {
        println!("skipped: this kernel cannot be told where a test packet came in");
        return;
    }
    node.rows(OTHER.0, ROW_OPEN, ROW_OPEN);
    let mut counted = |word: fn(&Executor) -> policy_agent::datapath::Result<()>| {
        word(&node.twin.kernel.datapath.executor).unwrap();
        let before = node.twin.kernel.datapath.executor.untagged(Egress).unwrap().packets;
        for (family, came) in [(0, OTHER.1), (0, BRIDGE), (1, OTHER.1), (1, BRIDGE)] {
            let way = Way { ingress_ifindex: came, ..FORWARDED };
            let packet = segment(OTHER_POD[family], GOOD[family], (1, 80), flags::ACK);
            assert!(node.judge(At::Exit, way, &packet).passes);
        }
        node.twin.kernel.datapath.executor.untagged(Egress).unwrap().packets - before
    };
    assert_eq!(counted(|x| x.announce_interface(OTHER.1, OTHER.0)), 4, "its hooks are there already");
    assert_eq!(counted(|x| x.clear_interface(OTHER.1)), 0, "no pod's");
    assert_eq!(counted(|x| x.announce_interface(OTHER.1, OTHER.0)), 0, "its hooks are being attached");
    assert_eq!(counted(|x| x.announce_interface(OTHER.1, OTHER.0)), 0, "by the next agent");
    assert_eq!(counted(|x| x.set_interface(OTHER.1, OTHER.0)), 4);
}

#[test]
fn random_packets_everywhere() {
    let number = |name: &str| env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("POLICY_SEED").unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(1, |d| d.as_nanos() as u64 | 1)
    });
    println!("POLICY_SEED={seed}");
    let (mut dice, mut node) = (Rng::new(seed), Node::new());
    let (mut passed, mut dropped) = (0, 0);
    for _ in 0..number("POLICY_PACKETS").unwrap_or(20_000) {
        if dice.below(10) == 0 {
            let slot = dice.one([SLOT, OTHER.0]);
            let (ingress, egress) = (dice.below(4) as u16, dice.below(4) as u16);
            node.rows(slot, ingress, egress);
        }
        if dice.below(200) == 0 {
            node.twin.switch(dice.one([0, meta_flags::BACKENDS])).unwrap();
        }
        let family = dice.below(2);
        let remote = dice.one([GOOD, BAD, NODE, PORTS, FRONTEND, OTHER_POD, POD])[family];
        let at = dice.one([IN, OUT, At::Exit]);
        let (from, to) = match at {
            At::Pod(Ingress) => (remote, POD[family]),
            At::Pod(Egress) => (POD[family], remote),
            At::Exit => (dice.one([POD, OTHER_POD, NODE])[family], remote),
        };
        let (source, target) = (dice.one([80, 81, 1000]), dice.one([80, 81]));
        let ip = Ip::new(ip(from), ip(to)).id(dice.below(4) as u32);
        let packet = match dice.below(8) {
            0..=3 => ip.tcp(&Tcp::new(source, target, dice.one([2, 2, 18, 16, 16, 17, 4]))),
            4 => ip.udp(source, target, b"data"),
            5 => ip.echo_request(3, 1, b"ping"),
            6 => ip.error(
                IcmpError::PortUnreachable,
                &Ip::new(self::ip(to), self::ip(from)).udp(target, source, b"x"),
            ),
            _ => ip.fragment(dice.one([0, 0, 24]), true).udp(source, target, &[1; 24]),
        };
        let mut bytes = packet.ethernet([2; 6], [4; 6]).bytes;
        if dice.below(16) == 0 {
            let place = 12 + dice.below(bytes.len() - 12);
            bytes[place] = dice.below(256) as u8;
        }
        let mark = dice.one([0, tag::new(SLOT, 1), tag::new(OTHER.0, 1), tag::new(OTHER.0, 3), 0x1234]);
        let left = dice.one([0, tag::DEFERRED]);
        let way = Way {
            ingress_ifindex: dice.one([0, 7, OTHER.1, BRIDGE]),
            tag: if mark == 0 { 0 } else { mark | left },
            ..FORWARDED
        };
        let judged = node.twin.judge(at, &way, &bytes);
        let judged = judged.unwrap_or_else(|error| panic!("POLICY_SEED={seed}: {error:#}"));
        *if judged.passes { &mut passed } else { &mut dropped } += 1;
    }
    println!("{passed} passed, {dropped} dropped");
    assert!(passed > 1_000 && dropped > 1_000, "a test that sees one answer only is none");
    node.twin.compare_counters().unwrap();
}
