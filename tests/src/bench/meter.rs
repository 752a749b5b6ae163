//! Measuring a piece of work on this thread: the kernel's cycles and instructions where the machine has counters,
//! else the thread's processor time.

use anyhow::{Context, Result, bail};
use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

/// What a piece of work cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Cost {
    /// Cycles in the kernel, or nanoseconds of processor time without counters.
    pub(super) time: f64,
    /// Instructions in the kernel.
    pub(super) instructions: Option<f64>,
}

impl Cost {
    /// More than anything measured: where a search for the least begins.
    pub(super) const MOST: Self = Self { time: f64::INFINITY, instructions: Some(f64::INFINITY) };

    /// The lesser of both in each respect. Whatever disturbs a measurement makes it dearer, never cheaper.
    pub(super) fn least(self, other: Self) -> Self {
        let instructions = self.instructions.zip(other.instructions).map(|(a, b)| a.min(b));
        Self { time: self.time.min(other.time), instructions }
    }

    /// The cost of one of `count` equal parts.
    pub(super) fn per(self, count: u32) -> Self {
        let count = f64::from(count);
        Self { time: self.time / count, instructions: self.instructions.map(|i| i / count) }
    }
}

/// Measures work of the thread that made it.
#[derive(Debug)]
pub(super) struct Meter {
    counters: Option<[OwnedFd; 2]>,
}

impl Meter {
    /// Counts this thread; the thread stays on one processor from now on.
    pub(super) fn new() -> Result<Self> {
        stay_on_one_cpu()?;
        let counters = counter(CYCLES).and_then(|cycles| Ok([cycles, counter(INSTRUCTIONS)?]));
        Ok(Self { counters: counters.ok() })
    }

    /// Whether the machine has counters.
    pub(super) fn has_counters(&self) -> bool {
        self.counters.is_some()
    }

    /// Name of what [`Cost::time`] holds.
    pub(super) fn unit(&self) -> &'static str {
        if self.has_counters() { "cycles" } else { "ns" }
    }

    /// What `work` costs.
    pub(super) fn measure<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<(T, Cost)> {
        let before = self.read()?;
        let result = work()?;
        let after = self.read()?;
        let instructions = after.instructions.zip(before.instructions).map(|(a, b)| a - b);
        Ok((result, Cost { time: after.time - before.time, instructions }))
    }

    fn read(&self) -> Result<Cost> {
        match &self.counters {
            Some([cycles, instructions]) => {
                Ok(Cost { time: value(cycles)?, instructions: Some(value(instructions)?) })
            }
            None => Ok(Cost { time: thread_time()?, instructions: None }),
        }
    }
}

const CYCLES: u64 = 0;
const INSTRUCTIONS: u64 = 1;
/// `exclude_user` and `exclude_hv`.
const KERNEL_ONLY: u64 = 1 << 4 | 1 << 6;

/// A hardware counter of this thread in the kernel.
fn counter(which: u64) -> io::Result<OwnedFd> {
    // The first version of struct perf_event_attr: {type 32, size 32}, config, period, sample, format, flags, ...
    let attributes: [u64; 8] = [64 << 32, which, 0, 0, 0, KERNEL_ONLY, 0, 0];
    // SAFETY: the attributes have the size that they name and outlive the call; the rest are plain numbers.
    let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, attributes.as_ptr(), 0, -1, -1, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just returned this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn value(counter: &OwnedFd) -> Result<f64> {
    let mut value = 0u64;
    // SAFETY: the buffer has the eight bytes that a counter without a read format writes.
    let got = unsafe { libc::read(counter.as_raw_fd(), (&raw mut value).cast(), size_of::<u64>()) };
    if got != size_of::<u64>() as isize {
        bail!("cannot read a counter: {}", io::Error::last_os_error());
    }
    Ok(value as f64)
}

/// Nanoseconds for which this thread has run, the soft interrupts on its way included.
fn thread_time() -> Result<f64> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is valid for the call.
    let done = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    if done != 0 {
        return Err(io::Error::last_os_error()).context("read this thread's processor time");
    }
    Ok(time.tv_sec as f64 * 1e9 + time.tv_nsec as f64)
}

fn stay_on_one_cpu() -> Result<()> {
    // SAFETY: no preconditions.
    let cpu = unsafe { libc::sched_getcpu() };
    // SAFETY: the set consists of integers: all zeroes is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel has just named this processor, so it is below the size of the set.
    unsafe { libc::CPU_SET(usize::try_from(cpu).unwrap_or_default(), &mut set) };
    // SAFETY: the set is valid for the call; 0 is this thread.
    let done = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) };
    if done != 0 {
        return Err(io::Error::last_os_error()).context("stay on one processor");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_work_costs_more() {
        let meter = Meter::new().unwrap();
        // System calls: with counters only the kernel's part is seen.
        let cost = |calls: u32| {
            let work = || {
                (0..calls).for_each(|_| {
                    // SAFETY: no preconditions. The raw call: libc may remember the answer.
                    unsafe { libc::syscall(libc::SYS_getppid) };
                });
                Ok(())
            };
            (0..20).map(|_| meter.measure(work).unwrap().1).fold(Cost::MOST, Cost::least)
        };
        let (little, much) = (cost(1_000), cost(100_000));
        assert!(much.time > little.time * 10.0, "{little:?} {much:?}");
    }

    #[test]
    fn the_least_is_taken_in_each_respect() {
        let a = Cost { time: 1.0, instructions: Some(9.0) };
        let b = Cost { time: 2.0, instructions: Some(3.0) };
        assert_eq!(a.least(b), Cost { time: 1.0, instructions: Some(3.0) });
        assert_eq!(Cost::MOST.least(b), b);
        assert_eq!(b.per(2), Cost { time: 1.0, instructions: Some(1.5) });
    }
}
