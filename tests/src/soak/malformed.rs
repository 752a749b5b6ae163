//! Packets that nobody sends in earnest, through the kernel's programs and the datapath in memory: verdicts and events
//! must be the same, no event unreadable, no map larger than what was allowed to open a flow.

use crate::{
    pkt::{Extension, Frame, IcmpError, Ip, Packet, Sctp, Tcp, proto},
    twin::{At, SLOT, Twin},
};
use anyhow::{Context, Result, ensure};
use policy_agent::datapath::spec::MapId;
use policy_common::abi::{
    Direction, EndpointWord, HostWord, Interval, Outcome, ROW_CLOSED, RuleSet, action, endpoint_config,
    host_flags, tag,
};
use policy_engine::{address, mem::datapath::Way, plan::Op, testing::rng::Rng};
use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

const POD: [&str; 2] = ["10.9.0.2", "fd00:9::2"];
const NODE: [&str; 2] = ["10.9.0.1", "fd00:9::1"];
const PEERS: [[&str; 3]; 2] =
    [["10.9.1.1", "10.9.1.2", "10.9.1.3"], ["fd00:9:1::1", "fd00:9:1::2", "fd00:9:1::3"]];
/// Row 2 allows class 1 port 80 and whatever has no ports.
const SOME: u16 = 2;
/// Frames between two starts with empty flow maps: the kernel's forget the oldest, those in memory nothing.
const FRAMES: u64 = 50_000;
/// Newer kernels refuse to run on less than an IP header.
const LEAST: usize = 54;
/// Maps whose elements the packet path must never touch.
const TABLES: [MapId; 6] =
    [MapId::IfaceX, MapId::Locals, MapId::Hosts4, MapId::Hosts6, MapId::Prefix4, MapId::Prefix6];

/// What was done.
#[derive(Debug, Clone, Copy, Default)]
pub struct Flood {
    /// Different frames, each compared with the datapath in memory.
    pub frames: u64,
    /// Runs of a program, repetitions of drops included.
    pub runs: u64,
    /// Runs that dropped the packet.
    pub dropped: u64,
    /// How long it took.
    pub took: Duration,
}

/// Shows the programs so many packets; a frame that is dropped is shown `repeat` times. The seed is in the error.
pub fn flood(runs: u64, repeat: u32, seed: u64) -> Result<Flood> {
    let start = Instant::now();
    let mut dice = Rng::new(seed);
    let mut sum = Flood::default();
    while sum.runs < runs {
        part(&mut dice, runs, repeat, &mut sum)
            .with_context(|| format!("seed {seed}, frame {}", sum.frames))?;
    }
    sum.took = start.elapsed();
    Ok(sum)
}

fn part(dice: &mut Rng, runs: u64, repeat: u32, sum: &mut Flood) -> Result<()> {
    let ips = POD.map(ip);
    let mut twin = Twin::new(&ips, endpoint_config::ANTI_SPOOF)?;
    twin.apply(tables())?;
    let before = sizes(&twin)?;
    let mut epoch = 1;
    for n in 0..FRAMES {
        if sum.runs >= runs {
            break;
        }
        if n % 500 == 0 {
            epoch += 1;
            let rows =
                dice.one([(SOME, SOME), (ROW_CLOSED, SOME), (SOME, ROW_CLOSED), (ROW_CLOSED, ROW_CLOSED)]);
            let word = EndpointWord { epoch, ingress_row: rows.0, egress_row: rows.1 };
            twin.apply(vec![Op::Endpoint { slot: SLOT, word }])?;
        }
        let direction = dice.one([Direction::Ingress, Direction::Egress]);
        let frame = frame(dice, direction);
        let mark = dice.one([0, 0, 0, 0, 0, 0, 0, tag::new(SLOT, 1), 0x1234]);
        let way = Way { ingress_ifindex: dice.one([0, 7, 7]), socket: true, tag: mark, vlan: false };
        let at = if dice.percent(8) { At::Exit } else { At::Pod(direction) };
        let (judged, done) = twin.judge_many(at, &way, &frame, repeat)?;
        sum.frames += 1;
        sum.runs += u64::from(done);
        sum.dropped += if judged.passes { 0 } else { u64::from(done) };
    }
    twin.compare_counters()?;
    ensure!(
        twin.kernel.datapath.ring.unreadable() == 0,
        "{} events cannot be read",
        twin.kernel.datapath.ring.unreadable()
    );
    let after = sizes(&twin)?;
    ensure!(before == after, "tables grew: {before:?}, {after:?}");
    let (four, six) = twin.kernel.datapath.executor.flow_counts(SLOT)?;
    let known = twin.memory.flows(SLOT);
    ensure!(four + six <= known, "{four} + {six} flows, {known} were allowed to open");
    Ok(())
}

fn sizes(twin: &Twin) -> Result<Vec<usize>> {
    TABLES.iter().map(|id| Ok(twin.kernel.datapath.executor.map(*id).elements()?.len())).collect()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or(IpAddr::from([0, 0, 0, 0]))
}

