//! Keys and values of every kernel map: layout, limits, and the packing of the words that change while packets run.
//!
//! All integers are in host order except addresses and ports inside packets (network order). Every type is `repr(C)`
//! without padding; its size is asserted at the bottom of this file.

mod cgroup;
mod flows;
pub mod limits;

pub use cgroup::{CGROUP_LEVELS, Cgroup};
pub use flows::{
    ANY_SLOT, EXIT_SIDE, Flow, FlowKey4, FlowKey6, Fragment, FragmentKey, LocalKey, path, ports,
};

/// Row 0: the endpoint is not isolated in that direction.
pub const ROW_OPEN: u16 = 0;
/// Row 1: every cell is 0, so nothing that policy decides may pass.
pub const ROW_CLOSED: u16 = 1;
/// Class of addresses that match no atom.
pub const CLASS_NONE: u16 = 0;

/// Direction of a packet or of the opening of a flow, seen from the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Direction {
    /// Towards the pod: tc egress of the host side of its interface.
    Ingress = 1,
    /// From the pod: tc ingress of the host side of its interface.
    Egress = 2,
}

impl Direction {
    /// The opposite direction.
    #[inline(always)]
    #[must_use]
    pub const fn reverse(self) -> Self {
        match self {
            Self::Ingress => Self::Egress,
            Self::Egress => Self::Ingress,
        }
    }
    /// Name in the API's words.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// Word 0 of an endpoint: what decides its packets, changed by one store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointWord {
    /// Raised at every change that may alter a verdict; stored in flows.
    pub epoch: u32,
    /// Row that judges what others open towards the pod.
    pub ingress_row: u16,
    /// Row that judges what the pod opens.
    pub egress_row: u16,
}

impl EndpointWord {
    /// The word as the kernel reads it.
    #[inline(always)]
    #[must_use]
    pub const fn pack(self) -> u64 {
        self.epoch as u64 | (self.ingress_row as u64) << 32 | (self.egress_row as u64) << 48
    }
    /// Inverse of [`EndpointWord::pack`].
    #[inline(always)]
    #[must_use]
    pub const fn unpack(word: u64) -> Self {
        Self { epoch: word as u32, ingress_row: (word >> 32) as u16, egress_row: (word >> 48) as u16 }
    }
    /// Row of the direction.
    #[inline(always)]
    #[must_use]
    pub const fn row(self, direction: Direction) -> u16 {
        match direction {
            Direction::Ingress => self.ingress_row,
            Direction::Egress => self.egress_row,
        }
    }
}

/// Words of an endpoint's value (8 x u64). Words 2 to 6 are written before the slot goes live.
pub mod endpoint_words {
    /// {epoch 32, ingress row 16, egress row 16}.
    pub const POLICY: u32 = 0;
    /// {keep from epoch 32, shadow ingress row 16, shadow egress row 16}; reserved for `keep` and audit.
    pub const KEEP: u32 = 1;
    /// {endpoint id 32, configuration 16, slot generation 16}.
    pub const IDENTITY: u32 = 2;
    /// {first IPv4 address in network order 32, pick-up window ends at tick 32}.
    pub const ADDRESS4: u32 = 3;
    /// First half of the first IPv6 address, see [`super::address_words`].
    pub const ADDRESS6_HIGH: u32 = 4;
    /// Second half of the first IPv6 address.
    pub const ADDRESS6_LOW: u32 = 5;
    /// {interface index 32, reserved 32}.
    pub const INTERFACE: u32 = 6;
    /// Always 0. The programs add it to numbers whose range the verifier has to forget.
    pub const ZERO: u32 = 7;
    /// Number of words.
    pub const COUNT: u32 = 8;
}

/// Configuration bits of an endpoint (word 2, bits 32 to 47).
pub mod endpoint_config {
    /// Drop packets whose source is not an address of the pod.
    pub const ANTI_SPOOF: u16 = 1;
    /// The policy is not known yet.
    pub const PENDING: u16 = 2;
    /// A revoked flow that lost its entry may come back as *unknown* recorded flow.
    pub const REVIVE: u16 = 4;
    /// Keep established flows when the policy tightens.
    pub const KEEP: u16 = 8;
    /// Traffic masqueraded by the own node is allowed like the node's own.
    pub const MASQUERADED_ALLOW: u16 = 16;
    /// The endpoint is a control group: its sockets are judged, at no interface.
    pub const SOCKETS: u16 = 32;
    /// Packets between loopback addresses are judged too (of a control group).
    pub const JUDGE_LOOPBACK: u16 = 64;
    /// What its own node and it say to each other is allowed, as at an interface (of a control group that is a pod's).
    pub const NODE_PASSES: u16 = 128;
}

