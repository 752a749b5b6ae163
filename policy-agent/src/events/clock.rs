//! The wall-clock time of kernel records, which carry `CLOCK_MONOTONIC`.

use std::time::Duration;

use anyhow::{Context as _, bail};
use prost_types::Timestamp;

/// An offset that moved by more than this is a step of the wall clock. Below it, slewing and the time between the two
/// readings would only make successive records jitter.
const STEP: Duration = Duration::from_millis(20);

/// Both clocks, read at the same moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// `CLOCK_MONOTONIC` in nanoseconds.
    pub monotonic: u64,
    /// Nanoseconds since 1970.
    pub wall: i64,
}

impl Now {
    /// Reads both clocks.
    ///
    /// # Errors
    /// When the kernel refuses, which it does not for these two clocks.
    pub fn read() -> anyhow::Result<Self> {
        let monotonic = read(libc::CLOCK_MONOTONIC)?;
        Ok(Self { monotonic: u64::try_from(monotonic)?, wall: read(libc::CLOCK_REALTIME)? })
    }
}

/// Converts from monotonic to wall-clock time and notices when the wall clock is set.
#[derive(Debug, Default)]
pub struct Clock {
    offset: Option<i64>,
    steps: u64,
}

impl Clock {
    /// Wall-clock time of a monotonic one. `now` is read when the record is converted.
    ///
    /// After a step, records from before it get the corrected time too: that is the time they would have had.
    pub fn wall(&mut self, monotonic: u64, now: Now) -> Timestamp {
        let measured = now.wall.saturating_sub_unsigned(now.monotonic);
        let offset = match self.offset {
            Some(offset) if u128::from(offset.abs_diff(measured)) < STEP.as_nanos() => offset,
            Some(_) => {
                self.steps += 1;
                measured
            }
            None => measured,
        };
        self.offset = Some(offset);
        timestamp(offset.saturating_add_unsigned(monotonic))
    }

    /// How often the wall clock was set while records came.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }
}

/// Nanoseconds since 1970 as a message.
#[must_use]
pub fn timestamp(nanoseconds: i64) -> Timestamp {
    const SECOND: i64 = 1_000_000_000;
    Timestamp {
        seconds: nanoseconds.div_euclid(SECOND),
        // Below a thousand million, so it fits.
        nanos: nanoseconds.rem_euclid(SECOND) as i32,
    }
}

/// A message as nanoseconds since 1970.
#[must_use]
pub fn nanoseconds(time: &Timestamp) -> i64 {
    time.seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(time.nanos))
}

fn read(clock: libc::clockid_t) -> anyhow::Result<i64> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is valid for the call, which writes one timespec.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        bail!(std::io::Error::last_os_error());
    }
    time.tv_sec
        .checked_mul(1_000_000_000)
        .and_then(|seconds| seconds.checked_add(time.tv_nsec))
        .context("the clock is beyond the year 2262")
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: i64 = 1_790_000_000_000_000_000;

    fn at(monotonic: u64, wall: i64) -> Now {
        Now { monotonic, wall: BASE + wall }
    }

    #[test]
    fn jitter_keeps_order_and_a_step_moves_the_time() {
        let mut clock = Clock::default();
        assert_eq!(nanoseconds(&clock.wall(900, at(1_000, 1_000))), BASE + 900);
        // The second reading is 5 us late: the offset stays.
        assert_eq!(nanoseconds(&clock.wall(1_900, at(2_000, 7_000))), BASE + 1_900);
        assert_eq!(clock.steps(), 0);
        let hour = 3_600_000_000_000;
        assert_eq!(nanoseconds(&clock.wall(2_900, at(3_000, 3_000 - hour))), BASE + 2_900 - hour);
        assert_eq!(clock.steps(), 1);
    }

    #[test]
    fn both_clocks_can_be_read() {
        let (a, b) = (Now::read().unwrap(), Now::read().unwrap());
        assert!(b.monotonic >= a.monotonic && a.wall > BASE - 100_000_000_000_000_000);
    }
}
