//! A netlink request socket of the namespace in which it was opened.

use std::io;
use std::sync::Mutex;

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use super::message::{Message, Request, messages};

/// Asks the kernel and waits for its answers, one request at a time.
#[derive(Debug)]
pub(crate) struct Requests {
    inner: Mutex<(Socket, u32)>,
}

impl Requests {
    /// Opens a socket in the calling thread's network namespace, where it stays.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Without strict checking the kernel ignores the namespace that a dump of addresses asks for, and answers
        // with those of our own.
        socket.set_netlink_get_strict_chk(true)?;
        Ok(Self { inner: Mutex::new((socket, 0)) })
    }

    /// Sends a request and waits for its acknowledgement.
    pub(crate) fn ask(&self, request: Request) -> io::Result<()> {
        self.exchange(request, |_| {})
    }

    /// Sends a request and hands every answer to `each`, up to the end of the dump or the acknowledgement.
    pub(crate) fn exchange(&self, request: Request, mut each: impl FnMut(&Message<'_>)) -> io::Result<()> {
        let mut inner = self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (socket, sequence) = &mut *inner;
        *sequence = sequence.wrapping_add(1);
        socket.send(&request.finish(*sequence), 0)?;
        let mut interrupted = false;
        loop {
            let (data, _) = socket.recv_from_full()?;
            for message in messages(&data).filter(|m| m.sequence == *sequence) {
                interrupted |= message.flags & libc::NLM_F_DUMP_INTR as u16 != 0;
                match i32::from(message.kind) {
                    libc::NLMSG_DONE | libc::NLMSG_ERROR if message.code() < 0 => {
                        return Err(io::Error::from_raw_os_error(-message.code()));
                    }
                    // The table changed while it was dumped: what was read may be incomplete.
                    libc::NLMSG_DONE if interrupted => return Err(io::ErrorKind::Interrupted.into()),
                    libc::NLMSG_DONE | libc::NLMSG_ERROR => return Ok(()),
                    libc::NLMSG_NOOP => {}
                    _ => each(&message),
                }
            }
        }
    }

    /// Dumps a table, again when it changed meanwhile.
    pub(crate) fn dump<T>(
        &self,
        request: &Request,
        read: impl Fn(&Message<'_>) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        const TRIES: usize = 10;
        for last in (0..TRIES).map(|n| n + 1 == TRIES) {
            let mut found = Vec::new();
            match self.exchange(request.clone(), |message| found.extend(read(message))) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted && !last => {}
                other => return other.map(|()| found),
            }
        }
        Err(io::ErrorKind::Interrupted.into())
    }
}