/// The word of a host or prefix slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostWord {
    /// [`crate::family::Family::check`] of the address; 0 for prefixes.
    pub check: u32,
    /// Class, below [`limits::CLASSES`].
    pub class: u16,
    /// Bits of [`host_flags`].
    pub flags: u16,
}

impl HostWord {
    /// The word as the kernel reads it.
    #[inline(always)]
    #[must_use]
    pub const fn pack(self) -> u64 {
        self.check as u64 | (self.class as u64) << 32 | (self.flags as u64) << 48
    }
    /// Inverse of [`HostWord::pack`].
    #[inline(always)]
    #[must_use]
    pub const fn unpack(word: u64) -> Self {
        Self { check: word as u32, class: (word >> 32) as u16, flags: (word >> 48) as u16 }
    }
}

/// Facts about an address, beside its class. Never identities.
pub mod host_flags {
    /// Configured in the host's network namespace.
    pub const OWN_NODE: u16 = 1;
    /// Address of another node.
    pub const NODE: u16 = 2;
    /// Frontend of a Service: egress towards it is judged where the destination is real.
    pub const FRONTEND: u16 = 4;
    /// Learned by DNS (reserved).
    pub const FQDN: u16 = 8;
    /// Address of a pod.
    pub const POD: u16 = 16;
    /// Beside [`OWN_NODE`]: some of its ports lead elsewhere, so what a pod opens to it is judged by the class in the
    /// word. What comes from it has the class of its prefix all the same.
    pub const NODE_PORTS: u16 = 32;
    /// Of a pod of this node: what reaches it from itself through a Service is judged like anything else.
    pub const JUDGES_ITSELF: u16 = 64;
}

/// The word of an interface: {interface index 32, slot 16, kind 8, flags 8}.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InterfaceWord {
    /// Must equal the packet's interface index.
    pub ifindex: u32,
    /// Endpoint slot, of a pod's interface.
    pub slot: u16,
    /// One of [`interface_kind`].
    pub kind: u8,
    /// Bits of [`interface_flags`].
    pub flags: u8,
}

impl InterfaceWord {
    /// The word as the kernel reads it.
    #[inline(always)]
    #[must_use]
    pub const fn pack(self) -> u64 {
        self.ifindex as u64 | (self.slot as u64) << 32 | (self.kind as u64) << 48 | (self.flags as u64) << 56
    }
    /// Inverse of [`InterfaceWord::pack`].
    #[inline(always)]
    #[must_use]
    pub const fn unpack(word: u64) -> Self {
        Self {
            ifindex: word as u32,
            slot: (word >> 32) as u16,
            kind: (word >> 48) as u8,
            flags: (word >> 56) as u8,
        }
    }
}

/// What an interface is to us.
pub mod interface_kind {
    /// Not hooked.
    pub const NONE: u8 = 0;
    /// Host side of a pod's interface.
    pub const POD: u8 = 1;
    /// Any other device of the host: what leaves by it is judged there if its judgement was deferred.
    pub const EXIT: u8 = 2;
}

/// Facts about an interface.
pub mod interface_flags {
    /// A bridge with ports of pods: before Linux 6.12 it stands in for them as the interface of arrival.
    pub const BRIDGE: u8 = 1;
    /// Its packets begin with the IP header.
    pub const NO_ETHERNET: u8 = 2;
    /// Its other end is in another network namespace of this kernel: what is noted on a packet would cross with it, and
    /// mean something else there.
    pub const LEADS_AWAY: u8 = 4;
    /// A pod's, whose hooks are not both in place yet: what comes from it without a tag has not lost one.
    pub const ATTACHING: u8 = 8;
}

/// Outcome stored in intervals, rule sets and flows: {action 4, flags 4, rule id 24}.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Outcome(pub u32);

