//! What somebody sends who wants in: forged replies, resets, errors with foreign packets inside, fragments over
//! fragments, headers that hide ports. Programs and memory must agree on each, nothing opens, nobody's flow ends.
#![expect(clippy::unwrap_used, reason = "a test that can't go on has failed")]

use policy_common::{
    abi::{
        Direction::{self, Egress, Ingress},
        EndpointWord, HostWord, Interval, Outcome, ROW_CLOSED, RuleSet, action, endpoint_config, host_flags,
    },
    reason::Reason,
};
use policy_engine::{address, mem::datapath::Way, plan::Op};
use policy_tests::{
    pkt::{Extension, IcmpError, Ip, Packet, Tcp, flags, proto},
    twin::{At, SLOT, Twin},
};
use std::net::IpAddr;

const POD: [&str; 2] = ["10.9.0.2", "fd00:9::2"];
/// Port 80 of it is allowed both ways.
const PEER: [&str; 2] = ["10.9.1.1", "fd00:9:1::1"];
const ENEMY: [&str; 2] = ["10.9.1.66", "fd00:9:1::66"];
/// Another pod of the node.
const VICTIM: [&str; 2] = ["10.9.0.5", "fd00:9::5"];
const SOME: u16 = 2;
const FORWARDED: Way = Way { ingress_ifindex: 7, socket: true, tag: 0, vlan: false };

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

struct Scene {
    twin: Twin,
    epoch: u32,
}

impl Scene {
    fn new() -> Self {
        let mut twin = Twin::new(&POD.map(ip), endpoint_config::ANTI_SPOOF).unwrap();
        let allow = Outcome::new(action::ALLOW, 5);
        let one = Interval { low: 80, high: 80, outcome: allow };
        let mut ops = vec![
            Op::Intervals { base: 0, values: vec![one, one] },
            Op::RuleSet { id: 1, value: RuleSet { base: 0, n_tcp: 1, n_udp: 1, ..RuleSet::default() } },
            Op::Row { row: SOME, cells: vec![0, 1] },
        ];
        for (slot, text) in (1..).zip(PEER) {
            let address = ip(text);
            let word = HostWord { check: address::check(address), class: 1, flags: host_flags::POD };
            ops.extend([Op::HostWord { slot, word }, Op::HostInsert { address, slot }]);
        }
        twin.apply(ops).unwrap();
        let mut scene = Self { twin, epoch: 1 };
        scene.rows(ROW_CLOSED, SOME);
        scene
    }

    fn rows(&mut self, ingress_row: u16, egress_row: u16) {
        self.epoch += 1;
        let word = EndpointWord { epoch: self.epoch, ingress_row, egress_row };
        self.twin.apply(vec![Op::Endpoint { slot: SLOT, word }]).unwrap();
    }

    fn send(&mut self, direction: Direction, packet: &Packet) -> (bool, Option<Reason>) {
        let frame = packet.ethernet([2; 6], [4; 6]).bytes;
        let judged = self.twin.judge(At::Pod(direction), &FORWARDED, &frame).unwrap();
        (judged.passes, judged.verdict.map(policy_common::verdict::Verdict::reason))
    }

    fn passes(&mut self, direction: Direction, packet: &Packet) -> bool {
        self.send(direction, packet).0
    }

    /// Flows of the pod, in the kernel and in memory.
    fn flows(&self) -> usize {
        let (four, six) = self.twin.kernel.datapath.executor.flow_counts(SLOT).unwrap();
        assert_eq!(four + six, self.twin.memory.flows(SLOT));
        four + six
    }
}

fn segment(from: &str, to: &str, ports: (u16, u16), bits: u8) -> Packet {
    Ip::new(ip(from), ip(to)).tcp(&Tcp::new(ports.0, ports.1, bits))
}

