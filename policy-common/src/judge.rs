//! P[opener]: the current policy's verdict for the opening direction of a flow, by table look-ups alone.

use crate::abi::{CLASS_NONE, HostWord, Interval, Outcome, ROW_OPEN, RuleSet, action, host_flags};
use crate::family::Family;
use crate::side::Side;
use crate::verdict::Verdict;

/// Steps of the binary search: enough for [`crate::abi::limits::INTERVALS_PER_SET`] intervals.
pub const SEARCH_STEPS: u32 = 10;

/// The compiled tables. Values come back by value, so that no reference into a live map exists.
pub trait PolicyMaps<F: Family> {
    /// Slot of a host's word, 0 when the address is not known.
    fn host(&self, address: &F::Address) -> u32;
    /// Slot of the longest matching prefix's word, 0 when none matches.
    fn prefix(&self, address: &F::Address) -> u32;
    /// A host word ([`HostWord`]), 0 when the slot does not exist.
    fn host_word(&self, slot: u32) -> u64;
    /// Rule set id of a cell, 0 = nothing matched.
    fn cell(&self, row: u16, class: u16) -> u16;
    /// A rule set.
    fn rule_set(&self, id: u16) -> Option<RuleSet>;
    /// An interval ([`Interval`]).
    fn interval(&self, index: u32) -> u64;
}

/// Who an address is. The kernel answers this and the next question by functions of their own, which
/// the verifier walks once and not for every path of the decision.
pub trait Judge<F: Family> {
    /// [`classify`].
    fn classify(&self, address: &F::Address) -> HostWord;
}

/// The question that joins them with the path of the packet.
pub trait Sides {
    /// [`crate::side::judge_side`].
    fn side(&self, side: Side) -> Verdict;
}

impl<F: Family, M: PolicyMaps<F>> Judge<F> for M {
    #[inline(always)]
    fn classify(&self, address: &F::Address) -> HostWord {
        classify::<F, Self>(self, address)
    }
}

/// What the tables say of an address: class and flags. An address of the own node has the class of its prefix: its
/// own processes are known by the packet's path, and what else carries the address was masqueraded by the node and may
/// come from anywhere. The class of its word, see [`opened_class`], is what a pod that opens to it is judged by.
#[inline(always)]
pub fn classify<F: Family, M: PolicyMaps<F>>(maps: &M, address: &F::Address) -> HostWord {
    let (mut flags, mut own) = (0, 0);
    let slot = maps.host(address);
    if slot != 0 {
        let word = HostWord::unpack(maps.host_word(slot));
        // The slot may have been given to another address between the two look-ups.
        if word.check == F::check(address) {
            if word.flags & host_flags::OWN_NODE == 0 {
                return word;
            }
            (flags, own) = (word.flags, word.class);
        }
    }
    let slot = maps.prefix(address);
    let class = if slot == 0 { CLASS_NONE } else { HostWord::unpack(maps.host_word(slot)).class };
    HostWord { check: own as u32, class, flags }
}

/// The class by which egress towards an address is judged, out of what [`classify`] said of it.
#[inline(always)]
#[must_use]
pub const fn opened_class(word: HostWord) -> u16 {
    if word.flags & host_flags::NODE_PORTS != 0 { word.check as u16 } else { word.class }
}

/// The cell's rule set id and the outcome for a packet of `protocol` to the responder's `port`.
#[inline(always)]
pub fn look_up<F: Family, M: PolicyMaps<F>>(
    maps: &M,
    row: u16,
    class: u16,
    protocol: u8,
    port: u16,
) -> (u16, Outcome) {
    if row == ROW_OPEN {
        return (0, Outcome::new(action::ALLOW, 0));
    }
    let id = maps.cell(row, class);
    if id == 0 {
        return (0, Outcome::DROP);
    }
    let Some(set) = maps.rule_set(id) else { return (id, Outcome::DROP) };
    let (skip, count) = match protocol {
        6 => (0, set.n_tcp as u32),
        17 => (set.n_tcp as u32, set.n_udp as u32),
        132 => (set.n_tcp as u32 + set.n_udp as u32, set.n_sctp as u32),
        _ => return (id, set.other),
    };
    let mut low = set.base + skip;
    let mut count = count;
    for _ in 0..SEARCH_STEPS {
        if count == 0 {
            break;
        }
        let half = count >> 1;
        let interval = Interval::unpack(maps.interval(low + half));
        if port < interval.low {
            count = half;
        } else if port > interval.high {
            low += half + 1;
            count -= half + 1;
        } else {
            return (id, interval.outcome);
        }
    }
    (id, set.default)
}
