//! A network namespace that exists only as a descriptor of this process.

use super::Maker;
use crate::group::ControlGroup;
use anyhow::{Context, Result};
use std::{
    fs::File,
    io,
    net::{SocketAddr, TcpStream},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    os::unix::process::CommandExt,
    panic::resume_unwind,
    process::Command,
    thread,
    time::Duration,
};

/// A network namespace; it goes when the last descriptor, process and thread that uses it is gone.
#[derive(Debug)]
pub struct Netns {
    fd: OwnedFd,
    maker: Option<Maker>,
}

impl Netns {
    /// A new, empty namespace with its loopback interface up.
    pub fn new() -> Result<Self> {
        // Unsharing changes the calling thread only, so a thread of our own takes the change and ends.
        let made = thread::spawn(|| -> Result<Self> {
            // SAFETY: takes flags only and affects this thread alone.
            let done = unsafe { libc::unshare(libc::CLONE_NEWNET) };
            if done != 0 {
                return Err(io::Error::last_os_error()).context("unshare a network namespace (root needed)");
            }
            Self::of_this_thread()
        });
        let ns = made.join().unwrap_or_else(|panic| resume_unwind(panic))?;
        let rtnl = ns.run(super::Rtnl::open)?;
        rtnl.set_up(1)?;
        Ok(ns)
    }

    /// The namespace of the calling thread.
    pub fn of_this_thread() -> Result<Self> {
        let file = File::open("/proc/thread-self/ns/net").context("open this thread's network namespace")?;
        Ok(Self { fd: file.into(), maker: None })
    }

    /// A namespace that somebody else made, by an open file such as `/proc/PID/ns/net`.
    pub fn from_file(file: File) -> Self {
        Self { fd: file.into(), maker: None }
    }

    /// The same namespace, with sockets of a control group.
    pub fn with_sockets_of(&self, group: &ControlGroup) -> Result<Self> {
        let fd = self.fd.try_clone().context("duplicate a namespace descriptor")?;
        let maker = self.run(|| Maker::start(group.directory()))?;
        Ok(Self { fd, maker: Some(maker) })
    }

    /// Who makes the sockets, if they are a control group's.
    pub fn maker(&self) -> Option<&Maker> {
        self.maker.as_ref()
    }

    /// A socket: of the control group if there is one, else of the calling thread, which must be inside.
    pub fn socket(&self, domain: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
        if let Some(maker) = &self.maker {
            return maker.socket(domain, kind, protocol);
        }
        // SAFETY: takes numbers only; the result is checked before it is owned.
        let fd = unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a descriptor that nobody else has.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// Runs `work` on a thread inside the namespace and hands back what it returns; a panic goes through.
    ///
    /// Sockets that `work` opens stay in the namespace wherever they are used afterwards.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.enter().expect("enter a namespace that this process made");
                work()
            });
            inside.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Whether a TCP connection from here to an address and port comes about within the limit.
    pub fn reaches(&self, to: &str, limit: Duration) -> bool {
        let to: SocketAddr = to.parse().expect("tests write addresses that are ones");
        self.run(|| TcpStream::connect_timeout(&to, limit).is_ok())
    }

    /// Moves the calling thread into the namespace, for as long as the thread lives or until it enters another.
    pub fn enter(&self) -> io::Result<()> {
        enter(self.fd.as_raw_fd())
    }

    /// Makes the child that `command` starts run inside the namespace.
    pub fn enter_command(&self, command: &mut Command) -> Result<()> {
        let fd = self.fd.try_clone().context("duplicate a namespace descriptor")?;
        // SAFETY: between fork and exec only setns runs, on a descriptor that the closure owns: no allocation, no lock.
        unsafe {
            command.pre_exec(move || enter(fd.as_raw_fd()));
        }
        Ok(())
    }

    /// The descriptor, for netlink requests that name a namespace.
    pub fn raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// Sets `/proc/sys/net/{path}` of the calling thread's namespace; `path` uses slashes.
pub fn sysctl(path: &str, value: &str) -> Result<()> {
    let file = format!("/proc/sys/net/{path}");
    std::fs::write(&file, value).with_context(|| format!("set {file} to {value}"))
}

fn enter(fd: RawFd) -> io::Result<()> {
    // SAFETY: an open descriptor and a flag; affects the calling thread alone.
    let done = unsafe { libc::setns(fd, libc::CLONE_NEWNET) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn inode() -> u64 {
        std::fs::metadata("/proc/thread-self/ns/net").unwrap().ino()
    }

    #[test]
    fn work_runs_inside_and_the_caller_stays_outside() {
        let ns = Netns::new().unwrap();
        let before = inode();
        let inside = ns.run(inode);
        assert_ne!(inside, before);
        assert_eq!(inode(), before);
        assert_ne!(inside, Netns::new().unwrap().run(inode));
    }

    #[test]
    fn a_child_starts_inside() {
        let ns = Netns::new().unwrap();
        let mut command = Command::new("readlink");
        command.arg("/proc/self/ns/net");
        ns.enter_command(&mut command).unwrap();
        let seen = String::from_utf8(command.output().unwrap().stdout).unwrap();
        assert_eq!(seen.trim(), format!("net:[{}]", ns.run(inode)));
    }
}
