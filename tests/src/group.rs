//! Control groups that a test makes, and sockets in them.
//!
//! A socket belongs to the group in which it was made, wherever it is used afterwards: see [`crate::net::Maker`].

use anyhow::{Context, Result, ensure};
use policy_agent::cgroup::Hierarchy;
use std::{
    fs, io,
    mem::{size_of, zeroed},
    net::{TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use crate::net::{Maker, Netns};

/// How often the removal of a busy group is tried again, and how long to wait before.
const REMOVALS: u32 = 2000;
const PAUSE: std::time::Duration = std::time::Duration::from_millis(10);

/// A control group of version 2; it goes on drop, with those that were made in it.
#[derive(Debug)]
pub struct ControlGroup {
    directory: PathBuf,
    path: String,
}

impl ControlGroup {
    /// A new group below the root, under a name of its own.
    pub fn new() -> Result<Self> {
        Self::named("")
    }

    /// A new group whose name ends as a slice's does: systemd's units are in such.
    pub fn slice() -> Result<Self> {
        Self::named(".slice")
    }

    fn named(end: &str) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let root = Hierarchy::find(None).context("find the cgroup v2 hierarchy")?.root().to_owned();
        Self::make(&root, &format!("/policy-test-{}-{number}{end}", std::process::id()))
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

    /// Removes the group, which must be empty, and makes it again: another one for the kernel.
    pub fn make_again(&self) -> Result<()> {
        fs::remove_dir(&self.directory).with_context(|| format!("remove control group {}", self.path))?;
        fs::create_dir(&self.directory).with_context(|| format!("make control group {}", self.path))
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
        let socket = ns.run(|| {
            Maker::start(&self.directory)?.socket(domain, kind, protocol).map_err(anyhow::Error::from)
        });
        socket.with_context(|| format!("make a socket in {}", self.path))
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

/// Groups below the root that this process made and that are still there.
pub fn left() -> Result<Vec<PathBuf>> {
    let root = Hierarchy::find(None).context("find the cgroup v2 hierarchy")?.root().to_owned();
    let ours = format!("policy-test-{}-", std::process::id());
    let entries = fs::read_dir(&root).with_context(|| format!("list {}", root.display()))?.flatten();
    Ok(entries.filter(|e| e.file_name().to_string_lossy().starts_with(&ours)).map(|e| e.path()).collect())
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
            // A process that was just killed is in its group until the kernel has taken it apart.
            let busy = |error: &io::Error| error.raw_os_error() == Some(libc::EBUSY);
            let mut tries = 0;
            while let Err(error) = fs::remove_dir(directory) {
                if error.kind() == io::ErrorKind::NotFound {
                    return;
                }
                if !busy(&error) || tries == REMOVALS {
                    eprintln!("remove control group {}: {error}", directory.display());
                    return;
                }
                tries += 1;
                std::thread::sleep(PAUSE);
            }
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