#[test]
fn forged_replies_and_resets_open_nothing_and_end_nothing() {
    let mut scene = Scene::new();
    for family in 0..2 {
        let (pod, peer, enemy) = (POD[family], PEER[family], ENEMY[family]);
        let before = scene.flows();
        let kinds = [
            flags::SYN | flags::ACK,
            flags::ACK,
            flags::RST,
            flags::RST | flags::ACK,
            flags::FIN | flags::ACK,
            flags::FIN,
            0,
            0x3f,
        ];
        for bits in kinds {
            // Nobody asked: neither the enemy nor the peer on other ports.
            assert!(!scene.passes(Ingress, &segment(enemy, pod, (80, 4000), bits)), "{bits:#x}");
            assert!(!scene.passes(Ingress, &segment(peer, pod, (80, 4001), bits)), "{bits:#x}");
        }
        assert_eq!(scene.flows(), before);
        assert!(scene.passes(Egress, &segment(pod, peer, (4000, 80), flags::SYN)));
        assert!(scene.passes(Ingress, &segment(peer, pod, (80, 4000), flags::SYN | flags::ACK)));
        for bits in kinds {
            assert!(!scene.passes(Ingress, &segment(enemy, pod, (80, 4000), bits)), "{bits:#x}");
        }
        assert!(scene.passes(Ingress, &segment(peer, pod, (80, 4000), flags::ACK)), "the connection goes on");
        assert!(scene.passes(Egress, &segment(pod, peer, (4000, 80), flags::ACK)));
        assert_eq!(scene.flows(), before + 1);
        // The way back is not a way in: the same ports, opened by the peer.
        assert!(!scene.passes(Ingress, &segment(peer, pod, (80, 4000), flags::SYN)));
    }
    scene.twin.compare_counters().unwrap();
}

#[test]
fn errors_with_foreign_packets_inside_open_nothing() {
    let mut scene = Scene::new();
    for family in 0..2 {
        let (pod, peer, enemy) = (ip(POD[family]), ip(PEER[family]), ip(ENEMY[family]));
        let sent = Ip::new(pod, peer).udp(5000, 80, &[0; 32]);
        assert!(scene.passes(Egress, &sent));
        let before = scene.flows();
        let strange = [
            // Of another pod; of the enemy's own making; with ports that the pod never used; towards the pod.
            Ip::new(ip(VICTIM[family]), peer).udp(5000, 80, &[0; 32]),
            Ip::new(enemy, peer).udp(5000, 80, &[0; 32]),
            Ip::new(pod, peer).udp(5001, 80, &[0; 32]),
            Ip::new(pod, enemy).udp(5000, 80, &[0; 32]),
            Ip::new(peer, pod).udp(80, 5000, &[0; 32]),
            Ip::new(pod, peer).tcp(&Tcp::new(5000, 80, flags::SYN)),
        ];
        for inside in &strange {
            for error in [IcmpError::PortUnreachable, IcmpError::TooBig(1280), IcmpError::TimeExceeded] {
                let told = scene.send(Ingress, &Ip::new(enemy, pod).error(error, inside));
                assert_eq!(told, (false, Some(Reason::IcmpNoFlow)), "{inside:?}");
            }
        }
        // An error about an error.
        let error = Ip::new(enemy, pod).error(IcmpError::TimeExceeded, &sent);
        let twice = Ip::new(enemy, pod).error(IcmpError::TimeExceeded, &error);
        assert!(!scene.passes(Ingress, &twice));
        assert!(scene.passes(Ingress, &error), "about the flow itself it passes");
        assert_eq!(scene.flows(), before);
        assert!(
            !scene.passes(Ingress, &Ip::new(enemy, pod).udp(80, 5000, b"in")),
            "and opens nothing to its sender"
        );
    }
    scene.twin.compare_counters().unwrap();
}

