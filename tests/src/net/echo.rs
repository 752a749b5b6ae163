//! A pod's process that answers every datagram with what it says.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};

use super::Netns;

/// Longest that the thread goes on after the drop.
const TURN: Duration = Duration::from_millis(50);

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

impl Drop for Echo {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}
