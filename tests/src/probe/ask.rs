//! Many questions at once: sockets in many namespaces, one thread, one wait.

use super::{
    pace,
    respond::{ANSWER, QUESTION, behind_header},
    socket::{Socket, raise_limit},
};
use crate::{
    net::{Family, Netns},
    pkt::Sctp,
    scenario::{Port, Transport},
};
use anyhow::{Context, Result};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    panic::resume_unwind,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::{Duration, Instant},
};

/// One question.
#[derive(Debug, Clone)]
pub struct Probe {
    /// Namespace that asks.
    pub ns: Arc<Netns>,
    /// Address that asks.
    pub from: IpAddr,
    /// Address that is asked.
    pub to: IpAddr,
    /// Protocol and port.
    pub port: Port,
    /// Bytes of payload, where the protocol carries any.
    pub size: usize,
    /// A datagram goes out by a socket that is not connected.
    pub unconnected: bool,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The answer came, after this time.
    Answered(Duration),
    /// Nothing came.
    Silent,
    /// The network or the host said no.
    Refused(String),
}

/// What the asker reckons with, which decides how patient it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// An answer: silence counts only after several attempts.
    Answer,
    /// Silence.
    Silence,
    /// The other end's kernel says that nobody listens.
    Refusal,
}

impl Outcome {
    /// Whether the sender's own kernel said that it may not.
    pub fn is_forbidden(&self) -> bool {
        matches!(self, Self::Refused(why) if *why == refused(libc::EPERM))
    }

    /// Whether the other end's kernel said that nobody listens.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused(why) if *why == refused(libc::ECONNREFUSED))
    }
}

fn refused(number: i32) -> String {
    io::Error::from_raw_os_error(number).to_string()
}

/// Questions that are open at one time; keeps the number of sockets in bounds.
const BATCH: usize = 400;
/// First patience; a local answer takes well under a millisecond on an idle machine.
const PATIENCE: Duration = Duration::from_millis(150);
/// How often a question is asked until its outcome is believed, with twice the patience each time: 38 s in all.
const ATTEMPTS: u32 = 8;

/// Asks all and waits for each as long as `wait`.
pub fn ask_all(probes: &[Probe], wait: Duration) -> Result<Vec<Outcome>> {
    raise_limit();
    let mut outcomes = Vec::with_capacity(probes.len());
    for batch in probes.chunks(BATCH) {
        // A thread of its own: it hops between namespaces and must not leave the caller in one of them.
        let done = std::thread::scope(|scope| {
            let thread = scope.spawn(|| ask_batch(batch, wait));
            thread.join().unwrap_or_else(|panic| resume_unwind(panic))
        });
        outcomes.extend(done?);
    }
    Ok(outcomes)
}

/// Asks until each outcome can be believed: silence where an answer is wanted is asked again, with more patience,
/// and silence where silence is wanted counts only if answers of the same round, and of somebody who always answers, were
/// much faster than the wait.
pub fn verdicts(probes: &[Probe], wants: &[Want]) -> Result<Vec<Outcome>> {
    let mut outcomes: Vec<Option<Outcome>> = vec![None; probes.len()];
    let mut wait = PATIENCE;
    for attempt in 1..=ATTEMPTS {
        let open: Vec<usize> = (0..probes.len()).filter(|n| outcomes[*n].is_none()).collect();
        if open.is_empty() {
            break;
        }
        let asked: Vec<Probe> = open.iter().map(|n| probes[*n].clone()).collect();
        let round = ask_all(&asked, wait)?;
        let slowest = round.iter().filter_map(|o| match o {
            Outcome::Answered(time) => Some(*time),
            Outcome::Silent | Outcome::Refused(_) => None,
        });
        let trusted = slowest.max().unwrap_or_default() * 3 < wait && pace::is_telling(wait)?;
        let last = attempt == ATTEMPTS;
        for (n, outcome) in open.into_iter().zip(round) {
            let settled = match (&outcome, wants[n]) {
                (Outcome::Answered(_), _) => true,
                (Outcome::Silent, Want::Silence) => trusted,
                (Outcome::Refused(_), Want::Silence) if outcome.is_forbidden() => true,
                (Outcome::Refused(_), Want::Refusal) if outcome.is_refusal() => true,
                (Outcome::Silent | Outcome::Refused(_), _) => false,
            };
            if settled || last {
                outcomes[n] = Some(outcome);
            }
        }
        wait *= 2;
    }
    Ok(outcomes.into_iter().map(|outcome| outcome.unwrap_or(Outcome::Silent)).collect())
}

