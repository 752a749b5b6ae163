//! The kernel's programs and the in-memory datapath side by side: every write and every packet goes to both, and they
//! must agree.
//!
//! `BPF_PROG_TEST_RUN` shows the programs less than a network does: the socket of a test packet is always there, its
//! tag is always 0 (`retag` sets it), and before Linux 6.1 its ingress interface is always 0.

use crate::{
    pool::{Lent, lend},
    test_run,
};
use anyhow::{Context, Result, bail, ensure};
use policy_agent::datapath::{Endpoint, spec::MapId};
use policy_common::{
    abi::{Direction, endpoint_words, interface_flags, meta_words},
    event::event_flags,
    reason::Reason,
};
use policy_engine::{
    limits::Limits,
    mem::{
        datapath::{Judged, MemDatapath, MemEndpoint, Way},
        tables::MemTables,
    },
    plan::{Op, Plan},
};
use std::{collections::BTreeMap, net::IpAddr, time::Duration};

/// Device of test packets: the namespace's `lo`.
const LOOPBACK: u32 = 1;
/// What a program returns for a packet that goes on.
const NEXT: u32 = u32::MAX;
/// What it returns for a packet that is dropped.
const SHOT: u32 = 2;
/// Slot of the endpoint.
pub const SLOT: u16 = 5;
/// Slot of another pod of the node, and its interface.
pub const OTHER: (u16, u32) = (6, 9);

/// Where a packet is shown to the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// At the endpoint's hook of this direction.
    Pod(Direction),
    /// At a device by which it leaves the node.
    Exit,
}

/// Both datapaths with one endpoint behind `lo`, and perhaps another one.
pub struct Twin {
    /// The kernel's.
    pub kernel: Lent,
    /// The memory's.
    pub memory: MemDatapath,
    /// Whether a test packet's ingress interface can be chosen (Linux 6.1).
    pub ways: bool,
    addresses: Vec<(u16, u32, Vec<IpAddr>)>,
    counts: BTreeMap<(Reason, u8), u64>,
    events: u64,
    plans: u64,
}

impl Twin {
    /// Both, with an endpoint that has these addresses and configuration bits. Its rows are closed.
    pub fn new(addresses: &[IpAddr], config: u16) -> Result<Self> {
        let kernel = lend()?;
        let memory = MemDatapath::new(MemTables::new(Limits::default()));
        let mut twin = Self {
            kernel,
            memory,
            ways: false,
            addresses: Vec::new(),
            counts: BTreeMap::new(),
            events: 0,
            plans: 0,
        };
        twin.ways = twin.test_run("empty", &[0; 64], &Way { ingress_ifindex: 7, ..Way::default() }).is_ok();
        twin.add(SLOT, LOOPBACK, addresses, config)?;
        Ok(twin)
    }

    /// Makes the other endpoint, its rows closed.
    pub fn add_other(&mut self, addresses: &[IpAddr], config: u16) -> Result<()> {
        self.add(OTHER.0, OTHER.1, addresses, config)
    }

    fn add(&mut self, slot: u16, ifindex: u32, addresses: &[IpAddr], config: u16) -> Result<()> {
        let executor = &self.kernel.datapath.executor;
        executor.create_endpoint(&Endpoint {
            slot,
            id: 72 + u32::from(slot),
            ifindex,
            addresses: addresses.to_vec(),
            config,
            pickup: Duration::ZERO,
        })?;
        executor.set_interface(ifindex, slot)?;
        self.addresses.push((slot, ifindex, addresses.to_vec()));
        self.follow()
    }

    /// Makes a bridge with ports of pods of this interface.
    pub fn bridge(&mut self, ifindex: u32) -> Result<()> {
        self.kernel.datapath.executor.set_exit(ifindex, interface_flags::BRIDGE)?;
        self.memory.set_bridges([ifindex].into());
        Ok(())
    }

    /// Applies the writes to both.
    pub fn apply(&mut self, ops: Vec<Op>) -> Result<()> {
        self.memory.tables.apply_all(&ops)?;
        self.plans += 1;
        Ok(self.kernel.datapath.executor.apply(&Plan { number: self.plans, ops })?)
    }

