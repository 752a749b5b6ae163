//! `bench micro`: the programs alone, by BPF_PROG_TEST_RUN, in units of one hash look-up.

mod run;

use super::{
    home::Home,
    meter::{Cost, Meter},
    report::{Gate, judge, table},
    stage::{ALLOWED_PORT, DENIED_PORT, Stage, peers, sizes},
};
use crate::{
    net::{Family, Netns},
    pkt::{Ip, Tcp, flags},
};
use anyhow::{Context, Result, ensure};
use policy_agent::datapath::spec::MapId;
use run::{NEXT, Runner, SHOT};
use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

const ROUNDS: usize = 100;
const REPEAT: u32 = 2_000;
/// Runs in one measurement where each run needs a packet of its own.
const FRESH: u32 = 256;
const POD: u16 = 1;
/// The same pod without a map for its flows: every packet is a first one.
const FLOWLESS_POD: u16 = 2;
/// A control group, and the same without a map for its flows.
const GROUP: u16 = 3;
const FLOWLESS_GROUP: u16 = 4;
/// What programs of control groups return for a packet that passes, and for one that does not.
const PASS: u32 = 1;
const DROP: u32 = 0;
const POD4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 244, 1, 10));
const POD6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, 10));
/// `BPF_PROG_TEST_RUN` runs on the loopback interface.
const LOOPBACK: u32 = 1;

/// How a case is repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// The same packet.
    Same,
    /// The same packet, without a token for an event.
    Held,
    /// The same packet, with tokens for as many events.
    Events,
    /// Packets of another connection each, one run at a time.
    Fresh,
}