struct Open {
    socket: Socket,
    started: Instant,
    sent: bool,
    token: Vec<u8>,
}

fn ask_batch(probes: &[Probe], wait: Duration) -> Result<Vec<Outcome>> {
    let mut outcomes: Vec<Option<Outcome>> = vec![None; probes.len()];
    let mut open: Vec<Option<Open>> = Vec::with_capacity(probes.len());
    for (n, probe) in probes.iter().enumerate() {
        probe.ns.enter().context("enter a host's namespace")?;
        match begin(probe) {
            Ok(begun) => open.push(Some(begun)),
            Err(error) => {
                outcomes[n] = Some(refusal(&error));
                open.push(None);
            }
        }
    }
    let end = Instant::now() + wait;
    let mut buffer = vec![0; 65_536];
    loop {
        let waiting: Vec<usize> = (0..probes.len()).filter(|n| outcomes[*n].is_none()).collect();
        let left = end.saturating_duration_since(Instant::now());
        if waiting.is_empty() || left.is_zero() {
            break;
        }
        for n in ready(&open, &waiting, left)? {
            if let Some(begun) = &mut open[n] {
                outcomes[n] = go_on(begun, &probes[n], &mut buffer);
            }
        }
    }
    Ok(outcomes.into_iter().map(|outcome| outcome.unwrap_or(Outcome::Silent)).collect())
}

/// Which of the waiting have something to do.
fn ready(open: &[Option<Open>], waiting: &[usize], left: Duration) -> Result<Vec<usize>> {
    let mut polled = Vec::with_capacity(waiting.len());
    for n in waiting {
        let (fd, sent) = open[*n].as_ref().map_or((-1, true), |open| (open.socket.raw(), open.sent));
        polled.push(libc::pollfd { fd, events: if sent { libc::POLLIN } else { libc::POLLOUT }, revents: 0 });
    }
    let timeout = i32::try_from(left.as_millis()).unwrap_or(i32::MAX).max(1);
    // SAFETY: a live vector and its length.
    let count = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, timeout) };
    if count < 0 {
        return Err(io::Error::last_os_error()).context("wait for answers");
    }
    Ok(waiting.iter().zip(&polled).filter(|(_, poll)| poll.revents != 0).map(|(n, _)| *n).collect())
}

fn begin(probe: &Probe) -> io::Result<Open> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let family = Family::of(probe.from);
    let socket = Socket::of(&probe.ns, probe.port.transport, family)?;
    socket.bind(probe.from, 0)?;
    if !probe.unconnected {
        socket.connect(probe.to, probe.port.number)?;
    }
    let mut open = Open { socket, started: Instant::now(), sent: false, token: Vec::new() };
    open.token = match probe.port.transport {
        Transport::Tcp | Transport::Udp => filled(&number.to_be_bytes(), probe.size),
        Transport::Sctp => Sctp::init(40_000 + number % 20_000, probe.port.number).bytes(),
        Transport::Icmp => {
            let kind = if family == Family::V4 { 8 } else { 128 };
            // The kernel fills in checksum and identifier.
            let [a, b] = number.to_be_bytes();
            filled(&[kind, 0, 0, 0, 0, 0, a, b], probe.size)
        }
        Transport::Other(_) => {
            filled(&[QUESTION, number.to_be_bytes()[0], number.to_be_bytes()[1]], probe.size)
        }
    };
    if probe.port.transport != Transport::Tcp {
        if probe.unconnected {
            open.socket.send_to(&open.token, SocketAddr::new(probe.to, probe.port.number), false)?;
        } else {
            open.socket.send(&open.token)?;
        }
        open.sent = true;
    }
    Ok(open)
}

fn filled(head: &[u8], size: usize) -> Vec<u8> {
    let mut bytes = head.to_vec();
    bytes.resize(size.max(head.len()), 0x55);
    bytes
}