    /// Sets the switches of both.
    pub fn switch(&mut self, flags: u64) -> Result<()> {
        self.kernel.datapath.executor.set_meta(meta_words::FLAGS, flags)?;
        self.follow()
    }

    /// Opens or closes the pick-up window of both.
    pub fn pick_up(&mut self, window: Duration) -> Result<()> {
        self.kernel.datapath.executor.set_pickup(SLOT, window)?;
        self.follow()
    }

    /// Sets the configuration bits of both.
    pub fn configure(&mut self, config: u16) -> Result<()> {
        self.kernel.datapath.executor.set_config(SLOT, config)?;
        self.follow()
    }

    /// The memory takes over what the kernel's endpoint holds beside its rows.
    fn follow(&mut self) -> Result<()> {
        self.memory.meta = std::array::from_fn(|i| self.kernel.datapath.executor.meta(i as u32).unwrap_or(0));
        for (slot, ifindex, addresses) in self.addresses.clone() {
            self.follow_one(slot, ifindex, addresses)?;
        }
        Ok(())
    }

    fn follow_one(&mut self, slot: u16, ifindex: u32, addresses: Vec<IpAddr>) -> Result<()> {
        let value = self.kernel.datapath.executor.map(MapId::Ep).get(&u32::from(slot).to_ne_bytes())?;
        let value = value.context("the endpoint has no words")?;
        let word = |index: u32| {
            let at = index as usize * 8;
            u64::from_ne_bytes(std::array::from_fn(|i| value[at + i]))
        };
        let identity = word(endpoint_words::IDENTITY);
        self.memory.set_endpoint(
            slot,
            MemEndpoint {
                id: identity as u32,
                ifindex,
                config: (identity >> 32) as u16,
                generation: (identity >> 48) as u16,
                addresses,
                pickup_until: (word(endpoint_words::ADDRESS4) >> 32) as u32,
                keep_from: word(endpoint_words::KEEP) as u32,
            },
        );
        Ok(())
    }

    /// Gives the frame to both. An error when they differ in the verdict or in the event.
    pub fn judge(&mut self, at: At, way: &Way, frame: &[u8]) -> Result<Judged> {
        // What the kernel cannot be told is not true in memory either.
        let way =
            Way { ingress_ifindex: if self.ways { way.ingress_ifindex } else { 0 }, socket: true, ..*way };
        let tick = self.kernel.datapath.executor.tick()?;
        let judged = match at {
            At::Pod(direction) => self.memory.judge_packet(SLOT, direction, &way, frame, tick),
            At::Exit => self.memory.judge_exit(LOOPBACK, &way, frame, tick),
        };
        let verdict = self.run_kernel(at, &way, frame, 1)?;
        let passes = match verdict {
            NEXT => true,
            SHOT => false,
            other => bail!("the program returned {other}"),
        };
        let event = self.kernel.datapath.ring.next_event();
        let told = || format!("{at:?} {way:?}\n{}\nmemory: {judged:?}\nkernel: {event:?}", hex(frame));
        ensure!(passes == judged.passes, "the kernel says {passes}: {}", told());
        if let Some(verdict) = judged.verdict
            && (verdict.is_counted() || !verdict.passes())
        {
            let behind = judged.event.as_ref().is_some_and(|event| event.flags & event_flags::EXIT != 0);
            let direction = counted_as(at, behind, verdict.reason());
            *self.counts.entry((verdict.reason(), direction)).or_default() += 1;
        }
        // The kernel may hold an event back, but tells none that memory does not.
        if let Some(mut event) = event {
            self.events += 1;
            (event.time, event.sequence, event.suppressed) = (0, 0, 0);
            let equal = judged.event.as_ref() == Some(&event);
            ensure!(equal, "another event: {}", told());
        }
        Ok(judged)
    }

