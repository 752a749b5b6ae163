//! The programs of control groups against the in-memory datapath on random histories, and on real sockets without an
//! agent.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use policy_agent::cgroup::Hierarchy;
use policy_agent::datapath::Endpoint;
use policy_common::abi::{
    Cgroup,
    Direction::{self, Egress, Ingress},
    EndpointWord, HostWord, Interval, Outcome, ROW_CLOSED, ROW_OPEN, RuleSet, action, endpoint_config,
    host_flags, meta_words,
};
use policy_common::reason::Reason;
use policy_engine::address::{self, words6};
use policy_engine::limits::Limits;
use policy_engine::mem::datapath::{MemDatapath, MemEndpoint, Way};
use policy_engine::mem::tables::MemTables;
use policy_engine::plan::{Op, Plan};
use policy_engine::spot::Spot;
use policy_engine::testing::rng::Rng;
use policy_tests::group::ControlGroup;
use policy_tests::net::Netns;
use policy_tests::pkt::{Ip, Packet, Sctp, Tcp, flags, proto};
use policy_tests::pool::{self, Lent};
use policy_tests::test_run;

const SLOT: u16 = 5;
/// Longest wait for something that must come.
const LONG: Duration = Duration::from_secs(60);
const OWN: [[&str; 2]; 2] = [["10.9.0.2", "10.9.0.3"], ["fd00:9::2", "fd00:9::3"]];
const PEERS: [[&str; 3]; 2] =
    [["10.9.1.1", "10.9.1.2", "192.0.2.7"], ["fd00:9:1::1", "fd00:9:1::2", "2001:db8::7"]];
/// Addresses that stand for the endpoints of slots 5 and 6, and their classes.
const IDENTITIES: [(&str, u16); 2] = [("100::5", 3), ("100::6", 4)];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Rule sets 1 some ports, 2 everything; rows 2 to 4 over the classes of both peers and of the identities.
fn rules() -> Vec<Op> {
    let allow = |rule| Outcome::new(action::ALLOW, rule);
    let interval = |low, high, outcome| Interval { low, high, outcome };
    let values = vec![interval(80, 80, allow(5)), interval(443, 445, allow(6)), interval(53, 53, allow(5))];
    let some = RuleSet { base: 0, n_tcp: 2, n_udp: 1, ..RuleSet::default() };
    let all = RuleSet { other: allow(8), default: allow(8), ..RuleSet::default() };
    let mut ops = vec![Op::Intervals { base: 0, values }];
    ops.extend([(1, some), (2, all)].map(|(id, value)| Op::RuleSet { id, value }));
    let rows = [vec![0, 1, 2, 0, 0], vec![0, 2, 1, 0, 0], vec![0, 0, 0, 0, 1]];
    ops.extend((2..).zip(rows).map(|(row, cells)| Op::Row { row, cells }));
    ops
}

fn host(slot: u32, address: IpAddr, class: u16, flags: u16) -> [Op; 2] {
    let word = HostWord { check: address::check(address), class, flags };
    [Op::HostWord { slot, word }, Op::HostInsert { address, slot }]
}

fn hosts() -> Vec<Op> {
    let peers = (0..2).flat_map(|family| (1..).zip(&PEERS[family][..2]));
    let all = peers.map(|(class, address)| (*address, class)).chain(IDENTITIES.map(|(a, c)| (a, c)));
    (1..).zip(all).flat_map(|(slot, (address, class))| host(slot, ip(address), class, 0)).collect()
}

fn open(addresses: &[IpAddr], slots: &[u16]) -> Lent {
    let lent = pool::lend().unwrap();
    for slot in slots {
        let endpoint = Endpoint {
            slot: *slot,
            id: 70 + u32::from(*slot),
            ifindex: 0,
            addresses: addresses.to_vec(),
            config: endpoint_config::SOCKETS,
            pickup: Duration::ZERO,
        };
        lent.datapath.executor.create_endpoint(&endpoint).unwrap();
    }
    lent
}

fn value(slot: u16, level: u32) -> Cgroup {
    let (identity, _) = IDENTITIES[usize::from(slot - 5)];
    let IpAddr::V6(identity) = ip(identity) else { unreachable!() };
    Cgroup { slot: slot.into(), level, identity: words6(identity) }
}

/// Both datapaths with one endpoint: that of this process's own control group.
struct Both {
    lent: Lent,
    memory: MemDatapath,
    counts: BTreeMap<(Reason, u8), u64>,
    plans: u64,
    epoch: u32,
}