/// One line of the table.
struct Case {
    name: &'static str,
    program: &'static str,
    slot: u16,
    /// From the peer's port to the pod's, or the other way round.
    frame: Vec<u8>,
    /// The packet that opened the flow, and the program that saw it.
    opening: Option<(&'static str, Vec<u8>)>,
    mode: Mode,
    verdict: u32,
}

/// Measures all cases for both families and every number of peers; false when a gate is broken.
pub fn micro() -> Result<bool> {
    let meter = Meter::new()?;
    let mut stage = Stage::new(&Arc::new(Netns::of_this_thread()?))?;
    stage.add_pod(POD, LOOPBACK, &[POD4, POD6])?;
    stage.add_pod(FLOWLESS_POD, LOOPBACK, &[POD4, POD6])?;
    let home = Home::new()?;
    stage.add_group(GROUP, &home.group, &[POD4, POD6])?;
    stage.add_group(FLOWLESS_GROUP, &home.group, &[POD4, POD6])?;
    for (map, slot) in [MapId::Flows4, MapId::Flows6]
        .into_iter()
        .flat_map(|map| [FLOWLESS_POD, FLOWLESS_GROUP].map(|slot| (map, slot)))
    {
        stage.datapath.executor.map(map).remove(&u32::from(slot).to_ne_bytes())?;
    }
    println!("costs are added to those of an empty program, in {} of the kernel", meter.unit());
    let mut runner = Runner::new(stage, meter, home)?;
    let look_up = runner.hash_look_up(ROUNDS, REPEAT)?;
    println!("one look-up in a hash (HLU): {:.1} {}", look_up.time, runner.meter.unit());
    let mut gates = Vec::new();
    for family in [Family::V4, Family::V6] {
        let mut columns = Vec::new();
        let mut known = 0;
        for size in sizes() {
            let peers = peers(size, family);
            runner.stage.add_peers(&peers[known..])?;
            known = peers.len();
            eprintln!("bench: {family:?}, {size} peers");
            let peer = peers[size / 2];
            let mut costs = measure(&mut runner, &cases(family, peer), "empty")?;
            costs.extend(measure(&mut runner, &socket_cases(family, peer), "empty_group")?);
            columns.push((size, costs));
        }
        show(family, &columns, look_up, runner.meter.unit());
        gates.extend(gates_of(family, &columns, look_up, runner.meter.has_counters()));
    }
    Ok(judge(&gates))
}

fn cases(family: Family, peer: IpAddr) -> Vec<Case> {
    let pod = if family == Family::V4 { POD4 } else { POD6 };
    let to = |sport, dport, flag| tcp(peer, pod, sport, dport, flag);
    let from = |sport, dport, flag| tcp(pod, peer, sport, dport, flag);
    let (syn, ack) = (flags::SYN, flags::ACK);
    let inward = Some(("pod_in", to(40_000, ALLOWED_PORT, syn)));
    let outward = Some(("pod_out", from(41_000, 443, syn)));
    let case = |name, program, frame, opening| Case {
        name,
        program,
        slot: POD,
        frame,
        opening,
        mode: Mode::Same,
        verdict: NEXT,
    };
    let first = |name, program, frame| Case { slot: FLOWLESS_POD, ..case(name, program, frame, None) };
    let deny =
        |name, mode| Case { mode, verdict: SHOT, ..case(name, "pod_in", to(43_000, DENIED_PORT, syn), None) };
    vec![
        case("in, established", "pod_in", to(40_000, ALLOWED_PORT, ack), inward.clone()),
        case("out, reply", "pod_out", from(ALLOWED_PORT, 40_000, ack), inward),
        case("out, established", "pod_out", from(41_000, 443, ack), outward.clone()),
        case("in, reply", "pod_in", to(443, 41_000, ack), outward),
        first("in, first packet", "pod_in", to(42_000, ALLOWED_PORT, syn)),
        first("out, first packet", "pod_out", from(42_000, 443, syn)),
        Case {
            mode: Mode::Fresh,
            ..case("in, first packet, recorded", "pod_in", to(44_000, ALLOWED_PORT, syn), None)
        },
        deny("in, denied", Mode::Held),
        deny("in, denied, with event", Mode::Events),
    ]
}

/// The programs of control groups, on the same packets.
fn socket_cases(family: Family, peer: IpAddr) -> Vec<Case> {
    let pod = if family == Family::V4 { POD4 } else { POD6 };
    let to = |sport, dport, flag| tcp(peer, pod, sport, dport, flag);
    let from = |sport, dport, flag| tcp(pod, peer, sport, dport, flag);
    let (syn, ack) = (flags::SYN, flags::ACK);
    let inward = Some(("cgroup_in", to(40_000, ALLOWED_PORT, syn)));
    let outward = Some(("cgroup_out", from(41_000, 443, syn)));
    let case = |name, program, frame, opening| Case {
        name,
        program,
        slot: GROUP,
        frame,
        opening,
        mode: Mode::Same,
        verdict: PASS,
    };
    let first = |name, program, frame| Case { slot: FLOWLESS_GROUP, ..case(name, program, frame, None) };
    vec![
        case("socket, in, established", "cgroup_in", to(40_000, ALLOWED_PORT, ack), inward.clone()),
        case("socket, out, reply", "cgroup_out", from(ALLOWED_PORT, 40_000, ack), inward),
        case("socket, out, established", "cgroup_out", from(41_000, 443, ack), outward.clone()),
        case("socket, in, reply", "cgroup_in", to(443, 41_000, ack), outward),
        first("socket, in, first packet", "cgroup_in", to(42_000, ALLOWED_PORT, syn)),
        first("socket, out, first packet", "cgroup_out", from(42_000, 443, syn)),
        Case {
            mode: Mode::Held,
            verdict: DROP,
            ..case("socket, in, denied", "cgroup_in", to(43_000, DENIED_PORT, syn), None)
        },
    ]
}

fn tcp(from: IpAddr, to: IpAddr, sport: u16, dport: u16, flags: u8) -> Vec<u8> {
    Ip::new(from, to).tcp(&Tcp::new(sport, dport, flags)).ethernet([2; 6], [4; 6]).bytes
}

/// The least cost of each case over that of the empty program, in rounds that take turns.
fn measure(runner: &mut Runner, cases: &[Case], base: &str) -> Result<BTreeMap<&'static str, Cost>> {
    for case in cases {
        runner.choose(case.slot)?;
        if let Some((program, frame)) = &case.opening {
            let passes = [NEXT, PASS].contains(&runner.run(program, frame, 1)?);
            ensure!(passes, "{}: the flow cannot be opened", case.name);
        }
        let verdict = runner.run(case.program, &case.frame, 1)?;
        ensure!(verdict == case.verdict, "{}: verdict {verdict}, not {}", case.name, case.verdict);
    }
    let mut costs: BTreeMap<&'static str, Cost> = BTreeMap::new();
    let mut empty = [Cost::MOST; 2];
    let any = &cases[0].frame;
    for _ in 0..ROUNDS {
        let (_, cost) = runner.timed(base, any, REPEAT)?;
        empty[0] = empty[0].least(cost.per(REPEAT));
        let cost = runner.timed_singly(base, any, FRESH)?;
        empty[1] = empty[1].least(cost.per(FRESH));
        for case in cases {
            runner.choose(case.slot)?;
            let Some(cost) = one(runner, case)? else { continue };
            let least = costs.entry(case.name).or_insert(Cost::MOST);
            *least = least.least(cost);
        }
    }
    for case in cases {
        let base = empty[usize::from(case.mode == Mode::Fresh)];
        let cost = costs.get_mut(case.name).with_context(|| format!("{}: nothing measured", case.name))?;
        *cost = run::minus(*cost, base);
    }
    Ok(costs)
}

