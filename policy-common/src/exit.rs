//! The judgement that a pod's hook deferred: its egress, once the node has translated the packet.
//!
//! It holds for one packet and remembers nothing, so a policy that tightens cuts at once.

use crate::abi::{EXIT_SIDE, EndpointWord, ROW_OPEN, endpoint_words, host_flags, tag};
use crate::decide::{Maps, NOT_LOCAL, local_index};
use crate::family::Family;
use crate::flow::{FlowWord, State, flow_flags, fragments, key_check};
use crate::packet::{Packet, facts};
use crate::reason::Reason;
use crate::side::Side;
use crate::verdict::Verdict;

/// What a packet that the node sends on has to do with us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaving {
    /// Nothing: no pod's, or judged already.
    Judged,
    /// A pod's, whose judgement was deferred.
    Deferred,
    /// It has no tag: a pod's, if it came in by a pod's interface.
    Untagged,
}

/// Reads the tag. `forwarded` = the packet came in by an interface.
#[inline(always)]
#[must_use]
pub const fn leaving(mark: u16, forwarded: bool) -> Leaving {
    if mark & tag::VALID != 0 {
        if mark & tag::DEFERRED != 0 { Leaving::Deferred } else { Leaving::Judged }
    } else if forwarded {
        Leaving::Untagged
    } else {
        Leaving::Judged
    }
}

/// The egress verdict of the endpoint that sent `packet`, under its word 0. `untagged`: the packet has lost its tag, and
/// with it whether its judgement was deferred. A later fragment gets the ports of its first.
#[inline(always)]
pub fn judge_exit<F: Family, M: Maps<F>>(
    maps: &M,
    word: u64,
    untagged: bool,
    packet: &mut Packet<F::Address>,
) -> Verdict {
    let word = EndpointWord::unpack(word);
    if word.egress_row == ROW_OPEN {
        return Verdict::plain(Reason::NotIsolated);
    }
    let identity = maps.endpoint(endpoint_words::IDENTITY);
    let now = maps.now();
    if packet.is(facts::NEIGHBOUR) {
        return Verdict::plain(Reason::Neighbour);
    }
    if packet.is(facts::FIRST_FRAGMENT | facts::LATER_FRAGMENT)
        && !fragments::<F, M>(maps, identity as u32, EXIT_SIDE, packet, now)
    {
        return Verdict::plain(Reason::FragmentUnknown);
    }
    let there = maps.classify(&packet.destination);
    // A Service that leads back to the pod itself.
    if there.flags & host_flags::JUDGES_ITSELF == 0
        && local_index::<F, M>(maps, &packet.destination) != NOT_LOCAL
    {
        return Verdict::plain(Reason::Allowed);
    }
    if untagged && is_judged::<F, M>(maps, packet) {
        return Verdict::plain(Reason::Established);
    }
    let config = (identity >> 32) as u16;
    // What is sent on is not delivered to the node, and what is not translated is judged by the frontend's own address.
    maps.side(Side {
        row: word.egress_row,
        config,
        class: there.class,
        host: 0,
        protocol: packet.protocol,
        port: packet.destination_port,
        bits: 0,
    })
}

/// Whether the pod's hook has allowed the packet to this very destination: an answer to whoever opened towards the pod,
/// or a packet that nothing has translated.
#[inline(always)]
fn is_judged<F: Family, M: Maps<F>>(maps: &M, packet: &Packet<F::Address>) -> bool {
    let local = local_index::<F, M>(maps, &packet.source);
    let (here, there) = (packet.source_port, packet.destination_port);
    let key = F::key(&packet.destination, here, there, packet.protocol, local);
    let Some(handle) = maps.find(&key) else { return false };
    let entry = FlowWord(maps.word(handle));
    let state = State(maps.state(handle));
    let egress = crate::abi::Direction::Egress;
    entry.allows()
        && entry.flags() & flow_flags::DEFERRED == 0
        && entry.check() == key_check::<F>(&packet.destination, here, there)
        && state.lives(maps, packet.protocol, entry.opener(), egress, maps.now())
}
