//! A kernel that has no memory for new maps, for one process, whenever a test says so.
//!
//! A seccomp filter hands every `bpf(BPF_MAP_CREATE)` of the process to the test, which lets it go on or answers
//! `ENOMEM` in the kernel's place (seccomp_unotify(2)). Everything else about the process is as ever.

use std::{
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
};

use anyhow::{Context, Result, ensure};

/// Where the process holds the listening end until the test has its own: above what it opens itself.
const LISTENER: RawFd = 900;
/// `SECCOMP_IOCTL_NOTIF_RECV` and `SECCOMP_IOCTL_NOTIF_SEND` of linux/seccomp.h: `_IOWR('!', 0, 80)`, `('!', 1, 24)`.
const RECEIVE: libc::c_ulong = 0xc050_2100;
const ANSWER: libc::c_ulong = 0xc018_2101;

/// The test's end. When it goes, the process's requests are refused by the kernel (`ENOSYS`).
#[derive(Debug)]
pub struct Shortage {
    lasts: Arc<AtomicBool>,
    refused: Arc<AtomicU32>,
}

impl Shortage {
    /// Makes the command ask before it makes maps, from its first instruction on.
    pub fn prepare(command: &mut Command) {
        // SAFETY: the closure runs between fork and exec: it makes system calls alone, on its own stack.
        unsafe {
            command.pre_exec(install);
        }
    }

    /// Answers a process that was started by a prepared command, until it ends.
    pub fn of(pid: u32, lasts: bool) -> Result<Self> {
        let listener = listener(pid).context("the listening end of the filter")?;
        let shortage = Self { lasts: Arc::new(AtomicBool::new(lasts)), refused: Arc::default() };
        let (lasts, refused) = (shortage.lasts.clone(), shortage.refused.clone());
        thread::spawn(move || while answer(&listener, &lasts, &refused).is_ok() {});
        Ok(shortage)
    }

    /// From here on there is none, or enough.
    pub fn set(&self, lasts: bool) {
        self.lasts.store(lasts, Ordering::SeqCst);
    }

    /// Maps that were refused.
    pub fn refused(&self) -> u32 {
        self.refused.load(Ordering::SeqCst)
    }
}

/// `if nr == bpf && low word of args[0] == BPF_MAP_CREATE (0) { ask } else { allow }`
fn install() -> io::Result<()> {
    let word = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    let unless = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let end = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jf, k| libc::sock_filter { code, jt: 0, jf, k };
    // Offsets in `struct seccomp_data`: number 0, arguments from 16 on.
    let mut code = [
        step(word, 0, 0),
        step(unless, 3, libc::SYS_bpf as u32),
        step(word, 0, 16),
        step(unless, 1, 0),
        step(end, 0, libc::SECCOMP_RET_USER_NOTIF),
        step(end, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: code.len() as u16, filter: code.as_mut_ptr() };
    // SAFETY: the program and its length outlive the calls, which copy them; descriptors are the process's own.
    unsafe {
        let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
        let fd = libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program);
        // The copy is not closed on exec.
        if fd < 0 || libc::dup2(fd as RawFd, LISTENER) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn listener(pid: u32) -> Result<OwnedFd> {
    // SAFETY: each call returns a new descriptor or an error, and the first one is closed by its owner.
    unsafe {
        let process = libc::syscall(libc::SYS_pidfd_open, pid, 0) as RawFd;
        ensure!(process >= 0, "pidfd_open: {}", io::Error::last_os_error());
        let process = OwnedFd::from_raw_fd(process);
        let fd = libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), LISTENER, 0) as RawFd;
        ensure!(fd >= 0, "pidfd_getfd: {}", io::Error::last_os_error());
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// One request; an error once the process has ended.
fn answer(listener: &OwnedFd, lasts: &AtomicBool, refused: &AtomicU32) -> io::Result<()> {
    // SAFETY: the structures are plain numbers; the kernel wants the first one zeroed, and fills it.
    unsafe {
        let mut asked: libc::seccomp_notif = std::mem::zeroed();
        if libc::ioctl(listener.as_raw_fd(), RECEIVE, &raw mut asked) < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut said: libc::seccomp_notif_resp = std::mem::zeroed();
        said.id = asked.id;
        if lasts.load(Ordering::SeqCst) {
            said.error = -libc::ENOMEM;
            refused.fetch_add(1, Ordering::SeqCst);
        } else {
            said.flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32;
        }
        // A thread that was ended meanwhile needs no answer (ENOENT).
        libc::ioctl(listener.as_raw_fd(), ANSWER, &raw const said);
    }
    Ok(())
}
