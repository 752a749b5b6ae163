//! Running programs on packets by BPF_PROG_TEST_RUN, measured.

use super::super::{
    home::Home,
    meter::{Cost, Meter},
    stage::{Stage, UPLINK},
};
use anyhow::{Context, Result};
use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_map_type};
use policy_agent::datapath::{
    Map, bpf,
    spec::{MapId, Spec},
};
use policy_common::abi::EndpointStat;
use std::{
    io,
    mem::zeroed,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

/// What a program returns for a packet that goes on.
pub(super) const NEXT: u32 = u32::MAX;
/// What it returns for a packet that is dropped.
pub(super) const SHOT: u32 = 2;

/// Programs, maps and a meter.
pub(super) struct Runner {
    /// The maps.
    pub(super) stage: Stage,
    /// The meter of this thread.
    pub(super) meter: Meter,
    source_port: u16,
    home: Home,
}

impl Runner {
    pub(super) fn new(stage: Stage, meter: Meter, home: Home) -> Result<Self> {
        Ok(Self { stage, meter, source_port: 0, home })
    }

    /// Makes this endpoint the one behind the interface, or this process's control group.
    pub(super) fn choose(&self, slot: u16) -> Result<()> {
        if [super::GROUP, super::FLOWLESS_GROUP].contains(&slot) {
            return self.stage.choose_group(slot, &self.home.group);
        }
        Ok(self.stage.datapath.executor.set_interface(super::LOOPBACK, slot)?)
    }

    /// Runs a program; the verdict of the last run.
    pub(super) fn run(&self, program: &str, frame: &[u8], repeat: u32) -> Result<u32> {
        let fd = self.stage.programs.get(program)?;
        test_run(fd, frame, repeat).with_context(|| format!("run '{program}'"))
    }

    /// Runs it, measured as a whole.
    pub(super) fn timed(&self, program: &str, frame: &[u8], repeat: u32) -> Result<(u32, Cost)> {
        self.meter.measure(|| self.run(program, frame, repeat))
    }

    /// Runs it once for each of `count` packets that differ in the sender's port.
    pub(super) fn timed_singly(&mut self, program: &str, frame: &[u8], count: u32) -> Result<Cost> {
        let mut frames = Vec::new();
        for _ in 0..count {
            self.source_port = self.source_port.wrapping_add(1);
            let mut frame = frame.to_vec();
            // After Ethernet and IP: nobody checks the checksum here.
            let at = if frame[12] == 0x08 { 34 } else { 54 };
            frame[at..at + 2].copy_from_slice(&self.source_port.to_be_bytes());
            frames.push(frame);
        }
        let (_, cost) =
            self.meter.measure(|| frames.iter().try_for_each(|f| self.run(program, f, 1).map(drop)))?;
        Ok(cost)
    }

    /// Fills or empties the buckets of events: the endpoint's and the processors', for the rest of this tick.
    pub(super) fn set_tokens(&self, slot: u16, tokens: u32) -> Result<()> {
        let executor = &self.stage.datapath.executor;
        let (map, tick) = (executor.map(MapId::EpStat), executor.tick()?);
        for slot in [0, u32::from(slot)] {
            let mut values = map.get(&slot.to_ne_bytes())?.context("the endpoint has no counters")?;
            for value in values.chunks_exact_mut(size_of::<EndpointStat>()) {
                value[..4].copy_from_slice(&tokens.to_ne_bytes());
                value[4..8].copy_from_slice(&tick.to_ne_bytes());
            }
            map.insert(&slot.to_ne_bytes(), &values, 0)?;
        }
        Ok(())
    }

    /// Takes all events out of the ring.
    pub(super) fn drain(&mut self) -> u32 {
        std::iter::from_fn(|| self.stage.datapath.ring.next_event()).count() as u32
    }

    /// The cost of one look-up of eight bytes in a hash: what machines are compared by.
    pub(super) fn hash_look_up(&self, rounds: usize, repeat: u32) -> Result<Cost> {
        let spec = Spec {
            name: "bench_hash",
            kind: bpf_map_type::BPF_MAP_TYPE_HASH,
            key: 8,
            value: 8,
            entries: 1024,
            flags: 0,
            revision: 0,
        };
        let map = Map::new(bpf::create_map(&spec, spec.entries, None)?, spec)?;
        map.insert(&[0; 8], &[1; 8], 0)?;
        let map_fd = map.try_clone_fd()?;
        let with = bpf::load_tc("bench_look_up", &look_up(Some(map_fd.as_fd())))?;
        let without = bpf::load_tc("bench_no_look_up", &look_up(None))?;
        let mut costs = [Cost::MOST; 2];
        for _ in 0..rounds {
            for (program, least) in [&with, &without].into_iter().zip(&mut costs) {
                let (_, cost) = self.meter.measure(|| Ok(test_run(program.as_fd(), &[0; 64], repeat)?))?;
                *least = least.least(cost.per(repeat));
            }
        }
        Ok(minus(costs[0], costs[1]))
    }
}

/// The difference of two costs.
pub(super) fn minus(cost: Cost, base: Cost) -> Cost {
    let instructions = cost.instructions.zip(base.instructions).map(|(a, b)| a - b);
    Cost { time: cost.time - base.time, instructions }
}

/// A key on the stack, and a look-up of it.
fn look_up(map: Option<BorrowedFd<'_>>) -> Vec<u64> {
    let mut code = vec![bpf::instruction(0xb7, 0x1, 0, 0), bpf::instruction(0x7b, 0x1a, -8, 0)]; // r1 = 0; [fp - 8] = r1
    if let Some(map) = map {
        code.extend([bpf::instruction(0x18, 0x11, 0, map.as_raw_fd()), bpf::instruction(0, 0x0, 0, 0)]); // r1 = map
        code.extend([bpf::instruction(0xbf, 0xa2, 0, 0), bpf::instruction(0x07, 0x2, 0, -8)]); // r2 = fp - 8
        code.push(bpf::instruction(0x85, 0x0, 0, 1)); // bpf_map_lookup_elem
    }
    code.extend([bpf::instruction(0xb7, 0x0, 0, 0), bpf::instruction(0x95, 0x0, 0, 0)]); // return 0
    code
}

fn test_run(program: BorrowedFd<'_>, frame: &[u8], repeat: u32) -> io::Result<u32> {
    // The first fields of struct __sk_buff; the kernel takes the rest as zeroes.
    let mut context = [0u32; 11];
    context[9] = UPLINK;
    context[10] = super::LOOPBACK;
    // SAFETY: the union consists of integers: all zeroes is a valid value of each of its parts.
    let mut attr: bpf_attr = unsafe { zeroed() };
    attr.test.prog_fd = program.as_raw_fd() as u32;
    attr.test.data_in = frame.as_ptr() as u64;
    attr.test.data_size_in = frame.len() as u32;
    attr.test.ctx_in = context.as_ptr() as u64;
    attr.test.ctx_size_in = size_of_val(&context) as u32;
    attr.test.repeat = repeat;
    let cmd = bpf_cmd::BPF_PROG_TEST_RUN as u32;
    // SAFETY: the attribute and what it points to outlive the call, with the sizes given.
    let done = unsafe { libc::syscall(libc::SYS_bpf, cmd, &raw mut attr, size_of::<bpf_attr>()) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all parts of the union are plain integers; the kernel wrote the result.
    Ok(unsafe { attr.test.retval })
}
