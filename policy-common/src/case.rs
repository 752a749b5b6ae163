//! What is to be done with a packet before the tables are asked: from its flow, if it has one, and its flags.

use crate::abi::{Direction, endpoint_config, endpoint_words};
use crate::decide::{Maps, Step, UNKNOWN};
use crate::family::Family;
use crate::flow::{FlowWord, Host, State, flow_flags, window_open};
use crate::packet::{Packet, facts, protocol, tcp};

/// What is to be done with a packet before the tables are asked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Case {
    /// Its flow is known, and what it was told still holds.
    Stored,
    /// Its flow is known and must be judged again.
    Again,
    /// It opens a flow.
    Open,
    /// A SYN against a living flow of the other side: judged alone, the flow stays.
    Alone,
    /// The pod accepts a connection over a flow that it had opened itself.
    Accept,
    /// In the middle of an unknown flow.
    Middle,
    /// The same, while the endpoint picks up the flows that it had before it was hooked.
    PickUp,
}

impl Case {
    #[inline(always)]
    pub(crate) const fn from_number(number: u64) -> Self {
        match number {
            0 => Self::Stored,
            1 => Self::Again,
            2 => Self::Open,
            3 => Self::Alone,
            4 => Self::Accept,
            5 => Self::Middle,
            _ => Self::PickUp,
        }
    }
}

/// Which case a packet is; `None`: it needs a flow and has none.
#[inline(always)]
pub(crate) fn case<F: Family, M: Maps<F>>(
    maps: &M,
    step: &Step<F::Address>,
    packet: &Packet<F::Address>,
    entry: FlowWord,
    state: State,
    found: Option<M::Handle>,
) -> Option<Case> {
    let handshake = if packet.protocol == protocol::TCP && !packet.is(facts::ERROR) {
        packet.flags & (tcp::SYN | tcp::ACK)
    } else {
        0
    };
    let accept = handshake == tcp::SYN | tcp::ACK;
    let egress = step.direction as u8 == Direction::Egress as u8;
    if entry.0 == 0 {
        if packet.is(facts::ERROR) {
            return None;
        }
        if packet.is(facts::OPENS) {
            return Some(Case::Open);
        }
        if window(maps, step.now) {
            return Some(Case::PickUp);
        }
        // Our own SYN would have made an entry.
        return if accept && !egress { None } else { Some(Case::Middle) };
    }
    if handshake == tcp::SYN {
        // Never a reply. A flow that is closing or cut is not alive any more.
        let other = entry.opener() != step.direction as u8;
        return Some(if other && entry.allows() && !state.closing() { Case::Alone } else { Case::Open });
    }
    if accept && egress && entry.opener() == Direction::Egress as u8 {
        return Some(Case::Accept);
    }
    if entry.epoch() == step.word.epoch {
        return Some(Case::Stored);
    }
    if step.config & endpoint_config::KEEP != 0
        && entry.allows()
        && let Some(handle) = found
    {
        let opened = (maps.origin(handle) >> 32) as u32;
        if opened.wrapping_sub(maps.endpoint(endpoint_words::KEEP) as u32) as i32 >= 0 {
            return Some(Case::Stored);
        }
    }
    // What was allowed by its tag is judged again when the next tag comes by.
    let by_tag = entry.flags() & flow_flags::BY_TAG != 0 && egress;
    Some(if by_tag { Case::Stored } else { Case::Again })
}

/// Whether the endpoint's pick-up window is open.
#[inline(always)]
pub(crate) fn window<H: Host>(host: &H, now: u32) -> bool {
    window_open(now, (host.endpoint(endpoint_words::ADDRESS4) >> 32) as u32)
}

/// Who opened the flow that a packet belongs to.
#[inline(always)]
pub(crate) fn opener(case: Case, entry: FlowWord, direction: Direction) -> u8 {
    match case {
        Case::Stored | Case::Again => entry.opener(),
        Case::Open | Case::Alone => direction as u8,
        Case::Accept => Direction::Ingress as u8,
        Case::Middle | Case::PickUp => UNKNOWN,
    }
}