/// Does what the socket is ready for; an outcome if that settled it.
fn go_on(open: &mut Open, probe: &Probe, buffer: &mut [u8]) -> Option<Outcome> {
    if let Some(error) = open.socket.pending_error() {
        return Some(refusal(&error));
    }
    if !open.sent {
        open.sent = true;
        return open.socket.send(&open.token).err().map(|error| refusal(&error));
    }
    loop {
        match open.socket.receive(buffer) {
            Ok(0) if probe.port.transport == Transport::Tcp => {
                return Some(Outcome::Refused("closed without an answer".to_owned()));
            }
            Ok(length) if is_answer(&buffer[..length], &open.token, probe) => {
                return Some(Outcome::Answered(open.started.elapsed()));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            Err(error) => return Some(refusal(&error)),
        }
    }
}

fn is_answer(bytes: &[u8], token: &[u8], probe: &Probe) -> bool {
    let family = Family::of(probe.from);
    match probe.port.transport {
        Transport::Tcp => true,
        Transport::Udp => bytes == token,
        Transport::Icmp => bytes.len() == token.len() && bytes[6..] == token[6..],
        Transport::Sctp => {
            let bytes = behind_header(bytes, family);
            bytes.get(12) == Some(&2) && bytes[..2] == token[2..4] && bytes[2..4] == token[..2]
        }
        Transport::Other(_) => {
            let bytes = behind_header(bytes, family);
            bytes.first() == Some(&ANSWER) && bytes.get(1..3) == token.get(1..3)
        }
    }
}

/// An error that only says "nobody answers" is silence: TCP gives up, a neighbour did not answer.
fn refusal(error: &io::Error) -> Outcome {
    Outcome::Refused(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        net::{Attach, Host, Node, Topology},
        probe::Responder,
    };

    fn probes(from: &Host, to: &Host, ports: &[&str], size: usize) -> Vec<Probe> {
        let pairs = from.ips.iter().zip(&to.ips);
        let one = |(from_ip, to_ip): (&IpAddr, &IpAddr), port: &str| Probe {
            ns: from.ns.clone(),
            from: *from_ip,
            to: *to_ip,
            port: port.parse().unwrap(),
            size,
            unconnected: false,
        };
        pairs.flat_map(|pair| ports.iter().map(move |port| one(pair, port))).collect()
    }

    #[test]
    fn every_protocol_is_answered_and_closed_ports_are_told_apart_from_silence() {
        for topology in [Topology::Ptp, Topology::Bridge] {
            let mut node = Node::new(topology).unwrap();
            let ips =
                |n: u8| [format!("10.244.0.{n}"), format!("fd00:10:244::{n}")].map(|ip| ip.parse().unwrap());
            let a = node.add("a", Attach::Pod, &ips(10)).unwrap();
            let b = node.add("b", Attach::Pod, &ips(11)).unwrap();
            let responder = Responder::start();
            let ports = ["TCP/80", "UDP/53", "SCTP/5000", "SCTP/5001", "ICMP/echo", "IP/47"];
            responder.listen(&b, &ports.map(|port| port.parse().unwrap())).unwrap();
            for size in [8, 4000] {
                let asked = probes(&a, &b, &ports, size);
                let outcomes = verdicts(&asked, &vec![Want::Answer; asked.len()]).unwrap();
                for (probe, outcome) in asked.iter().zip(&outcomes) {
                    let ok = matches!(outcome, Outcome::Answered(_));
                    assert!(ok, "{topology:?} {} {} bytes: {outcome:?}", probe.port, probe.size);
                }
            }
            let closed = ask_all(&probes(&a, &b, &["TCP/81", "UDP/81"], 8), Duration::from_secs(2)).unwrap();
            assert!(closed.iter().all(|o| matches!(o, Outcome::Refused(_))), "{closed:?}");
            responder.forget("b");
            let gone = ask_all(&probes(&a, &b, &["SCTP/5000"], 8), Duration::from_millis(100)).unwrap();
            assert!(!gone.iter().any(|o| matches!(o, Outcome::Answered(_))), "{gone:?}");
        }
    }
}
