//! A process that makes sockets for others: a socket belongs to the control group of the task that made it, wherever it
//! is used afterwards.

use anyhow::{Context, Result, ensure};
use std::{
    ffi::CString,
    io,
    mem::{size_of, zeroed},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::{ffi::OsStrExt, net::UnixStream},
    },
    path::Path,
    sync::{Mutex, PoisonError},
};

/// A child in a control group and a network namespace. It ends with this value, or with this process.
#[derive(Debug)]
pub struct Maker {
    line: Mutex<UnixStream>,
    child: libc::pid_t,
}

impl Maker {
    /// Starts one in the calling thread's network namespace, in the group of this directory.
    pub fn start(group: &Path) -> Result<Self> {
        let procs = CString::new(group.join("cgroup.procs").as_os_str().as_bytes())?;
        let (ours, theirs) = UnixStream::pair().context("make a pair of sockets")?;
        // SAFETY: the child calls nothing but system calls on what was prepared before, and ends.
        let child = unsafe { libc::fork() };
        ensure!(child >= 0, "fork: {}", io::Error::last_os_error());
        if child == 0 {
            // SAFETY: as above.
            unsafe { serve(&procs, theirs.as_raw_fd()) };
        }
        let maker = Self { line: Mutex::new(ours), child };
        drop(theirs);
        // Its first word says that it is where it should be.
        let arrived = receive(maker.line.lock().unwrap_or_else(PoisonError::into_inner).as_raw_fd())
            .with_context(|| format!("the maker of sockets in {}", group.display()))?;
        ensure!(arrived.is_none(), "the maker of sockets begins with a socket");
        Ok(maker)
    }

    /// A socket of its group and namespace.
    pub fn socket(&self, domain: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
        let line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        let request = [domain, kind, protocol];
        // SAFETY: the pointer is to a live local of the size that is given.
        let sent = unsafe {
            let bytes = (&raw const request).cast();
            libc::send(line.as_raw_fd(), bytes, size_of_val(&request), libc::MSG_NOSIGNAL)
        };
        if sent != size_of_val(&request) as isize {
            return Err(io::Error::last_os_error());
        }
        receive(line.as_raw_fd())?.ok_or_else(|| io::Error::other("the maker sent no socket"))
    }

    /// Its process, which a test may move to another group.
    pub fn process(&self) -> u32 {
        self.child.unsigned_abs()
    }
}

impl Drop for Maker {
    fn drop(&mut self) {
        let line = self.line.get_mut().unwrap_or_else(PoisonError::into_inner);
        drop(line.shutdown(std::net::Shutdown::Both));
        // SAFETY: the child is ours; no status is asked for.
        unsafe { libc::waitpid(self.child, std::ptr::null_mut(), 0) };
    }
}

/// One descriptor beside an error number.
#[repr(C)]
struct Control {
    header: libc::cmsghdr,
    fd: RawFd,
}

/// In the child: moves, then makes what it is asked for until nobody can ask any more.
///
/// # Safety
/// After fork: system calls only.
unsafe fn serve(procs: &CString, line: RawFd) -> ! {
    // SAFETY: every pointer is to a live local of the size that is given. What this process inherited would stay open
    // for as long as it lives, so all of it is closed.
    unsafe {
        libc::dup2(line, 0);
        libc::syscall(libc::SYS_close_range, 1u32, u32::MAX, 0u32);
        let group = libc::open(procs.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if group < 0 || libc::write(group, c"0".as_ptr().cast(), 1) != 1 {
            answer(*libc::__errno_location(), -1);
            libc::_exit(1);
        }
        libc::close(group);
        answer(0, -1);
        let mut request = [0i32; 3];
        let size = size_of_val(&request);
        while libc::recv(0, (&raw mut request).cast(), size, libc::MSG_WAITALL) == size as isize {
            let [domain, kind, protocol] = request;
            let fd = libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol);
            answer(if fd < 0 { *libc::__errno_location() } else { 0 }, fd);
            if fd >= 0 {
                libc::close(fd);
            }
        }
        libc::_exit(0)
    }
}

/// # Safety
/// In the child: system calls only.
unsafe fn answer(error: i32, fd: RawFd) {
    // SAFETY: every pointer is to a live local of the size that is given.
    unsafe {
        let mut part = libc::iovec { iov_base: (&raw const error).cast_mut().cast(), iov_len: 4 };
        let mut control: Control = zeroed();
        control.header.cmsg_len = libc::CMSG_LEN(4) as _;
        control.header.cmsg_level = libc::SOL_SOCKET;
        control.header.cmsg_type = libc::SCM_RIGHTS;
        control.fd = fd;
        let mut message: libc::msghdr = zeroed();
        (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
        if fd >= 0 {
            message.msg_control = (&raw mut control).cast();
            message.msg_controllen = libc::CMSG_SPACE(4) as _;
        }
        libc::sendmsg(0, &raw const message, libc::MSG_NOSIGNAL);
    }
}

fn receive(from: RawFd) -> io::Result<Option<OwnedFd>> {
    let mut error = 0i32;
    let mut part = libc::iovec { iov_base: (&raw mut error).cast(), iov_len: 4 };
    // SAFETY: integers and pointers that are set below.
    let (mut control, mut message): (Control, libc::msghdr) = unsafe { (zeroed(), zeroed()) };
    (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of::<Control>() as _;
    // SAFETY: every pointer is to a live local of the size that is given.
    let read = unsafe { libc::recvmsg(from, &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    match read {
        4 if error != 0 => Err(io::Error::from_raw_os_error(error)),
        4 if message.msg_controllen == 0 => Ok(None),
        4 if control.header.cmsg_type == libc::SCM_RIGHTS => {
            // SAFETY: the kernel has just made this descriptor for us.
            Ok(Some(unsafe { OwnedFd::from_raw_fd(control.fd) }))
        }
        _ => Err(io::Error::other("the maker of sockets is gone")),
    }
}
