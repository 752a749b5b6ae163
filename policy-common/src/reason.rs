//! Why a packet passed or was dropped: one enumeration for events, metrics, `explain` and tests.

/// The reason of a verdict. The numbers are part of the ABI: add at the end, never renumber.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Reason {
    /// Passed: the endpoint is not isolated in the opening direction.
    NotIsolated = 0,
    /// Passed: a rule allows it.
    Allowed = 1,
    /// Passed: it belongs to a flow that was allowed in its opening direction.
    Established = 2,
    /// Passed: a process of the own node, or local delivery to it.
    OwnNode = 3,
    /// Passed: neighbour discovery, multicast listener or ARP message.
    Neighbour = 4,
    /// Dropped: isolated, and no rule matched.
    NoRuleMatched = 5,
    /// Dropped: an explicit rule denies it (reserved for tiers).
    DeniedByRule = 6,
    /// Dropped: the policy changed and no longer allows the flow this packet belongs to.
    Revoked = 7,
    /// Dropped: a reply or mid-stream segment without a flow.
    NoFlow = 8,
    /// Dropped: an ICMP error about a flow that this endpoint does not have.
    IcmpNoFlow = 9,
    /// Dropped: the source address is not the pod's.
    SpoofedSource = 10,
    /// Dropped: a later fragment whose first fragment was not seen.
    FragmentUnknown = 11,
    /// Dropped: a first fragment too short to hold its ports.
    FragmentTiny = 12,
    /// Dropped: truncated or malformed header.
    Malformed = 13,
    /// Dropped: more IPv6 extension headers than are parsed.
    TooManyExtensionHeaders = 14,
    /// Dropped: an ethertype that policy cannot judge.
    UnknownEthertype = 15,
    /// Dropped: VLAN-tagged frame from an isolated pod.
    VlanTagged = 16,
    /// Dropped: the policy of the pod is not known yet, or could not be installed.
    PolicyPending = 17,
    /// Dropped: IPv4-mapped IPv6 address on the wire.
    MappedAddress = 18,
    /// Dropped: router advertisement or redirect sent by a pod.
    RogueNeighbour = 19,
    /// Dropped: a map lookup that must succeed failed; fail closed.
    Internal = 20,
    /// Dropped: the tag names an endpoint that is no more, so nobody's policy can judge the packet.
    StaleTag = 21,
    /// Passed at the pod: judged where its destination is real, behind the translation of a Service.
    Deferred = 22,
}

impl Reason {
    /// Every reason, in order of their numbers.
    pub const ALL: [Self; 23] = [
        Self::NotIsolated,
        Self::Allowed,
        Self::Established,
        Self::OwnNode,
        Self::Neighbour,
        Self::NoRuleMatched,
        Self::DeniedByRule,
        Self::Revoked,
        Self::NoFlow,
        Self::IcmpNoFlow,
        Self::SpoofedSource,
        Self::FragmentUnknown,
        Self::FragmentTiny,
        Self::Malformed,
        Self::TooManyExtensionHeaders,
        Self::UnknownEthertype,
        Self::VlanTagged,
        Self::PolicyPending,
        Self::MappedAddress,
        Self::RogueNeighbour,
        Self::Internal,
        Self::StaleTag,
        Self::Deferred,
    ];

    /// The reason with this number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(number as usize).copied()
    }

    /// Whether a packet with this reason passed.
    #[inline(always)]
    #[must_use]
    pub const fn passes(self) -> bool {
        (self as u8) < Self::NoRuleMatched as u8 || self as u8 == Self::Deferred as u8
    }

    /// Name in events, metrics and JSON: lower case with underscores.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotIsolated => "not_isolated",
            Self::Allowed => "allowed",
            Self::Established => "established",
            Self::OwnNode => "own_node",
            Self::Neighbour => "neighbour",
            Self::NoRuleMatched => "no_rule_matched",
            Self::DeniedByRule => "denied_by_rule",
            Self::Revoked => "revoked",
            Self::NoFlow => "no_flow",
            Self::IcmpNoFlow => "icmp_no_flow",
            Self::SpoofedSource => "spoofed_source",
            Self::FragmentUnknown => "fragment_unknown",
            Self::FragmentTiny => "fragment_tiny",
            Self::Malformed => "malformed",
            Self::TooManyExtensionHeaders => "too_many_extension_headers",
            Self::UnknownEthertype => "unknown_ethertype",
            Self::VlanTagged => "vlan_tagged",
            Self::PolicyPending => "policy_pending",
            Self::MappedAddress => "mapped_address",
            Self::RogueNeighbour => "rogue_neighbour",
            Self::Internal => "internal",
            Self::StaleTag => "stale_tag",
            Self::Deferred => "deferred",
        }
    }

    /// One sentence for a person, without full stop.
    #[must_use]
    pub const fn help(self) -> &'static str {
        match self {
            Self::NotIsolated => "no policy isolates the pod in this direction",
            Self::Allowed => "a rule allows it",
            Self::Established => "it belongs to an allowed flow",
            Self::OwnNode => "traffic of the node's own processes is always allowed",
            Self::Neighbour => "address resolution is never filtered",
            Self::NoRuleMatched => "the pod is isolated and no rule matches",
            Self::DeniedByRule => "a rule denies it",
            Self::Revoked => "the policy changed and no longer allows this flow",
            Self::NoFlow => "a reply or mid-stream packet without a known flow",
            Self::IcmpNoFlow => "an ICMP error about a flow that the pod does not have",
            Self::SpoofedSource => "the source address does not belong to the pod",
            Self::FragmentUnknown => "a fragment whose first fragment was not seen",
            Self::FragmentTiny => "a first fragment too short to hold its ports",
            Self::Malformed => "a truncated or malformed header",
            Self::TooManyExtensionHeaders => "more IPv6 extension headers than are parsed",
            Self::UnknownEthertype => "an ethertype that policy cannot judge",
            Self::VlanTagged => "a VLAN tag from an isolated pod",
            Self::PolicyPending => "the pod's policy is not installed yet",
            Self::MappedAddress => "an IPv4-mapped IPv6 address on the wire",
            Self::RogueNeighbour => "a router advertisement or redirect sent by a pod",
            Self::Internal => "a table lookup failed; closed for safety",
            Self::StaleTag => "the pod that sent it is no more",
            Self::Deferred => "judged behind the Service, where the destination is real",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_follow_the_list() {
        for (i, r) in Reason::ALL.iter().enumerate() {
            assert_eq!(*r as usize, i);
            assert_eq!(Reason::from_number(i as u8), Some(*r));
        }
        assert_eq!(Reason::from_number(Reason::ALL.len() as u8), None);
        assert!((Reason::ALL.len() as u32) < crate::abi::limits::REASONS);
    }
}
