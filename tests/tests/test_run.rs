//! The kernel programs on real maps, by `BPF_PROG_TEST_RUN`: against the evaluator on random worlds, and through every
//! history of an opener and a policy that changes. Needs nothing but a kernel, so it runs in VMs too.
#![expect(clippy::unwrap_used, reason = "a test that can't go on has failed")]

use policy_common::abi::{Direction, EndpointWord, Interval, Outcome, RuleSet, action};
use policy_engine::{
    desired::Endpoint,
    limits::Limits,
    model::ServiceMode,
    plan::{Op, Plan},
    planner::Planner,
    rule_ids::RuleIds,
    tables::Tables,
    testing::{
        rng::Rng,
        samples::{Expected, Sample, expected, samples},
        worlds,
    },
    world::World,
};
use policy_tests::{
    pkt::{Ip, Sctp, Tcp, flags},
    test_run::TestRun,
};
use std::{collections::BTreeSet, net::IpAddr};

fn seed() -> u64 {
    let seed = std::env::var("POLICY_SEED").ok().and_then(|text| text.parse().ok());
    let clock =
        || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    seed.unwrap_or_else(clock)
}

/// The frame that opens a flow.
fn opening(sample: &Sample, pod: IpAddr, port: u16) -> Vec<u8> {
    let (from, to) = match sample.direction {
        Direction::Ingress => (sample.remote, pod),
        Direction::Egress => (pod, sample.remote),
    };
    let ip = Ip::new(from, to);
    let packet = match sample.protocol {
        6 => ip.tcp(&Tcp::new(port, sample.port, flags::SYN)),
        17 => ip.udp(port, sample.port, b"x"),
        132 => ip.sctp(&Sctp::init(port, sample.port)),
        _ => ip.echo_request(port, 1, b"x"),
    };
    packet.ethernet([2; 6], [4; 6]).bytes
}

/// A node whose tables are the kernel's.
struct Node {
    run: TestRun,
    planner: Planner,
    endpoints: Vec<Endpoint>,
    made: BTreeSet<u16>,
    port: u16,
}

impl Node {
    fn new() -> Self {
        let limits = Limits::default();
        let planner = Planner::new(limits, Tables::new(limits), RuleIds::default());
        Self {
            run: TestRun::new().unwrap(),
            planner,
            endpoints: Vec::new(),
            made: BTreeSet::new(),
            port: 1024,
        }
    }

    fn update(&mut self, world: &World) {
        self.endpoints.retain(|e| world.local_pods().any(|pod| pod.key == e.pod));
        for pod in world.local_pods() {
            // An address that two pods claim is the winner's.
            let own = |ip: &&IpAddr| world.pod_at(**ip).is_some_and(|p| p.key == pod.key);
            let addresses: Vec<IpAddr> = pod.addresses.iter().filter(own).copied().collect();
            if let Some(endpoint) = self.endpoints.iter().find(|e| e.pod == pod.key) {
                self.run.kernel.datapath.executor.set_addresses(endpoint.slot, &addresses).unwrap();
                continue;
            }
            let slot = (1..).find(|slot| !self.made.contains(slot)).unwrap();
            self.made.insert(slot);
            self.run.add_endpoint(slot, slot.into(), &addresses).unwrap();
            self.apply(vec![Op::Endpoint { slot, word: Tables::new_endpoint_word() }]);
            self.endpoints.push(Endpoint { slot, id: slot.into(), pod: pod.key.clone() });
        }
        for _ in 0..8 {
            let planned = self.planner.plan(world, &self.endpoints);
            self.run.kernel.datapath.executor.apply(&planned.plan).unwrap();
            if planned.busy.is_none() {
                assert!(planned.refusals.is_empty(), "{:?}", planned.refusals);
                break;
            }
            self.collect();
        }
        self.collect();
    }

    fn collect(&mut self) {
        self.run.kernel.datapath.executor.grace().wait().unwrap();
        let plan = self.planner.collect(u64::MAX);
        self.run.kernel.datapath.executor.apply(&plan).unwrap();
    }

