//! The record that the kernel writes into the event ring, 96 bytes.

use crate::abi::Direction;
use crate::reason::Reason;

/// Size of a record in bytes.
pub const EVENT_SIZE: usize = 96;

/// A drop or a verdict, as seen at one hook.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Event {
    /// `CLOCK_MONOTONIC` in nanoseconds.
    pub time: u64,
    /// The endpoint's word 0 that judged the packet: epoch and rows.
    pub word: u64,
    /// Number of the record on its CPU, without gaps: {CPU 16, count 48}.
    pub sequence: u64,
    /// Endpoint id (never reused).
    pub endpoint: u32,
    /// Interface index of the hook.
    pub ifindex: u32,
    /// Deciding rule, 0 = none.
    pub rule: u32,
    /// Events of this endpoint held back on this CPU since the last one.
    pub suppressed: u32,
    /// Length of the packet in bytes.
    pub length: u32,
    /// Endpoint slot.
    pub slot: u16,
    /// Class of the remote address.
    pub class: u16,
    /// Rule set that the cell named.
    pub rule_set: u16,
    /// Source port (identifier for ICMP echo).
    pub source_port: u16,
    /// Destination port (identifier for ICMP echo).
    pub destination_port: u16,
    /// `skb->tc_index`; with [`event_flags::SOCKET`] the slot of the endpoint whose socket the peer is, 0 = none.
    pub tag: u16,
    /// Source as seen, network order; IPv4 in the first word.
    pub source: [u32; 4],
    /// Destination as seen, network order; IPv4 in the first word.
    pub destination: [u32; 4],
    /// [`Direction`] as a number.
    pub direction: u8,
    /// [`Reason`] as a number.
    pub reason: u8,
    /// 4, 6, or 0 when the frame is not IP.
    pub family: u8,
    /// IP protocol.
    pub protocol: u8,
    /// TCP flags, or ICMP type.
    pub tcp_flags: u8,
    /// ICMP code.
    pub icmp_code: u8,
    /// Who opened the flow: [`Direction`] as a number, 0 = nobody known.
    pub opener: u8,
    /// Bits of [`event_flags`].
    pub flags: u8,
}

/// Bits of [`Event::flags`].
pub mod event_flags {
    /// The packet is a fragment.
    pub const FRAGMENT: u8 = 1;
    /// Ports and addresses are those of the packet inside an ICMP error.
    pub const ICMP_INNER: u8 = 2;
    /// A verdict on a new flow, not a drop.
    pub const VERDICT: u8 = 4;
    /// Judged behind the translation of a Service: addresses and ports are the translated ones.
    pub const EXIT: u8 = 8;
    /// Judged at the socket of a control group.
    pub const SOCKET: u8 = 16;
}

const _: () = assert!(size_of::<Event>() == EVENT_SIZE);

impl Event {
    /// Decodes a record. `None` when its length, direction or reason is not one that this build writes.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != EVENT_SIZE {
            return None;
        }
        // SAFETY: the slice has the size of the type, every bit pattern is valid, and the read asks for no alignment.
        let event = unsafe { bytes.as_ptr().cast::<Self>().read_unaligned() };
        (matches!(event.direction, 1 | 2) && Reason::from_number(event.reason).is_some()).then_some(event)
    }

    /// The record as bytes, as the kernel writes it.
    #[must_use]
    pub fn encode(&self) -> [u8; EVENT_SIZE] {
        // SAFETY: the type is `repr(C)` without padding (its fields add up to its asserted size).
        unsafe { core::mem::transmute_copy(self) }
    }

    /// Direction of the hook.
    #[must_use]
    pub fn direction(&self) -> Direction {
        if self.direction == Direction::Egress as u8 { Direction::Egress } else { Direction::Ingress }
    }

    /// Reason; [`Reason::Internal`] for a number that is unknown.
    #[must_use]
    pub fn reason(&self) -> Reason {
        Reason::from_number(self.reason).unwrap_or(Reason::Internal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_truncation() {
        let e = Event { time: 7, direction: 2, reason: 5, source_port: 80, length: 60, ..Event::default() };
        let bytes = e.encode();
        assert_eq!(Event::decode(&bytes), Some(e));
        for n in 0..EVENT_SIZE {
            assert_eq!(Event::decode(&bytes[..n]), None);
        }
        let bad = Event { direction: 3, ..e };
        assert_eq!(Event::decode(&bad.encode()), None);
    }
}
