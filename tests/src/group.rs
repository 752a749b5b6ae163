//! Control groups that a test makes, and sockets in them.
//!
//! A socket belongs to the group in which it was made, wherever it is used afterwards: a child moves into the group,
//! makes it, and hands it over.

use anyhow::{Context, Result, ensure};
use policy_agent::cgroup::Hierarchy;
use std::{
    ffi::CString,
    fs, io,
    mem::{size_of, zeroed},
    net::{TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::{ffi::OsStrExt, fs::MetadataExt, net::UnixStream},
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use crate::net::Netns;

/// A control group of version 2; it goes on drop, with those that were made in it.
#[derive(Debug)]
pub struct ControlGroup {
    directory: PathBuf,
    path: String,
}

impl ControlGroup {
    /// A new group below the root, under a name of its own.
    pub fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let root = Hierarchy::find(None).context("find the cgroup v2 hierarchy")?.root().to_owned();
        Self::make(&root, &format!("/policy-test-{}-{number}", std::process::id()))
    }

    /// A group inside.
    pub fn inside(&self, name: &str) -> Result<Self> {
        let root = self.directory.ancestors().nth(self.path.matches('/').count()).context("has a root")?;
        Self::make(root, &format!("{}/{name}", self.path))
    }

    fn make(root: &Path, path: &str) -> Result<Self> {
        let directory = root.join(path.trim_start_matches('/'));
        fs::create_dir(&directory).with_context(|| format!("make control group {}", directory.display()))?;
        Ok(Self { directory, path: path.to_owned() })
    }

    /// Path below the root of the hierarchy, as annotations name it.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The kernel's id.
    pub fn id(&self) -> Result<u64> {
        Ok(fs::metadata(&self.directory)?.ino())
    }

    /// A socket of the group in a network namespace.
    pub fn socket(&self, ns: &Netns, domain: i32, kind: i32, protocol: i32) -> Result<OwnedFd> {
        let procs = CString::new(self.directory.join("cgroup.procs").as_os_str().as_bytes())?;
        let (ours, theirs) = UnixStream::pair().context("make a pair of sockets")?;
        ns.run(move || {
            // SAFETY: the child calls nothing but system calls on what was prepared before, and ends.
            let child = unsafe { libc::fork() };
            ensure!(child >= 0, "fork: {}", io::Error::last_os_error());
            if child == 0 {
                // SAFETY: as above.
                unsafe { make_and_send(&procs, theirs.as_raw_fd(), [domain, kind, protocol]) };
            }
            // A child that fails sends nothing: its end must be the last one.
            drop(theirs);
            let received = receive(ours.as_raw_fd());
            let mut status = 0;
            // SAFETY: the child is ours and the pointer valid.
            unsafe { libc::waitpid(child, &raw mut status, 0) };
            ensure!(status == 0, "the child could not make a socket in {}: {status}", self.path);
            received.context("receive the socket")
        })
    }

    /// A UDP socket bound to an address.
    pub fn udp(&self, ns: &Netns, at: &str) -> Result<UdpSocket> {
        let fd = self.socket(ns, domain(at), libc::SOCK_DGRAM, 0)?;
        bind(&fd, at)?;
        Ok(fd.into())
    }

    /// A TCP socket that listens.
    pub fn listener(&self, ns: &Netns, at: &str) -> Result<TcpListener> {
        let fd = self.socket(ns, domain(at), libc::SOCK_STREAM, 0)?;
        let on = 1i32;
        // SAFETY: the pointer is valid for its length.
        unsafe {
            let option = (&raw const on).cast();
            libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, option, 4);
        }
        bind(&fd, at)?;
        // SAFETY: an open descriptor.
        let done = unsafe { libc::listen(fd.as_raw_fd(), 16) };
        ensure!(done == 0, "listen at {at}: {}", io::Error::last_os_error());
        Ok(fd.into())
    }

    /// A connection, or why there is none. `milliseconds` bound how long the kernel tries.
    pub fn connect(&self, ns: &Netns, to: &str, milliseconds: i64) -> Result<io::Result<TcpStream>> {
        let fd = self.socket(ns, domain(to), libc::SOCK_STREAM, 0)?;
        Ok(connect(fd, to, milliseconds))
    }

    /// Moves a process into the group.
    pub fn take(&self, process: u32) -> Result<()> {
        fs::write(self.directory.join("cgroup.procs"), process.to_string())
            .with_context(|| format!("move process {process} into {}", self.path))
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        // Groups are directories whose files can't be removed: from the inside out.
        fn remove(directory: &Path) {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    remove(&entry.path());
                }
            }
            drop(fs::remove_dir(directory));
        }
        remove(&self.directory);
    }
}

