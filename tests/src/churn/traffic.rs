//! Packets between pods: each has a number and a flow of its own, and it is known when it was sent and whether it came.

use super::lock;
use crate::{
    net::{Host, Node},
    pkt::{Ip, LinkSocket},
};
use anyhow::{Context, Result};
use policy_engine::testing::rng::Rng;
use std::{
    net::{IpAddr, UdpSocket},
    os::fd::AsRawFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Between two rounds of packets.
const PACE: Duration = Duration::from_millis(1);
/// Pairs of each round that are picked at random.
const RANDOM: usize = 2;

/// A pod that sends and receives.
#[derive(Debug)]
pub struct Live {
    /// Its number.
    pub number: usize,
    host: Arc<Host>,
    link: LinkSocket,
    sockets: Vec<UdpSocket>,
    next_port: AtomicU16,
}

impl Live {
    /// Ports on which it listens.
    pub const PORTS: [u16; 2] = [7000, 7001];

    /// A pod listens from here on.
    pub fn new(number: usize, host: &Arc<Host>) -> Result<Self> {
        let address = *host.ips.first().context("a pod without address")?;
        let open = |port: u16| -> std::io::Result<UdpSocket> {
            let socket = UdpSocket::bind((address, port))?;
            hold_many(&socket)?;
            socket.set_nonblocking(true).map(|()| socket)
        };
        let sockets = host.ns.run(|| Self::PORTS.into_iter().map(open).collect::<std::io::Result<_>>());
        Ok(Self {
            number,
            host: host.clone(),
            link: LinkSocket::open(&host.ns, Node::POD_LINK)?,
            sockets: sockets.context("listen in a pod")?,
            next_port: AtomicU16::new(0),
        })
    }

    /// Its address.
    pub fn address(&self) -> IpAddr {
        self.host.ips[0]
    }
}

/// A packet.
#[derive(Debug, Clone)]
pub struct Probe {
    /// Numbers of the sender and the receiver.
    pub pods: [usize; 2],
    /// Their addresses.
    pub addresses: [IpAddr; 2],
    /// Port of the receiver.
    pub port: u16,
    /// Just before it was sent.
    pub before: Instant,
    /// Just after.
    pub after: Instant,
    /// When it came.
    pub came: Option<Instant>,
}

#[derive(Debug, Default)]
struct Shared {
    live: Mutex<Vec<Arc<Live>>>,
    watched: Mutex<Vec<[Arc<Live>; 2]>>,
    probes: Mutex<Vec<Probe>>,
    ending: AtomicBool,
}

/// The traffic; it ends with the value.
#[derive(Debug)]
pub struct Traffic {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Traffic {
    /// Starts, without any pod.
    #[must_use]
    pub fn start() -> Self {
        let shared = Arc::new(Shared::default());
        let (sending, receiving) = (shared.clone(), shared.clone());
        let threads = vec![thread::spawn(move || send(&sending)), thread::spawn(move || receive(&receiving))];
        Self { shared, threads }
    }

    /// The pod takes part.
    pub fn add(&self, pod: &Arc<Live>) {
        lock(&self.shared.live).push(pod.clone());
    }

    /// In every round the one sends to the other.
    pub fn watch(&self, from: &Arc<Live>, to: &Arc<Live>) {
        lock(&self.shared.watched).push([from.clone(), to.clone()]);
    }

    /// The pod takes part no more.
    pub fn forget(&self, pod: &Arc<Live>) {
        lock(&self.shared.live).retain(|live| live.number != pod.number);
        lock(&self.shared.watched).retain(|pair| pair.iter().all(|live| live.number != pod.number));
    }

    /// Everything that was sent until now.
    #[must_use]
    pub fn probes(&self) -> Vec<Probe> {
        lock(&self.shared.probes).clone()
    }

    /// Ends, and hands back everything that was sent, once the last packets had their time.
    #[must_use]
    pub fn end(self) -> Vec<Probe> {
        lock(&self.shared.live).clear();
        lock(&self.shared.watched).clear();
        thread::sleep(super::judge::SETTLED);
        self.probes()
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

fn send(shared: &Shared) {
    stay_here();
    let mut rng = Rng::new(7);
    while !shared.ending.load(Ordering::Relaxed) {
        let live = lock(&shared.live).clone();
        for [from, to] in lock(&shared.watched).clone() {
            one(shared, &from, &to, Live::PORTS[0]);
        }
        for _ in 0..if live.len() < 2 { 0 } else { RANDOM } {
            let pick = |rng: &mut Rng| &live[rng.below(live.len())];
            let (from, to) = (pick(&mut rng), pick(&mut rng));
            if from.number != to.number {
                one(shared, from, to, rng.one(Live::PORTS));
            }
        }
        thread::sleep(PACE);
    }
}

/// A receiver that has to wait for a processor must not lose what policy let pass.
fn hold_many(socket: &UdpSocket) -> std::io::Result<()> {
    let bytes: libc::c_int = 16 << 20;
    let length = size_of_val(&bytes) as libc::socklen_t;
    // SAFETY: the option's value is an int that lives through the call.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const bytes).cast(),
            length,
        )
    };
    if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Keeps the calling thread on its processor: a packet that is sent later is not judged earlier.
fn stay_here() {
    // SAFETY: no arguments; the set is plain memory of this frame, made empty first.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(usize::try_from(libc::sched_getcpu()).unwrap_or(0), &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set);
    }
}

fn one(shared: &Shared, from: &Live, to: &Live, port: u16) {
    // Each packet opens a flow: it is the newest policy that judges it.
    let source = 10_000 + from.next_port.fetch_add(1, Ordering::Relaxed) % 50_000;
    let addresses = [from.address(), to.address()];
    let number = {
        let mut probes = lock(&shared.probes);
        let now = Instant::now();
        let pods = [from.number, to.number];
        probes.push(Probe { pods, addresses, port, before: now, after: now, came: None });
        probes.len() - 1
    };
    let packet = Ip::new(addresses[0], addresses[1]).udp(source, port, &(number as u64).to_le_bytes());
    let frame = packet.ethernet(from.host.mac, from.host.gateway_mac);
    // The pod may just be going; then nobody judges the packet.
    drop(from.link.send(&frame.bytes));
    lock(&shared.probes)[number].after = Instant::now();
}

fn receive(shared: &Shared) {
    let mut bytes = [0; 8];
    while !shared.ending.load(Ordering::Relaxed) {
        let live = lock(&shared.live).clone();
        let sockets: Vec<&UdpSocket> = live.iter().flat_map(|live| &live.sockets).collect();
        let mut polls: Vec<libc::pollfd> = sockets
            .iter()
            .map(|socket| libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLIN, revents: 0 })
            .collect();
        // SAFETY: a live slice and its length; the sockets are held by `live`.
        unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, 5) };
        for (socket, _) in sockets.iter().zip(&polls).filter(|(_, poll)| poll.revents != 0) {
            while socket.recv(&mut bytes).is_ok() {
                let now = Instant::now();
                if let Some(probe) = lock(&shared.probes).get_mut(u64::from_le_bytes(bytes) as usize) {
                    probe.came = Some(now);
                }
            }
        }
    }
}
