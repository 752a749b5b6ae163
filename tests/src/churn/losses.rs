//! What the harness itself may have lost on the way: a packet that no policy dropped.

use std::{fs, net::UdpSocket, os::fd::AsRawFd};

/// Place of the drops in what `SO_MEMINFO` tells (`SK_MEMINFO_DROPS`), and how many numbers that are.
const DROPS: usize = 8;
const NUMBERS: usize = 9;

/// Packets that had no room, since the traffic's start. The kernel counts them; policy has no part in it.
#[derive(Debug, Clone, Default)]
pub struct Losses {
    /// In the buffers of receiving sockets.
    pub sockets: u64,
    /// In the processors' queues of packets that go from one interface to its peer: of the whole machine, as the kernel
    /// counts no other way.
    pub queues: u64,
}

impl Losses {
    /// From now on.
    pub(super) fn start() -> Self {
        Self { sockets: 0, queues: of_queues() }
    }

    /// Until now.
    pub(super) fn end(self) -> Self {
        Self { queues: of_queues().saturating_sub(self.queues), ..self }
    }

    /// All of them.
    #[must_use]
    pub fn total(&self) -> usize {
        usize::try_from(self.sockets + self.queues).unwrap_or(usize::MAX)
    }
}

impl std::fmt::Display for Losses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} without room at sockets, {} in queues of this machine", self.sockets, self.queues)
    }
}

/// Packets that found a socket's buffer full.
pub(super) fn of_socket(socket: &UdpSocket) -> u64 {
    let mut numbers = [0_u32; NUMBERS];
    let mut length = size_of_val(&numbers) as libc::socklen_t;
    // SAFETY: pointer and length are of one live array, which the kernel fills at most.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            numbers.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if done == 0 { numbers[DROPS].into() } else { 0 }
}

/// Packets that found the queue of a processor full (`net.core.netdev_max_backlog`).
fn of_queues() -> u64 {
    let text = fs::read_to_string("/proc/net/softnet_stat").unwrap_or_default();
    let drops = text.lines().filter_map(|line| line.split_ascii_whitespace().nth(1));
    drops.filter_map(|hexadecimal| u64::from_str_radix(hexadecimal, 16).ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_socket_is_told() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(of_socket(&receiver), 0);
        let to = receiver.local_addr().unwrap();
        // More than any default buffer holds, and nobody reads.
        (0..20_000).for_each(|_| drop(sender.send_to(&[0; 1000], to)));
        assert!(of_socket(&receiver) > 0);
    }

    #[test]
    fn queues_are_told_as_a_difference() {
        let losses = Losses { sockets: 3, queues: 0 };
        assert!(losses.end().total() >= 3);
    }
}
