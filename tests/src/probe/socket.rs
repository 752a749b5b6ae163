//! Non-blocking sockets of every kind that probes use.

use crate::{
    net::{Family, Netns},
    scenario::Transport,
};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

/// A non-blocking socket in the namespace of the thread that made it.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
}

impl Socket {
    /// The socket that carries `transport` between addresses of `family`; raw where the kernel has no protocol for it.
    /// The calling thread is in the namespace.
    pub(super) fn of(ns: &Netns, transport: Transport, family: Family) -> io::Result<Self> {
        let number = i32::from(transport.number(family));
        let (kind, protocol) = match transport {
            Transport::Tcp => (libc::SOCK_STREAM, 0),
            Transport::Udp => (libc::SOCK_DGRAM, 0),
            Transport::Icmp => (libc::SOCK_DGRAM, number),
            Transport::Sctp | Transport::Other(_) => (libc::SOCK_RAW, number),
        };
        let domain = match family {
            Family::V4 => libc::AF_INET,
            Family::V6 => libc::AF_INET6,
        };
        Ok(Self { fd: ns.socket(domain, kind | libc::SOCK_NONBLOCK, protocol)? })
    }

    pub(super) fn reuse(&self) -> io::Result<()> {
        let one: libc::c_int = 1;
        // SAFETY: pointer and size are of one live integer.
        check(unsafe {
            libc::setsockopt(
                self.raw(),
                libc::SOL_SOCKET,
                libc::SO_REUSEADDR,
                (&raw const one).cast(),
                size_of_val(&one) as libc::socklen_t,
            )
        })
        .map(drop)
    }

    pub(super) fn bind(&self, ip: IpAddr, port: u16) -> io::Result<()> {
        let (address, length) = address(ip, port);
        // SAFETY: the structure is as long as `length` says and lives through the call.
        check(unsafe { libc::bind(self.raw(), (&raw const address).cast(), length) }).map(drop)
    }

    /// Connects; for TCP the outcome comes later.
    pub(super) fn connect(&self, ip: IpAddr, port: u16) -> io::Result<()> {
        let (address, length) = address(ip, port);
        // SAFETY: the structure is as long as `length` says and lives through the call.
        match check(unsafe { libc::connect(self.raw(), (&raw const address).cast(), length) }) {
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
            other => other.map(drop),
        }
    }

    pub(super) fn listen(&self) -> io::Result<()> {
        // SAFETY: takes numbers only.
        check(unsafe { libc::listen(self.raw(), 128) }).map(drop)
    }

    pub(super) fn accept(&self) -> io::Result<Self> {
        let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: null pointers ask for no address.
        let fd =
            check(unsafe { libc::accept4(self.raw(), std::ptr::null_mut(), std::ptr::null_mut(), flags) })?;
        // SAFETY: a descriptor that nobody else has.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    pub(super) fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        // SAFETY: pointer and length are of one live slice.
        let sent = unsafe { libc::send(self.raw(), bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) };
        size(sent)
    }

    pub(super) fn send_to(&self, bytes: &[u8], to: SocketAddr, raw: bool) -> io::Result<usize> {
        // A raw socket has no ports, and the kernel refuses one for IPv6.
        let (address, length) = address(to.ip(), if raw { 0 } else { to.port() });
        // SAFETY: slice and structure live through the call, with their own lengths.
        let sent = unsafe {
            libc::sendto(
                self.raw(),
                bytes.as_ptr().cast(),
                bytes.len(),
                libc::MSG_NOSIGNAL,
                (&raw const address).cast(),
                length,
            )
        };
        size(sent)
    }

    pub(super) fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        // SAFETY: pointer and length are of one live slice.
        size(unsafe { libc::recv(self.raw(), buffer.as_mut_ptr().cast(), buffer.len(), 0) })
    }

    pub(super) fn receive_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        // SAFETY: all zeroes is a valid value of this plain structure.
        let mut from: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
        let mut length = size_of_val(&from) as libc::socklen_t;
        // SAFETY: both buffers live through the call and their sizes are theirs.
        let received = size(unsafe {
            libc::recvfrom(
                self.raw(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
                (&raw mut from).cast(),
                &raw mut length,
            )
        })?;
        Ok((received, socket_address(&from)))
    }

    /// The error that a connection attempt ended with, if any; reading clears it.
    pub(super) fn pending_error(&self) -> Option<io::Error> {
        let mut error: libc::c_int = 0;
        let mut length = size_of_val(&error) as libc::socklen_t;
        // SAFETY: pointer and size are of one live integer.
        let done = unsafe {
            libc::getsockopt(
                self.raw(),
                libc::SOL_SOCKET,
                libc::SO_ERROR,
                (&raw mut error).cast(),
                &raw mut length,
            )
        };
        (done == 0 && error != 0).then(|| io::Error::from_raw_os_error(error))
    }

    pub(super) fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// Lets this process have as many sockets as it may: a truth table opens hundreds at once.
pub(super) fn raise_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: one live structure; a failure leaves the limit as it is.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn size(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn address(ip: IpAddr, port: u16) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: all zeroes is a valid value of this plain structure.
    let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let length = match ip {
        IpAddr::V4(ip) => {
            let address = libc::sockaddr_in {
                sin_family: libc::AF_INET as u16,
                sin_port: port.to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from(ip).to_be() },
                sin_zero: [0; 8],
            };
            // SAFETY: the storage is made to hold any socket address, this one too.
            unsafe { (&raw mut storage).cast::<libc::sockaddr_in>().write(address) };
            size_of::<libc::sockaddr_in>()
        }
        IpAddr::V6(ip) => {
            let address = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as u16,
                sin6_port: port.to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: ip.octets() },
                sin6_scope_id: 0,
            };
            // SAFETY: the storage is made to hold any socket address, this one too.
            unsafe { (&raw mut storage).cast::<libc::sockaddr_in6>().write(address) };
            size_of::<libc::sockaddr_in6>()
        }
    };
    (storage, length as libc::socklen_t)
}

fn socket_address(storage: &libc::sockaddr_storage) -> SocketAddr {
    let pointer = &raw const *storage;
    if i32::from(storage.ss_family) == libc::AF_INET {
        // SAFETY: the family says which structure the kernel wrote.
        let address = unsafe { pointer.cast::<libc::sockaddr_in>().read() };
        let ip = Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr));
        SocketAddr::new(ip.into(), u16::from_be(address.sin_port))
    } else {
        // SAFETY: as above; every socket here is of one of the two families.
        let address = unsafe { pointer.cast::<libc::sockaddr_in6>().read() };
        SocketAddr::new(Ipv6Addr::from(address.sin6_addr.s6_addr).into(), u16::from_be(address.sin6_port))
    }
}
