//! The flow step: what an entry remembers, when it ends, and how a packet moves it on.

use crate::abi::{
    DEFAULT_HZ, Direction, Flow, Fragment, FragmentKey, LocalKey, TICK_SHIFT, action, meta_words,
};
use crate::family::Family;
use crate::packet::{Packet, facts, protocol, tcp};

/// State of one endpoint's flows. Values come back by value: an element of an LRU map is recycled under its reader.
pub trait FlowMaps<F: Family> {
    /// An entry that was found.
    type Handle: Copy;
    /// Looks an entry up.
    fn find(&self, key: &F::Key) -> Option<Self::Handle>;
    /// Word 0 of the entry: [`FlowWord`].
    fn word(&self, entry: Self::Handle) -> u64;
    /// Word 1 of the entry: [`State`].
    fn state(&self, entry: Self::Handle) -> u64;
    /// Word 2 of the entry: {rule 32, opened 32}.
    fn origin(&self, entry: Self::Handle) -> u64;
    /// Word 3 of the entry: {class 16, rule set 16, reserved 32}.
    fn judged(&self, entry: Self::Handle) -> u64;
    /// Stores word 1 in place. If the element was recycled meanwhile, another flow of the endpoint gets a time or a
    /// closing mark that its opener's next packet removes; verdicts are stored by key only.
    fn touch(&self, entry: Self::Handle, state: u64);
    /// Stores an entry by key.
    fn put(&self, key: &F::Key, flow: &Flow);
    /// Index of a further address of the endpoint, 0 when it has no such address.
    fn local(&self, key: &LocalKey) -> u32;
    /// Ports of a datagram's first fragment.
    fn fragment(&self, key: &FragmentKey) -> Option<Fragment>;
    /// Stores the ports of a first fragment.
    fn put_fragment(&self, key: &FragmentKey, value: &Fragment);
}

/// The endpoint and the path of the packet.
pub trait Host {
    /// Whether the endpoint is a group of sockets and not an interface: both ends of its packets may be addresses that
    /// it counts as its own, and nobody can forge the address of a socket.
    const SOCKETS: bool = false;
    /// Slot of the endpoint.
    fn slot(&self) -> u16;
    /// A word of the endpoint ([`crate::abi::endpoint_words`]); word 0 is read once, by the caller.
    fn endpoint(&self, word: u32) -> u64;
    /// A word of `META`.
    fn meta(&self, word: u32) -> u64;
    /// Current tick.
    fn now(&self) -> u32;
    /// Tag of the packet ([`crate::abi::tag`]).
    fn tag(&self) -> u16;
    /// A word of the endpoint that the packet's tag names, 0 when there is none.
    fn tagged(&self, word: u32) -> u64;
    /// `value`. In the kernel the verifier loses what it knew of it: see [`crate::packet::Bytes::forget`].
    #[inline(always)]
    fn forget(&self, value: u64) -> u64 {
        value
    }
}

/// Word 0 of an entry: {epoch 32, check 18, action 4, opener 2, flags 8}. 0 = no entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowWord(pub u64);

/// Bits of a flow word's flags.
pub mod flow_flags {
    /// Set in every entry, so that no entry is 0.
    pub const PRESENT: u8 = 1;
    /// Allowed by the tag of the endpoint itself: only packets with a tag can judge it again.
    pub const BY_TAG: u8 = 2;
    /// Towards a Service or the own node: each packet is judged where its destination is real.
    pub const DEFERRED: u8 = 4;
    /// Keep when a learned name expires (reserved).
    pub const KEEP_ON_LOSS: u8 = 8;
}

impl FlowWord {
    /// Builds the word.
    #[inline(always)]
    #[must_use]
    pub const fn new(epoch: u32, check: u32, action: u8, opener: u8, flags: u8) -> Self {
        let flags = (flags | flow_flags::PRESENT) as u64;
        Self(
            epoch as u64
                | (check as u64 & 0x3ffff) << 32
                | (action as u64 & 15) << 50
                | (opener as u64 & 3) << 54
                | flags << 56,
        )
    }
    /// Epoch of the endpoint's word that judged the flow.
    #[inline(always)]
    #[must_use]
    pub const fn epoch(self) -> u32 {
        self.0 as u32
    }
    /// What the word repeats of its key.
    #[inline(always)]
    #[must_use]
    pub const fn check(self) -> u32 {
        (self.0 >> 32) as u32 & 0x3ffff
    }
    /// One of [`action`].
    #[inline(always)]
    #[must_use]
    pub const fn action(self) -> u8 {
        (self.0 >> 50) as u8 & 15
    }
    /// Whether the flow passes.
    #[inline(always)]
    #[must_use]
    pub const fn allows(self) -> bool {
        self.action() == action::ALLOW
    }
    /// A [`Direction`] as a number, 0 = not known.
    #[inline(always)]
    #[must_use]
    pub const fn opener(self) -> u8 {
        (self.0 >> 54) as u8 & 3
    }
    /// Bits of [`flow_flags`].
    #[inline(always)]
    #[must_use]
    pub const fn flags(self) -> u8 {
        (self.0 >> 56) as u8
    }
}

/// Eighteen bits over the key: an element that was recycled between look-up and read belongs to another key.
#[inline(always)]
pub fn key_check<F: Family>(remote: &F::Address, local_port: u16, remote_port: u16) -> u32 {
    let ports = (local_port as u32) << 16 | remote_port as u32;
    (F::check(remote).wrapping_mul(0x9e37_79b1) ^ ports).wrapping_mul(0x85eb_ca6b) >> 14
}