fn tables() -> Vec<Op> {
    let allow = Outcome::new(action::ALLOW, 5);
    let one = Interval { low: 80, high: 80, outcome: allow };
    let some = RuleSet { base: 0, n_tcp: 1, n_udp: 1, other: allow, ..RuleSet::default() };
    let mut ops = vec![
        Op::Intervals { base: 0, values: vec![one, one] },
        Op::RuleSet { id: 1, value: some },
        Op::Row { row: SOME, cells: vec![0, 1, 0] },
    ];
    let mut slot = 0;
    for family in 0..2 {
        let hosts = [
            (PEERS[family][0], 1, host_flags::POD),
            (PEERS[family][1], 2, host_flags::POD),
            (NODE[family], 0, host_flags::OWN_NODE),
        ];
        for (text, class, flags) in hosts {
            slot += 1;
            let address = ip(text);
            let word = HostWord { check: address::check(address), class, flags };
            ops.extend([Op::HostWord { slot, word }, Op::HostInsert { address, slot }]);
        }
    }
    ops
}

/// A packet that begins as a good one, and what was done to it.
fn frame(dice: &mut Rng, direction: Direction) -> Vec<u8> {
    let mut frame = packet(dice, direction).ethernet([2; 6], [4; 6]);
    if dice.percent(5) {
        frame = frame.vlan(5);
    }
    if dice.percent(3) {
        let kind = dice.one([0x88cc, 0x8847, 0x8863, 0x0806, 0x88a8]);
        frame = Frame::new([2; 6], [4; 6], kind, &frame.bytes[14..]);
    }
    let mut bytes = frame.bytes;
    let headers = bytes.len().min(14 + 80);
    match dice.below(6) {
        // Fields of the headers.
        0..=2 => {
            for _ in 0..1 + dice.below(6) {
                let at = 12 + dice.below(headers - 12);
                bytes[at] = dice.one([0, 1, 4, 5, 6, 15, 17, 41, 43, 44, 50, 58, 59, 60, 64, 127, 128, 255]);
            }
        }
        3 => {
            for _ in 0..1 + dice.below(12) {
                let at = 12 + dice.below(bytes.len() - 12);
                bytes[at] ^= 1 << dice.below(8);
            }
        }
        // Lengths: of IPv4 and its header, of IPv6.
        4 => {
            let at = dice.one([14, 16, 17, 18, 19, 20, 21, 26]);
            bytes[at] = dice.below(256) as u8;
        }
        _ => {}
    }
    if dice.percent(25) && bytes.len() > LEAST {
        bytes.truncate(LEAST + dice.below(bytes.len() - LEAST));
    }
    bytes.resize(bytes.len().max(LEAST), 0);
    bytes
}

fn packet(dice: &mut Rng, direction: Direction) -> Packet {
    let family = dice.below(2);
    let pod = if dice.percent(10) { PEERS[family][2] } else { POD[family] };
    let peer = if dice.percent(15) { NODE[family] } else { PEERS[family][dice.below(3)] };
    let (pod, peer) = (ip(pod), ip(peer));
    let (source, target) = if direction == Direction::Ingress { (peer, pod) } else { (pod, peer) };
    let (from, to) = (dice.one([80, 53, 40_000]), dice.one([80, 443, 53]));
    let mut out = Ip::new(source, target).id(dice.below(6) as u32);
    if family == 0 && dice.percent(20) {
        // Options: record route, source route, and lengths that lie.
        let options: [&[u8]; 5] = [
            &[1; 8],
            &[7, 7, 4, 0, 0, 0, 0, 0],
            &[131, 7, 4, 10, 9, 1, 2, 0],
            &[7, 0, 0, 0],
            &[130, 255, 1, 1],
        ];
        out = out.options(options[dice.below(options.len())]);
    }
    if family == 1 {
        let chain = [
            Extension::HopByHop,
            Extension::Routing,
            Extension::Destination(8),
            Extension::Destination(64),
            Extension::Authentication,
        ];
        for _ in 0..dice.one([0, 0, 0, 1, 2, 3, 6, 8]) {
            out = out.extension(chain[dice.below(chain.len())].clone());
        }
    }
    if dice.percent(20) {
        out = out.fragment(dice.one([0, 0, 8, 16, 24, 1480, 65_528]), dice.percent(50));
    }
    let tcp = Tcp::new(from, to, dice.below(64) as u8).payload(&[7; 12]);
    match dice.below(14) {
        0..=4 => out.tcp(&tcp),
        5 | 6 => out.udp(from, to, b"data"),
        7 => out.sctp(&Sctp::init(from, to)),
        8 => out.sctp(&Sctp::data(from, to, b"data")),
        9 => out.echo_request(dice.below(3) as u16, 1, b"ping"),
        10 | 11 => {
            // An error about a flow of the pod, of another's, or about an error.
            let inner = Ip::new(target, ip(dice.one([PEERS[family][0], POD[family], NODE[family]])));
            let about = if dice.percent(50) { inner.tcp(&tcp) } else { inner.udp(to, from, &[0; 8]) };
            let error =
                dice.one([IcmpError::PortUnreachable, IcmpError::TooBig(1400), IcmpError::TimeExceeded]);
            out.error(error, &about)
        }
        12 => out.packet(dice.below(256) as u8, &[0; 8]),
        // Jumbo: a length of zero and the option that says more.
        _ if family == 1 => {
            let mut bytes = out.packet(proto::HOP_BY_HOP, &[6, 0, 0xc2, 4, 0, 1, 0, 0, 0, 80, 0, 80]).bytes;
            (bytes[4], bytes[5]) = (0, 0);
            Packet { bytes }
        }
        _ => out.packet(proto::TCP, &[0; 6]),
    }
}
