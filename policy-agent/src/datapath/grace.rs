//! Grace periods: after one, no program that began before it is still running.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;

use super::bpf;
use super::spec::MapId;
use aya_obj::generated::bpf_cmd;

const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;

/// Waits for grace periods. Milliseconds each: never call it on the way in.
#[derive(Debug, Default)]
pub struct Grace {
    fallback: OnceLock<(OwnedFd, OwnedFd)>,
}

impl Grace {
    /// Returns when every program run that had begun has ended.
    ///
    /// # Errors
    /// Neither way to wait works here.
    pub fn wait(&self) -> io::Result<()> {
        // SAFETY: the command has no pointers.
        if unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) } == 0 {
            return Ok(());
        }
        self.replace_inner_map()
    }

    /// Kernels with `nohz_full` refuse the barrier. Replacing a map inside a map waits for the same grace period.
    fn replace_inner_map(&self) -> io::Result<()> {
        let (outer, inner) = match self.fallback.get() {
            Some(maps) => maps,
            None => {
                let made = Self::maps()?;
                self.fallback.get_or_init(|| made)
            }
        };
        use std::os::fd::AsRawFd;
        let (key, value) = (0u32, inner.as_raw_fd());
        bpf::element(
            bpf_cmd::BPF_MAP_UPDATE_ELEM,
            outer.as_fd(),
            (&raw const key).cast(),
            (&raw const value).cast_mut().cast(),
            0,
        )
    }

    fn maps() -> io::Result<(OwnedFd, OwnedFd)> {
        let template = MapId::Flows4.inner().ok_or(io::ErrorKind::InvalidInput)?;
        let inner = bpf::create_map(&template, 1, None)?;
        let outer = bpf::create_map(&MapId::Flows4.spec(), 1, Some(inner.as_fd()))?;
        Ok((outer, inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_to_wait_work_here() {
        let grace = Grace::default();
        grace.wait().unwrap();
        grace.replace_inner_map().unwrap();
        grace.replace_inner_map().unwrap();
    }
}
