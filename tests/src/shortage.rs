//! A kernel that has no memory for new maps, or takes its time for links, for one process, whenever a test says so.
//!
//! A seccomp filter hands every `bpf(BPF_MAP_CREATE)` and `bpf(BPF_LINK_CREATE)` of the process to the test, which lets it
//! go on, at once or later, or answers `ENOMEM` in the kernel's place (seccomp_unotify(2)). Everything else about the
//! process is as ever.

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

/// `BPF_MAP_CREATE` and `BPF_LINK_CREATE` of linux/bpf.h.
const MAP: u32 = 0;
const LINK: u32 = 28;
/// Longest time, in milliseconds, that links are held when they need not be any more.
const TURN: libc::c_int = 5;

/// The test's end. When it goes, the process's requests are refused by the kernel (`ENOSYS`).
#[derive(Debug)]
pub struct Shortage {
    says: Arc<Says>,
}

/// What the test says.
#[derive(Debug, Default)]
struct Says {
    lasts: AtomicBool,
    holds: AtomicBool,
    refused: AtomicU32,
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
        let says = Arc::new(Says { lasts: AtomicBool::new(lasts), ..Says::default() });
        let shortage = Self { says: says.clone() };
        thread::spawn(move || answer(&listener, &says));
        Ok(shortage)
    }

    /// From here on there is none, or enough.
    pub fn set(&self, lasts: bool) {
        self.says.lasts.store(lasts, Ordering::SeqCst);
    }

    /// From here on links take until they are let go, or no time.
    pub fn hold_links(&self, holds: bool) {
        self.says.holds.store(holds, Ordering::SeqCst);
    }

    /// Maps that were refused.
    pub fn refused(&self) -> u32 {
        self.says.refused.load(Ordering::SeqCst)
    }
}

/// `if nr == bpf && low word of args[0] in [BPF_MAP_CREATE, BPF_LINK_CREATE] { ask } else { allow }`
fn install() -> io::Result<()> {
    let word = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    let test = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let end = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    // Offsets in `struct seccomp_data`: number 0, arguments from 16 on.
    let mut code = [
        step(word, 0, 0, 0),
        step(test, 0, 4, libc::SYS_bpf as u32),
        step(word, 0, 0, 16),
        step(test, 1, 0, MAP),
        step(test, 0, 1, LINK),
        step(end, 0, 0, libc::SECCOMP_RET_USER_NOTIF),
        step(end, 0, 0, libc::SECCOMP_RET_ALLOW),
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

/// Answers until the process has ended.
fn answer(listener: &OwnedFd, says: &Says) {
    let mut held = Vec::new();
    loop {
        if !says.holds.load(Ordering::SeqCst) {
            held.drain(..).for_each(|id| say(listener, id, 0));
        }
        let mut poll = libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one live structure and its count.
        unsafe { libc::poll(&raw mut poll, 1, TURN) };
        if poll.revents & (libc::POLLHUP | libc::POLLERR) != 0 {
            return;
        }
        if poll.revents & libc::POLLIN == 0 {
            continue;
        }
        // SAFETY: a structure of plain numbers, which the kernel wants zeroed, and fills.
        let mut asked: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: a live structure of the kind that this request fills.
        if unsafe { libc::ioctl(listener.as_raw_fd(), RECEIVE, &raw mut asked) } < 0 {
            // The thread was ended meanwhile.
            continue;
        }
        let is_link = asked.data.args[0] as u32 == LINK;
        if is_link && says.holds.load(Ordering::SeqCst) {
            held.push(asked.id);
        } else if !is_link && says.lasts.load(Ordering::SeqCst) {
            says.refused.fetch_add(1, Ordering::SeqCst);
            say(listener, asked.id, libc::ENOMEM);
        } else {
            say(listener, asked.id, 0);
        }
    }
}

/// Lets a request go on, or refuses it with this error.
fn say(listener: &OwnedFd, id: u64, error: libc::c_int) {
    let flags = if error == 0 { libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32 } else { 0 };
    let said = libc::seccomp_notif_resp { id, val: 0, error: -error, flags };
    // SAFETY: a live structure of the kind that this request reads. A thread that was ended needs no answer (ENOENT).
    unsafe { libc::ioctl(listener.as_raw_fd(), ANSWER, &raw const said) };
}