    /// The same, and a frame that is dropped is shown to the kernel's program so many times in all: what is dropped
    /// leaves nothing behind, so every time must be like the first. How often it was shown.
    pub fn judge_many(&mut self, at: At, way: &Way, frame: &[u8], times: u32) -> Result<(Judged, u32)> {
        let judged = self.judge(at, way, frame)?;
        let Some(verdict) = judged.verdict.filter(|_| !judged.passes && times > 1) else {
            return Ok((judged, 1));
        };
        let way = Way { ingress_ifindex: if self.ways { way.ingress_ifindex } else { 0 }, ..*way };
        let last = self.run_kernel(at, &way, frame, times - 1)?;
        ensure!(last == SHOT, "dropped once, then {last}: {}", hex(frame));
        let behind = judged.event.as_ref().is_some_and(|event| event.flags & event_flags::EXIT != 0);
        *self.counts.entry((verdict.reason(), counted_as(at, behind, verdict.reason()))).or_default() +=
            u64::from(times - 1);
        while let Some(mut event) = self.kernel.datapath.ring.next_event() {
            self.events += 1;
            (event.time, event.sequence, event.suppressed) = (0, 0, 0);
            ensure!(
                judged.event.as_ref() == Some(&event),
                "another event: {event:?} {judged:?} {}",
                hex(frame)
            );
        }
        Ok((judged, times))
    }

    /// Compares all counters with what memory judged.
    pub fn compare_counters(&self) -> Result<()> {
        let mut kernel = BTreeMap::new();
        for (reason, direction, counter) in self.kernel.datapath.executor.counters()? {
            if counter.packets > 0 {
                kernel.insert((reason, direction as u8), counter.packets);
            }
        }
        ensure!(kernel == self.counts, "counters differ\nkernel: {kernel:?}\nmemory: {:?}", self.counts);
        // A stale tag is nobody's: its drops are counted, and told to none.
        let told = |reason: &Reason| !reason.passes() && *reason != Reason::StaleTag;
        let drops: u64 = self.counts.iter().filter(|((r, _), _)| told(r)).map(|(_, n)| n).sum();
        let (mut dropped, mut accounted) = (0, self.events);
        for slot in [SLOT, OTHER.0] {
            let totals = self.kernel.datapath.executor.endpoint_totals(slot)?;
            dropped += totals.dropped;
            accounted += totals.suppressed + totals.ring_full;
        }
        ensure!(dropped == drops, "{dropped} drops are counted, of {drops}");
        ensure!(accounted == drops, "{accounted} events are accounted for, of {drops} drops");
        Ok(())
    }

    fn run_kernel(&self, at: At, way: &Way, frame: &[u8], times: u32) -> Result<u32> {
        let (name, index) = match at {
            At::Pod(Direction::Ingress) => ("pod_in", 0),
            At::Pod(Direction::Egress) => ("pod_out", 1),
            At::Exit => ("node_exit", 2),
        };
        let name = if way.tag != 0 { "retag" } else { name };
        let mark = u32::from(way.tag) | index << 16;
        let run = || self.test_run_marked(name, frame, way, mark, times);
        run().with_context(|| format!("run '{name}' on {}", hex(frame)))
    }

    fn test_run(&self, name: &str, frame: &[u8], way: &Way) -> Result<u32> {
        self.test_run_marked(name, frame, way, 0, 1)
    }

    fn test_run_marked(&self, name: &str, frame: &[u8], way: &Way, mark: u32, times: u32) -> Result<u32> {
        let mut context = [0; 11];
        // The kernel looks for the device in this thread's namespace; `lo` has the same index everywhere.
        (context[2], context[9], context[10]) = (mark, way.ingress_ifindex, LOOPBACK);
        Ok(test_run::run_many(self.kernel.programs.get(name)?, frame, &context, times)?)
    }
}

/// The direction under which a verdict is counted. `behind`: it was judged behind a translation.
fn counted_as(at: At, behind: bool, reason: Reason) -> u8 {
    let direction = match at {
        At::Pod(direction) if !behind && reason != Reason::StaleTag => direction,
        At::Pod(_) | At::Exit => Direction::Egress,
    };
    direction as u8
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
