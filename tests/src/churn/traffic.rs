//! Packets between pods: each has a number and a flow of its own, and it is known when it was sent and whether it came.

use super::{lock, losses::Losses};
use crate::{
    net::{Netns, RawSocket},
    pkt::Ip,
};
use anyhow::{Context, Result};
use policy_engine::testing::rng::Rng;
use std::{
    net::{IpAddr, Ipv4Addr, UdpSocket},
    os::fd::AsRawFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// How many packets there are.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Between two rounds of packets.
    pub pause: Duration,
    /// Pairs of each round that are picked at random, beside those that are watched.
    pub random: usize,
}

impl Default for Pace {
    fn default() -> Self {
        Self { pause: Duration::from_millis(1), random: 2 }
    }
}

/// A pod that sends and receives.
#[derive(Debug)]
pub struct Live {
    /// Its number.
    pub number: usize,
    address: Ipv4Addr,
    sender: RawSocket,
    sockets: Vec<UdpSocket>,
    next_port: AtomicU16,
}

impl Live {
    /// Ports on which it listens.
    pub const PORTS: [u16; 2] = [7000, 7001];

    /// A pod listens from here on.
    pub fn new(number: usize, ns: &Netns, address: IpAddr) -> Result<Self> {
        let IpAddr::V4(address) = address else { anyhow::bail!("{address}: packets are of IPv4") };
        let open = |port: u16| -> std::io::Result<UdpSocket> {
            let socket = UdpSocket::bind((address, port))?;
            hold_many(&socket)?;
            socket.set_nonblocking(true).map(|()| socket)
        };
        let sockets = ns.run(|| Self::PORTS.into_iter().map(open).collect::<std::io::Result<_>>());
        Ok(Self {
            number,
            address,
            sender: RawSocket::open(ns)?,
            sockets: sockets.context("listen in a pod")?,
            next_port: AtomicU16::new(0),
        })
    }

    /// Its address.
    pub fn address(&self) -> IpAddr {
        self.address.into()
    }

