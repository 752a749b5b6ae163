//! The decision step: state first, and every packet of a flow judged by the direction that opened it.
//!
//! The kernel object, the in-memory datapath and the tests run this code. Everything is inlined and the tables are
//! searched at one place, because the stack of a BPF program is 512 bytes and LLVM turns code that is called twice
//! into functions with frames of their own.

use crate::abi::{
    CLASS_NONE, Direction, EndpointWord, Flow, HostWord, LocalKey, Outcome, ROW_OPEN, action,
    endpoint_config, endpoint_words, host_flags, tag,
};
use crate::case::{Case, case, opener, window};
use crate::family::Family;
use crate::flow::{FlowMaps, FlowWord, Host, State, flow_flags, fragments, key_check};
use crate::judge::{Judge, Sides, opened_class};
use crate::packet::{Packet, facts, protocol, tcp};
use crate::reason::Reason;
use crate::side::{self, Side};
use crate::tagged;
use crate::verdict::Verdict;

/// Every access that a decision needs.
pub trait Maps<F: Family>: Judge<F> + Sides + FlowMaps<F> + Host {}
impl<F: Family, M: Judge<F> + Sides + FlowMaps<F> + Host> Maps<F> for M {}

/// Index of a local address that is not the endpoint's.
pub(crate) const NOT_LOCAL: u8 = 255;
/// Index of the endpoint's first address of a family.
const FIRST_LOCAL: u8 = 1;
/// Opener of a flow that was met in the middle.
pub(crate) const UNKNOWN: u8 = 0;

/// What holds for one packet from start to end.
pub(crate) struct Step<A> {
    pub(crate) word: EndpointWord,
    pub(crate) direction: Direction,
    pub(crate) remote: A,
    pub(crate) local_port: u16,
    pub(crate) remote_port: u16,
    pub(crate) local: u8,
    pub(crate) config: u16,
    pub(crate) now: u32,
}

/// What the tables said.
struct Judged {
    verdict: Verdict,
    /// Whether an allowed packet may make an entry.
    record: bool,
    /// The packet carries the endpoint's own tag: it left the pod and came back through a Service.
    by_tag: bool,
}

/// What goes into an entry beside the verdict.
struct Next {
    check: u32,
    opened: u32,
    opener: u8,
    state: State,
}

/// The verdict on `packet` at the hook of `direction`, under the endpoint's word 0. A later fragment gets the ports of
/// its first.
#[inline(always)]
pub fn decide<F: Family, M: Maps<F>>(
    maps: &M,
    word: u64,
    direction: Direction,
    packet: &mut Packet<F::Address>,
) -> Verdict {
    match established::<F, M>(maps, word, direction, packet) {
        Some(verdict) => verdict,
        None => decide_slowly::<F, M>(maps, word, direction, packet),
    }
}

/// The short way, which nearly all packets take: an ordinary packet of the endpoint's first address, in the middle of
/// a flow that was allowed under this very word. `None`: [`decide_slowly`] has to say.
#[inline(always)]
pub fn established<F: Family, M: Maps<F>>(
    maps: &M,
    word: u64,
    direction: Direction,
    packet: &Packet<F::Address>,
) -> Option<Verdict> {
    let handshake = packet.protocol == protocol::TCP && packet.flags & tcp::SYN != 0;
    let (here, remote, local_port, remote_port) = ends(packet, direction);
    if packet.facts & !facts::OPENS != 0
        || handshake
        || here != F::first_address(maps)
        || F::wide(&here) == [0; 4]
    {
        return None;
    }
    let key = F::key(&remote, local_port, remote_port, packet.protocol, FIRST_LOCAL);
    let handle = maps.find(&key)?;
    let entry = FlowWord(maps.word(handle));
    let state = State(maps.state(handle));
    let now = maps.now();
    if !entry.allows()
        || entry.epoch() != EndpointWord::unpack(word).epoch
        || entry.check() != key_check::<F>(&remote, local_port, remote_port)
        || !state.lives(maps, packet.protocol, entry.opener(), direction, now)
    {
        return None;
    }
    let next = state.after(packet, entry.opener(), direction, now);
    if next != state {
        maps.touch(handle, next.0);
    }
    Some(continued(entry))
}

