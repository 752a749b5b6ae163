//! The verdict of the tables on one opening direction. The kernel runs it as a function of its own: a decision may ask
//! for both directions, and the verifier would walk every path through one for each path through the other.

use crate::abi::{Outcome, ROW_CLOSED, ROW_OPEN, action, endpoint_config, host_flags};
use crate::reason::Reason;
use crate::verdict::Verdict;

/// In [`Side::bits`]: what others open towards the pod, else what the pod opens.
pub const INGRESS: u8 = 1;
/// The packet is on its way to the pod.
pub const ON_THE_WAY_IN: u8 = 2;
/// The packet carries the endpoint's own tag: it left the pod and came back through a Service.
pub const BY_TAG: u8 = 4;

/// What the verdict depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Side {
    /// Row of the endpoint in the direction.
    pub row: u16,
    /// Configuration of the endpoint.
    pub config: u16,
    /// Class of the other end.
    pub class: u16,
    /// [`host_flags`] of the other end.
    pub host: u16,
    /// IP protocol.
    pub protocol: u8,
    /// Port of the side that is opened to.
    pub port: u16,
    /// [`INGRESS`], [`ON_THE_WAY_IN`], [`BY_TAG`].
    pub bits: u8,
}

impl Side {
    /// As two numbers.
    #[inline(always)]
    #[must_use]
    pub const fn pack(self) -> (u64, u32) {
        let high = (self.config as u64) << 16 | (self.class as u64) << 32 | (self.host as u64) << 48;
        let low = (self.port as u32) << 8 | (self.bits as u32) << 24;
        (self.row as u64 | high, self.protocol as u32 | low)
    }
    /// Inverse of [`Side::pack`].
    #[inline(always)]
    #[must_use]
    pub const fn unpack(who: u64, what: u32) -> Self {
        Self {
            row: who as u16,
            config: (who >> 16) as u16,
            class: (who >> 32) as u16,
            host: (who >> 48) as u16,
            protocol: what as u8,
            port: (what >> 8) as u16,
            bits: (what >> 24) as u8,
        }
    }
}

/// The verdict. `own_process` = whether a process of the node made the packet, asked for only where it matters;
/// `look_up` = the rule set and outcome of the row for the class, protocol and port.
#[inline(always)]
pub fn judge_side(
    side: Side,
    own_process: impl FnOnce() -> bool,
    look_up: impl FnOnce(&Side) -> (u16, Outcome),
) -> Verdict {
    let ingress = side.bits & INGRESS != 0;
    if side.row == ROW_OPEN {
        return Verdict::plain(Reason::NotIsolated);
    }
    if ingress && side.bits & BY_TAG != 0 && side.host & host_flags::JUDGES_ITSELF == 0 {
        return Verdict::plain(Reason::Allowed);
    }
    let own = side.host & host_flags::OWN_NODE != 0;
    let judged_here = side.host & host_flags::NODE_PORTS != 0;
    if !ingress && (own && !judged_here || side.host & host_flags::FRONTEND != 0) {
        // What the node delivers to itself is allowed; what it sends on is judged where it goes.
        return Verdict::plain(if own { Reason::OwnNode } else { Reason::Deferred }).deferred_if(true);
    }
    if ingress && own {
        if side.config & endpoint_config::MASQUERADED_ALLOW != 0 {
            return Verdict::plain(Reason::OwnNode);
        }
        // Only the way in shows whether a process of the node speaks or somebody whom the node masquerades.
        if side.bits & ON_THE_WAY_IN == 0 {
            return Verdict::undecided();
        }
        if own_process() {
            return Verdict::plain(Reason::OwnNode);
        }
    }
    let (id, outcome) = look_up(&side);
    let reason = if outcome.action() == action::ALLOW {
        Reason::Allowed
    } else if side.row == ROW_CLOSED && side.config & endpoint_config::PENDING != 0 {
        Reason::PolicyPending
    } else if outcome.rule() == 0 {
        Reason::NoRuleMatched
    } else {
        Reason::DeniedByRule
    };
    // Ports of the node that nobody has told of may lead elsewhere too.
    let deferred = own && !ingress && outcome.action() == action::ALLOW;
    Verdict::judged(reason, outcome, side.class, id).deferred_if(deferred)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_survives_its_numbers() {
        let side = Side {
            row: 511,
            config: 0x8001,
            class: 4095,
            host: 0xff01,
            protocol: 132,
            port: 65_534,
            bits: INGRESS | BY_TAG,
        };
        let (who, what) = side.pack();
        assert_eq!(Side::unpack(who, what), side);
    }
}
