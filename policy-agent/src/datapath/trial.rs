//! The kernel's verdict on a packet that nobody sent: our programs once more, on the real tables.
//!
//! `BPF_PROG_TEST_RUN` runs a program with all that it does: it would record flows, count, and report. So the programs
//! are loaded a second time. They share what policy is made of (addresses, prefixes, rows, rule sets, intervals) with
//! those that are attached; everything that a packet leaves behind, and the endpoints themselves, are maps of their own.
//! An endpoint's words are copied for each trial from the real ones. A control group's endpoint is tried by the programs
//! of sockets: see [`super::trial_socket`].

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use policy_common::abi::{
    Direction, EndpointWord, InterfaceWord, ROW_CLOSED, endpoint_config, endpoint_words, interface_kind,
};
use policy_engine::spot::Spot;

use super::bpf;
use super::error::{Error, Result};
use super::executor::Executor;
use super::hook::Hook;
use super::ledger::FLOWS;
use super::load::{MapFds, Programs, load_group_programs, load_programs};
use super::map::{ANY, Map, Words, bytes_of};
use super::pins::Pins;
use super::spec::{MapId, Spec};
use super::trial_socket::SocketTrial;

/// The device that test packets are at: the namespace's `lo`.
const LOOPBACK: u32 = 1;
/// The one endpoint.
pub(super) const SLOT: u32 = 1;
/// What a program returns for a packet that goes on.
const NEXT: u32 = u32::MAX;
/// Flows that the endpoint has room for; their verdicts never hold for the next trial.
const FLOW_ENTRIES: u32 = 256;

/// Makes [`Trial`]s.
#[derive(Debug)]
pub struct TrialMaker {
    pins: Pins,
    maps: Arc<MapFds>,
    constants: BTreeMap<&'static str, u32>,
    object: &'static [u8],
}

/// Programs for trials.
#[derive(Debug)]
pub struct Trial {
    programs: Programs,
    sockets: Sockets,
    ep: Words,
    epoch: u32,
}

/// How endpoints of control groups are tried.
#[derive(Debug)]
enum Sockets {
    /// Nobody asked for it.
    Unwanted,
    /// The kernel shows programs of sockets no bytes of a test packet: by the programs of interfaces, which share the
    /// tables.
    Blind,
    /// By the programs that judge them.
    Seen(Box<SocketTrial>),
}

impl TrialMaker {
    pub(super) fn new(
        pins: &Pins,
        maps: &Arc<MapFds>,
        constants: &BTreeMap<&'static str, u32>,
        object: &'static [u8],
    ) -> Self {
        Self { pins: pins.clone(), maps: maps.clone(), constants: constants.clone(), object }
    }

    /// Loads the programs, those of sockets if they are wanted: most of a second, so not on the way of anything that
    /// hurries.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn make(&self, sockets: bool) -> Result<Trial> {
        let mut own: BTreeMap<MapId, Map> = MapId::ALL
            .into_iter()
            .filter(|map| is_own(*map))
            .map(|map| Ok((map, own_map(map)?)))
            .collect::<Result<_>>()?;
        let all = MapId::ALL.into_iter().zip(self.maps.all());
        let maps: Vec<_> = all.map(|(id, shared)| own.get(&id).map_or(shared, AsFd::as_fd)).collect();
        let programs = load_programs(&self.pins, &maps, &self.constants, self.object)?;
        let of_groups = || load_group_programs(&self.pins, &maps, &self.constants, self.object);
        let of_groups = sockets.then(of_groups).transpose()?;
        let words = |map| own.get(&map).ok_or(Error::MissingProgram("trial")).and_then(Map::words);
        // Interface 1 is below the number of values, whatever that is.
        let word =
            InterfaceWord { ifindex: LOOPBACK, slot: SLOT as u16, kind: interface_kind::POD, flags: 0 };
        words(MapId::Iface)?.store(LOOPBACK, 0, word.pack())?;
        let ep = words(MapId::Ep)?;
        let sockets = match of_groups.zip(own.remove(&MapId::Cgroups)) {
            None => Sockets::Unwanted,
            Some((programs, groups)) => {
                let mut trial = SocketTrial::new(programs, groups)?;
                if sees(&mut trial, &ep)? { Sockets::Seen(Box::new(trial)) } else { Sockets::Blind }
            }
        };
        Ok(Trial { programs, sockets, ep, epoch: 0 })
    }
}

/// Whether programs of sockets are shown a test packet, as they are since Linux 6.18: one from a loopback address to
/// another passes the way into a closed endpoint, if it can be read.
fn sees(trial: &mut SocketTrial, ep: &Words) -> Result<bool> {
    let closed = EndpointWord { epoch: 1, ingress_row: ROW_CLOSED, egress_row: ROW_CLOSED };
    ep.store(SLOT, endpoint_words::POLICY, closed.pack())?;
    ep.store(SLOT, endpoint_words::IDENTITY, u64::from(endpoint_config::SOCKETS) << 32)?;
    let own = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let spot = Spot {
        slot: SLOT as u16,
        direction: Direction::Ingress,
        local: own,
        remote: own,
        protocol: 17,
        from_port: 1,
        port: 2,
        passes: true,
    };
    trial.passes(spot.direction, &frame(&spot))
}