/// {own address, remote address, local port, remote port} of a packet.
#[inline(always)]
fn ends<A: Copy>(packet: &Packet<A>, direction: Direction) -> (A, A, u16, u16) {
    if direction as u8 == Direction::Egress as u8 {
        (packet.source, packet.destination, packet.source_port, packet.destination_port)
    } else {
        (packet.destination, packet.source, packet.destination_port, packet.source_port)
    }
}

/// Every packet that does not take the short way.
#[inline(always)]
pub fn decide_slowly<F: Family, M: Maps<F>>(
    maps: &M,
    word: u64,
    direction: Direction,
    packet: &mut Packet<F::Address>,
) -> Verdict {
    if !M::SOCKETS && packet.is(facts::ROUTER) && direction as u8 == Direction::Egress as u8 {
        return Verdict::plain(Reason::RogueNeighbour);
    }
    if packet.is(facts::NEIGHBOUR) {
        return Verdict::plain(Reason::Neighbour);
    }
    let egress = direction as u8 == Direction::Egress as u8;
    let word = EndpointWord::unpack(word);
    let identity = maps.endpoint(endpoint_words::IDENTITY);
    let config = (identity >> 32) as u16;
    let now = maps.now();
    let local = local_index::<F, M>(maps, if egress { &packet.source } else { &packet.destination });
    if egress
        && config & endpoint_config::ANTI_SPOOF != 0
        && (local == NOT_LOCAL || packet.is(facts::FOREIGN_ERROR))
    {
        return Verdict::plain(Reason::SpoofedSource);
    }
    if packet.is(facts::FIRST_FRAGMENT | facts::LATER_FRAGMENT)
        && !fragments::<F, M>(maps, identity as u32, direction as u8, packet, now)
    {
        // Without its first fragment the datagram is never put together: nothing to win by dropping for an open pod.
        let open = word.row(direction) == ROW_OPEN;
        return Verdict::plain(if open { Reason::NotIsolated } else { Reason::FragmentUnknown });
    }
    let (_, remote, local_port, remote_port) = ends(packet, direction);
    let step = Step { word, direction, remote, local_port, remote_port, local, config, now };
    flow::<F, M>(maps, &step, packet, (identity >> 48) as u16)
}

/// Index of an address of the endpoint: 1 for the first of its family.
#[inline(always)]
pub(crate) fn local_index<F: Family, M: Maps<F>>(maps: &M, address: &F::Address) -> u8 {
    let wide = F::wide(address);
    if *address == F::first_address(maps) {
        // The unspecified address is nobody's, also where the endpoint has no address of the family.
        return if wide == [0; 4] { NOT_LOCAL } else { FIRST_LOCAL };
    }
    let key = LocalKey { slot: maps.slot() as u32, family: F::NUMBER as u32, address: wide };
    let index = match maps.local(&key) {
        0 => NOT_LOCAL,
        n => n as u8,
    };
    maps.forget(index as u64) as u8
}

