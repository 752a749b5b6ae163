//! Traffic between two hosts, driven by one thread: what it costs is all on that thread, the way through the node too.

use super::meter::{Cost, Meter};
use crate::net::{Family, Host};
use anyhow::{Context, Result, bail};
use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

/// Packets or round trips in one measurement: a fraction of a millisecond, so that most are not disturbed.
const BATCH: u32 = 64;
/// How long something in flight is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Work {
    /// UDP packets one way.
    Udp,
    /// A byte there and a byte back on a TCP connection.
    TcpRoundTrip,
    /// UDP packets one way that are dropped.
    Denied,
}

impl Work {
    pub(super) const ALL: [Self; 3] = [Self::Udp, Self::TcpRoundTrip, Self::Denied];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Udp => "UDP one way, per packet",
            Self::TcpRoundTrip => "TCP request and response, per round trip",
            Self::Denied => "UDP to a port that is not allowed, per packet",
        }
    }
}

/// Whether packets came through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// Every one.
    Delivered,
    /// None.
    Dropped,
}

/// The least cost of one packet or round trip in `time`, and proof that each was delivered, or none.
pub(super) fn cost(
    meter: &Meter,
    work: Work,
    (from, to): (&Host, &Host),
    family: Family,
    port: u16,
    time: Duration,
) -> Result<(Cost, Fate)> {
    let address =
        to.ip(family).map(|ip| SocketAddr::new(ip, port)).context("the host has no such address")?;
    match work {
        Work::Udp | Work::Denied => udp(meter, (from, to), address, time),
        Work::TcpRoundTrip => Ok((tcp(meter, (from, to), address, time)?, Fate::Delivered)),
    }
}

fn udp(meter: &Meter, (from, to): (&Host, &Host), at: SocketAddr, time: Duration) -> Result<(Cost, Fate)> {
    let sink = to.ns.run(|| UdpSocket::bind(at)).context("bind the receiver")?;
    let any = SocketAddr::new(if at.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() }, 0);
    let source = from.ns.run(|| UdpSocket::bind(any)).context("bind the sender")?;
    source.connect(at).context("connect the sender")?;
    sink.set_nonblocking(true)?;
    let fate = first_fate(&source, &sink)?;
    let (mut least, end) = (Cost::MOST, Instant::now() + time);
    while Instant::now() < end {
        let ((), cost) = meter.measure(|| {
            for _ in 0..BATCH {
                source.send(b"x").context("send")?;
            }
            Ok(())
        })?;
        let arrived = drain(&sink)?;
        match fate {
            Fate::Dropped if arrived > 0 => bail!("{arrived} packets passed that had to be dropped"),
            // Another thread took over some of the way: its share is not in the cost.
            Fate::Delivered if arrived < BATCH => wait_for(&sink, BATCH - arrived)?,
            Fate::Delivered | Fate::Dropped => least = least.least(cost.per(BATCH)),
        }
    }
    if least.time.is_infinite() {
        bail!("no batch of packets was delivered on the sender's own time");
    }
    Ok((least, fate))
}

/// Sends some packets and looks whether they arrive.
fn first_fate(source: &UdpSocket, sink: &UdpSocket) -> Result<Fate> {
    const SOME: u32 = 3;
    for _ in 0..SOME {
        source.send(b"x").context("send")?;
    }
    std::thread::sleep(Duration::from_millis(20));
    match drain(sink)? {
        SOME => Ok(Fate::Delivered),
        0 => Ok(Fate::Dropped),
        some => bail!("{some} of {SOME} packets arrived"),
    }
}

fn drain(sink: &UdpSocket) -> Result<u32> {
    let (mut buffer, mut count) = ([0; 8], 0);
    loop {
        match sink.recv(&mut buffer) {
            Ok(_) => count += 1,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(count),
            Err(error) => return Err(error).context("receive"),
        }
    }
}

fn wait_for(sink: &UdpSocket, mut count: u32) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while count > 0 {
        count = count.saturating_sub(drain(sink)?);
        if Instant::now() > end {
            bail!("{count} packets of {BATCH} were lost");
        }
    }
    Ok(())
}

fn tcp(meter: &Meter, (from, to): (&Host, &Host), at: SocketAddr, time: Duration) -> Result<Cost> {
    let listener = to.ns.run(|| TcpListener::bind(at)).context("bind the server")?;
    let mut client =
        from.ns.run(|| TcpStream::connect_timeout(&at, PATIENCE)).context("connect the client")?;
    let (mut server, _) = listener.accept().context("accept")?;
    for end in [&client, &server] {
        end.set_nodelay(true)?;
        end.set_nonblocking(true)?;
    }
    let (mut least, end) = (Cost::MOST, Instant::now() + time);
    while Instant::now() < end {
        let (waited, cost) = meter.measure(|| {
            let mut waited = false;
            for _ in 0..BATCH {
                waited |= pass(&mut client, &mut server)?;
                waited |= pass(&mut server, &mut client)?;
            }
            Ok(waited)
        })?;
        if !waited {
            least = least.least(cost.per(BATCH));
        }
    }
    if least.time.is_infinite() {
        bail!("no round trip was made on one thread's own time");
    }
    Ok(least)
}

/// Sends a byte from one end to the other; whether it was not there at once.
fn pass(from: &mut TcpStream, to: &mut TcpStream) -> Result<bool> {
    from.write_all(b"x").context("send")?;
    let (mut waited, mut buffer, end) = (false, [0; 1], Instant::now() + PATIENCE);
    loop {
        match to.read(&mut buffer) {
            Ok(1) => return Ok(waited),
            Ok(_) => bail!("the connection ended"),
            Err(error) if error.kind() == ErrorKind::WouldBlock => waited = true,
            Err(error) => return Err(error).context("receive"),
        }
        if Instant::now() > end {
            bail!("a byte was lost");
        }
    }
}
