//! A pod's process that answers every datagram with what it says.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};

use super::Netns;
use crate::probe::pace;

/// Longest that the thread goes on after the drop.
const TURN: Duration = Duration::from_millis(50);
/// Longest wait for an answer that must come.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long one that need not come is waited for.
const SILENCE: Duration = Duration::from_millis(100);

/// It answers until it is dropped.
#[derive(Debug)]
pub struct Echo {
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    /// A process of this namespace that listens there.
    pub fn new(ns: &Netns, at: SocketAddr) -> Result<Self> {
        let socket = ns.run(|| UdpSocket::bind(at)).with_context(|| format!("listen on {at}"))?;
        socket.set_read_timeout(Some(TURN)).context("set a time limit")?;
        let ending = Arc::new(AtomicBool::new(false));
        let stop = ending.clone();
        let thread = thread::spawn(move || {
            let mut bytes = [0; 64];
            while !stop.load(Ordering::Relaxed) {
                if let Ok((n, from)) = socket.recv_from(&mut bytes) {
                    // Who has gone meanwhile misses nothing.
                    drop(socket.send_to(&bytes[..n], from));
                }
            }
        });
        Ok(Self { ending, thread: Some(thread) })
    }
}

/// Whether the one who answers there does so to a datagram from this address. Three are sent at once, and all that counts
/// is what policy says of them then: the answer may take as long as anything on this machine.
pub fn is_answered(ns: &Netns, source: IpAddr, to: SocketAddr) -> Result<bool> {
    let socket = ask(ns, source)?;
    (0..3).for_each(|_| send(&socket, to));
    socket.set_read_timeout(Some(PATIENCE)).context("set a time limit")?;
    Ok(socket.recv(&mut [0; 64]).is_ok())
}

/// The same, where silence is as likely: one of three datagrams, each with as much time as somebody who always answers
/// would need.
pub fn answers(ns: &Netns, source: IpAddr, to: SocketAddr) -> Result<bool> {
    let socket = ask(ns, source)?;
    socket.set_nonblocking(true).context("wait for nothing")?;
    for _ in 0..3 {
        send(&socket, to);
        pace::quiet(SILENCE)?;
        if socket.recv(&mut [0; 64]).is_ok() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn ask(ns: &Netns, source: IpAddr) -> Result<UdpSocket> {
    ns.run(|| UdpSocket::bind((source, 0))).with_context(|| format!("ask from {source}"))
}

/// What the sender's own kernel refuses is not answered, either.
fn send(socket: &UdpSocket, to: SocketAddr) {
    drop(socket.send_to(b"ping", to));
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}
