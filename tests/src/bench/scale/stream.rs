//! A steady stream of datagrams between two pods, and when it was cut or came back.

use crate::net::Netns;
use anyhow::{Context, Result, ensure};
use std::{
    collections::BTreeSet,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Pause between two datagrams: the resolution of what is measured.
const PAUSE: Duration = Duration::from_micros(200);
/// Datagrams in a row that say that the stream has changed.
const SURE: usize = 20;
/// Longest wait for a change.
const PATIENCE: Duration = Duration::from_secs(30);

/// The stream.
#[derive(Debug)]
pub(super) struct Stream {
    sent: Arc<Mutex<Vec<Instant>>>,
    heard: Arc<Mutex<BTreeSet<u64>>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Stream {
    /// Starts to send.
    pub(super) fn start(from: &Netns, source: SocketAddr, to: &Netns, target: SocketAddr) -> Result<Self> {
        let (sender, receiver) = (from.run(|| UdpSocket::bind(source)), to.run(|| UdpSocket::bind(target)));
        let (sender, receiver) = (sender.context("bind")?, receiver.context("bind")?);
        receiver.set_read_timeout(Some(Duration::from_millis(20))).context("set a time-out")?;
        let mut stream =
            Self { sent: Arc::default(), heard: Arc::default(), stop: Arc::default(), threads: Vec::new() };
        let (sent, stop) = (stream.sent.clone(), stream.stop.clone());
        let send = thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let mut sent = sent.lock().unwrap_or_else(PoisonError::into_inner);
                let number = sent.len() as u64;
                sent.push(Instant::now());
                drop(sent);
                // A datagram that is not sent counts as lost.
                drop(sender.send_to(&number.to_be_bytes(), target));
                thread::sleep(PAUSE);
            }
        });
        let (heard, stop) = (stream.heard.clone(), stream.stop.clone());
        let hear = thread::spawn(move || {
            let mut bytes = [0; 8];
            while !stop.load(Ordering::Relaxed) {
                if let Ok(8) = receiver.recv(&mut bytes) {
                    let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
                    heard.insert(u64::from_be_bytes(bytes));
                }
            }
        });
        stream.threads.extend([send, hear]);
        Ok(stream)
    }

    /// When the first datagram was sent, from this moment's on, that met the other fate for good.
    pub(super) fn changes(&self, from: usize, passes: bool) -> Result<Instant> {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.changed(from, passes) {
                return Ok(at);
            }
            ensure!(Instant::now() < end, "the stream never became {passes}");
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Datagrams sent so far.
    pub(super) fn count(&self) -> usize {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn changed(&self, from: usize, passes: bool) -> Option<Instant> {
        let sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        // The last ones may still be under way.
        let settled = sent.iter().take_while(|at| at.elapsed() > Duration::from_millis(15)).count();
        let is = |number: usize| heard.contains(&(number as u64)) == passes;
        let run = (from..settled).rev().take_while(|number| is(*number)).count();
        (run >= SURE).then(|| sent[settled - run])
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}