impl Both {
    fn new() -> Self {
        let addresses: Vec<IpAddr> = OWN.iter().flatten().map(|text| ip(text)).collect();
        let mut lent = open(&addresses, &[SLOT]);
        lent.with_sockets().unwrap();
        // The socket of a test packet is in this process's group; before Linux 6.2 in the root.
        let hierarchy = Hierarchy::find(None).unwrap();
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap();
        for directory in [hierarchy.root().to_owned(), hierarchy.root().join(own)] {
            let id = std::fs::metadata(directory).unwrap().ino();
            lent.datapath.executor.set_group(id, &value(SLOT, 0)).unwrap();
        }
        let mut memory = MemDatapath::new(MemTables::new(Limits::default()));
        memory.meta = std::array::from_fn(|i| lent.datapath.executor.meta(i as u32).unwrap_or(0));
        assert_eq!(memory.meta[meta_words::CGROUP_LEVEL as usize], 0);
        memory.set_endpoint(
            SLOT,
            MemEndpoint {
                id: 75,
                ifindex: 0,
                config: 0,
                generation: 1,
                addresses,
                pickup_until: 0,
                keep_from: 0,
            },
        );
        let mut both = Self { lent, memory, counts: BTreeMap::new(), plans: 0, epoch: 1 };
        both.apply(rules());
        both.apply(hosts());
        both
    }

    /// What the program of a direction says of a frame.
    fn run(&self, direction: Direction, frame: &[u8]) -> u32 {
        let name = if direction == Ingress { "cgroup_in" } else { "cgroup_out" };
        test_run::run(self.lent.programs.get(name).unwrap(), frame, &[0]).unwrap()
    }

    /// Whether `BPF_PROG_TEST_RUN` shows programs of control groups the bytes of a packet, as sockets always do. Old
    /// kernels do not: the programs call such a packet malformed.
    fn is_shown_bytes(&mut self) -> bool {
        self.rows(ROW_CLOSED, ROW_CLOSED);
        let frame = Ip::new(ip("127.0.0.1"), ip("127.0.0.1")).udp(1, 2, &[]).ethernet([2; 6], [4; 6]).bytes;
        let passes = self.run(Ingress, &frame) == 1;
        let reason = self.lent.datapath.ring.next_event().map(|event| event.reason());
        assert!(passes || reason == Some(Reason::Malformed), "{reason:?}");
        let old = aya::util::KernelVersion::current().unwrap() < aya::util::KernelVersion::new(6, 18, 0);
        assert!(passes || old, "this kernel shows the bytes");
        if !passes {
            *self.counts.entry((Reason::Malformed, Ingress as u8)).or_default() += 1;
            println!("skipped: BPF_PROG_TEST_RUN of this kernel shows programs of control groups no bytes");
        }
        passes
    }

    fn apply(&mut self, ops: Vec<Op>) {
        self.memory.tables.apply_all(&ops).unwrap();
        self.plans += 1;
        self.lent.datapath.executor.apply(&Plan { number: self.plans, ops }).unwrap();
    }

    fn rows(&mut self, ingress_row: u16, egress_row: u16) {
        self.epoch += 1;
        let word = EndpointWord { epoch: self.epoch, ingress_row, egress_row };
        self.apply(vec![Op::Endpoint { slot: SLOT, word }]);
    }

    /// What both say of a packet.
    fn judge(&mut self, direction: Direction, packet: &Packet) -> bool {
        let frame = packet.ethernet([2; 6], [4; 6]).bytes;
        let tick = self.lent.datapath.executor.tick().unwrap();
        let way = Way { ingress_ifindex: 7, socket: true, tag: 0, vlan: false };
        let judged = self.memory.judge_packet(SLOT, direction, &way, &frame, tick);
        let said = self.run(direction, &frame);
        let event = self.lent.datapath.ring.next_event();
        let told = format!("{direction:?} {packet:?}\nmemory: {judged:?}\nkernel: {said} {event:?}");
        assert_eq!(said, u32::from(judged.passes), "{told}");
        if let Some(verdict) = judged.verdict
            && (verdict.is_counted() || !verdict.passes())
        {
            *self.counts.entry((verdict.reason(), direction as u8)).or_default() += 1;
        }
        if let Some(event) = event {
            let wanted = judged.event.unwrap_or_else(|| panic!("an event too many: {told}"));
            let what = |e: &policy_common::event::Event| {
                let ends = (e.source, e.destination, e.source_port, e.destination_port);
                let flow = (
                    e.word,
                    e.slot,
                    e.class,
                    e.rule,
                    e.rule_set,
                    e.opener,
                    e.flags & !policy_common::event::event_flags::SOCKET,
                );
                (ends, flow, (e.direction, e.reason, e.family, e.protocol, e.tcp_flags, e.icmp_code))
            };
            assert_eq!(what(&event), what(&wanted), "{told}");
        }
        judged.passes
    }

