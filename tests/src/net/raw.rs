//! Sending whole IP packets along a namespace's own routes.

use super::Netns;
use anyhow::{Context, Result};
use std::{
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

/// A socket that sends IPv4 packets as they are; the namespace finds the way and the neighbour.
#[derive(Debug)]
pub struct RawSocket {
    fd: OwnedFd,
}

impl RawSocket {
    /// Opens one in a namespace.
    pub fn open(ns: &Netns) -> Result<Self> {
        ns.run(|| {
            let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
            // SAFETY: takes numbers only; the result is checked before it is owned.
            let fd = unsafe { libc::socket(libc::AF_INET, kind, libc::IPPROTO_RAW) };
            if fd < 0 {
                return Err(io::Error::last_os_error()).context("open a raw socket");
            }
            // SAFETY: a descriptor that nobody else has.
            Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
        })
    }

    /// Sends a packet, IP header included.
    pub fn send(&self, packet: &[u8], to: Ipv4Addr) -> io::Result<()> {
        // SAFETY: all zeroes is a valid value of this plain structure.
        let mut address: libc::sockaddr_in = unsafe { std::mem::zeroed() };
        address.sin_family = libc::AF_INET as libc::sa_family_t;
        address.sin_addr.s_addr = u32::from(to).to_be();
        // SAFETY: pointers and sizes are of one live slice and one live structure.
        let sent = unsafe {
            libc::sendto(
                self.fd.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                0,
                (&raw const address).cast(),
                size_of_val(&address) as libc::socklen_t,
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}
