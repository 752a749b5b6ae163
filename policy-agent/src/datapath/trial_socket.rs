//! Trials at a socket: the kernel makes one for each test run, in the control group of the thread that asks for it.
//!
//! So the endpoint on trial is that of the agent's own group, in a map that only trials have. What the kernel takes for
//! that group is asked of the kernel: before Linux 6.2 the socket of a test run is in the root group, and a container
//! sees its group under another path than the host.

use std::os::fd::{AsFd, OwnedFd};

use policy_common::abi::{Cgroup, Direction};

use super::bpf;
use super::error::{Error, Result};
use super::groups::{GROUP_IN_PROGRAM, GROUP_OUT_PROGRAM, GroupPrograms};
use super::map::{ANY, Map, bytes_of};
use super::trial::SLOT;

/// What a program of a control group returns for a packet that passes.
const PASS: u32 = 1;
/// `bpf_skb_cgroup_id`.
const SKB_CGROUP_ID: i32 = 79;

/// The programs of control groups, once more.
#[derive(Debug)]
pub(super) struct SocketTrial {
    programs: GroupPrograms,
    groups: Map,
    /// Return the lower and the upper half of the id of a packet's group.
    asking: [OwnedFd; 2],
    /// The group that stands for the endpoint.
    group: Option<u64>,
}

impl SocketTrial {
    /// `groups` = the map in which `programs` find endpoints.
    ///
    /// # Errors
    /// The kernel's answer.
    pub(super) fn new(programs: GroupPrograms, groups: Map) -> Result<Self> {
        let ask = |name: &'static str, shift: i32| {
            let code = [
                bpf::instruction(0x85, 0, 0, SKB_CGROUP_ID),
                bpf::instruction(0x77, 0, 0, shift), // r0 >>= shift
                bpf::instruction(0x95, 0, 0, 0),
            ];
            bpf::load_tc(name, &code).map_err(|source| Error::Map {
                action: "load program",
                map: name,
                source,
            })
        };
        let asking = [ask("group_id_low", 0)?, ask("group_id_high", 32)?];
        Ok(Self { programs, groups, asking, group: None })
    }

    /// Whether a socket of the endpoint on trial would send or receive this packet.
    ///
    /// # Errors
    /// The kernel's answer.
    pub(super) fn passes(&mut self, direction: Direction, frame: &[u8]) -> Result<bool> {
        self.stand_for_endpoint(frame)?;
        let (program, name) = match direction {
            Direction::Ingress => (&self.programs.inward, GROUP_IN_PROGRAM),
            Direction::Egress => (&self.programs.out, GROUP_OUT_PROGRAM),
        };
        Ok(run(program.as_fd(), frame, name)? == PASS)
    }

    /// This thread's group may be another than at the last trial.
    fn stand_for_endpoint(&mut self, frame: &[u8]) -> Result<()> {
        let [low, high] = &self.asking;
        let half = |program: &OwnedFd| run(program.as_fd(), frame, "group_id").map(u64::from);
        let id = half(low)? | half(high)? << 32;
        if self.group == Some(id) {
            return Ok(());
        }
        if let Some(before) = self.group.take() {
            self.groups.remove(bytes_of(&before)).map_err(self.groups.failed("remove from"))?;
        }
        let value = Cgroup { slot: SLOT, level: 0, identity: [0; 4] };
        self.groups
            .insert(bytes_of(&id), bytes_of(&value), ANY)
            .map_err(self.groups.failed("insert into"))?;
        self.group = Some(id);
        Ok(())
    }
}

fn run(program: std::os::fd::BorrowedFd<'_>, frame: &[u8], map: &'static str) -> Result<u32> {
    bpf::run_on(program, frame).map_err(|source| Error::Map { action: "try program", map, source })
}
