//! A record's packet in Hubble's words: addresses, protocol, ports, and one line of summary.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use policy_common::event::{Event, event_flags};

use crate::proto::flow::layer4::Protocol;
use crate::proto::flow::{IcmPv4, IcmPv6, Ip, IpVersion, Layer4, Sctp, Tcp, TcpFlags, Udp};

/// Numbers of the protocols that have a name here.
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// TCP flags by bit of the header's byte, in the order in which they are told.
const TCP_FLAGS: [(u8, &str); 8] = [
    (0x02, "SYN"),
    (0x10, "ACK"),
    (0x01, "FIN"),
    (0x04, "RST"),
    (0x08, "PSH"),
    (0x20, "URG"),
    (0x40, "ECE"),
    (0x80, "CWR"),
];

/// Source and destination; `None` when the frame is not IP.
#[must_use]
pub fn addresses(event: &Event) -> Option<(IpAddr, IpAddr)> {
    Some((address(event.family, event.source)?, address(event.family, event.destination)?))
}

/// The address message.
#[must_use]
pub fn ip(event: &Event) -> Option<Ip> {
    let (source, destination) = addresses(event)?;
    let version = if source.is_ipv4() { IpVersion::IPv4 } else { IpVersion::IPv6 };
    Some(Ip {
        source: source.to_string(),
        destination: destination.to_string(),
        ip_version: version.into(),
        ..Ip::default()
    })
}