/// One measurement, none where it was spoilt.
fn one(runner: &mut Runner, case: &Case) -> Result<Option<Cost>> {
    if case.mode == Mode::Fresh {
        return Ok(Some(runner.timed_singly(case.program, &case.frame, FRESH)?.per(FRESH)));
    }
    if case.mode == Mode::Held {
        runner.set_tokens(case.slot, 0)?;
    }
    if case.mode == Mode::Events {
        runner.drain();
        runner.set_tokens(case.slot, 2 * REPEAT)?;
    }
    let (verdict, cost) = runner.timed(case.program, &case.frame, REPEAT)?;
    ensure!(verdict == case.verdict, "{}: the verdict changed to {verdict}", case.name);
    // A tick that begins meanwhile fills the buckets anew, with fewer tokens.
    let spoilt = case.mode == Mode::Events && runner.drain() != REPEAT;
    Ok((!spoilt).then(|| cost.per(REPEAT)))
}

fn show(family: Family, columns: &[(usize, BTreeMap<&'static str, Cost>)], look_up: Cost, unit: &str) {
    println!("\n{family:?}: added {unit} (in HLU) by number of peers");
    let mut head = vec![String::new()];
    head.extend(columns.iter().map(|(size, _)| size.to_string()));
    let names: Vec<&str> =
        columns.first().map(|(_, costs)| costs.keys().copied().collect()).unwrap_or_default();
    let cell = |cost: &Cost| {
        let instructions = cost.instructions.map_or_else(String::new, |count| format!(" {count:.0} instr"));
        format!("{:.1} ({:.2}){instructions}", cost.time, cost.time / look_up.time)
    };
    let row = |name: &str| {
        let cells = columns.iter().map(|(_, costs)| costs.get(name).map_or_else(String::new, cell));
        std::iter::once(name.to_owned()).chain(cells).collect()
    };
    table(&head, &names.into_iter().map(row).collect::<Vec<_>>());
}

/// T2 and T5: what a packet of a known flow, and a first one, may cost.
fn gates_of(
    family: Family,
    columns: &[(usize, BTreeMap<&'static str, Cost>)],
    look_up: Cost,
    exact: bool,
) -> Vec<Gate> {
    let worst = |names: &[&str]| {
        let costs = columns.iter().flat_map(|(_, costs)| names.iter().filter_map(|name| costs.get(name)));
        costs.map(|cost| cost.time / look_up.time).fold(f64::NAN, f64::max)
    };
    let known = worst(&["in, established", "out, established", "in, reply", "out, reply"]);
    let first = worst(&["in, first packet", "out, first packet"]);
    let gate =
        |id, what: &str, value, limit| Gate { id, what: format!("{family:?} {what}"), value, limit, exact };
    vec![
        gate("T2", "packet of a known flow, one program, HLU", known, 3.0),
        gate("T5", "first packet, not recorded, one program, HLU", first, 5.0),
    ]
}
