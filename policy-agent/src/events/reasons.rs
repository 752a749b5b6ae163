//! Our reasons in Hubble's numbers.

use policy_common::reason::Reason;

use crate::proto::flow::DropReason as Hubble;

/// The number and name of Hubble's table that comes nearest to a reason.
#[must_use]
pub fn drop_reason(reason: Reason) -> Hubble {
    match reason {
        Reason::NotIsolated
        | Reason::Allowed
        | Reason::Established
        | Reason::OwnNode
        | Reason::Neighbour
        | Reason::Deferred => Hubble::Unknown,
        Reason::NoRuleMatched
        | Reason::Revoked
        | Reason::NoFlow
        | Reason::IcmpNoFlow
        | Reason::RogueNeighbour => Hubble::PolicyDenied,
        Reason::DeniedByRule => Hubble::PolicyDeny,
        Reason::SpoofedSource | Reason::StaleTag => Hubble::InvalidSourceIp,
        Reason::FragmentUnknown => Hubble::FirstLogicalDatagramFragmentNotFound,
        Reason::FragmentTiny => Hubble::IpFragmentationNotSupported,
        Reason::Malformed | Reason::MappedAddress => Hubble::InvalidPacketDropped,
        Reason::TooManyExtensionHeaders => Hubble::InvalidIpv6ExtensionHeader,
        Reason::UnknownEthertype | Reason::VlanTagged => Hubble::UnsupportedL2Protocol,
        Reason::PolicyPending => Hubble::NoConfigurationAvailableToPerformPolicyDecision,
        Reason::Internal => Hubble::MissedTailCall,
    }
}

/// Whether rules were consulted and none allowed.
#[must_use]
pub fn is_policy_denial(reason: Reason) -> bool {
    match reason {
        Reason::NoRuleMatched | Reason::DeniedByRule | Reason::Revoked => true,
        Reason::NotIsolated
        | Reason::Allowed
        | Reason::Established
        | Reason::OwnNode
        | Reason::Neighbour
        | Reason::NoFlow
        | Reason::IcmpNoFlow
        | Reason::SpoofedSource
        | Reason::FragmentUnknown
        | Reason::FragmentTiny
        | Reason::Malformed
        | Reason::TooManyExtensionHeaders
        | Reason::UnknownEthertype
        | Reason::VlanTagged
        | Reason::PolicyPending
        | Reason::MappedAddress
        | Reason::RogueNeighbour
        | Reason::StaleTag
        | Reason::Deferred
        | Reason::Internal => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_drop_has_a_number_and_no_pass_has() {
        for reason in Reason::ALL {
            assert_eq!(drop_reason(reason) == Hubble::Unknown, reason.passes(), "{reason:?}");
        }
    }
}