    fn apply(&mut self, ops: Vec<Op>) {
        self.run.kernel.datapath.executor.apply(&Plan { number: 0, ops }).unwrap();
    }

    /// Pairs of (question, answer) that were compared.
    fn check(&mut self, world: &World, asked: &[Sample], seed: u64) -> usize {
        let mut compared = 0;
        for sample in asked {
            let endpoint = self.endpoints.iter().find(|e| e.slot == sample.slot).unwrap();
            let Some(pod) = world.pods.get(&endpoint.pod).filter(|pod| pod.is_subject()) else { continue };
            let own = |ip: &&IpAddr| {
                ip.is_ipv4() == sample.remote.is_ipv4()
                    && world.pod_at(**ip).is_some_and(|p| p.key == pod.key)
            };
            // The unspecified address is nobody's, whatever a pod says: no packet to or from it is a question of policy.
            if sample.remote.is_unspecified() {
                continue;
            }
            let Some(address) = pod.addresses.iter().copied().find(|ip| own(&ip)) else { continue };
            // Where the kernel cannot be told the way of a packet, each seems to come from the node's own processes.
            if !self.run.tells_interface() && world.is_host_address(sample.remote) {
                continue;
            }
            let Some(Expected::Tables(outcome)) =
                expected(world, &self.endpoints, &self.planner.rules, sample)
            else {
                continue;
            };
            self.port = self.port.checked_add(1).unwrap_or(1024);
            let frame = opening(sample, address, self.port);
            let passes = self.run.passes(sample.slot, sample.direction, &frame).unwrap();
            // Traffic to itself never crosses a pod's interface: there such a source is forged.
            let forged = sample.direction == Direction::Ingress && own(&&sample.remote);
            // An isolated pod's way to a Service is judged behind the translation.
            let deferred = sample.direction == Direction::Egress
                && world.service_mode == ServiceMode::Tag
                && world.is_frontend(sample.remote);
            let wanted = deferred || outcome.action() == action::ALLOW && !forged;
            assert_eq!(passes, wanted, "POLICY_SEED={seed}: {sample:?} at {} {address}", endpoint.pod);
            compared += 1;
        }
        compared
    }
}

#[test]
fn random_worlds_are_judged_as_the_evaluator_says() {
    let seed = seed();
    println!("POLICY_SEED={seed}");
    let mut rng = Rng::new(seed);
    let (mut compared, mut passed) = (0, 0);
    for _ in 0..4 {
        let mut node = Node::new();
        let mut world = worlds::world(&mut rng);
        for _ in 0..12 {
            node.update(&world);
            let asked = samples(&mut rng, &world, &node.endpoints, 600);
            compared += node.check(&world, &asked, seed);
            passed += 1;
            worlds::mutate(&mut rng, &mut world);
        }
    }
    println!("{compared} opening packets compared in {passed} worlds");
    assert!(compared > 3_000, "{compared} compared");
}

/// What a direction's row says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Row {
    Open,
    Allows,
    Denies,
}

const ROWS: [Row; 3] = [Row::Open, Row::Allows, Row::Denies];

impl Row {
    fn number(self) -> u16 {
        match self {
            Self::Open => 0,
            Self::Allows => 2,
            Self::Denies => 3,
        }
    }
    fn passes(self) -> bool {
        self != Self::Denies
    }
}

/// One flow with an opener, on its way through policies.
struct Flow {
    pod: IpAddr,
    remote: IpAddr,
    opener: Direction,
    port: u16,
    udp: bool,
}

