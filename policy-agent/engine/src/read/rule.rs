//! Rules of a policy and their peers.

use policy_common::abi::Direction;

use super::at::At;
use super::{block, port, selector};
use crate::model::{NamespaceScope, Peer, Peers, PortMatch, Ports, Rule};

const RULE_NOTHING: &str = "this rule matches nothing";
const PEER_NOTHING: &str = "this peer matches nothing";

/// Reads one rule.
pub(super) fn rule(at: &At<'_>, direction: Direction) -> Rule {
    let (list, everyone) = match direction {
        Direction::Ingress => ("from", "every source"),
        Direction::Egress => ("to", "every destination"),
    };
    if at.object(RULE_NOTHING).is_none() || !at.only(&[list, "ports"], RULE_NOTHING) {
        return Rule { peers: Peers::Any(vec![Peer::Nothing]), ports: Ports::Any(vec![PortMatch::Nothing]) };
    }
    let peers = match at.field_or_null(list, everyone) {
        Some(at) => peers(&at),
        None => Peers::All,
    };
    Rule { peers, ports: port::ports(at) }
}

fn peers(at: &At<'_>) -> Peers {
    match at.items("no peer matches") {
        Some(items) if items.is_empty() => Peers::All,
        Some(items) => Peers::Any(items.iter().map(|item| peer(item).unwrap_or(Peer::Nothing)).collect()),
        None => Peers::Any(vec![Peer::Nothing]),
    }
}

fn peer(at: &At<'_>) -> Option<Peer> {
    at.object(PEER_NOTHING)?;
    if !at.only(&["podSelector", "namespaceSelector", "ipBlock"], PEER_NOTHING) {
        return None;
    }
    let pods = at.field_or_null("podSelector", "every pod");
    let namespaces = at.field_or_null("namespaceSelector", "the policy's own namespace");
    match (at.field("ipBlock"), namespaces, pods) {
        (Some(block), None, None) => block::block(&block, PEER_NOTHING),
        (Some(_), _, _) => {
            at.bad(format!("has an ipBlock and a selector: {PEER_NOTHING}"));
            None
        }
        (None, None, None) => {
            at.bad(format!("has no podSelector, namespaceSelector or ipBlock: {PEER_NOTHING}"));
            None
        }
        (None, namespaces, pods) => Some(Peer::Pods {
            namespaces: namespaces.map_or(NamespaceScope::Own, |at| {
                NamespaceScope::Selector(selector::selector(&at, PEER_NOTHING))
            }),
            pods: pods.map(|at| selector::selector(&at, PEER_NOTHING)).unwrap_or_default(),
        }),
    }
}