    fn compare_counters(&self) {
        let all = self.lent.datapath.executor.counters().unwrap();
        let kernel: BTreeMap<(Reason, u8), u64> = all
            .into_iter()
            .filter(|(_, _, counter)| counter.packets > 0)
            .map(|(reason, direction, counter)| ((reason, direction as u8), counter.packets))
            .collect();
        assert_eq!(kernel, self.counts);
    }
}

fn random_packet(rng: &mut Rng, direction: Direction) -> Packet {
    let family = rng.below(2);
    let (own, peer) = (ip(OWN[family][rng.below(2)]), ip(PEERS[family][rng.below(3)]));
    let ports = (rng.one([80, 443, 5000, 53]), rng.one([80, 444, 446, 53, 6000]));
    let (at, (from, to)) = match direction {
        Ingress => (Ip::new(peer, own), (ports.1, ports.0)),
        Egress => (Ip::new(own, peer), ports),
    };
    match rng.below(8) {
        0..4 => {
            let bits = rng.one([
                flags::SYN,
                flags::SYN | flags::ACK,
                flags::ACK,
                flags::FIN | flags::ACK,
                flags::RST,
            ]);
            at.tcp(&Tcp::new(from, to, bits))
        }
        4 | 5 => at.udp(from, to, &[0; 12]),
        6 => at.sctp(&Sctp::init(from, to)),
        _ => {
            let echo = if family == 0 { (proto::ICMP, [8, 0]) } else { (proto::ICMP6, [128, 129]) };
            let kind = echo.1[rng.below(2)];
            at.packet(echo.0, &[kind, 0, 0, 0, 0, 9, 0, 1])
        }
    }
}

#[test]
fn kernel_and_memory_agree_on_random_histories() {
    let mut both = Both::new();
    if !both.is_shown_bytes() {
        return both.compare_counters();
    }
    let mut rng = Rng::new(0x5eed_0005);
    let rows = [ROW_OPEN, ROW_CLOSED, 2, 3];
    let (mut passed, mut dropped) = (0, 0);
    for step in 0..12_000 {
        if step % 40 == 0 {
            both.rows(rng.one(rows), rng.one(rows));
        }
        let direction = rng.one([Ingress, Egress]);
        let packet = random_packet(&mut rng, direction);
        *(if both.judge(direction, &packet) { &mut passed } else { &mut dropped }) += 1;
    }
    println!("{passed} passed, {dropped} dropped");
    assert!(passed > 2_000 && dropped > 2_000, "{passed} {dropped}");
    both.compare_counters();
}

/// What pods may not do and sockets may, and the packets that nobody can judge.
#[test]
fn what_differs_from_an_interface() {
    let mut both = Both::new();
    if !both.is_shown_bytes() {
        return;
    }
    let run = |both: &mut Both, direction: Direction, packet: &Packet| {
        let frame = packet.ethernet([2; 6], [4; 6]).bytes;
        let said = both.run(direction, &frame);
        let event = both.lent.datapath.ring.next_event();
        (said == 1, event.map(|event| event.reason()))
    };
    both.rows(2, 2);
    let loopback = Ip::new(ip("127.0.0.1"), ip("127.3.2.1")).udp(1, 2, &[]);
    assert_eq!(run(&mut both, Egress, &loopback), (true, None), "exempt");
    let six = Ip::new(ip("::1"), ip("::1")).udp(1, 2, &[]);
    assert_eq!(run(&mut both, Ingress, &six), (true, None), "exempt");
    let half = Ip::new(ip("127.0.0.1"), ip(PEERS[0][2])).udp(1, 2, &[]);
    assert_eq!(run(&mut both, Egress, &half), (false, Some(Reason::NoRuleMatched)));
    both.lent
        .datapath
        .executor
        .set_config(SLOT, endpoint_config::SOCKETS | endpoint_config::JUDGE_LOOPBACK)
        .unwrap();
    assert_eq!(run(&mut both, Egress, &loopback), (false, Some(Reason::NoRuleMatched)), "judged on request");
    // From and to addresses of its own host: not forged, but judged.
    let own = Ip::new(ip(OWN[0][0]), ip(OWN[0][1])).tcp(&Tcp::new(9, 81, flags::SYN));
    assert_eq!(run(&mut both, Ingress, &own), (false, Some(Reason::NoRuleMatched)));
    let short = Ip::new(ip(PEERS[0][0]), ip(OWN[0][0])).tcp(&Tcp::new(9, 80, flags::SYN)).truncated(30);
    assert_eq!(run(&mut both, Ingress, &short), (false, Some(Reason::Malformed)));
    both.rows(ROW_OPEN, ROW_CLOSED);
    assert_eq!(run(&mut both, Ingress, &short), (true, None), "not isolated in this direction");
}