impl Outcome {
    /// Nothing matched: drop, no rule.
    pub const DROP: Self = Self(0);
    /// Builds an outcome. `rule` has 24 bits; 0 = no rule.
    #[inline(always)]
    #[must_use]
    pub const fn new(action: u8, rule: u32) -> Self {
        Self(action as u32 & 15 | (rule & 0xff_ffff) << 8)
    }
    /// One of [`action`].
    #[inline(always)]
    #[must_use]
    pub const fn action(self) -> u8 {
        (self.0 & 15) as u8
    }
    /// Rule id, 0 = none.
    #[inline(always)]
    #[must_use]
    pub const fn rule(self) -> u32 {
        self.0 >> 8
    }
}

/// Actions of an [`Outcome`]. Values above ALLOW are reserved and treated as drop.
pub mod action {
    /// Drop silently.
    pub const DROP: u8 = 0;
    /// Pass.
    pub const ALLOW: u8 = 1;
    /// Answer with an error (reserved).
    pub const REJECT: u8 = 2;
    /// Send to a proxy (reserved).
    pub const REDIRECT: u8 = 3;
}

/// A rule set: immutable once a cell points to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct RuleSet {
    /// First interval; TCP, UDP and SCTP intervals follow each other.
    pub base: u32,
    /// Number of TCP intervals.
    pub n_tcp: u16,
    /// Number of UDP intervals.
    pub n_udp: u16,
    /// Number of SCTP intervals.
    pub n_sctp: u16,
    /// Always 0.
    pub pad: u16,
    /// Outcome of every other protocol.
    pub other: Outcome,
    /// Outcome of TCP, UDP and SCTP ports outside all intervals.
    pub default: Outcome,
    /// Checksum of the record and its intervals, for self-checks.
    pub crc: u32,
}

/// One port interval: {low 16, high 16, outcome 32}, both ends included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Interval {
    /// First port.
    pub low: u16,
    /// Last port.
    pub high: u16,
    /// What happens to a packet to one of these ports.
    pub outcome: Outcome,
}

impl Interval {
    /// The word as the kernel reads it.
    #[inline(always)]
    #[must_use]
    pub const fn pack(self) -> u64 {
        self.low as u64 | (self.high as u64) << 16 | (self.outcome.0 as u64) << 32
    }
    /// Inverse of [`Interval::pack`].
    #[inline(always)]
    #[must_use]
    pub const fn unpack(word: u64) -> Self {
        Self { low: word as u16, high: (word >> 16) as u16, outcome: Outcome((word >> 32) as u32) }
    }
}

/// Value of `EPSTAT`, per CPU and slot: token bucket of events and what it held back.
///
/// `dropped` = events that reached the ring + `suppressed` + `ring_full`. Slot 0 is the CPU's own: its tokens bound
/// all endpoints together, and `flows` numbers the records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct EndpointStat {
    /// Tokens left.
    pub tokens: u32,
    /// Low half of the jiffies at the last refill.
    pub refilled: u32,
    /// Events held back by the bucket since the slot went live.
    pub suppressed: u64,
    /// Events lost because the ring was full.
    pub ring_full: u64,
    /// Flows recorded.
    pub flows: u64,
    /// Packets dropped.
    pub dropped: u64,
    /// Packets that the tables judged (first packets and re-judgements).
    pub judged: u64,
    /// Suppressed since the last event that reached the ring.
    pub suppressed_since: u64,
    /// Verdict events of allowed flows that were held back or did not fit.
    pub verdicts_lost: u64,
}

/// Value of `COUNTERS` and `RULE_HITS`, per CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counter {
    /// Packets (or flows, for rules).
    pub packets: u64,
    /// Bytes of those packets.
    pub bytes: u64,
}

/// Index into `COUNTERS`.
#[inline(always)]
#[must_use]
pub const fn counter_index(reason: crate::reason::Reason, direction: Direction) -> u32 {
    reason as u32 * 2 + (direction as u32 - 1)
}

/// Index into `COUNTERS` for packets on an interface that has no interface word: they pass unjudged.
#[inline(always)]
#[must_use]
pub const fn counter_unhooked(direction: Direction) -> u32 {
    (limits::REASONS - 1) * 2 + (direction as u32 - 1)
}

/// Index into `COUNTERS` for packets of a hooked pod that have lost their tag: at an exit device (egress), at another
/// pod's interface (ingress).
#[inline(always)]
#[must_use]
pub const fn counter_untagged(direction: Direction) -> u32 {
    (limits::REASONS - 2) * 2 + (direction as u32 - 1)
}