/// From the flow's entry to the verdict.
#[inline(always)]
fn flow<F: Family, M: Maps<F>>(
    maps: &M,
    step: &Step<F::Address>,
    packet: &Packet<F::Address>,
    generation: u16,
) -> Verdict {
    let key = F::key(&step.remote, step.local_port, step.remote_port, packet.protocol, step.local);
    let check = key_check::<F>(&step.remote, step.local_port, step.remote_port);
    let found = maps.find(&key);
    let (mut entry, mut state) = (FlowWord(0), State(0));
    if let Some(handle) = found {
        let w = FlowWord(maps.word(handle));
        let s = State(maps.state(handle));
        if w.check() == check && s.lives(maps, packet.protocol, w.opener(), step.direction, step.now) {
            (entry, state) = (w, s);
        }
    }
    let (entry, state) = (FlowWord(maps.forget(entry.0)), State(maps.forget(state.0)));
    let Some(case) = case::<F, M>(maps, step, packet, entry, state, found) else {
        let open = step.word.row(step.direction) == ROW_OPEN;
        let reason = if packet.is(facts::ERROR) { Reason::IcmpNoFlow } else { Reason::NoFlow };
        return Verdict::plain(if open { Reason::NotIsolated } else { reason });
    };
    let case = Case::from_number(maps.forget(case as u64));
    let mut judged = Judged { verdict: Verdict::undecided(), record: false, by_tag: false };
    if case != Case::Stored {
        let ingress = step.direction as u8 == Direction::Ingress as u8;
        judged.by_tag = ingress && maps.tag() & !tag::DEFERRED == tag::new(maps.slot(), generation);
        // A pod's traffic to itself never crosses its interface, except through a Service.
        if !M::SOCKETS
            && ingress
            && case != Case::Again
            && !judged.by_tag
            && local_index::<F, M>(maps, &step.remote) != NOT_LOCAL
        {
            return Verdict::plain(Reason::SpoofedSource);
        }
        judge::<F, M>(maps, step, packet.protocol, case, entry, &mut judged);
    }
    if !judged.verdict.is_undecided() {
        let opened = match found {
            Some(handle) if case == Case::Again => (maps.origin(handle) >> 32) as u32,
            Some(_) | None => step.word.epoch,
        };
        let next = Next { check, opened, opener: opener(case, entry, step.direction), state };
        return record::<F, M>(maps, step, packet, case, &key, &next, &judged);
    }
    // Only an entry can be undecided: the path says enough about every packet that opens or has no flow.
    let Some(handle) = found else { return Verdict::plain(Reason::Internal) };
    stored::<F, M>(maps, step, packet, handle, entry, state)
}

/// What the flow was told before.
#[inline(always)]
fn stored<F: Family, M: Maps<F>>(
    maps: &M,
    step: &Step<F::Address>,
    packet: &Packet<F::Address>,
    handle: M::Handle,
    entry: FlowWord,
    state: State,
) -> Verdict {
    if !entry.allows() {
        let outcome = Outcome::new(action::DROP, maps.origin(handle) as u32);
        let judged = maps.judged(handle);
        return Verdict::judged(Reason::Revoked, outcome, judged as u16, (judged >> 16) as u16)
            .opened_by(entry.opener());
    }
    if !packet.is(facts::ERROR) {
        let next = state.after(packet, entry.opener(), step.direction, step.now);
        if next != state {
            maps.touch(handle, next.0);
        }
    }
    continued(entry)
}

/// The verdict on a packet of a flow that is allowed.
#[inline(always)]
fn continued(entry: FlowWord) -> Verdict {
    let deferred = entry.flags() & flow_flags::DEFERRED != 0;
    Verdict::plain(Reason::Established).opened_by(entry.opener()).deferred_if(deferred)
}

