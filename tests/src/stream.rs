//! Steady datagrams between pods, each with its number, and which of them were heard: what a fault may cost.
//!
//! Each pair sends two kinds all the time: from one port, so that its flow is known, and from a new port each time, so
//! that every packet is a first one.

use crate::{
    lab::Lab,
    net::{Family, LinkSocket},
    pkt::Ip,
    probe::pace,
};
use anyhow::{Context, Result, ensure};
use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// Port that hears.
pub const PORT: u16 = 7000;
/// Pause between two rounds of all pairs.
const PAUSE: Duration = Duration::from_millis(2);
/// Silence after which nothing more is on its way, on a machine that answers much faster.
const SILENCE: Duration = Duration::from_millis(400);
/// How long a receiver listens before it asks whether it should go on.
const TURN: Duration = Duration::from_millis(50);
/// Longest wait for that silence.
const PATIENCE: Duration = Duration::from_secs(60);
const MAGIC: &[u8; 4] = b"strm";

/// What both worlds say of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Allowed all the time: every packet must be heard.
    Always,
    /// Allowed in neither world: no packet may be heard.
    Never,
    /// It changes.
    Either,
}

/// What became of the packets of a pair.
#[derive(Debug)]
struct Pair {
    name: String,
    rule: Rule,
    sent: [AtomicU64; 2],
    heard: [AtomicU64; 2],
    /// Numbers before which some were missing, the first few.
    gaps: Mutex<Vec<(usize, u64, u64)>>,
}

/// What a sender sends, and where it is counted.
type Stream = (Arc<Pair>, Frames);

/// Streams that run until they are stopped.
#[derive(Debug)]
pub struct Streams {
    pairs: Vec<Arc<Pair>>,
    /// Nothing more is sent.
    stop: Arc<AtomicBool>,
    /// Nothing more is heard.
    deaf: Arc<AtomicBool>,
    senders: Vec<JoinHandle<()>>,
    receivers: Vec<JoinHandle<()>>,
}

/// What the streams of a test showed.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Packets of pairs that are always allowed.
    pub allowed: u64,
    /// Those of them that were not heard, with words on where.
    pub lost: Vec<String>,
    /// Packets of pairs that are never allowed.
    pub denied: u64,
    /// Those that were heard all the same.
    pub leaked: Vec<String>,
}

impl Streams {
    /// Starts streams between places of the lab, in both families.
    pub fn start(lab: &Lab, wanted: &[(&str, &str, Rule)]) -> Result<Self> {
        let (stop, deaf) = <(Arc<AtomicBool>, Arc<AtomicBool>)>::default();
        let mut streams = Self {
            pairs: Vec::new(),
            stop: stop.clone(),
            deaf: deaf.clone(),
            senders: Vec::new(),
            receivers: Vec::new(),
        };
        let mut senders: Vec<(LinkSocket, Vec<Stream>)> = Vec::new();
        for (from, to, rule) in wanted {
            let mut frames: Vec<Stream> = Vec::new();
            for family in [Family::V4, Family::V6] {
                let number = u16::try_from(streams.pairs.len())?;
                let pair = Arc::new(Pair::new(format!("{from} -> {to} {family:?}"), *rule));
                streams.pairs.push(pair.clone());
                frames.push((pair, Frames::new(lab, from, to, family, number)?));
            }
            senders.push((lab.frames(from)?, frames));
        }
        let all: Arc<[Arc<Pair>]> = streams.pairs.clone().into();
        let mut heard_at: Vec<SocketAddr> = Vec::new();
        for (_, to, _) in wanted {
            for family in [Family::V4, Family::V6] {
                let address = SocketAddr::new(lab.ip(to, family)?, PORT);
                if heard_at.contains(&address) {
                    continue;
                }
                heard_at.push(address);
                let socket = lab.host(to)?.ns.run(|| listen(address))?;
                let (all, deaf) = (all.clone(), deaf.clone());
                streams.receivers.push(std::thread::spawn(move || receive(&socket, &all, &deaf)));
            }
        }
        for (socket, frames) in senders {
            let stop = stop.clone();
            streams.senders.push(std::thread::spawn(move || send(&socket, &frames, &stop)));
        }
        Ok(streams)
    }

    /// Ends them and says what became of the packets.
    pub fn stop(mut self) -> Result<Outcome> {
        let join = |threads: &mut Vec<JoinHandle<()>>| {
            threads.drain(..).try_for_each(JoinHandle::join).map_err(|_| anyhow::anyhow!("a stream panicked"))
        };
        self.stop.store(true, Ordering::Relaxed);
        join(&mut self.senders)?;
        let end = Instant::now() + PATIENCE;
        loop {
            let heard = |pair: &Arc<Pair>| sum(&pair.heard);
            let before: u64 = self.pairs.iter().map(heard).sum();
            pace::quiet(SILENCE)?;
            if self.pairs.iter().map(heard).sum::<u64>() == before || Instant::now() > end {
                break;
            }
        }
        self.deaf.store(true, Ordering::Relaxed);
        join(&mut self.receivers)?;
        let mut outcome = Outcome::default();
        for pair in &self.pairs {
            let (sent, heard) = (sum(&pair.sent), sum(&pair.heard));
            let gaps = pair.gaps.lock().unwrap_or_else(PoisonError::into_inner);
            let told = format!("{}: {heard} of {sent} heard, gaps (kind, from, to) {gaps:?}", pair.name);
            match pair.rule {
                Rule::Always => {
                    outcome.allowed += sent;
                    outcome.lost.extend((heard < sent).then_some(told));
                }
                Rule::Never => {
                    outcome.denied += sent;
                    outcome.leaked.extend((heard > 0).then_some(told));
                }
                Rule::Either => {}
            }
        }
        Ok(outcome)
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.deaf.store(true, Ordering::Relaxed);
    }
}

