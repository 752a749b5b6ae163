//! A connection with a history: opened once, asked again and again whether data still passes.

use super::{ask::Probe, pace, socket::Socket};
use crate::{net::Family, scenario::Transport};
use anyhow::{Context, Result, ensure};
use std::{
    io,
    time::{Duration, Instant},
};

/// An open TCP connection, or a UDP flow of one pair of ports, to a host that echoes.
#[derive(Debug)]
pub struct Link {
    socket: Socket,
    transport: Transport,
    sent: u64,
    echoed: u64,
    token: u32,
}

impl Link {
    /// Opens it and has one message echoed; `None` if that does not work within `wait`.
    pub fn open(probe: &Probe, wait: Duration) -> Result<Option<Self>> {
        let transport = probe.port.transport;
        ensure!(
            matches!(transport, Transport::Tcp | Transport::Udp),
            "sessions are TCP or UDP, not {}",
            probe.port
        );
        let socket = probe.ns.run(|| -> io::Result<Socket> {
            let socket = Socket::of(&probe.ns, transport, Family::of(probe.from))?;
            socket.bind(probe.from, 0)?;
            socket.connect(probe.to, probe.port.number)?;
            Ok(socket)
        });
        let mut link =
            Self { socket: socket.context("open a session")?, transport, sent: 0, echoed: 0, token: 0 };
        Ok(link.is_alive(wait)?.then_some(link))
    }

    /// Whether a new message comes back within `wait`, or as long as a slow machine takes for an answer.
    pub fn is_alive(&mut self, wait: Duration) -> Result<bool> {
        let mut wait = wait;
        let start = Instant::now();
        self.token += 1;
        let mut told = false;
        loop {
            // TCP repeats by itself; a datagram that was dropped is gone.
            if !told || self.transport == Transport::Udp {
                told = self.send()?;
            }
            let step = Duration::from_millis(20).min(wait.saturating_sub(start.elapsed()));
            if self.receive(step)? {
                return Ok(true);
            }
            if start.elapsed() >= wait {
                if pace::is_telling(wait)? {
                    return Ok(false);
                }
                wait *= 2;
            }
        }
    }

    fn send(&mut self) -> Result<bool> {
        let message = self.token.to_be_bytes();
        match self.socket.send(&message) {
            Ok(length) => {
                self.sent += length as u64;
                Ok(true)
            }
            // Dropped at the sender's own socket: a datagram that is gone, like any other.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(true),
            // Not connected yet, or the send buffer is full.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOTCONN)) => Ok(false),
            Err(error) => Err(error).context("send in a session"),
        }
    }

    /// Reads what is there; whether the newest message has come back.
    fn receive(&mut self, wait: Duration) -> Result<bool> {
        let mut poll = libc::pollfd { fd: self.socket.raw(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one live structure and its count.
        unsafe { libc::poll(&raw mut poll, 1, wait.as_millis() as i32) };
        let mut buffer = [0; 2048];
        let mut newest = false;
        loop {
            match self.socket.receive(&mut buffer) {
                Ok(0) => return Ok(false),
                Ok(length) => {
                    self.echoed += length as u64;
                    newest |= buffer[..length] == self.token.to_be_bytes();
                }
                Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOTCONN)) => break,
                Err(error) => return Err(error).context("receive in a session"),
            }
        }
        Ok(match self.transport {
            Transport::Tcp => self.sent > 0 && self.echoed == self.sent,
            Transport::Udp | Transport::Sctp | Transport::Icmp | Transport::Other(_) => newest,
        })
    }
}