impl Flow {
    /// A packet of the flow in this direction. `first`: the one that opens it.
    fn frame(&self, direction: Direction, first: bool) -> Vec<u8> {
        let (from, to) =
            if direction == Direction::Ingress { (self.remote, self.pod) } else { (self.pod, self.remote) };
        let opens = direction == self.opener;
        let (source, target) = if opens { (self.port, 80) } else { (80, self.port) };
        let ip = Ip::new(from, to);
        let packet = if self.udp {
            ip.udp(source, target, b"x")
        } else {
            let set = match (first, opens) {
                (true, _) => flags::SYN,
                (false, true) => flags::ACK,
                (false, false) => flags::ACK | flags::PSH,
            };
            ip.tcp(&Tcp::new(source, target, set))
        };
        packet.ethernet([2; 6], [4; 6]).bytes
    }
}

/// Opener x policy before x policy after, and back: the verdict of every packet is the current policy's verdict for
/// the direction that opened the flow.
#[test]
fn every_history_is_judged_by_its_opener() {
    let run = TestRun::new().unwrap();
    let pods: [IpAddr; 2] = ["10.244.1.10".parse().unwrap(), "fd00::10".parse().unwrap()];
    let remotes: [IpAddr; 2] = ["10.244.9.9".parse().unwrap(), "fd00::99".parse().unwrap()];
    let slot = 1;
    run.add_endpoint(slot, 1, &pods).unwrap();
    let mut run = run;
    let allow = Outcome::new(action::ALLOW, 7);
    let one = Interval { low: 80, high: 80, outcome: allow };
    let apply =
        |run: &mut TestRun, ops| run.kernel.datapath.executor.apply(&Plan { number: 0, ops }).unwrap();
    apply(
        &mut run,
        vec![
            Op::Intervals { base: 0, values: vec![one, one] },
            Op::RuleSet { id: 1, value: RuleSet { base: 0, n_tcp: 1, n_udp: 1, ..RuleSet::default() } },
            Op::Row { row: 2, cells: vec![1] },
            Op::Row { row: 3, cells: vec![0] },
        ],
    );
    let mut epoch = 1;
    let mut set = |run: &mut TestRun, ingress: Row, egress: Row| {
        epoch += 1;
        let word = EndpointWord { epoch, ingress_row: ingress.number(), egress_row: egress.number() };
        apply(run, vec![Op::Endpoint { slot, word }]);
    };
    let (mut port, mut histories) = (1024, 0);
    for (pod, remote) in pods.into_iter().zip(remotes) {
        for udp in [false, true] {
            for opener in [Direction::Ingress, Direction::Egress] {
                for before in ROWS.into_iter().flat_map(|i| ROWS.map(|e| (i, e))) {
                    for after in ROWS.into_iter().flat_map(|i| ROWS.map(|e| (i, e))) {
                        port += 1;
                        histories += 1;
                        let flow = Flow { pod, remote, opener, port, udp };
                        let says =
                            |(i, e): (Row, Row)| if opener == Direction::Ingress { i } else { e }.passes();
                        let told = format!("{pod} udp={udp} {opener:?} {before:?} {after:?}");
                        set(&mut run, before.0, before.1);
                        let opened = run.passes(slot, opener, &flow.frame(opener, true)).unwrap();
                        assert_eq!(opened, says(before), "{told}: opening");
                        if !opened {
                            continue;
                        }
                        let reply = flow.frame(opener.reverse(), false);
                        assert!(run.passes(slot, opener.reverse(), &reply).unwrap(), "{told}: reply");
                        set(&mut run, after.0, after.1);
                        // First the reply: it must not be judged in its own direction.
                        let passes = run.passes(slot, opener.reverse(), &reply).unwrap();
                        assert_eq!(passes, says(after), "{told}: reply after the change");
                        let more = run.passes(slot, opener, &flow.frame(opener, false)).unwrap();
                        assert_eq!(more, says(after), "{told}: more after the change");
                        set(&mut run, before.0, before.1);
                        let again = run.passes(slot, opener, &flow.frame(opener, false)).unwrap();
                        assert!(again, "{told}: a cut flow must come back with its policy");
                    }
                }
            }
        }
    }
    println!("{histories} histories");
    assert_eq!(histories, 2 * 2 * 2 * 81);
}
