//! Conversations as packets: what two hosts send each other when one of them opens.

use super::{
    evaluator::{address, place},
    run::Places,
};
use crate::{
    pkt::{Ip, Packet, Sctp, Tcp, flags},
    scenario::{Pair, Place, Port, Transport},
};
use anyhow::{Context, Result};
use std::{collections::BTreeMap, net::IpAddr};

/// First source port of conversations.
const FIRST_PORT: u16 = 32_768;

/// Largest packet that a link carries, in bytes.
const MTU: usize = 1500;

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speaker {
    /// The one who opened.
    Client,
    /// The other.
    Server,
}

/// Conversations of a back end that sends packets itself: each has a number of its own, and some go on.
#[derive(Debug, Default)]
pub(super) struct Conversations {
    begun: u16,
    sessions: BTreeMap<String, (Pair, Exchange)>,
}

impl Conversations {
    /// A new one between the ends of a pair.
    pub(super) fn begin(&mut self, places: &Places, pair: &Pair, size: usize) -> Result<Exchange> {
        self.begun = (self.begun + 1) % (u16::MAX - FIRST_PORT);
        Ok(Exchange {
            client: address(place(places, &pair.from)?, pair.family)?,
            server: address(place(places, &pair.to)?, pair.family)?,
            port: pair.port,
            number: FIRST_PORT + self.begun,
            size,
        })
    }

    /// Keeps one under a name.
    pub(super) fn keep(&mut self, id: &str, pair: &Pair, exchange: Exchange) {
        self.sessions.insert(id.to_owned(), (pair.clone(), exchange));
    }

    /// The one of this name.
    pub(super) fn kept(&self, id: &str) -> Result<(Pair, Exchange)> {
        self.sessions.get(id).cloned().with_context(|| format!("no session {id}"))
    }

    /// Forgets those that were kept.
    pub(super) fn forget(&mut self) {
        self.sessions.clear();
    }
}

/// Sends packets until one is lost; whether all passed. `passes`: whether one does, from the first place to the second.
pub(super) fn deliver(
    places: &Places,
    pair: &Pair,
    packets: &[(Speaker, Packet)],
    mut passes: impl FnMut(&Place, &Place, &Packet) -> Result<bool>,
) -> Result<bool> {
    let (client, server) = (place(places, &pair.from)?, place(places, &pair.to)?);
    for (speaker, packet) in packets {
        let passed = match speaker {
            Speaker::Client => passes(client, server, packet)?,
            Speaker::Server => passes(server, client, packet)?,
        };
        if !passed {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Addresses and ports of one conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Exchange {
    pub(super) client: IpAddr,
    pub(super) server: IpAddr,
    pub(super) port: Port,
    /// Distinguishes the conversation from others of the client: its source port or identifier.
    pub(super) number: u16,
    /// Bytes of payload.
    pub(super) size: usize,
}

impl Exchange {
    /// All packets from the first to the server's answer, in order.
    pub(super) fn opening(&self) -> Vec<(Speaker, Packet)> {
        match self.port.transport {
            Transport::Tcp => [
                (Speaker::Client, flags::SYN),
                (Speaker::Server, flags::SYN | flags::ACK),
                (Speaker::Client, flags::ACK),
                (Speaker::Client, flags::ACK | flags::PSH),
                (Speaker::Server, flags::ACK | flags::PSH),
            ]
            .map(|(speaker, bits)| (speaker, self.segment(speaker, bits)))
            .to_vec(),
            Transport::Udp | Transport::Sctp | Transport::Icmp | Transport::Other(_) => self.continued(),
        }
    }

    /// One more question and its answer.
    pub(super) fn continued(&self) -> Vec<(Speaker, Packet)> {
        let speakers = [Speaker::Client, Speaker::Server];
        let packets = speakers.map(|speaker| {
            let whole = self.message(speaker);
            let parts =
                if whole.bytes.len() > MTU { whole.fragments(MTU, self.number.into()) } else { vec![whole] };
            parts.into_iter().map(move |part| (speaker, part))
        });
        packets.into_iter().flatten().collect()
    }

    fn message(&self, speaker: Speaker) -> Packet {
        let ip = self.header(speaker);
        let (from, to) = self.ports(speaker);
        let payload = vec![0x55; self.size];
        match self.port.transport {
            Transport::Tcp => self.segment(speaker, flags::ACK | flags::PSH),
            Transport::Udp => ip.udp(from, to, &payload),
            Transport::Sctp => ip.sctp(&match speaker {
                Speaker::Client => Sctp::init(from, to),
                Speaker::Server => Sctp::init_ack(from, to),
            }),
            Transport::Icmp => match speaker {
                Speaker::Client => ip.echo_request(self.number, 1, &payload),
                Speaker::Server => ip.echo_reply(self.number, 1, &payload),
            },
            Transport::Other(number) => ip.packet(number, &payload),
        }
    }

    fn segment(&self, speaker: Speaker, bits: u8) -> Packet {
        let (from, to) = self.ports(speaker);
        self.header(speaker).tcp(&Tcp::new(from, to, bits).numbers(1, 1))
    }

    fn header(&self, speaker: Speaker) -> Ip {
        match speaker {
            Speaker::Client => Ip::new(self.client, self.server),
            Speaker::Server => Ip::new(self.server, self.client),
        }
    }

    fn ports(&self, speaker: Speaker) -> (u16, u16) {
        match speaker {
            Speaker::Client => (self.number, self.port.number),
            Speaker::Server => (self.port.number, self.number),
        }
    }
}
