//! A pin directory of one test, which leaves nothing behind.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use policy_agent::datapath::{Pins, remove_all};

use crate::net::Netns;

const BPFFS: &str = "/sys/fs/bpf";

/// A directory of its own on the BPF file system, mounted if it was not; on drop everything that is pinned in it is
/// detached and removed, also when the test fails.
#[derive(Debug)]
pub struct PinDir {
    path: PathBuf,
    ns: Arc<Netns>,
}

impl PinDir {
    /// A new directory for programs that are attached in the namespace.
    pub fn new(ns: &Arc<Netns>) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        mount()?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = Path::new(BPFFS).join(format!("policy-test-{}-{number}", std::process::id()));
        Ok(Self { path, ns: ns.clone() })
    }

    /// The directory, which an agent makes.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The layout of the directory.
    pub fn pins(&self) -> Pins {
        Pins::new(&self.path)
    }
}

impl Drop for PinDir {
    fn drop(&mut self) {
        let removed = self.ns.run(|| remove_all(&self.pins()));
        if let Err(e) = removed {
            eprintln!("{}: {e}", self.path.display());
        }
    }
}

/// Mounts the BPF file system where it is not. Tests may race for it: what counts is that it is there afterwards.
fn mount() -> Result<()> {
    if Pins::new(Path::new(BPFFS)).check().is_ok() {
        return Ok(());
    }
    std::fs::create_dir_all(BPFFS).context("make the mount point of the BPF file system")?;
    // SAFETY: four terminated texts and no data.
    let done = unsafe {
        libc::mount(c"bpf".as_ptr(), c"/sys/fs/bpf".as_ptr(), c"bpf".as_ptr(), 0, std::ptr::null())
    };
    if done != 0 && Pins::new(Path::new(BPFFS)).check().is_err() {
        bail!("mount the BPF file system: {}", std::io::Error::last_os_error());
    }
    Ok(())
}
