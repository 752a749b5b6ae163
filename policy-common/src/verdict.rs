//! What becomes of a packet, in one word: it stays in a register.

use crate::abi::{Outcome, action, limits};
use crate::reason::Reason;

/// A verdict: {action 3, deferred 1, reason 6, rule 24, class 12, rule set 14, opener 2, flags 2}.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict(pub u64);

/// The tables cannot say: what the flow was told last holds.
const UNDECIDED: u8 = 7;
/// The pod's egress is judged where the destination is real.
const DEFERRED: u64 = 1 << 3;

impl Verdict {
    /// A verdict without rule.
    #[inline(always)]
    #[must_use]
    pub const fn plain(reason: Reason) -> Self {
        let action = if reason.passes() { action::ALLOW } else { action::DROP };
        Self(action as u64 | (reason as u64) << 4)
    }
    /// A verdict of the tables.
    #[inline(always)]
    #[must_use]
    pub const fn judged(reason: Reason, outcome: Outcome, class: u16, rule_set: u16) -> Self {
        Self(
            Self::plain(reason).0
                | (outcome.rule() as u64) << 10
                | (class as u64 & 0xfff) << 34
                | (rule_set as u64 & 0x3fff) << 46,
        )
    }
    /// No verdict.
    #[inline(always)]
    pub(crate) const fn undecided() -> Self {
        Self(UNDECIDED as u64)
    }
    #[inline(always)]
    pub(crate) const fn is_undecided(self) -> bool {
        self.action() == UNDECIDED
    }
    /// The same verdict for another reason. The action does not change.
    #[inline(always)]
    pub(crate) const fn because(self, reason: Reason) -> Self {
        Self(self.0 & !(0x3f << 4) | (reason as u64) << 4)
    }
    /// Adds who opened the flow: a direction as a number, 0 = not known.
    #[inline(always)]
    pub(crate) const fn opened_by(self, opener: u8) -> Self {
        Self(self.0 | (opener as u64 & 3) << 60)
    }
    /// The same verdict, with the egress left to be judged where the destination is real if `deferred`.
    #[inline(always)]
    pub(crate) const fn deferred_if(self, deferred: bool) -> Self {
        Self(self.0 | (deferred as u64) << 3)
    }
    /// Whether the egress is still to be judged, where the destination is real.
    #[inline(always)]
    #[must_use]
    pub const fn is_deferred(self) -> bool {
        self.0 & DEFERRED != 0
    }
    /// The tables were asked: a first packet or a re-judgement, to be counted.
    #[inline(always)]
    pub(crate) const fn counted(self) -> Self {
        Self(self.0 | 1 << 62)
    }
    /// A flow was recorded.
    #[inline(always)]
    pub(crate) const fn recorded(self) -> Self {
        Self(self.0 | 1 << 63)
    }
    /// One of [`action`].
    #[inline(always)]
    #[must_use]
    pub const fn action(self) -> u8 {
        (self.0 & 7) as u8
    }
    /// Whether the packet passes.
    #[inline(always)]
    #[must_use]
    pub const fn passes(self) -> bool {
        self.action() == action::ALLOW
    }
    /// Number of the [`Reason`].
    #[inline(always)]
    #[must_use]
    pub const fn reason_number(self) -> u8 {
        (self.0 >> 4 & 0x3f) as u8
    }
    /// Why.
    #[must_use]
    pub fn reason(self) -> Reason {
        Reason::from_number(self.reason_number()).unwrap_or(Reason::Internal)
    }
    /// Deciding rule, 0 = none.
    #[inline(always)]
    #[must_use]
    pub const fn rule(self) -> u32 {
        (self.0 >> 10) as u32 & 0xff_ffff
    }
    /// Class of the remote address, if the tables were asked.
    #[inline(always)]
    #[must_use]
    pub const fn class(self) -> u16 {
        (self.0 >> 34) as u16 & 0xfff
    }
    /// Rule set that the cell named, if the tables were asked.
    #[inline(always)]
    #[must_use]
    pub const fn rule_set(self) -> u16 {
        (self.0 >> 46) as u16 & 0x3fff
    }
    /// Who opened the flow: a direction as a number, 0 = not known.
    #[inline(always)]
    #[must_use]
    pub const fn opener(self) -> u8 {
        (self.0 >> 60) as u8 & 3
    }
    /// Whether the tables were asked for this packet.
    #[inline(always)]
    #[must_use]
    pub const fn is_counted(self) -> bool {
        self.0 >> 62 & 1 != 0
    }
    /// Whether this packet made an entry.
    #[inline(always)]
    #[must_use]
    pub const fn is_recorded(self) -> bool {
        self.0 >> 63 != 0
    }
}

const _: () =
    assert!(limits::CLASSES <= 1 << 12 && limits::RULE_SETS <= 1 << 14 && limits::REASONS <= 1 << 6);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_overlaps() {
        let outcome = Outcome::new(action::ALLOW, 0xff_ffff);
        let v = Verdict::judged(Reason::Allowed, outcome, 4095, 16_383).opened_by(2).counted().recorded();
        assert_eq!((v.action(), v.reason(), v.rule()), (action::ALLOW, Reason::Allowed, 0xff_ffff));
        assert_eq!((v.class(), v.rule_set(), v.opener()), (4095, 16_383, 2));
        assert!(v.is_counted() && v.is_recorded() && v.passes());
        let d = Verdict::plain(Reason::NoFlow);
        assert_eq!((d.0 >> 10, d.reason()), (0, Reason::NoFlow));
        let e = v.deferred_if(true);
        assert!(
            e.is_deferred() && e.passes() && !v.is_deferred() && e.because(Reason::Deferred).is_deferred()
        );
        assert!(!d.passes() && Verdict::undecided().is_undecided());
        assert_eq!(v.because(Reason::OwnNode).rule_set(), 16_383);
    }
}