/// The tables' verdict on the opening direction; on both where the opener is not known.
#[inline(always)]
fn judge<F: Family, M: Maps<F>>(
    maps: &M,
    step: &Step<F::Address>,
    number: u8,
    case: Case,
    entry: FlowWord,
    judged: &mut Judged,
) {
    let opener = opener(case, entry, step.direction);
    let both = opener == UNKNOWN;
    // Nothing to look up for an endpoint that no policy selects.
    let mut peer = if step.word.ingress_row | step.word.egress_row == ROW_OPEN {
        HostWord { check: 0, class: CLASS_NONE, flags: 0 }
    } else {
        maps.classify(&step.remote)
    };
    if step.direction as u8 == Direction::Ingress as u8 && tagged::is_current(maps) {
        if peer.flags & host_flags::OWN_NODE != 0 {
            // Masqueraded by the node, but its tag still says who sent it.
            let sender = maps.classify(&tagged::address::<F, M>(maps));
            peer.class = sender.class;
            peer.flags |= sender.flags & host_flags::JUDGES_ITSELF;
        } else if !judged.by_tag
            && case != Case::Again
            && peer.flags & host_flags::POD != 0
            && !tagged::has::<F, M>(maps, &step.remote)
        {
            // The address of one pod under the tag of another.
            judged.verdict = Verdict::plain(Reason::SpoofedSource);
            return;
        }
    }
    let peer = HostWord::unpack(maps.forget(peer.pack()));
    let mut side = if both { step.direction as u8 } else { opener };
    let (mut first, mut second) = (Verdict(0), Verdict(0));
    for round in 0..2 {
        let v = one_way::<F, M>(maps, step, number, peer, side == Direction::Ingress as u8, judged.by_tag);
        if round == 1 {
            second = v;
            break;
        }
        first = v;
        if !both || case == Case::Middle && !v.passes() {
            break;
        }
        side ^= 3;
    }
    judged.record = true;
    judged.verdict = first;
    match case {
        Case::Stored | Case::Open | Case::Alone | Case::Accept => return,
        // Recording the guess as opener would let a revoked client come back as the receiver of replies; without an
        // entry the packet passes and gives no right to an answer.
        Case::Middle => judged.record = second.passes() || step.config & endpoint_config::REVIVE != 0,
        Case::Again if !both => {}
        Case::Again if first.is_undecided() || second.is_undecided() => {
            judged.verdict = Verdict::undecided();
        }
        Case::Again | Case::PickUp => {
            let either = case == Case::PickUp || window(maps, step.now);
            let differ = first.passes() != second.passes();
            // Where both pass, one side suffices and needs no more judgement, or both are needed and one does.
            let better = (differ & (first.passes() == either)) | (!differ & (first.is_deferred() != either));
            judged.verdict = Verdict(maps.forget(if better { first.0 } else { second.0 }));
        }
    }
    let v = judged.verdict;
    if !v.passes() && !v.is_undecided() && v.reason_number() != Reason::PolicyPending as u8 {
        judged.verdict = v.because(if case == Case::Again { Reason::Revoked } else { Reason::NoFlow });
    }
}

/// The tables' verdict on one opening direction.
#[inline(always)]
fn one_way<F: Family, M: Maps<F>>(
    maps: &M,
    step: &Step<F::Address>,
    protocol: u8,
    peer: HostWord,
    ingress: bool,
    by_tag: bool,
) -> Verdict {
    let on_the_way_in = step.direction as u8 == Direction::Ingress as u8;
    maps.side(Side {
        row: if ingress { step.word.ingress_row } else { step.word.egress_row },
        config: step.config,
        class: if ingress { peer.class } else { opened_class(peer) },
        host: peer.flags,
        protocol,
        port: if ingress { step.local_port } else { step.remote_port },
        bits: (ingress as u8 * side::INGRESS)
            | (on_the_way_in as u8 * side::ON_THE_WAY_IN)
            | (by_tag as u8 * side::BY_TAG),
    })
}

/// Stores what was judged, and gives the verdict its opener.
#[inline(always)]
fn record<F: Family, M: Maps<F>>(
    maps: &M,
    step: &Step<F::Address>,
    packet: &Packet<F::Address>,
    case: Case,
    key: &F::Key,
    next: &Next,
    judged: &Judged,
) -> Verdict {
    let verdict = judged.verdict.opened_by(next.opener).counted();
    let again = case == Case::Again;
    let reset = packet.protocol == protocol::TCP && packet.flags & tcp::RST != 0;
    // A cut flow stays as such, so that it is named once and not judged at every packet.
    if !again && (!verdict.passes() || !judged.record || reset || case == Case::Alone) {
        return verdict;
    }
    let mut state = if again { next.state } else { State(0) };
    if verdict.passes() && !packet.is(facts::ERROR) {
        state = state.after(packet, next.opener, step.direction, step.now);
    }
    let flags = if judged.by_tag { flow_flags::BY_TAG } else { 0 }
        | (verdict.is_deferred() as u8 * flow_flags::DEFERRED);
    let flow = Flow {
        word: FlowWord::new(step.word.epoch, next.check, verdict.action(), next.opener, flags).0,
        seen: state.seen(),
        tcp: (state.0 >> 32) as u8,
        fins: (state.0 >> 40) as u8,
        proxy_port: (state.0 >> 48) as u16,
        rule: verdict.rule(),
        opened: next.opened,
        class: verdict.class(),
        rule_set: verdict.rule_set(),
        reserved: 0,
    };
    maps.put(key, &flow);
    if again { verdict } else { verdict.recorded() }
}