#[test]
fn fragments_over_fragments_follow_the_first_of_their_datagram() {
    let mut scene = Scene::new();
    scene.rows(SOME, ROW_CLOSED);
    for family in 0..2 {
        let (pod, peer) = (ip(POD[family]), ip(PEER[family]));
        let part = |id: u32, offset: usize, more: bool| Ip::new(peer, pod).id(id).fragment(offset, more);
        // Out of order: nothing is known of it yet.
        let late = part(1, 16, false).packet(proto::UDP, &[0; 8]);
        assert_eq!(scene.send(Ingress, &late), (false, Some(Reason::FragmentUnknown)));
        assert!(scene.passes(Ingress, &part(1, 0, true).udp(40_000, 80, &[1; 8])));
        assert!(scene.passes(Ingress, &late));
        // A second first fragment says another port: judged by itself, and what follows follows it.
        assert!(!scene.passes(Ingress, &part(1, 0, true).udp(40_000, 81, &[1; 8])));
        assert!(!scene.passes(Ingress, &late), "the datagram is denied now");
        // Over the ports of an allowed first fragment lies nothing: the smallest offset is behind them.
        assert!(scene.passes(Ingress, &part(2, 0, true).udp(40_000, 80, &[1; 8])));
        assert!(scene.passes(Ingress, &part(2, 8, false).packet(proto::UDP, &[0, 81, 0, 81, 0, 0, 0, 0])));
        // TCP's flags would lie in the second eight bytes: neither half of such a header passes.
        let tiny = part(3, 0, true).packet(proto::TCP, &[0x9c, 0x40, 0, 80, 0, 0, 0, 1]);
        assert_eq!(scene.send(Ingress, &tiny), (false, Some(Reason::FragmentTiny)));
        assert!(!scene.passes(Ingress, &part(3, 8, false).packet(proto::TCP, &[0; 16])));
        // Of another sender, with the identification of the allowed one.
        let forged = Ip::new(ip(ENEMY[family]), pod).id(2).fragment(16, false).packet(proto::UDP, &[0; 8]);
        assert_eq!(scene.send(Ingress, &forged), (false, Some(Reason::FragmentUnknown)));
    }
    // A fragment of a fragment: no datagram is put together from it.
    let inner = |offset: u16| {
        let mut header = vec![proto::UDP, 0];
        header.extend(offset.to_be_bytes());
        header.extend([0, 0, 0, 9, 0x9c, 0x40, 0, 80, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        Ip::new(ip(PEER[1]), ip(POD[1])).id(9).fragment(0, true).packet(proto::FRAGMENT, &header)
    };
    for offset in [0, 1, 8, 9] {
        assert_eq!(scene.send(Ingress, &inner(offset)), (false, Some(Reason::Malformed)), "{offset}");
    }
    scene.twin.compare_counters().unwrap();
}

#[test]
fn headers_before_the_ports_hide_nothing() {
    let mut scene = Scene::new();
    scene.rows(SOME, ROW_CLOSED);
    let allowed = Tcp::new(40_000, 80, flags::SYN);
    let denied = Tcp::new(40_000, 81, flags::SYN);
    let four = || Ip::new(ip(PEER[0]), ip(POD[0]));
    // The longest options: record route, loose source route, no operation.
    let mut route = vec![7, 39, 4];
    route.resize(40, 0);
    let mut loose = vec![131, 7, 4, 10, 9, 1, 66, 0];
    loose.resize(40, 1);
    for options in [vec![1; 4], vec![1; 40], route, loose, vec![130, 255, 0, 0]] {
        assert!(scene.passes(Ingress, &four().options(&options).tcp(&allowed)), "{options:?}");
        assert!(!scene.passes(Ingress, &four().options(&options).tcp(&denied)), "{options:?}");
    }
    let chain = |of: &[Extension]| {
        of.iter().fold(Ip::new(ip(PEER[1]), ip(POD[1])), |ip, extension| ip.extension(extension.clone()))
    };
    use Extension::{Authentication, Destination, HopByHop, Routing};
    let chains: [&[Extension]; 5] = [
        &[HopByHop],
        &[HopByHop, Destination(64), Routing],
        &[Authentication],
        &[Destination(8), Destination(8), Destination(8), Destination(8), Destination(8), Destination(8)],
        &[HopByHop, Routing, Authentication, Destination(256)],
    ];
    for of in chains {
        assert!(scene.passes(Ingress, &chain(of).tcp(&allowed)), "{of:?}");
        assert!(!scene.passes(Ingress, &chain(of).tcp(&denied)), "{of:?}");
    }
    let deep: Vec<Extension> = (0..7).map(|_| Destination(8)).collect();
    assert_eq!(
        scene.send(Ingress, &chain(&deep).tcp(&allowed)),
        (false, Some(Reason::TooManyExtensionHeaders))
    );
    // Jumbo, and what segmentation leaves to the device: a length of zero says nothing about where the ports are.
    for (tcp, passes) in [(&allowed, true), (&denied, false)] {
        for mut packet in [chain(&[]).tcp(tcp), chain(&[HopByHop]).tcp(tcp)] {
            (packet.bytes[4], packet.bytes[5]) = (0, 0);
            assert_eq!(scene.passes(Ingress, &packet), passes, "{packet:?}");
        }
    }
    let vlan = four().tcp(&allowed).ethernet([2; 6], [4; 6]).vlan(5).bytes;
    let judged = scene.twin.judge(At::Pod(Egress), &FORWARDED, &vlan).unwrap();
    assert_eq!(judged.verdict.map(policy_common::verdict::Verdict::reason), Some(Reason::VlanTagged));
    scene.twin.compare_counters().unwrap();
}