/// A tick is 2^8 jiffies: all times in flows, fragments and endpoint words are ticks.
pub const TICK_SHIFT: u32 = 8;
/// Jiffies per second, assumed while `META` does not say.
pub const DEFAULT_HZ: u32 = 250;

/// `skb->tc_index` of a packet that came from a pod: {valid 1, deferred 1, slot generation 4, slot 10}.
pub mod tag {
    /// The tag is ours.
    pub const VALID: u16 = 1 << 15;
    /// The egress is still to be judged, where the destination is real.
    pub const DEFERRED: u16 = 1 << 14;

    /// The tag of an endpoint's packets.
    #[inline(always)]
    #[must_use]
    pub const fn new(slot: u16, generation: u16) -> u16 {
        VALID | (generation & 15) << 10 | slot & 0x3ff
    }

    /// Slot that a tag names.
    #[inline(always)]
    #[must_use]
    pub const fn slot(tag: u16) -> u16 {
        tag & 0x3ff
    }
}

/// The two words of an endpoint's IPv6 address, from its bytes in network order.
#[must_use]
pub const fn address_words(a: [u8; 16]) -> (u64, u64) {
    let high = [a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]];
    let low = [a[8], a[9], a[10], a[11], a[12], a[13], a[14], a[15]];
    (u64::from_ne_bytes(high), u64::from_ne_bytes(low))
}

/// Words of `META` (8 x u64).
pub mod meta_words {
    /// Format of the maps.
    pub const FORMAT: u32 = 0;
    /// Number of the last plan committed.
    pub const PLAN: u32 = 1;
    /// Next endpoint id.
    pub const NEXT_ENDPOINT: u32 = 2;
    /// Jiffies per second (`CONFIG_HZ`), 0 = [`super::DEFAULT_HZ`]. User space reads it as the resolution of
    /// `CLOCK_MONOTONIC_COARSE`.
    pub const HZ: u32 = 3;
    /// Bits of [`super::meta_flags`].
    pub const FLAGS: u32 = 4;
    /// Level of the deepest control group that is an endpoint; the root has level 0.
    pub const CGROUP_LEVEL: u32 = 5;
    /// Number of words.
    pub const COUNT: u32 = 8;
}

/// Switches for all endpoints (word 4 of `META`).
pub mod meta_flags {
    /// Report the verdict of each new allowed flow.
    pub const VERDICTS: u64 = 1;
    /// Traffic to Services was judged at the pod's hook: where a packet has lost its tag, nothing is left to be judged.
    pub const BACKENDS: u64 = 2;
}

const _: () = {
    assert!(size_of::<Cgroup>() == 24);
    assert!(size_of::<RuleSet>() == 24);
    assert!(size_of::<LocalKey>() == 24);
    assert!(size_of::<FlowKey4>() == 12);
    assert!(size_of::<FlowKey6>() == 24);
    assert!(size_of::<Flow>() == 32);
    assert!(size_of::<FragmentKey>() == 44);
    assert!(size_of::<Fragment>() == 12);
    assert!(size_of::<EndpointStat>() == 64);
    assert!(size_of::<Counter>() == 16);
    assert!(limits::CLASSES.is_power_of_two() && limits::ROWS.is_power_of_two());
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_round_trip() {
        let e = EndpointWord { epoch: 0xdead_beef, ingress_row: 511, egress_row: 2 };
        assert_eq!(EndpointWord::unpack(e.pack()), e);
        let h = HostWord { check: 0x0100_007f, class: 4095, flags: host_flags::OWN_NODE | host_flags::POD };
        assert_eq!(HostWord::unpack(h.pack()), h);
        let i = InterfaceWord { ifindex: 70_000, slot: 1023, kind: interface_kind::POD, flags: 0 };
        assert_eq!(InterfaceWord::unpack(i.pack()), i);
        let v = Interval { low: 1, high: 65_535, outcome: Outcome::new(action::ALLOW, 0xff_fffe) };
        assert_eq!(Interval::unpack(v.pack()), v);
        assert_eq!((v.outcome.action(), v.outcome.rule()), (action::ALLOW, 0xff_fffe));
    }
}
