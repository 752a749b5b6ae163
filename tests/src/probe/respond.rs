//! One thread that answers for all hosts of a node, on all ports asked for.
//!
//! Sockets are opened in the hosts' namespaces and served from one place, so a hundred pods cost one thread.

use super::socket::{Socket, raise_limit};
use crate::{
    net::{Family, Host, Netns},
    pkt::Sctp,
    scenario::{Port, Transport},
};
use anyhow::{Context, Result};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    os::fd::RawFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// First byte of a question in a protocol without ports, and of its answer.
pub(super) const QUESTION: u8 = b'Q';
pub(super) const ANSWER: u8 = b'R';

/// Answers TCP, UDP, SCTP and other protocols; echo requests are answered by the hosts' own kernels.
#[derive(Debug)]
pub struct Responder {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    served: Mutex<Served>,
}

#[derive(Debug, Default)]
struct Served {
    sockets: BTreeMap<RawFd, Entry>,
    /// Host name, address, port: what is served already.
    known: BTreeSet<(String, IpAddr, Port)>,
}

#[derive(Debug)]
struct Entry {
    socket: Socket,
    role: Role,
    host: String,
}

#[derive(Debug, Clone, Copy)]
enum Role {
    Listener,
    Connection,
    Datagram,
    Raw(Port, Family),
}

impl Responder {
    /// A responder that answers nobody yet.
    pub fn start() -> Self {
        raise_limit();
        let shared = Arc::new(Shared { stop: AtomicBool::new(false), served: Mutex::default() });
        let inner = shared.clone();
        let thread = std::thread::spawn(move || inner.serve());
        Self { shared, thread: Some(thread) }
    }

    /// Answers on these ports of the host, on all its addresses, from now on.
    pub fn listen(&self, host: &Host, ports: &[Port]) -> Result<()> {
        self.listen_at(&host.name, &host.ns, &host.ips, ports)
    }

    /// Answers on these ports and addresses of a namespace, under the name of a host.
    pub fn listen_at(&self, name: &str, ns: &Netns, ips: &[IpAddr], ports: &[Port]) -> Result<()> {
        let known = self.shared.lock().known.clone();
        let wanted = |ip: &IpAddr| ports.iter().map(move |port| (*ip, *port)).collect::<Vec<_>>();
        let new: Vec<(IpAddr, Port)> = ips.iter().flat_map(wanted).collect();
        // Echo needs no socket, and protocols without ports one per address only.
        let new = new.into_iter().filter(|(_, port)| port.transport != Transport::Icmp).map(|(ip, port)| {
            let number = if port.transport == Transport::Sctp { 0 } else { port.number };
            (ip, Port { number, ..port })
        });
        let new: BTreeSet<(IpAddr, Port)> =
            new.filter(|(ip, port)| !known.contains(&(name.to_owned(), *ip, *port))).collect();
        if new.is_empty() {
            return Ok(());
        }
        let opened = ns.run(|| -> Result<Vec<_>> {
            new.iter().map(|(ip, port)| Ok((*ip, *port, open(ns, *ip, *port)?))).collect()
        });
        let mut served = self.shared.lock();
        for (ip, port, (socket, role)) in opened.with_context(|| format!("listen for {name}"))? {
            served.known.insert((name.to_owned(), ip, port));
            served.sockets.insert(socket.raw(), Entry { socket, role, host: name.to_owned() });
        }
        Ok(())
    }

    /// Closes everything of the host, so that its namespace can go.
    pub fn forget(&self, host: &str) {
        let mut served = self.shared.lock();
        served.known.retain(|(name, _, _)| name != host);
        served.sockets.retain(|_, entry| entry.host != host);
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed; a second one in drop would abort the test run.
            drop(thread.join());
        }
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Served> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self) {
        let mut buffer = vec![0; 65_536];
        while !self.stop.load(Ordering::Relaxed) {
            let mut polled: Vec<libc::pollfd> = {
                let served = self.lock();
                served
                    .sockets
                    .keys()
                    .map(|fd| libc::pollfd { fd: *fd, events: libc::POLLIN, revents: 0 })
                    .collect()
            };
            // Short, because new sockets are seen in the next round only.
            // SAFETY: a live vector and its length.
            let ready = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, 5) };
            if ready <= 0 {
                continue;
            }
            let mut served = self.lock();
            for entry in polled.iter().filter(|entry| entry.revents != 0) {
                served.answer(entry.fd, &mut buffer);
            }
        }
    }
}

impl Served {
    fn answer(&mut self, fd: RawFd, buffer: &mut [u8]) {
        let Some(entry) = self.sockets.get(&fd) else { return };
        match entry.role {
            Role::Listener => {
                let host = entry.host.clone();
                while let Some(socket) = self.sockets.get(&fd).and_then(|entry| entry.socket.accept().ok()) {
                    let role = Role::Connection;
                    self.sockets.insert(socket.raw(), Entry { socket, role, host: host.clone() });
                }
            }
            Role::Connection => match entry.socket.receive(buffer) {
                Ok(length) if length > 0 => drop(entry.socket.send(&buffer[..length])),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(_) | Err(_) => drop(self.sockets.remove(&fd)),
            },
            Role::Datagram => {
                while let Ok((length, from)) = entry.socket.receive_from(buffer) {
                    drop(entry.socket.send_to(&buffer[..length], from, false));
                }
            }
            Role::Raw(port, family) => {
                while let Ok((length, from)) = entry.socket.receive_from(buffer) {
                    if let Some(answer) = raw_answer(port, behind_header(&buffer[..length], family)) {
                        drop(entry.socket.send_to(&answer, from, true));
                    }
                }
            }
        }
    }
}

/// Raw IPv4 sockets hand out the IP header too.
pub(super) fn behind_header(bytes: &[u8], family: Family) -> &[u8] {
    match family {
        Family::V4 => {
            bytes.get(usize::from(bytes.first().copied().unwrap_or(0) & 15) * 4..).unwrap_or_default()
        }
        Family::V6 => bytes,
    }
}

fn raw_answer(port: Port, payload: &[u8]) -> Option<Vec<u8>> {
    if port.transport == Transport::Sctp {
        let word = |at: usize| Some(u16::from_be_bytes(payload.get(at..at + 2)?.try_into().ok()?));
        let is_init = payload.get(12) == Some(&1);
        return is_init.then(|| Some(Sctp::init_ack(word(2)?, word(0)?).bytes())).flatten();
    }
    let mut answer = payload.to_vec();
    (*answer.first()? == QUESTION).then(|| {
        answer[0] = ANSWER;
        answer
    })
}

fn open(ns: &Netns, ip: IpAddr, port: Port) -> Result<(Socket, Role)> {
    let family = Family::of(ip);
    let work = || -> io::Result<(Socket, Role)> {
        let socket = Socket::of(ns, port.transport, family)?;
        socket.reuse()?;
        let role = match port.transport {
            Transport::Tcp => Role::Listener,
            Transport::Udp => Role::Datagram,
            Transport::Sctp | Transport::Icmp | Transport::Other(_) => Role::Raw(port, family),
        };
        let number = if matches!(role, Role::Raw(_, _)) { 0 } else { port.number };
        // A child of this process has what was closed here open until it is another program.
        let end = Instant::now() + Duration::from_secs(20);
        while let Err(error) = socket.bind(ip, number) {
            if error.kind() != io::ErrorKind::AddrInUse || Instant::now() > end {
                return Err(error);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        if matches!(role, Role::Listener) {
            socket.listen()?;
        }
        Ok((socket, role))
    };
    work().with_context(|| format!("open {port} on {ip}"))
}
