//! The product's maps and programs without an interface: frames judged by `BPF_PROG_TEST_RUN`.

use crate::pool::{Lent, lend};
use anyhow::{Context, Result, bail};
use aya_obj::generated::{bpf_attr, bpf_cmd};
use policy_agent::datapath::{Endpoint, Hook};
use policy_common::abi::Direction;
use std::{
    io,
    mem::zeroed,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    time::Duration,
};

/// `BPF_PROG_TEST_RUN` runs on the loopback interface unless told otherwise.
const LOOPBACK: u32 = 1;
/// An interface that is not the hook's: the packet came in there, so no process of the node made it.
const OTHER_INTERFACE: u32 = 2;

/// Whom a packet comes from, on its way to a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// A process of the node.
    Node,
    /// Anybody else; a kernel that cannot be told takes it for the node.
    Elsewhere,
}

/// Maps and programs that nobody else uses at the time.
pub struct TestRun {
    /// The maps and programs.
    pub kernel: Lent,
    // Before 5.15 the kernel refuses to be told where a packet came in.
    tells_interface: bool,
}

impl TestRun {
    /// Empty maps and verified programs.
    pub fn new() -> Result<Self> {
        let kernel = lend()?;
        let version = aya::util::KernelVersion::current().context("which kernel is this")?;
        let tells_interface = version >= aya::util::KernelVersion::new(5, 15, 0);
        Ok(Self { kernel, tells_interface })
    }

    /// Makes an endpoint with these addresses.
    pub fn add_endpoint(&self, slot: u16, id: u32, addresses: &[IpAddr]) -> Result<()> {
        self.add_endpoint_as(slot, id, addresses, 0)
    }

    /// Makes an endpoint with these addresses and configuration bits.
    pub fn add_endpoint_as(&self, slot: u16, id: u32, addresses: &[IpAddr], config: u16) -> Result<()> {
        Ok(self.kernel.datapath.executor.create_endpoint(&Endpoint {
            slot,
            id,
            ifindex: LOOPBACK,
            addresses: addresses.to_vec(),
            config,
            pickup: Duration::ZERO,
        })?)
    }

    /// Whether packets can be shown to come from elsewhere than the node's own processes.
    pub fn tells_interface(&self) -> bool {
        self.tells_interface
    }

    /// Whether the frame passes the endpoint's hook.
    pub fn passes(&self, slot: u16, direction: Direction, frame: &[u8]) -> Result<bool> {
        self.passes_from(slot, direction, From::Elsewhere, frame)
    }

    /// Whether the frame passes the endpoint's hook when it comes from there.
    pub fn passes_from(&self, slot: u16, direction: Direction, from: From, frame: &[u8]) -> Result<bool> {
        self.kernel.datapath.executor.set_interface(LOOPBACK, slot)?;
        let hook = if direction == Direction::Ingress { Hook::In } else { Hook::Out };
        let program = self.kernel.datapath.hooks.program(hook)?;
        // The first fields of struct __sk_buff; the kernel takes the rest as zeroes.
        let mut context = [0u32; 11];
        context[9] = if self.tells_interface && from == From::Elsewhere { OTHER_INTERFACE } else { 0 };
        context[10] = LOOPBACK;
        match run(program.as_fd(), frame, &context).with_context(|| format!("run {hook:?}"))? {
            u32::MAX => Ok(true),
            2 => Ok(false),
            other => bail!("{hook:?} returned {other}"),
        }
    }
}

/// Runs a tc program on a frame and hands back what it returns. `context` are the first fields of struct __sk_buff; the
/// kernel takes the rest as zeroes.
pub fn run(program: BorrowedFd<'_>, frame: &[u8], context: &[u32]) -> io::Result<u32> {
    run_many(program, frame, context, 1)
}

/// Runs a tc program on a frame so many times; what it returns at last.
pub fn run_many(program: BorrowedFd<'_>, frame: &[u8], context: &[u32], times: u32) -> io::Result<u32> {
    // SAFETY: the union consists of integers: all zeroes is a valid value of each of its parts.
    let mut attr: bpf_attr = unsafe { zeroed() };
    attr.test.prog_fd = program.as_raw_fd() as u32;
    attr.test.data_in = frame.as_ptr() as u64;
    attr.test.data_size_in = frame.len() as u32;
    attr.test.ctx_in = context.as_ptr() as u64;
    attr.test.ctx_size_in = size_of_val(context) as u32;
    attr.test.repeat = times;
    let command = bpf_cmd::BPF_PROG_TEST_RUN as u32;
    // SAFETY: the attribute and what it points to outlive the call, with the sizes given.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut attr, size_of::<bpf_attr>()) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all parts of the union are plain integers; the kernel wrote the result.
    Ok(unsafe { attr.test.retval })
}
