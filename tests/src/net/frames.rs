//! Sending and seeing whole frames on an interface.

use super::Netns;
use anyhow::{Context, Result};
use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::{Duration, Instant},
};

/// A packet socket on one interface of a namespace: sees all that arrives there, sends frames as they are.
#[derive(Debug)]
pub struct LinkSocket {
    fd: OwnedFd,
}

impl LinkSocket {
    /// Opens the interface `name` of `ns`.
    pub fn open(ns: &Netns, name: &str) -> Result<Self> {
        ns.run(|| Self::open_here(name)).with_context(|| format!("open a packet socket on {name}"))
    }

    /// Sends a frame, header included.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        // SAFETY: the pointer and the length are of one live slice.
        let sent = unsafe { libc::send(self.fd.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if sent < 0 {
            return Err(io::Error::last_os_error()).context("send a frame");
        }
        Ok(())
    }

    /// The first frame within `wait` that `want` accepts; frames sent from this host are left out.
    pub fn find(&self, wait: Duration, mut want: impl FnMut(&[u8]) -> bool) -> Result<Option<Vec<u8>>> {
        let end = Instant::now() + wait;
        // Segments that travel as one packet can be larger than any frame on a wire.
        let mut buffer = vec![0; 1 << 18];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if !self.readable(left)? {
                return Ok(None);
            }
            if let Some(length) = self.receive(&mut buffer)?
                && want(&buffer[..length])
            {
                return Ok(Some(buffer[..length].to_vec()));
            }
        }
    }

    fn open_here(name: &str) -> Result<Self> {
        let name = CString::new(name)?;
        // SAFETY: a string that ends with zero.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        if index == 0 {
            return Err(io::Error::last_os_error()).context("look up the interface");
        }
        let all = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: takes numbers only; the result is checked before it is owned.
        let fd =
            unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(all)) };
        if fd < 0 {
            return Err(io::Error::last_os_error()).context("open the socket");
        }
        // SAFETY: a descriptor that nobody else has.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: all zeroes is a valid value of this plain structure.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = all;
        address.sll_ifindex = index as i32;
        // SAFETY: pointer and size are of one live structure.
        let bound = unsafe {
            libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as libc::socklen_t)
        };
        if bound < 0 {
            return Err(io::Error::last_os_error()).context("bind the socket");
        }
        Ok(Self { fd })
    }

    fn readable(&self, wait: Duration) -> Result<bool> {
        let mut poll = libc::pollfd { fd: self.fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one live structure and its count.
        let ready = unsafe { libc::poll(&raw mut poll, 1, wait.as_millis() as i32) };
        if ready < 0 {
            return Err(io::Error::last_os_error()).context("wait for a frame");
        }
        Ok(ready > 0)
    }

    fn receive(&self, buffer: &mut [u8]) -> Result<Option<usize>> {
        // SAFETY: all zeroes is a valid value of this plain structure.
        let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        let mut size = size_of_val(&from) as libc::socklen_t;
        // SAFETY: both buffers live through the call and their sizes are theirs.
        let length = unsafe {
            libc::recvfrom(
                self.fd.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
                (&raw mut from).cast(),
                &raw mut size,
            )
        };
        if length < 0 {
            return Err(io::Error::last_os_error()).context("receive a frame");
        }
        Ok((from.sll_pkttype != libc::PACKET_OUTGOING).then_some(length as usize))
    }
}
