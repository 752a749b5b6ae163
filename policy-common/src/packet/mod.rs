//! What a frame says: addresses, ports, and the few facts that the decision needs.
//!
//! Every length is bounded, nothing is allocated and nothing panics, so that the verifier can follow it.

mod bytes;
mod ethernet;
mod ipv4;
mod ipv6;
mod plain;
mod transport;

pub use bytes::{Bytes, Slice};
pub use ethernet::{ETHERNET_HEADER, Link, link};
pub use ipv4::parse as parse4;
pub use ipv6::parse as parse6;
pub use plain::{plain4, plain6};

/// IP protocol numbers.
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMPv6.
    pub const ICMP6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// TCP flags.
pub mod tcp {
    /// Last segment of this side.
    pub const FIN: u8 = 1;
    /// First segment.
    pub const SYN: u8 = 2;
    /// Reset.
    pub const RST: u8 = 4;
    /// Acknowledgement.
    pub const ACK: u8 = 16;
}

/// Bits of [`Packet::facts`].
pub mod facts {
    /// First of several fragments.
    pub const FIRST_FRAGMENT: u32 = 1;
    /// Not the first fragment: the ports are unknown.
    pub const LATER_FRAGMENT: u32 = 2;
    /// May open a flow: TCP SYN, SCTP INIT, everything else but replies.
    pub const OPENS: u32 = 4;
    /// An ICMP error: addresses, ports and protocol are those of the packet inside, turned round.
    pub const ERROR: u32 = 8;
    /// An ICMP error whose sender is not the destination of the packet inside.
    pub const FOREIGN_ERROR: u32 = 16;
    /// Valid neighbour discovery or multicast listener message.
    pub const NEIGHBOUR: u32 = 32;
    /// Only routers send it: router advertisement, redirect.
    pub const ROUTER: u32 = 64;
    /// An IPv6 router alert option was seen.
    pub const ALERT: u32 = 128;
}

/// A parsed packet. Addresses in network order, ports in host order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packet<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
    /// Identification of the datagram, for fragments.
    pub fragment: u32,
    /// Bits of [`facts`].
    pub facts: u32,
    /// Source port; the identifier of an ICMP echo.
    pub source_port: u16,
    /// Destination port; the identifier of an ICMP echo.
    pub destination_port: u16,
    /// IP protocol behind all extension headers.
    pub protocol: u8,
    /// TCP flags, or ICMP type.
    pub flags: u8,
    /// ICMP code.
    pub code: u8,
}

impl<A> Packet<A> {
    /// Whether one of these facts holds.
    #[inline(always)]
    #[must_use]
    pub fn is(&self, any: u32) -> bool {
        self.facts & any != 0
    }
}

impl<A: Copy + PartialEq> Packet<A> {
    /// Turns the packet inside an ICMP error round, so that it names the flow as the error's own direction sees it.
    #[inline(always)]
    fn into_error(self, sender: A, flags: u8, code: u8, more: u32) -> Self {
        let foreign = if sender == self.destination { 0 } else { facts::FOREIGN_ERROR };
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            facts: facts::ERROR | foreign | more,
            fragment: 0,
            protocol: self.protocol,
            flags,
            code,
        }
    }
}

#[cfg(test)]
mod tests;