/// Protocol and ports; `None` when the frame is not IP or its protocol has no message.
#[must_use]
pub fn layer4(event: &Event) -> Option<Layer4> {
    if event.family == 0 {
        return None;
    }
    let (source_port, destination_port) = (u32::from(event.source_port), u32::from(event.destination_port));
    let (kind, code) = (u32::from(event.tcp_flags), u32::from(event.icmp_code));
    let protocol = match event.protocol {
        protocol::TCP => {
            let flags = Some(tcp_flags(event.tcp_flags));
            Protocol::Tcp(Tcp { source_port, destination_port, flags })
        }
        protocol::UDP => Protocol::Udp(Udp { source_port, destination_port }),
        protocol::SCTP => Protocol::Sctp(Sctp { source_port, destination_port }),
        protocol::ICMP => Protocol::IcmPv4(IcmPv4 { r#type: kind, code }),
        protocol::ICMPV6 => Protocol::IcmPv6(IcmPv6 { r#type: kind, code }),
        _ => return None,
    };
    Some(Layer4 { protocol: Some(protocol) })
}

/// The packet in a few words: `TCP Flags: SYN`, `UDP`, `ICMPv4 EchoRequest`.
#[must_use]
pub fn summary(event: &Event) -> String {
    let mut text = if event.family == 0 { "not IP".to_owned() } else { protocol_summary(event) };
    if event.flags & event_flags::ICMP_INNER != 0 {
        text.push_str(" inside an ICMP error");
    }
    if event.flags & event_flags::FRAGMENT != 0 {
        text.push_str(", fragment");
    }
    if event.flags & event_flags::EXIT != 0 {
        text.push_str(", behind a Service");
    }
    text
}

/// Names of the flags that are set.
#[must_use]
pub fn flag_names(flags: &TcpFlags) -> Vec<&'static str> {
    let byte = flag_byte(flags);
    TCP_FLAGS.iter().filter(|(bit, _)| byte & bit != 0).map(|(_, name)| *name).collect()
}

/// The header's byte of a flags message (`NS` is not in it).
#[must_use]
pub fn flag_byte(flags: &TcpFlags) -> u8 {
    let TcpFlags { fin, syn, rst, psh, ack, urg, ece, cwr, ns: _ } = *flags;
    [fin, syn, rst, psh, ack, urg, ece, cwr].iter().enumerate().map(|(bit, set)| u8::from(*set) << bit).sum()
}

/// Name of an ICMP type: `EchoRequest`, or `Type 42 Code 0`.
#[must_use]
pub fn icmp_name(v6: bool, kind: u32, code: u32) -> String {
    let name = match (v6, kind) {
        (false, 0) | (true, 129) => "EchoReply",
        (false, 8) | (true, 128) => "EchoRequest",
        (false, 3) | (true, 1) => "DestinationUnreachable",
        (true, 2) => "PacketTooBig",
        (false, 11) | (true, 3) => "TimeExceeded",
        (false, 12) | (true, 4) => "ParameterProblem",
        (false, 5) | (true, 137) => "Redirect",
        (true, 133) => "RouterSolicitation",
        (true, 134) => "RouterAdvertisement",
        (true, 135) => "NeighborSolicitation",
        (true, 136) => "NeighborAdvertisement",
        _ => return format!("Type {kind} Code {code}"),
    };
    name.to_owned()
}

fn protocol_summary(event: &Event) -> String {
    match event.protocol {
        protocol::TCP => {
            let names = flag_names(&tcp_flags(event.tcp_flags));
            if names.is_empty() { "TCP".to_owned() } else { format!("TCP Flags: {}", names.join(", ")) }
        }
        protocol::UDP => "UDP".to_owned(),
        protocol::SCTP => "SCTP".to_owned(),
        protocol::ICMP => {
            format!("ICMPv4 {}", icmp_name(false, event.tcp_flags.into(), event.icmp_code.into()))
        }
        protocol::ICMPV6 => {
            format!("ICMPv6 {}", icmp_name(true, event.tcp_flags.into(), event.icmp_code.into()))
        }
        number => format!("IP protocol {number}"),
    }
}

fn tcp_flags(byte: u8) -> TcpFlags {
    let set = |bit: u32| byte & 1 << bit != 0;
    TcpFlags {
        fin: set(0),
        syn: set(1),
        rst: set(2),
        psh: set(3),
        ack: set(4),
        urg: set(5),
        ece: set(6),
        cwr: set(7),
        ns: false,
    }
}

fn address(family: u8, words: [u32; 4]) -> Option<IpAddr> {
    // The words hold the bytes as they are on the wire, whatever the order of this machine.
    let mut bytes = [0; 16];
    for (chunk, word) in bytes.chunks_exact_mut(4).zip(words) {
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    match family {
        4 => Some(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into()),
        6 => Some(Ipv6Addr::from(bytes).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::fixture::words;

    #[test]
    fn addresses_are_read_from_wire_order() {
        let v4 = Event {
            family: 4,
            source: words("10.0.0.1"),
            destination: words("192.0.2.255"),
            ..Event::default()
        };
        assert_eq!(v4.source[0].to_ne_bytes(), [10, 0, 0, 1]);
        assert_eq!(addresses(&v4), Some(("10.0.0.1".parse().unwrap(), "192.0.2.255".parse().unwrap())));
        let v6 =
            Event { family: 6, source: words("fd00::11"), destination: words("::1"), ..Event::default() };
        assert_eq!(ip(&v6).map(|ip| ip.source).as_deref(), Some("fd00::11"));
        assert_eq!(addresses(&Event::default()), None);
    }

    #[test]
    fn flags_round_trip_and_are_named() {
        for byte in 0..=255 {
            assert_eq!(flag_byte(&tcp_flags(byte)), byte);
        }
        let event = Event { family: 4, protocol: 6, tcp_flags: 0x12, ..Event::default() };
        assert_eq!(summary(&event), "TCP Flags: SYN, ACK");
        assert_eq!(summary(&Event { protocol: 1, tcp_flags: 8, ..event }), "ICMPv4 EchoRequest");
        assert_eq!(
            summary(&Event { protocol: 58, tcp_flags: 200, icmp_code: 3, ..event }),
            "ICMPv6 Type 200 Code 3"
        );
        assert_eq!(summary(&Event { protocol: 47, ..event }), "IP protocol 47");
        assert_eq!(summary(&Event { protocol: 17, flags: event_flags::FRAGMENT, ..event }), "UDP, fragment");
    }
}
