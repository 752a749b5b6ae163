//! Ctrl-C: noticed between two steps, so that everything the demo made is taken down by its owners.

use anyhow::{Result, bail, ensure};
use std::{
    mem::MaybeUninit,
    sync::atomic::{AtomicBool, Ordering},
};

static ASKED: AtomicBool = AtomicBool::new(false);

/// Whether somebody asked to stop.
pub fn asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}

/// An error when somebody asked to stop.
pub fn check() -> Result<()> {
    if asked() {
        bail!("interrupted");
    }
    Ok(())
}

/// From now on SIGINT and SIGTERM only set the flag. Must be called before other threads exist: they inherit the mask.
pub fn watch() -> Result<()> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `sigemptyset` initialises the set before it is used; all pointers are valid.
    let (set, done) = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        let mut set = set.assume_init();
        libc::sigaddset(&raw mut set, libc::SIGINT);
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        let done = libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        (set, done)
    };
    ensure!(done == 0, "block signals: {}", std::io::Error::from_raw_os_error(done));
    std::thread::spawn(move || {
        let mut signal = 0;
        // SAFETY: both pointers are valid for the call.
        while unsafe { libc::sigwait(&raw const set, &raw mut signal) } == 0 {
            ASKED.store(true, Ordering::Relaxed);
        }
    });
    Ok(())
}