/// Word 1 of an entry: {seen 32, marks 8, sides that sent FIN 8, proxy port 16}.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State(pub u64);

/// A reset was seen.
const RESET: u8 = 1;
/// The other side answered (not for TCP).
const ANSWERED: u8 = 2;

/// Seconds that a closing TCP flow still passes packets of the side that did not open it.
const CLOSING_SECONDS: u32 = 10;
/// Seconds without a packet after which a datagram flow ends that was answered.
const ANSWERED_SECONDS: u32 = 180;
/// The same for one that was not answered, and for ICMP.
const UNANSWERED_SECONDS: u32 = 30;
/// Seconds for which the ports of a first fragment hold: the longest reassembly time in use (IPv4: 30, IPv6: 60).
const FRAGMENT_SECONDS: u32 = 60;

impl State {
    /// Tick of the last accepted packet.
    #[inline(always)]
    #[must_use]
    pub const fn seen(self) -> u32 {
        self.0 as u32
    }
    #[inline(always)]
    const fn marks(self) -> u8 {
        (self.0 >> 32) as u8
    }
    #[inline(always)]
    const fn fins(self) -> u8 {
        (self.0 >> 40) as u8
    }
    /// Whether the connection was reset, or both sides sent FIN. It never denies by itself: a blind RST or FIN would
    /// end a connection that its two ends keep.
    #[inline(always)]
    #[must_use]
    pub const fn closing(self) -> bool {
        self.marks() & RESET != 0 || self.fins() == 3
    }

    /// Whether an entry in this state still counts for a packet in `direction`.
    #[inline(always)]
    pub fn lives<H: Host>(self, host: &H, number: u8, opener: u8, direction: Direction, now: u32) -> bool {
        let seconds = match number {
            // No idle time-out: the map is the endpoint's own. The opener may always revive a closing connection.
            protocol::TCP if !self.closing() || opener == 0 || opener == direction as u8 => return true,
            protocol::TCP => CLOSING_SECONDS,
            protocol::SCTP => return true,
            protocol::ICMP | protocol::ICMP6 => UNANSWERED_SECONDS,
            _ if self.marks() & ANSWERED != 0 => ANSWERED_SECONDS,
            _ => UNANSWERED_SECONDS,
        };
        !older(host, now, self.seen(), seconds)
    }

    /// The state after an accepted packet.
    #[inline(always)]
    #[must_use]
    pub fn after<A>(self, packet: &Packet<A>, opener: u8, direction: Direction, now: u32) -> Self {
        let by_opener = opener == 0 || opener == direction as u8;
        let (mut marks, mut fins) = (self.marks(), self.fins());
        if packet.protocol == protocol::TCP {
            if packet.flags & tcp::FIN != 0 {
                fins |= direction as u8;
            }
            if packet.flags & tcp::RST != 0 {
                marks |= RESET;
            } else if by_opener {
                marks &= !RESET;
            }
        } else if !by_opener {
            marks |= ANSWERED;
        }
        let seen = if self.closing() && !by_opener { self.seen() } else { now };
        Self(seen as u64 | (marks as u64) << 32 | (fins as u64) << 40 | self.0 & 0xffff << 48)
    }
}

/// Whether more than `seconds` have passed between two ticks.
#[inline(always)]
fn older<H: Host>(host: &H, now: u32, since: u32, seconds: u32) -> bool {
    // Another processor may have stored a tick that began after `now` was read.
    let ticks = now.wrapping_sub(since) as i32;
    // Fewer ticks than at the lowest rate, 100 Hz: no need to know the rate.
    if ticks <= ((seconds * 100) >> TICK_SHIFT) as i32 {
        return false;
    }
    let hz = host.meta(meta_words::HZ) as u32;
    let hz = if hz == 0 { DEFAULT_HZ } else { hz };
    ticks as u64 > (seconds as u64 * hz as u64) >> TICK_SHIFT
}

/// Whether the pick-up window, which ends at tick `until`, is open. 0 = it never was.
#[inline(always)]
#[must_use]
pub const fn window_open(now: u32, until: u32) -> bool {
    until != 0 && (until.wrapping_sub(now) as i32) > 0
}

/// Remembers the ports of a first fragment, seen at `side` (as in [`FragmentKey`]); gives a later one the ports and the
/// protocol of its first. `false`: the first was not seen.
#[inline(always)]
pub fn fragments<F: Family, M: FlowMaps<F> + Host>(
    maps: &M,
    endpoint: u32,
    side: u8,
    packet: &mut Packet<F::Address>,
    now: u32,
) -> bool {
    // IPv6 reassembles by addresses and identification alone; the protocol of a later fragment is not known.
    let number = if F::NUMBER == 6 { 0 } else { packet.protocol };
    let key = FragmentKey {
        endpoint,
        id: packet.fragment,
        protocol: number,
        direction: side,
        family: F::NUMBER as u16,
        source: F::wide(&packet.source),
        destination: F::wide(&packet.destination),
    };
    if packet.is(facts::FIRST_FRAGMENT) {
        let value = Fragment {
            source_port: packet.source_port,
            destination_port: packet.destination_port,
            seen: now,
            protocol: packet.protocol,
            pad: [0; 3],
        };
        maps.put_fragment(&key, &value);
        return true;
    }
    let Some(first) = maps.fragment(&key) else { return false };
    if older(maps, now, first.seen, FRAGMENT_SECONDS) {
        return false;
    }
    packet.source_port = first.source_port;
    packet.destination_port = first.destination_port;
    packet.protocol = first.protocol;
    true
}