/// Connects a socket. `milliseconds` bound how long the kernel tries.
pub fn connect(fd: OwnedFd, to: &str, milliseconds: i64) -> io::Result<TcpStream> {
    let limit = libc::timeval { tv_sec: milliseconds / 1000, tv_usec: milliseconds % 1000 * 1000 };
    // SAFETY: the pointer is valid for its length.
    unsafe {
        let (option, length) = ((&raw const limit).cast(), size_of::<libc::timeval>() as u32);
        libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_SNDTIMEO, option, length);
    }
    let (address, length) = address(to);
    // SAFETY: the address is valid for its length.
    let done = unsafe { libc::connect(fd.as_raw_fd(), (&raw const address).cast(), length) };
    if done == 0 { Ok(fd.into()) } else { Err(io::Error::last_os_error()) }
}

fn domain(at: &str) -> i32 {
    if at.starts_with('[') { libc::AF_INET6 } else { libc::AF_INET }
}

fn bind(fd: &OwnedFd, at: &str) -> Result<()> {
    let (address, length) = address(at);
    // SAFETY: the address is valid for its length.
    let done = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) };
    ensure!(done == 0, "bind to {at}: {}", io::Error::last_os_error());
    Ok(())
}

fn address(text: &str) -> (libc::sockaddr_storage, u32) {
    let parsed: std::net::SocketAddr = text.parse().expect("tests write addresses that are ones");
    // SAFETY: integers: all zeroes is a value.
    let mut storage: libc::sockaddr_storage = unsafe { zeroed() };
    let length = match parsed {
        std::net::SocketAddr::V4(four) => {
            // SAFETY: the storage is large enough and aligned for every address.
            let at = unsafe { &mut *(&raw mut storage).cast::<libc::sockaddr_in>() };
            at.sin_family = libc::AF_INET as u16;
            at.sin_port = four.port().to_be();
            at.sin_addr.s_addr = u32::from_ne_bytes(four.ip().octets());
            size_of::<libc::sockaddr_in>()
        }
        std::net::SocketAddr::V6(six) => {
            // SAFETY: as above.
            let at = unsafe { &mut *(&raw mut storage).cast::<libc::sockaddr_in6>() };
            at.sin6_family = libc::AF_INET6 as u16;
            at.sin6_port = six.port().to_be();
            at.sin6_addr.s6_addr = six.ip().octets();
            size_of::<libc::sockaddr_in6>()
        }
    };
    (storage, length as u32)
}

/// One descriptor beside one byte.
#[repr(C)]
struct Control {
    header: libc::cmsghdr,
    fd: RawFd,
}

/// In the child: moves, makes, sends, ends.
///
/// # Safety
/// Between fork and exit: system calls only.
unsafe fn make_and_send(procs: &CString, to: RawFd, [domain, kind, protocol]: [i32; 3]) -> ! {
    // SAFETY: every pointer is to a live local of the size that is given.
    unsafe {
        let group = libc::open(procs.as_ptr(), libc::O_WRONLY);
        if group < 0 || libc::write(group, c"0".as_ptr().cast(), 1) != 1 {
            libc::_exit(1);
        }
        let fd = libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol);
        if fd < 0 {
            libc::_exit(2);
        }
        let mut byte = 0u8;
        let mut part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        let mut control: Control = zeroed();
        control.header.cmsg_len = libc::CMSG_LEN(4) as _;
        control.header.cmsg_level = libc::SOL_SOCKET;
        control.header.cmsg_type = libc::SCM_RIGHTS;
        control.fd = fd;
        let mut message: libc::msghdr = zeroed();
        (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
        (message.msg_control, message.msg_controllen) = ((&raw mut control).cast(), libc::CMSG_SPACE(4) as _);
        libc::_exit(if libc::sendmsg(to, &raw const message, 0) == 1 { 0 } else { 3 });
    }
}

fn receive(from: RawFd) -> io::Result<OwnedFd> {
    let mut byte = 0u8;
    let mut part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    // SAFETY: integers and pointers that are set below.
    let (mut control, mut message): (Control, libc::msghdr) = unsafe { (zeroed(), zeroed()) };
    (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of::<Control>() as _;
    // SAFETY: every pointer is to a live local of the size that is given.
    let read = unsafe { libc::recvmsg(from, &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    if read != 1 || control.header.cmsg_type != libc::SCM_RIGHTS {
        return Err(io::Error::other("the child sent no socket"));
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(control.fd) })
}