/// A map that is not shared, with room for one endpoint.
fn own_map(id: MapId) -> Result<Map> {
    let spec = Spec { entries: entries(id), ..id.spec() };
    let failed = |source| Error::Map { action: "create", map: spec.name, source };
    let template = id.inner().map(|inner| bpf::create_map(&inner, inner.entries, None)).transpose();
    let template = template.map_err(failed)?;
    let fd = bpf::create_map(&spec, spec.entries, template.as_ref().map(AsFd::as_fd)).map_err(failed)?;
    let map = Map::new(fd, spec)?;
    if FLOWS.contains(&id) {
        put_flows(id, &map)?;
    }
    Ok(map)
}

/// Whether trials have a map of their own: all that packets write to, and what says whose a packet is.
fn is_own(map: MapId) -> bool {
    match map {
        MapId::Iface
        | MapId::IfaceX
        | MapId::Cgroups
        | MapId::Ep
        | MapId::Locals
        | MapId::Flows4
        | MapId::Flows6
        | MapId::Frags
        | MapId::EpStat
        | MapId::Counters
        | MapId::RuleHits
        | MapId::Events => true,
        MapId::Hosts4
        | MapId::Hosts6
        | MapId::Prefix4
        | MapId::Prefix6
        | MapId::Hinfo
        | MapId::Policy
        | MapId::RuleSet
        | MapId::Interval
        | MapId::Meta => false,
    }
}

/// Entries of a trial's own map; programs meet the end of a smaller one as they meet a key that is not there.
fn entries(map: MapId) -> u32 {
    match map {
        MapId::Events => 4096,
        MapId::Counters | MapId::EpStat => map.spec().entries,
        MapId::Frags => 256,
        _ => 16,
    }
}

fn put_flows(id: MapId, outer: &Map) -> Result<()> {
    let Some(inner) = id.inner() else { return Ok(()) };
    let failed = |source| Error::Map { action: "create", map: inner.name, source };
    let flows: OwnedFd = bpf::create_map(&inner, FLOW_ENTRIES, None).map_err(failed)?;
    let fd = flows.as_raw_fd() as u32;
    outer.insert(bytes_of(&SLOT), bytes_of(&fd), ANY).map_err(outer.failed("insert into"))
}

impl Trial {
    /// Whether it was made for endpoints of control groups too.
    #[must_use]
    pub const fn is_for_sockets(&self) -> bool {
        !matches!(self.sockets, Sockets::Unwanted)
    }

    /// Whether those are tried by the programs that judge them.
    #[must_use]
    pub const fn sees_sockets(&self) -> bool {
        matches!(self.sockets, Sockets::Seen(_))
    }

    /// Whether the first packet of this flow would pass the hook of its endpoint.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn passes(&mut self, executor: &Executor, spot: &Spot) -> Result<bool> {
        for word in 0..endpoint_words::COUNT {
            let mut value = executor.ep.load(u32::from(spot.slot), word)?;
            if word == endpoint_words::POLICY {
                // A new epoch: nothing that an earlier trial left is current.
                self.epoch = self.epoch.wrapping_add(1);
                value = EndpointWord { epoch: self.epoch, ..EndpointWord::unpack(value) }.pack();
            }
            self.ep.store(SLOT, word, value)?;
        }
        let config = self.ep.load(SLOT, endpoint_words::IDENTITY)? >> 32;
        if config & u64::from(endpoint_config::SOCKETS) != 0
            && let Sockets::Seen(sockets) = &mut self.sockets
        {
            return sockets.passes(spot.direction, &frame(spot));
        }
        let hook = match spot.direction {
            Direction::Ingress => Hook::In,
            Direction::Egress => Hook::Out,
        };
        let program = self.programs.of(hook);
        let returned = bpf::run_on(program.as_fd(), &frame(spot));
        let failed = |source| Error::Map { action: "try program", map: hook.name(), source };
        Ok(returned.map_err(failed)? == NEXT)
    }
}

/// An opening packet between both ends; its checksums are left 0, as programs do not look at them.
fn frame(spot: &Spot) -> Vec<u8> {
    let (source, destination) = match spot.direction {
        Direction::Ingress => (spot.remote, spot.local),
        Direction::Egress => (spot.local, spot.remote),
    };
    let mut payload = Vec::with_capacity(20);
    payload.extend(spot.from_port.to_be_bytes());
    payload.extend(spot.port.to_be_bytes());
    match spot.protocol {
        // Sequence, acknowledgement, 5 words and SYN, window, checksum, urgent.
        6 => payload.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]),
        // UDP: length and checksum. SCTP: tag, checksum, then an INIT chunk.
        17 => payload.extend([0, 8, 0, 0]),
        _ => payload
            .extend([0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 20, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]),
    }
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            frame.extend([0x08, 0x00, 0x45, 0]);
            frame.extend((20 + payload.len() as u16).to_be_bytes());
            frame.extend([0, 1, 0x40, 0, 64, spot.protocol, 0, 0]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
        }
        (source, destination) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend((payload.len() as u16).to_be_bytes());
            frame.extend([spot.protocol, 64]);
            frame.extend(six(source));
            frame.extend(six(destination));
        }
    }
    frame.extend(payload);
    frame
}

fn six(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}
