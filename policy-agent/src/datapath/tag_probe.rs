//! Whether the tag that a pod's hook leaves on a packet is still there when the node's own stack has it.
//!
//! A datagram goes in at the host's end of the pod's interface, as if the pod had sent it to a socket of the node. It
//! passes our hook, the programs of others behind it, the bridge if there is one, and the node's filters; a filter of the
//! receiving socket cuts it short unless it carries the tag. It never leaves the node.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use policy_common::abi::tag;

use super::bpf::{self, instruction};

/// A datagram that has not arrived by now was dropped: it takes no more than a turn of the kernel's network thread, for
/// which that may have to wait on a busy machine.
const ARRIVAL: Duration = Duration::from_secs(1);
/// Source port of the datagrams: discard.
const PORT: u16 = 9;
const PAYLOAD: &[u8] = b"does the tag survive";
const UDP_HEADER: usize = 8;
/// Flag of `bpf_clone_redirect`: as if the device had received it.
const INGRESS: i32 = 1;
const CLONE_REDIRECT: i32 = 13;
/// Offsets in `__sk_buff`.
const LENGTH: i16 = 0;
const TC_INDEX: i16 = 44;

/// What a probe needs to know of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TagProbe {
    /// Host's end of the pod's interface.
    pub ifindex: u32,
    /// Link-layer address by which the node takes packets of the pod: the bridge's, if the interface is a port of one.
    pub mac: [u8; 6],
    /// Slot of the endpoint.
    pub slot: u16,
    /// An address of the pod.
    pub pod: IpAddr,
    /// An address of the node, of the same family.
    pub node: IpAddr,
}

/// What became of the tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Survival {
    /// It arrived.
    Kept,
    /// The packet arrived without it.
    Lost,
    /// Nothing can be said: why.
    Unknown(String),
}

/// Probes interfaces, in the calling thread's network namespace. Takes no longer than one of them that does not answer.
#[must_use]
pub fn probe_tags(probes: &[TagProbe]) -> Vec<Survival> {
    let sent: Vec<io::Result<UdpSocket>> = probes.iter().map(send).collect();
    let deadline = Instant::now() + ARRIVAL;
    sent.into_iter()
        .zip(probes)
        .map(|(socket, probe)| {
            let seen = socket.and_then(|socket| receive(&socket, probe, deadline));
            seen.unwrap_or_else(|error| Survival::Unknown(format!("no probe can be sent: {error}")))
        })
        .collect()
}

fn send(probe: &TagProbe) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(SocketAddr::new(probe.node, 0))?;
    socket.set_nonblocking(true)?;
    attach(&socket, &bpf::load_filter("tag_survives", &filter(probe.slot))?)?;
    let port = socket.local_addr()?.port();
    let redirect = [
        instruction(0xb7, 2, 0, probe.ifindex.cast_signed()), // r2 = interface
        instruction(0xb7, 3, 0, INGRESS),                     // r3 = flags
        instruction(0x85, 0, 0, CLONE_REDIRECT),
        instruction(0x95, 0, 0, 0), // what it says is what the run returns
    ];
    let program = bpf::load_tc("tag_probe", &redirect)?;
    match bpf::run_on(program.as_fd(), &frame(probe, port))?.cast_signed() {
        0 => Ok(socket),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}

/// Keeps a datagram with the tag of the slot whole, and one byte of any other.
fn filter(slot: u16) -> [u64; 6] {
    let mask = tag::VALID | 0x3ff;
    let wanted = i32::from(tag::VALID | slot & 0x3ff);
    [
        instruction(0x61, 0x12, TC_INDEX, 0),           // r2 = tag
        instruction(0x57, 2, 0, i32::from(mask)),       // r2 &= validity and slot
        instruction(0xb7, 0, 0, UDP_HEADER as i32 + 1), // r0 = header and one byte
        instruction(0x55, 2, 1, wanted),                // unless r2 is what is wanted: there
        instruction(0x61, 0x10, LENGTH, 0),             // r0 = all
        instruction(0x95, 0, 0, 0),
    ]
}

