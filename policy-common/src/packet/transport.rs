//! The header behind IP: ports, TCP flags, ICMP type.

use super::{Bytes, facts, protocol, tcp};

/// Ports and facts of a transport header.
#[derive(Clone, Copy)]
pub(super) struct Transport {
    pub(super) source_port: u16,
    pub(super) destination_port: u16,
    pub(super) flags: u8,
    pub(super) code: u8,
    pub(super) facts: u32,
}

/// Bytes of an ICMP header; the packet inside an error follows.
pub(super) const ICMP_HEADER: usize = 8;

/// Reads the header at `at`. `left` bounds it by the length in the IP header: bytes behind it are padding that the
/// receiver does not see. `inner` accepts the eight bytes that an ICMP error quotes. `None`: it is cut off.
#[inline(always)]
pub(super) fn read<B: Bytes>(bytes: &B, at: usize, number: u8, left: u32, inner: bool) -> Option<Transport> {
    let mut t = Transport { source_port: 0, destination_port: 0, flags: 0, code: 0, facts: facts::OPENS };
    match number {
        protocol::TCP | protocol::UDP | protocol::SCTP => {
            if left < 8 {
                return None;
            }
            let [ports, _] = bytes.words::<2>(at)?.map(u32::from_be);
            t.source_port = (ports >> 16) as u16;
            t.destination_port = ports as u16;
            if number != protocol::UDP && !inner {
                let opens = if number == protocol::TCP {
                    if left < 20 {
                        return None;
                    }
                    let [w] = bytes.words::<1>(at + 12)?.map(u32::from_be);
                    // The rest of the header must be there too, or the receiver sees another packet than we do.
                    bytes.words::<1>(at + 16)?;
                    t.flags = (w >> 16) as u8;
                    t.flags & (tcp::SYN | tcp::ACK) == tcp::SYN
                } else {
                    if left < 16 {
                        return None;
                    }
                    // Type of the first chunk; INIT is never bundled.
                    let [w] = bytes.words::<1>(at + 12)?.map(u32::from_be);
                    w >> 24 == 1
                };
                if !opens {
                    t.facts = 0;
                }
            }
        }
        protocol::ICMP | protocol::ICMP6 => {
            if left < ICMP_HEADER as u32 {
                return None;
            }
            let [head, rest] = bytes.words::<2>(at)?.map(u32::from_be);
            t.flags = (head >> 24) as u8;
            t.code = (head >> 16) as u8;
            let (request, reply) = if number == protocol::ICMP { (8, 0) } else { (128, 129) };
            if t.flags == request || t.flags == reply {
                t.source_port = (rest >> 16) as u16;
                t.destination_port = t.source_port;
            }
            if t.flags == reply {
                t.facts = 0;
            }
        }
        _ => {}
    }
    Some(t)
}
