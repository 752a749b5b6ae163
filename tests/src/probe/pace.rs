//! How long things take on this machine now: silence says something only if an answer would have come long before.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::net::{Echo, Netns};

/// Longest wait for something that must come.
const PATIENCE: Duration = Duration::from_secs(60);
/// So many times longer than an answer takes silence must last.
const TIMES: u32 = 3;

/// Somebody who always answers, in a namespace without anything else.
struct Certain {
    ns: Netns,
    at: SocketAddr,
    _echo: Echo,
}

impl Certain {
    fn new() -> Result<Self> {
        let ns = Netns::new()?;
        let at = SocketAddr::from(([127, 0, 0, 1], 7));
        let _echo = Echo::new(&ns, at)?;
        Ok(Self { ns, at, _echo })
    }
}

/// How long a datagram to another thread and back takes.
pub fn round_trip() -> Result<Duration> {
    static CERTAIN: OnceLock<Result<Certain, String>> = OnceLock::new();
    let certain = CERTAIN.get_or_init(|| Certain::new().map_err(|error| format!("{error:#}")));
    let certain = certain.as_ref().map_err(|error| anyhow::anyhow!("somebody who answers: {error}"))?;
    let socket = certain.ns.run(|| UdpSocket::bind(("127.0.0.1", 0))).context("open a socket")?;
    socket.set_read_timeout(Some(PATIENCE)).context("set a time limit")?;
    let start = Instant::now();
    socket.send_to(b"how long", certain.at).context("ask")?;
    socket.recv(&mut [0; 16]).context("the one who always answers")?;
    Ok(start.elapsed())
}

/// Whether silence of this length says that there is no answer.
pub fn is_telling(silence: Duration) -> Result<bool> {
    Ok(round_trip()? * TIMES < silence)
}

/// Waits until an answer to what was sent just before would have come: so long at least.
pub fn quiet(at_least: Duration) -> Result<()> {
    let (start, mut length) = (Instant::now(), at_least);
    loop {
        thread::sleep(length.saturating_sub(start.elapsed()));
        if is_telling(length)? || length > PATIENCE {
            return Ok(());
        }
        length *= 2;
    }
}