/// The self-check's packets, in both directions and families: judged by the tables, where the kernel shows its programs
/// the packet, at a socket.
#[test]
fn trials_are_judged_as_at_a_socket() {
    let mut both = Both::new();
    let shown = both.is_shown_bytes();
    let mut trial = both.lent.datapath.trial.make(true).unwrap();
    assert!(trial.is_for_sockets());
    assert_eq!(trial.sees_sockets(), shown);
    let mut asked = 0;
    for (row, [first, second]) in
        [(ROW_OPEN, [true; 2]), (ROW_CLOSED, [false; 2]), (2, [false, true]), (3, [true, false])]
    {
        both.rows(row, row);
        for (family, direction) in [0, 1].into_iter().flat_map(|family| [(family, Ingress), (family, Egress)])
        {
            for (peer, protocol, port, passes) in [
                (0, 6, 81, first),
                (1, 6, 81, second),
                (0, 6, 80, row != ROW_CLOSED),
                (2, 6, 80, row == ROW_OPEN),
                (1, 132, 80, second),
            ] {
                let (local, remote) = (ip(OWN[family][0]), ip(PEERS[family][peer]));
                let spot =
                    Spot { slot: SLOT, direction, local, remote, protocol, from_port: 50_000, port, passes };
                assert_eq!(
                    trial.passes(&both.lent.datapath.executor, &spot).unwrap(),
                    passes,
                    "row {row}: {spot:?}"
                );
                asked += 1;
            }
        }
    }
    assert_eq!(asked, 80);
    // Nothing of it is left where packets are judged.
    let events = std::iter::from_fn(|| both.lent.datapath.ring.next_event()).count();
    assert_eq!(events, 0);
    both.compare_counters();
}

/// Groups of two endpoints on a host of its own whose one address both share; `web` may be served by `db`.
struct Wire {
    db: ControlGroup,
    web: ControlGroup,
    ns: Arc<Netns>,
    lent: Lent,
}

impl Wire {
    fn new() -> Self {
        let ns = Arc::new(Netns::new().unwrap());
        // The address of `lo` is the host's: no other is needed, as both are judged.
        let mut lent = open(&[ip("127.0.0.1"), ip("::1")], &[5, 6]);
        let [db, web] = [(); 2].map(|()| ControlGroup::new().unwrap());
        let datapath = &mut lent.datapath;
        let x = &mut datapath.executor;
        x.apply(&Plan { number: 1, ops: rules() }).unwrap();
        let mut ops = hosts();
        ops.extend(host(90, ip("127.0.0.1"), 0, host_flags::OWN_NODE));
        ops.extend(host(91, ip("::1"), 0, host_flags::OWN_NODE));
        x.apply(&Plan { number: 2, ops }).unwrap();
        for (slot, group) in [(5, &db), (6, &web)] {
            x.set_config(slot, endpoint_config::SOCKETS | endpoint_config::JUDGE_LOOPBACK).unwrap();
            x.set_group(group.id().unwrap(), &value(slot, 1)).unwrap();
            assert_eq!(datapath.groups.attach(group.id().unwrap(), group.directory()).unwrap().fresh, 2);
        }
        let mut wire = Self { db, web, ns, lent };
        // Row 4 gives the class of slot 6, `web`, the ports of rule set 1.
        wire.rows(5, 2, 4, ROW_OPEN);
        wire.rows(6, 2, ROW_OPEN, ROW_OPEN);
        wire
    }

    fn rows(&mut self, slot: u16, epoch: u32, ingress_row: u16, egress_row: u16) {
        let word = EndpointWord { epoch, ingress_row, egress_row };
        let ops = vec![Op::Endpoint { slot, word }];
        self.lent.datapath.executor.apply(&Plan { number: u64::from(epoch) + 10, ops }).unwrap();
    }