impl Outcome {
    /// Nothing that neither world allows was heard.
    pub fn nothing_leaked(&self) -> Result<()> {
        ensure!(self.denied > 0 && self.leaked.is_empty(), "heard what no world allows: {:#?}", self.leaked);
        Ok(())
    }

    /// Everything that both worlds allow was heard, too.
    pub fn nothing_lost(&self) -> Result<()> {
        self.nothing_leaked()?;
        ensure!(self.allowed > 0 && self.lost.is_empty(), "lost what both worlds allow: {:#?}", self.lost);
        Ok(())
    }
}

impl Pair {
    fn new(name: String, rule: Rule) -> Self {
        Self { name, rule, sent: Default::default(), heard: Default::default(), gaps: Mutex::default() }
    }

    fn hear(&self, kind: usize, number: u64, next: &mut u64) {
        self.heard[kind].fetch_add(1, Ordering::Relaxed);
        if number > *next {
            let mut gaps = self.gaps.lock().unwrap_or_else(PoisonError::into_inner);
            if gaps.len() < 4 {
                gaps.push((kind, *next, number));
            }
        }
        *next = number + 1;
    }
}

/// Of both kinds.
fn sum(counts: &[AtomicU64; 2]) -> u64 {
    counts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
}

/// Frames of one pair and family.
struct Frames {
    source: IpAddr,
    destination: IpAddr,
    macs: ([u8; 6], [u8; 6]),
    number: u16,
}

impl Frames {
    fn new(lab: &Lab, from: &str, to: &str, family: Family, number: u16) -> Result<Self> {
        let (source, destination) = (lab.ip(from, family)?, lab.ip(to, family)?);
        // As the lab would send it; only what is inside changes from packet to packet.
        let sample = lab.frame(from, to, &Ip::new(source, destination).udp(1, PORT, b""))?;
        let mac =
            |at: usize| -> Result<[u8; 6]> { Ok(sample.bytes.get(at..at + 6).context("short")?.try_into()?) };
        Ok(Self { source, destination, macs: (mac(6)?, mac(0)?), number })
    }

    fn frame(&self, kind: usize, number: u64) -> Vec<u8> {
        let port = if kind == 0 { 6000 } else { 10_000 + (number % 50_000) as u16 };
        let mut payload = MAGIC.to_vec();
        payload.extend(self.number.to_be_bytes());
        payload.push(kind as u8);
        payload.extend(number.to_be_bytes());
        let packet = Ip::new(self.source, self.destination).udp(port, PORT, &payload);
        packet.ethernet(self.macs.0, self.macs.1).bytes
    }
}

fn send(socket: &LinkSocket, pairs: &[Stream], stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        for (pair, frames) in pairs {
            for kind in 0..2 {
                let number = pair.sent[kind].load(Ordering::Relaxed);
                // An interface that goes away takes its sender with it.
                if socket.send(&frames.frame(kind, number)).is_err() {
                    return;
                }
                pair.sent[kind].fetch_add(1, Ordering::Relaxed);
            }
        }
        std::thread::sleep(PAUSE);
    }
}

fn listen(address: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(address).with_context(|| format!("listen at {address}"))?;
    let size: libc::c_int = 8 << 20;
    // SAFETY: pointer and size are of one live integer.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const size).cast(),
            size_of_val(&size) as libc::socklen_t,
        )
    };
    ensure!(done == 0, "make room for packets: {}", io::Error::last_os_error());
    socket.set_read_timeout(Some(TURN)).context("set the time limit")?;
    Ok(socket)
}

fn receive(socket: &UdpSocket, pairs: &[Arc<Pair>], deaf: &AtomicBool) {
    let mut buffer = [0; 64];
    let mut next = vec![[0u64; 2]; pairs.len()];
    loop {
        let Ok(length) = socket.recv(&mut buffer) else {
            if deaf.load(Ordering::Relaxed) {
                return;
            }
            continue;
        };
        let read = || -> Option<(usize, usize, u64)> {
            let rest = buffer[..length].strip_prefix(MAGIC)?;
            let pair = u16::from_be_bytes(rest.get(..2)?.try_into().ok()?).into();
            Some((pair, (*rest.get(2)?).into(), u64::from_be_bytes(rest.get(3..11)?.try_into().ok()?)))
        };
        if let Some((pair, kind, number)) = read()
            && let (Some(next), Some(pair)) =
                (next.get_mut(pair).and_then(|n| n.get_mut(kind)), pairs.get(pair))
        {
            pair.hear(kind, number, next);
        }
    }
}
