//! "Something changed": link and address events of this namespace and of all others that have an id here.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;

use super::message::{Message, messages};

/// Bytes asked for as receive buffer: a storm of events then ends in one dump instead of many.
const BUFFER: libc::c_int = 4 << 20;
/// Type of the ancillary message with the namespace of an event.
const NETLINK_LISTEN_ALL_NSID: libc::c_int = 8;

/// What happened since the last time, many events as one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Links of the host's namespace came, went or changed: their indexes.
    pub links: BTreeSet<u32>,
    /// Addresses inside other namespaces came or went.
    pub pod_addresses: bool,
    /// Addresses of the host's own namespace came or went.
    pub host_addresses: bool,
    /// Ids of other namespaces came or went.
    pub namespaces: bool,
    /// The kernel dropped events: look at everything again.
    pub lost: bool,
}

impl Change {
    /// Whether nothing happened.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds what happened later.
    pub fn merge(&mut self, later: Self) {
        self.links.extend(later.links);
        self.pod_addresses |= later.pod_addresses;
        self.host_addresses |= later.host_addresses;
        self.namespaces |= later.namespaces;
        self.lost |= later.lost;
    }

    /// One event; `own` = it comes from the host's own namespace.
    fn note(&mut self, message: &Message<'_>, own: bool) {
        match message.kind {
            libc::RTM_NEWLINK | libc::RTM_DELLINK if own => self.links.extend(message.u32_at(4)),
            libc::RTM_NEWADDR | libc::RTM_DELADDR if own => self.host_addresses = true,
            libc::RTM_NEWADDR | libc::RTM_DELADDR => self.pod_addresses = true,
            libc::RTM_NEWNSID | libc::RTM_DELNSID => self.namespaces = true,
            _ => {}
        }
    }
}

/// The subscription. Open it before the first [`super::Discovery::snapshot`], so that nothing falls between them.
#[derive(Debug)]
pub struct Events {
    socket: Socket,
}

impl Events {
    /// Subscribes in the calling thread's network namespace.
    ///
    /// # Errors
    /// `PermissionDenied` without `CAP_NET_BROADCAST`.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.set_listen_all_namespaces(true)?;
        enlarge(&socket)?;
        for group in
            [libc::RTNLGRP_LINK, libc::RTNLGRP_IPV4_IFADDR, libc::RTNLGRP_IPV6_IFADDR, libc::RTNLGRP_NSID]
        {
            socket.add_membership(group)?;
        }
        socket.set_non_blocking(true)?;
        Ok(Self { socket })
    }

    /// Takes everything that waits in the socket, without waiting for more; empty when nothing did.
    ///
    /// # Errors
    /// The kernel's answer. Lost events are no error: see [`Change::lost`].
    pub fn drain(&self) -> io::Result<Change> {
        let mut change = Change::default();
        let mut buffer = vec![0; 65_536];
        loop {
            match self.receive(&mut buffer) {
                Ok((length, own)) => messages(&buffer[..length]).for_each(|m| change.note(&m, own)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(change),
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => change.lost = true,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Waits for a change, at most this long; empty when there was none.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn wait(&self, at_most: Duration) -> io::Result<Change> {
        let mut poll = libc::pollfd { fd: self.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let milliseconds = i32::try_from(at_most.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: one valid element, as the count says.
        let ready = unsafe { libc::poll(&raw mut poll, 1, milliseconds) };
        match ready {
            0 => Ok(Change::default()),
            n if n > 0 => self.drain(),
            _ => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => Ok(Change::default()),
                e => Err(e),
            },
        }
    }

    /// One datagram: its length, and whether it comes from our own namespace.
    fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, bool)> {
        let mut control = [0u64; 8];
        let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        // SAFETY: the struct consists of integers and pointers.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        (header.msg_iov, header.msg_iovlen) = (&raw mut part, 1);
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = size_of_val(&control) as _;
        // SAFETY: the header points to live buffers of the lengths that it gives.
        let length = unsafe { libc::recvmsg(self.socket.as_raw_fd(), &raw mut header, 0) };
        if length < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut own = true;
        // SAFETY: the kernel filled the header and the control buffer, which both are alive.
        let mut next = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
        // SAFETY: a non-null pointer that the macros hand out points to a whole control message header.
        while let Some(control) = unsafe { next.as_ref() } {
            // Present only on events of other namespaces.
            own &= (control.cmsg_level, control.cmsg_type) != (libc::SOL_NETLINK, NETLINK_LISTEN_ALL_NSID);
            // SAFETY: as above.
            next = unsafe { libc::CMSG_NXTHDR(&raw const header, control) };
        }
        Ok((length as usize, own))
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the socket lives as long as the borrow.
        unsafe { BorrowedFd::borrow_raw(self.socket.as_raw_fd()) }
    }
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// A bigger receive buffer: beyond the system's limit where we may, else up to it.
fn enlarge(socket: &Socket) -> io::Result<()> {
    let set = |option| {
        let size = BUFFER;
        // SAFETY: points to one integer, as the length says.
        unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const size).cast(),
                size_of_val(&size) as libc::socklen_t,
            )
        }
    };
    if set(libc::SO_RCVBUFFORCE) == 0 || set(libc::SO_RCVBUF) == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::super::message::Request;
    use super::*;

    #[test]
    fn events_are_told_apart_by_their_namespace() {
        let mut link = [0u8; 16];
        link[4..8].copy_from_slice(&7u32.to_ne_bytes());
        let mut data = Request::new(libc::RTM_NEWLINK, 0, &link).finish(0);
        data.extend(Request::new(libc::RTM_DELADDR, 0, &[0; 8]).finish(0));
        let read = |own| {
            let mut change = Change::default();
            messages(&data).for_each(|m| change.note(&m, own));
            change
        };
        let expected = Change { links: [7].into(), host_addresses: true, ..Change::default() };
        assert_eq!(read(true), expected);
        assert_eq!(read(false), Change { pod_addresses: true, ..Change::default() });
        let mut both = read(true);
        both.merge(Change { lost: true, links: [9].into(), ..Change::default() });
        assert_eq!(
            both,
            Change { links: [7, 9].into(), host_addresses: true, lost: true, ..Change::default() }
        );
    }
}
