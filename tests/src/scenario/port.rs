//! What a probe carries: a protocol, and a port where the protocol has ports.

use serde::{Deserialize, Deserializer, de::Error};
use std::{fmt, str::FromStr};

/// Protocol of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
    /// Echo request of ICMP or ICMPv6, whichever the family uses.
    Icmp,
    /// Another IP protocol, by its number.
    Other(u8),
}

impl Transport {
    /// The IP protocol number in this family.
    pub fn number(self, family: crate::net::Family) -> u8 {
        match (self, family) {
            (Self::Tcp, _) => 6,
            (Self::Udp, _) => 17,
            (Self::Sctp, _) => 132,
            (Self::Icmp, crate::net::Family::V4) => 1,
            (Self::Icmp, crate::net::Family::V6) => 58,
            (Self::Other(number), _) => number,
        }
    }
}

/// `TCP/80`, `UDP/53`, `SCTP/5000`, `ICMP/echo`, `IP/47`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port {
    /// Protocol.
    pub transport: Transport,
    /// Destination port; zero where the protocol has none.
    pub number: u16,
}

impl FromStr for Port {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no port: write TCP/80, UDP/53, SCTP/5000, ICMP/echo or IP/47");
        let (name, rest) = text.split_once('/').ok_or_else(bad)?;
        let transport = match (name, rest) {
            ("TCP", _) => Transport::Tcp,
            ("UDP", _) => Transport::Udp,
            ("SCTP", _) => Transport::Sctp,
            ("ICMP", "echo") => return Ok(Self { transport: Transport::Icmp, number: 0 }),
            ("IP", _) => {
                let number = rest.parse().map_err(|_| bad())?;
                return Ok(Self { transport: Transport::Other(number), number: 0 });
            }
            _ => return Err(bad()),
        };
        Ok(Self { transport, number: rest.parse().map_err(|_| bad())? })
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.transport {
            Transport::Tcp => write!(f, "TCP/{}", self.number),
            Transport::Udp => write!(f, "UDP/{}", self.number),
            Transport::Sctp => write!(f, "SCTP/{}", self.number),
            Transport::Icmp => f.write_str("ICMP/echo"),
            Transport::Other(number) => write!(f, "IP/{number}"),
        }
    }
}

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}