fn attach(socket: &UdpSocket, filter: &OwnedFd) -> io::Result<()> {
    let fd = filter.as_raw_fd();
    // SAFETY: the option's value is an int that lives through the call.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_BPF,
            (&raw const fd).cast(),
            size_of_val(&fd) as libc::socklen_t,
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn receive(socket: &UdpSocket, probe: &TagProbe, deadline: Instant) -> io::Result<Survival> {
    let mut bytes = [0; 64];
    loop {
        match socket.recv_from(&mut bytes) {
            Ok((length, from)) if from == SocketAddr::new(probe.pod, PORT) => {
                return Ok(if length == PAYLOAD.len() { Survival::Kept } else { Survival::Lost });
            }
            // Somebody else's.
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if Instant::now() >= deadline {
                    let why = "a probe did not arrive: a filter of the node may have dropped it";
                    return Ok(Survival::Unknown(why.to_owned()));
                }
                thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(error),
        }
    }
}

/// The datagram from the pod to the node's port, as the interface would receive it.
fn frame(probe: &TagProbe, port: u16) -> Vec<u8> {
    let mut udp = Vec::new();
    let length = (UDP_HEADER + PAYLOAD.len()) as u16;
    for word in [PORT, port, length, 0] {
        udp.extend(word.to_be_bytes());
    }
    udp.extend(PAYLOAD);
    let mut frame = probe.mac.to_vec();
    // A sender that nobody is: a bridge that notes it loses no pod's port by it.
    frame.extend([2, b'p', b'r', b'o', b'b', b'e']);
    match (probe.pod, probe.node) {
        (IpAddr::V4(pod), IpAddr::V4(node)) => {
            frame.extend([0x08, 0]);
            let total = 20 + length;
            let mut header = vec![0x45, 0];
            header.extend(total.to_be_bytes());
            header.extend([0, 0, 0x40, 0, 64, libc::IPPROTO_UDP as u8, 0, 0]);
            header.extend(pod.octets());
            header.extend(node.octets());
            let sum = checksum(&header).to_be_bytes();
            header[10..12].copy_from_slice(&sum);
            // IPv4 lets a datagram go without a checksum of its own.
            frame.extend(header);
        }
        (pod, node) => {
            let octets = |ip: IpAddr| match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                IpAddr::V6(ip) => ip.octets(),
            };
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(length.to_be_bytes());
            frame.extend([libc::IPPROTO_UDP as u8, 64]);
            let mut covered = [octets(pod), octets(node)].concat();
            frame.extend(&covered);
            covered.extend(length.to_be_bytes());
            covered.extend([0, libc::IPPROTO_UDP as u8]);
            covered.extend(&udp);
            // 0 stands for "none", which IPv6 does not take.
            let sum = Some(checksum(&covered)).filter(|sum| *sum != 0).unwrap_or(u16::MAX);
            udp[6..8].copy_from_slice(&sum.to_be_bytes());
        }
    }
    frame.extend(udp);
    frame
}

/// The Internet's checksum.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|two| u32::from(two[0]) << 8 | two.get(1).copied().map_or(0, u32::from));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_add_up() {
        let probe = |pod: &str, node: &str| TagProbe {
            ifindex: 7,
            mac: [1; 6],
            slot: 3,
            pod: pod.parse().unwrap(),
            node: node.parse().unwrap(),
        };
        let four = frame(&probe("10.0.0.2", "10.0.0.1"), 4000);
        assert_eq!(checksum(&four[14..34]), 0, "the header with its own checksum");
        assert_eq!(four.len(), 14 + usize::from(u16::from_be_bytes([four[16], four[17]])));
        let six = frame(&probe("fd00::2", "fd00::1"), 4000);
        let mut covered = six[22..54].to_vec();
        covered.extend([six[18], six[19], 0, 17]);
        covered.extend(&six[54..]);
        assert_eq!((checksum(&covered), six.len()), (0, 54 + UDP_HEADER + PAYLOAD.len()));
    }
}