    fn stranger(&self, to: &str) -> bool {
        self.ns.reaches(to, Duration::from_millis(300))
    }
}

impl Drop for Wire {
    /// The datapath goes to other tests, without links.
    fn drop(&mut self) {
        for group in [&self.db, &self.web] {
            if let Ok(id) = group.id() {
                drop(self.lent.datapath.groups.detach(id));
            }
        }
    }
}

#[test]
fn peers_are_known_by_their_own_sockets() {
    let wire = Wire::new();
    for (to, other) in [("127.0.0.1:80", "127.0.0.1:81"), ("[::1]:80", "[::1]:81")] {
        let _allowed = wire.db.listener(&wire.ns, to).unwrap();
        let _denied = wire.db.listener(&wire.ns, other).unwrap();
        assert!(wire.web.connect(&wire.ns, to, 60_000).unwrap().is_ok(), "{to}");
        assert!(wire.web.connect(&wire.ns, other, 300).unwrap().is_err(), "{other}");
        assert!(!wire.stranger(to), "{to}");
    }
    let server = wire.db.udp(&wire.ns, "127.0.0.1:53").unwrap();
    server.set_read_timeout(Some(LONG)).unwrap();
    let client = wire.web.udp(&wire.ns, "127.0.0.1:0").unwrap();
    client.send_to(b"x", "127.0.0.1:53").unwrap();
    let (_, from) = server.recv_from(&mut [0; 4]).unwrap();
    server.send_to(b"y", from).unwrap();
    server.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let stranger = wire.ns.run(|| UdpSocket::bind("127.0.0.1:0").unwrap());
    stranger.send_to(b"x", "127.0.0.1:53").unwrap();
    assert!(server.recv_from(&mut [0; 4]).is_err(), "a stranger's datagram came through");
}

#[test]
fn drops_are_visible_and_the_kernel_itself_is_not_judged() {
    let mut wire = Wire::new();
    wire.rows(6, 3, ROW_OPEN, ROW_CLOSED);
    let one = wire.web.udp(&wire.ns, "127.0.0.1:0").unwrap();
    assert_eq!(one.send_to(b"x", "127.0.0.1:9").unwrap_err().kind(), ErrorKind::PermissionDenied);
    one.connect("127.0.0.1:9").unwrap();
    assert_eq!(one.send(b"x").unwrap_err().kind(), ErrorKind::PermissionDenied);
    // A raw socket is a socket.
    let raw = wire.web.socket(&wire.ns, libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP).unwrap();
    let echo = [8u8, 0, 0xf7, 0xff, 0, 0, 0, 0];
    // SAFETY: integers: all zeroes is a value.
    let mut to: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    to.sin_family = libc::AF_INET as u16;
    to.sin_addr.s_addr = u32::from_ne_bytes([127, 0, 0, 1]);
    // SAFETY: every pointer is valid for the length given.
    let sent = unsafe {
        let (bytes, address) = (echo.as_ptr().cast(), (&raw const to).cast());
        libc::sendto(raw.as_raw_fd(), bytes, 8, 0, address, size_of::<libc::sockaddr_in>() as u32)
    };
    assert_eq!((sent, std::io::Error::last_os_error().kind()), (-1, ErrorKind::PermissionDenied));
    // Nobody listens: the refusal comes from the kernel, though `db` may send nothing.
    wire.rows(5, 3, ROW_OPEN, ROW_CLOSED);
    let refused = wire.ns.run(|| TcpStream::connect("127.0.0.1:99").unwrap_err());
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn groups_below_are_judged_and_sockets_stay_where_they_were_made() {
    let wire = Wire::new();
    let above = wire.db.inside("a").unwrap();
    let below = above.inside("b").unwrap();
    let listener = below.listener(&wire.ns, "127.0.0.1:80").unwrap();
    assert!(!wire.stranger("127.0.0.1:80"), "two levels below");
    assert!(wire.web.connect(&wire.ns, "127.0.0.1:80", 60_000).unwrap().is_ok());
    // The socket is used in this process, which is in no group of ours: it was made in one.
    drop(listener.accept().unwrap());
    wire.lent.datapath.groups.detach(wire.db.id().unwrap()).unwrap();
    assert!(wire.ns.reaches("127.0.0.1:80", LONG), "detached");
    assert!(!wire.lent.datapath.groups.is_attached(wire.db.id().unwrap()).unwrap());
}