    /// Packets that came while there was no room for them.
    pub(super) fn overflows(&self) -> u64 {
        self.sockets.iter().map(super::losses::of_socket).sum()
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
    pace: Pace,
    /// Pods that send.
    live: Mutex<Vec<Arc<Live>>>,
    watched: Mutex<Vec<[Arc<Live>; 2]>>,
    /// Pods that receive: for some time after they have stopped to send and to be sent to, as a packet may be on its way.
    hearing: Mutex<Vec<(Arc<Live>, Option<Instant>)>>,
    probes: Mutex<Vec<Probe>>,
    /// Held while a packet is made and sent.
    sending: Mutex<()>,
    losses: Mutex<Losses>,
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
    pub fn start(pace: Pace) -> Self {
        let losses = Mutex::new(Losses::start());
        let shared = Arc::new(Shared { pace, losses, ..Shared::default() });
        let (sending, receiving) = (shared.clone(), shared.clone());
        let threads = vec![thread::spawn(move || send(&sending)), thread::spawn(move || receive(&receiving))];
        Self { shared, threads }
    }

    /// The pod takes part.
    pub fn add(&self, pod: &Arc<Live>) {
        lock(&self.shared.hearing).push((pod.clone(), None));
        lock(&self.shared.live).push(pod.clone());
    }

    /// In every round the one sends to the other.
    pub fn watch(&self, from: &Arc<Live>, to: &Arc<Live>) {
        lock(&self.shared.watched).push([from.clone(), to.clone()]);
    }

    /// The pod takes part no more: nothing is sent from it or to it once this returns. What is on its way is still heard.
    pub fn forget(&self, pod: &Live) {
        self.quiet(|live| live.number == pod.number);
    }

    /// Everything that was sent until now.
    #[must_use]
    pub fn probes(&self) -> Vec<Probe> {
        lock(&self.shared.probes).clone()
    }

    /// Ends, and hands back everything that was sent, once the last packets had their time, and what the harness lost.
    #[must_use]
    pub fn end(self) -> (Vec<Probe>, Losses) {
        self.quiet(|_| true);
        thread::sleep(super::judge::SETTLED);
        let hearing = lock(&self.shared.hearing).iter().map(|(live, _)| live.overflows()).sum::<u64>();
        let mut losses = lock(&self.shared.losses).clone();
        losses.sockets += hearing;
        (self.probes(), losses.end())
    }

    fn quiet(&self, which: impl Fn(&Live) -> bool) {
        lock(&self.shared.live).retain(|live| !which(live));
        lock(&self.shared.watched).retain(|pair| !pair.iter().any(|live| which(live)));
        // The round that began with the pod is over.
        drop(lock(&self.shared.sending));
        let end = Instant::now() + super::judge::SETTLED;
        for (live, until) in lock(&self.shared.hearing).iter_mut() {
            if which(live) {
                until.get_or_insert(end);
            }
        }
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
        round(shared, &mut rng);
        thread::sleep(shared.pace.pause);
    }
}

fn round(shared: &Shared, rng: &mut Rng) {
    let _sending = lock(&shared.sending);
    let live = lock(&shared.live).clone();
    for [from, to] in lock(&shared.watched).clone() {
        one(shared, &from, &to, Live::PORTS[0]);
    }
    for _ in 0..if live.len() < 2 { 0 } else { shared.pace.random } {
        let pick = |rng: &mut Rng| &live[rng.below(live.len())];
        let (from, to) = (pick(rng), pick(rng));
        if from.number != to.number {
            one(shared, from, to, rng.one(Live::PORTS));
        }
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
    let sent = from.sender.send(&packet.bytes, to.address);
    let mut probes = lock(&shared.probes);
    match sent {
        Ok(()) => probes[number].after = Instant::now(),
        // Nobody judges what was not sent. Only this thread adds packets, so it is the last one.
        Err(_) => drop(probes.pop()),
    }
}

fn receive(shared: &Shared) {
    let mut bytes = [0; 8];
    while !shared.ending.load(Ordering::Relaxed) {
        let now = Instant::now();
        let heard: Vec<Arc<Live>> = {
            let mut hearing = lock(&shared.hearing);
            let (stay, go) = hearing.drain(..).partition(|(_, until)| until.is_none_or(|until| until > now));
            *hearing = stay;
            let gone: Vec<(Arc<Live>, Option<Instant>)> = go;
            lock(&shared.losses).sockets += gone.iter().map(|(live, _)| live.overflows()).sum::<u64>();
            hearing.iter().map(|(live, _)| live.clone()).collect()
        };
        let sockets: Vec<&UdpSocket> = heard.iter().flat_map(|live| &live.sockets).collect();
        let mut polls: Vec<libc::pollfd> = sockets
            .iter()
            .map(|socket| libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLIN, revents: 0 })
            .collect();
        // SAFETY: a live slice and its length; the sockets are held by `heard`.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Attach, Node, Topology};

    /// Where no policy is, each packet comes, also the last one before the end.
    #[test]
    fn packets_on_their_way_at_the_end_are_heard() {
        let mut node = Node::new(Topology::Ptp).unwrap();
        let mut live = Vec::new();
        for n in 0..2_u8 {
            let host = node.add(&format!("p{n}"), Attach::Pod, &[[10, 244, 0, 10 + n].into()]).unwrap();
            live.push(Arc::new(Live::new(n.into(), &host.ns, host.ips[0]).unwrap()));
        }
        for _ in 0..6 {
            let traffic = Traffic::start(Pace { pause: Duration::from_micros(10), random: 2 });
            live.iter().for_each(|pod| traffic.add(pod));
            traffic.watch(&live[0], &live[1]);
            while traffic.probes().len() < 50 {
                thread::sleep(Duration::from_millis(5));
            }
            traffic.forget(&live[1]);
            let (probes, losses) = traffic.end();
            let silent: Vec<_> = probes.iter().filter(|probe| probe.came.is_none()).collect();
            assert!(silent.len() <= losses.total(), "{} of {}: {silent:?}", silent.len(), probes.len());
        }
    }
}
