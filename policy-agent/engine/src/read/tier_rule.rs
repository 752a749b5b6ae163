//! Rules of a ClusterNetworkPolicy: unlike those of a NetworkPolicy they name at least one peer, and a part that cannot
//! be read closes the whole rule.

use std::sync::Arc;

use super::at::At;
use super::tier::deny_all;
use super::{block, label, selector};
use crate::model::{
    Action, NamespaceScope, Peer, Peers, PortMatch, Ports, Protocol, Requirement, Selector, TierRule,
};
use policy_common::abi::Direction;

const DENIES: &str = "this rule denies everything";
const ACCEPTS_NOTHING: &str = "this rule accepts nothing";

/// Reads one rule.
pub(super) fn rule(at: &At<'_>, direction: Direction) -> TierRule {
    if at.object(DENIES).is_none() {
        return deny_all();
    }
    let Some(action) = action(at) else { return deny_all() };
    let closed = match action {
        Action::Accept => ACCEPTS_NOTHING,
        Action::Deny | Action::Pass => DENIES,
    };
    let list = match direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    };
    // Everything is read, so that every problem is told at once.
    let known = at.only(&["name", "action", list, "protocols"], closed);
    let name = name(at);
    let ports = ports(at, closed);
    let named = ports.as_ref().is_some_and(has_names);
    let peers = peers(at, list, direction, named, closed);
    let rule = |peers, ports| TierRule { name, action, peers, ports };
    match (peers, ports) {
        (Some(peers), Some(ports)) if known => rule(peers, ports),
        (_, _) => rule(Peers::Any(Vec::new()), Ports::Any(Vec::new())).closed(),
    }
}

fn action(at: &At<'_>) -> Option<Action> {
    let Some(action) = at.field("action") else {
        at.bad(format!("has no action: {DENIES}"));
        return None;
    };
    let name = action.text(DENIES)?;
    let found = Action::ALL.into_iter().find(|action| action.name() == name);
    if found.is_none() {
        action.bad(format!("unknown action \"{name}\" (Accept, Deny and Pass are known): {DENIES}"));
    }
    found
}

/// A name decides nothing.
fn name(at: &At<'_>) -> Arc<str> {
    at.field("name").and_then(|name| name.text("the rule counts as without name")).unwrap_or_default().into()
}

/// All peers, or none if one cannot be read.
fn peers(at: &At<'_>, list: &str, direction: Direction, named: bool, closed: &str) -> Option<Peers> {
    let Some(list_at) = at.field(list) else {
        at.bad(format!("has no {list}: {closed}"));
        return None;
    };
    let items = list_at.items(closed)?;
    if items.is_empty() {
        list_at.bad(format!("is empty: {closed}"));
        return None;
    }
    let read: Vec<Option<Vec<Peer>>> =
        items.iter().map(|item| peer(item, direction, named, closed)).collect();
    let peers: Option<Vec<Vec<Peer>>> = read.into_iter().collect();
    Some(Peers::Any(peers?.into_iter().flatten().collect()))
}

/// The peers that one item of the list names.
fn peer(at: &At<'_>, direction: Direction, named: bool, closed: &str) -> Option<Vec<Peer>> {
    let kinds: &[&str] = match direction {
        Direction::Ingress => &["namespaces", "pods"],
        Direction::Egress => &["namespaces", "pods", "nodes", "networks", "domainNames"],
    };
    at.object(closed)?;
    let known = at.only(kinds, closed);
    let mut found = kinds.iter().filter_map(|kind| Some((*kind, at.field(kind)?)));
    let (Some((kind, field)), None) = (found.next(), found.next()) else {
        at.bad(format!("needs one of {}, and only one: {closed}", kinds.join(", ")));
        return None;
    };
    if named && matches!(kind, "nodes" | "networks") {
        field.bad(format!("{kind} have no named ports, and the rule names one: {closed}"));
        return None;
    }
    let all = Selector::default;
    let peers = match kind {
        "namespaces" => {
            let namespaces = NamespaceScope::Selector(whole(&field, closed)?);
            vec![Peer::Pods { namespaces, pods: all() }]
        }
        "pods" => vec![pods(&field, closed)?],
        "nodes" => vec![Peer::Nodes(whole(&field, closed)?)],
        "networks" => networks(&field, closed)?,
        _ => {
            field.bad(format!("peers by domain name are not supported: {closed}"));
            return None;
        }
    };
    known.then_some(peers)
}

fn pods(at: &At<'_>, closed: &str) -> Option<Peer> {
    at.object(closed)?;
    let known = at.only(&["namespaceSelector", "podSelector"], closed);
    let namespaces = match at.field("namespaceSelector") {
        Some(at) => whole(&at, closed),
        None => Some(Selector::default()),
    };
    let Some(pods) = at.field("podSelector") else {
        at.bad(format!("has no podSelector: {closed}"));
        return None;
    };
    let pods = whole(&pods, closed);
    let peer = Peer::Pods { namespaces: NamespaceScope::Selector(namespaces?), pods: pods? };
    known.then_some(peer)
}

fn networks(at: &At<'_>, closed: &str) -> Option<Vec<Peer>> {
    let items = at.items(closed)?;
    if items.is_empty() {
        at.bad(format!("is empty: {closed}"));
        return None;
    }
    let read: Vec<_> = items.iter().map(|item| block::cidr(item, closed)).collect();
    read.into_iter().map(|cidr| Some(Peer::Block { cidr: cidr?, except: Vec::new() })).collect()
}

/// A selector, if all of it can be read.
fn whole(at: &At<'_>, closed: &str) -> Option<Selector> {
    let read = selector::selector(at, closed);
    (!read.requirements.contains(&Requirement::Never)).then_some(read)
}

fn has_names(ports: &Ports) -> bool {
    match ports {
        Ports::All => false,
        Ports::Any(ports) => ports.iter().any(|port| matches!(port, PortMatch::Named(..))),
    }
}

/// What the rule says of protocols and ports; `None` if a part of it cannot be read.
fn ports(at: &At<'_>, closed: &str) -> Option<Ports> {
    let Some(at) = at.field_or_null("protocols", "every port of every protocol") else {
        return Some(Ports::All);
    };
    let items = at.items(closed)?;
    if items.is_empty() {
        at.bad(format!("is empty: {closed}"));
        return None;
    }
    let read: Vec<Option<Vec<PortMatch>>> = items.iter().map(|item| protocol(item, closed)).collect();
    let ports: Option<Vec<Vec<PortMatch>>> = read.into_iter().collect();
    Some(Ports::Any(ports?.into_iter().flatten().collect()))
}

fn protocol(at: &At<'_>, closed: &str) -> Option<Vec<PortMatch>> {
    const KINDS: [&str; 4] = ["tcp", "udp", "sctp", "destinationNamedPort"];
    at.object(closed)?;
    let known = at.only(&KINDS, closed);
    let mut found = KINDS.iter().filter_map(|kind| Some((*kind, at.field(kind)?)));
    let (Some((kind, field)), None) = (found.next(), found.next()) else {
        at.bad(format!("needs one of {}, and only one: {closed}", KINDS.join(", ")));
        return None;
    };
    let ports = match kind {
        "tcp" => vec![destination(&field, Protocol::Tcp, closed)?],
        "udp" => vec![destination(&field, Protocol::Udp, closed)?],
        "sctp" => vec![destination(&field, Protocol::Sctp, closed)?],
        _ => named(&field, closed)?,
    };
    known.then_some(ports)
}

/// A port of that name, whatever its protocol.
fn named(at: &At<'_>, closed: &str) -> Option<Vec<PortMatch>> {
    let name = at.text(closed)?;
    if !label::is_port_name(name) {
        at.bad(format!("\"{name}\" is no port name: {closed}"));
        return None;
    }
    let name: Arc<str> = name.into();
    Some(Protocol::ALL.into_iter().map(|protocol| PortMatch::Named(protocol, name.clone())).collect())
}

fn destination(at: &At<'_>, protocol: Protocol, closed: &str) -> Option<PortMatch> {
    at.object(closed)?;
    let known = at.only(&["destinationPort"], closed);
    let Some(port) = at.field("destinationPort") else {
        at.bad(format!("has no destinationPort: {closed}"));
        return None;
    };
    port.object(closed)?;
    let all_known = port.only(&["number", "range"], closed) && known;
    let found = match (port.field("number"), port.field("range")) {
        (Some(number), None) => {
            let number = number.port_number(closed)?;
            PortMatch::Range(protocol, number, number)
        }
        (None, Some(range)) => span(&range, protocol, closed)?,
        (Some(_), Some(_)) | (None, None) => {
            port.bad(format!("needs number or range, and only one: {closed}"));
            return None;
        }
    };
    all_known.then_some(found)
}

fn span(at: &At<'_>, protocol: Protocol, closed: &str) -> Option<PortMatch> {
    at.object(closed)?;
    let known = at.only(&["start", "end"], closed);
    let end = |name: &str| {
        let Some(end) = at.field(name) else {
            at.bad(format!("has no {name}: {closed}"));
            return None;
        };
        end.port_number(closed)
    };
    let (start, end) = (end("start")?, end("end")?);
    if end <= start {
        at.bad(format!("the end {end} is not behind the start {start}: {closed}"));
        return None;
    }
    known.then_some(PortMatch::Range(protocol, start, end))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::model::{ClusterPolicy, Tier};
    use crate::read::{Read, object};
    use crate::world::Delta;

    fn read(spec: &str) -> (ClusterPolicy, Read) {
        let text = format!(
            "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{name: p, uid: u}}\nspec: {spec}"
        );
        let value: Value = serde_norway::from_str(&text).unwrap();
        let read = object(&value);
        match read.delta.clone() {
            Some(Delta::ClusterPolicy(policy)) => (policy, read),
            other => panic!("{spec}: {other:?}"),
        }
    }

    fn of_rule(direction: &str, rule: &str) -> (TierRule, Read) {
        let head = "tier: Admin, priority: 7, subject: {namespaces: {}}";
        let (mut policy, read) = read(&format!("{{{head}, {direction}: [{rule}]}}"));
        let rules = if direction == "ingress" { &mut policy.ingress } else { &mut policy.egress };
        assert_eq!(rules.len(), 1, "{rule}");
        (rules.remove(0), read)
    }

    const TO: &str = "to: [{namespaces: {}}]";

    #[test]
    fn a_policy_that_says_everything() {
        let (policy, read) = read(
            "{tier: Baseline, priority: 1000,
              subject: {pods: {namespaceSelector: {matchLabels: {a: b}}, podSelector: {matchExpressions: [{key: c, operator: Exists}]}}},
              ingress: [{name: first, action: Accept, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 80}}}, {destinationNamedPort: dns}]}],
              egress: [{action: Deny, to: [{networks: [10.0.0.0/8, 'FD00::/8']}, {nodes: {}}], protocols: [{udp: {destinationPort: {range: {start: 1, end: 9}}}}, {sctp: {destinationPort: {number: 5}}}]},
                       {action: Pass, to: [{pods: {namespaceSelector: {}, podSelector: {}}}]}]}",
        );
        assert!(read.problems.is_empty() && !read.broken, "{:?}", read.problems);
        assert_eq!(
            (&*policy.name, &*policy.uid, policy.tier, policy.priority),
            ("p", "u", Tier::Baseline, 1000)
        );
        assert_eq!(policy.namespaces.requirements, [Requirement::In("a".into(), vec!["b".into()])]);
        assert_eq!(policy.pods.requirements, [Requirement::Exists("c".into())]);
        let first = &policy.ingress[0];
        let named = Protocol::ALL.map(|protocol| PortMatch::Named(protocol, "dns".into()));
        let mut ports = vec![PortMatch::Range(Protocol::Tcp, 80, 80)];
        ports.extend(named);
        assert_eq!((&*first.name, first.action, &first.ports), ("first", Action::Accept, &Ports::Any(ports)));
        let all = || NamespaceScope::Selector(Selector::default());
        let everybody = Peers::Any(vec![Peer::Pods { namespaces: all(), pods: Selector::default() }]);
        assert_eq!((&first.peers, &policy.egress[1].peers), (&everybody, &everybody));
        let Peers::Any(networks) = &policy.egress[0].peers else { panic!("{policy:?}") };
        let words: Vec<String> = networks.iter().map(ToString::to_string).collect();
        assert_eq!(words, ["10.0.0.0/8", "fd00::/8", "all nodes"]);
        assert_eq!(policy.egress[1].ports, Ports::All);
    }

    /// A rule's part, where its problem is, and what is said.
    const BAD_PARTS: [(&str, &str, &str); 34] = [
        ("", "", "has no to"),
        ("to: []", ".to", "is empty"),
        ("to: null", "", "has no to"),
        ("to: {}", ".to", "must be a list"),
        ("to: [null]", ".to[0]", "must be an object"),
        ("to: [{}]", ".to[0]", "only one"),
        ("to: [{sets: {}}]", ".to[0].sets", "unknown field"),
        ("to: [{namespaces: {}, pods: {podSelector: {}}}]", ".to[0]", "only one"),
        ("to: [{namespaces: {matchLabel: {}}}]", ".to[0].namespaces.matchLabel", "unknown field"),
        ("to: [{pods: {namespaceSelector: {}}}]", ".to[0].pods", "has no podSelector"),
        ("to: [{pods: {podSelector: {}, x: 1}}]", ".to[0].pods.x", "unknown field"),
        (
            "to: [{pods: {podSelector: {matchExpressions: [{key: a, operator: in, values: [b]}]}}}]",
            ".to[0].pods.podSelector.matchExpressions[0].operator",
            "unknown operator",
        ),
        ("to: [{networks: []}]", ".to[0].networks", "is empty"),
        ("to: [{networks: [10.0.0.0]}]", ".to[0].networks[0]", "no CIDR"),
        ("to: [{namespaces: {}}, {networks: [10.0.0.0/33]}]", ".to[1].networks[0]", "too large"),
        ("to: [{domainNames: [example.org]}]", ".to[0].domainNames", "not supported"),
        (
            "to: [{networks: [10.0.0.0/8]}], protocols: [{destinationNamedPort: web}]",
            ".to[0].networks",
            "named ports",
        ),
        ("to: [{nodes: {}}], protocols: [{destinationNamedPort: web}]", ".to[0].nodes", "named ports"),
        ("to: [{namespaces: {}}], protocols: []", ".protocols", "is empty"),
        ("to: [{namespaces: {}}], protocols: 5", ".protocols", "must be a list"),
        ("to: [{namespaces: {}}], protocols: [{}]", ".protocols[0]", "only one"),
        ("to: [{namespaces: {}}], protocols: [{icmp: {}}]", ".protocols[0].icmp", "unknown field"),
        ("to: [{namespaces: {}}], protocols: [{tcp: {}}]", ".protocols[0].tcp", "has no destinationPort"),
        (
            "to: [{namespaces: {}}], protocols: [{tcp: {sourcePort: {number: 1}}}]",
            ".protocols[0].tcp.sourcePort",
            "unknown field",
        ),
        (
            "to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {}}}]",
            ".protocols[0].tcp.destinationPort",
            "only one",
        ),
        (
            "to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 0}}}]",
            ".protocols[0].tcp.destinationPort.number",
            "no port",
        ),
        (
            "to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 1, range: {start: 1, end: 2}}}}]",
            ".protocols[0].tcp.destinationPort",
            "only one",
        ),
        (
            "to: [{namespaces: {}}], protocols: [{udp: {destinationPort: {range: {start: 9, end: 9}}}}]",
            ".protocols[0].udp.destinationPort.range",
            "not behind",
        ),
        (
            "to: [{namespaces: {}}], protocols: [{udp: {destinationPort: {range: {start: 9}}}}]",
            ".protocols[0].udp.destinationPort.range",
            "has no end",
        ),
        (
            "to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 1}}, udp: {destinationPort: {number: 1}}}]",
            ".protocols[0]",
            "only one",
        ),
        (
            "to: [{namespaces: {}}], protocols: [{destinationNamedPort: '80'}]",
            ".protocols[0].destinationNamedPort",
            "no port name",
        ),
        (
            "to: [{namespaces: {}}], protocols: [{destinationNamedPort: 80}]",
            ".protocols[0].destinationNamedPort",
            "must be a string",
        ),
        ("to: [{namespaces: {}}], from: []", ".from", "unknown field"),
        ("to: [{namespaces: {}}], x: 1", ".x", "unknown field"),
    ];

    /// Edge case 157, and what else cannot be read.
    #[test]
    fn a_part_that_cannot_be_read_closes_the_rule() {
        let nothing = (Peers::Any(vec![Peer::Nothing]), Ports::Any(vec![PortMatch::Nothing]));
        for (part, path, words) in BAD_PARTS {
            for action in Action::ALL {
                let (rule, read) = of_rule("egress", &format!("{{action: {}, {part}}}", action.name()));
                let field = format!("spec.egress[0]{path}");
                let told = |p: &crate::model::Problem| p.field == field && p.message.contains(words);
                assert!(read.broken && read.problems.iter().any(told), "{part}: {:?}", read.problems);
                let told = &read.problems[0].message;
                if action == Action::Accept {
                    assert_eq!(
                        (rule.action, &rule.peers, &rule.ports),
                        (action, &nothing.0, &nothing.1),
                        "{part}"
                    );
                    assert!(told.contains(ACCEPTS_NOTHING), "{told}");
                } else {
                    assert_eq!(rule, deny_all(), "{part}");
                    assert!(told.contains(DENIES), "{told}");
                }
            }
        }
        for rule in [
            "null",
            "5",
            "{}",
            &format!("{{{TO}}}"),
            &format!("{{action: Allow, {TO}}}"),
            &format!("{{action: 1, {TO}}}"),
        ] {
            assert_eq!(of_rule("egress", rule).0, deny_all(), "{rule}");
        }
        // What the API does not have for sources.
        for peer in ["networks: [0.0.0.0/0]", "nodes: {}", "domainNames: [a.b]"] {
            let (rule, read) = of_rule("ingress", &format!("{{action: Pass, from: [{{{peer}}}]}}"));
            assert!(rule == deny_all() && read.broken, "{peer}");
        }
    }

    #[test]
    fn a_policy_whose_place_or_pods_are_in_doubt_accepts_nothing() {
        let rules = format!(
            "egress: [{{action: Accept, {TO}}}, {{action: Pass, {TO}}}, {{name: n, action: Deny, {TO}}}]"
        );
        let cases = [
            ("priority: 1, subject: {namespaces: {}}", "has no tier"),
            ("tier: Middle, priority: 1, subject: {namespaces: {}}", "unknown tier"),
            ("tier: Admin, subject: {namespaces: {}}", "has no priority"),
            ("tier: Admin, priority: 1001, subject: {namespaces: {}}", "no priority"),
            ("tier: Admin, priority: -1, subject: {namespaces: {}}", "no priority"),
            ("tier: Admin, priority: '1', subject: {namespaces: {}}", "whole number"),
            ("tier: Admin, priority: 1", "has no subject"),
            ("tier: Admin, priority: 1, subject: {}", "neither"),
            (
                "tier: Admin, priority: 1, subject: {namespaces: {}, pods: {podSelector: {}}}",
                "namespaces and pods",
            ),
            ("tier: Admin, priority: 1, subject: {nodes: {}}", "unknown field"),
            ("tier: Admin, priority: 1, subject: {pods: {namespaceSelector: {}}}", "has no podSelector"),
            ("tier: Admin, priority: 1, subject: {namespaces: {matchLabels: {a: 1}}}", "must be a string"),
        ];
        for (head, words) in cases {
            let (policy, told) = read(&format!("{{{head}, {rules}}}"));
            let [accept, pass, deny] = &policy.egress[..] else { panic!("{policy:?}") };
            assert_eq!(accept.peers, Peers::Any(vec![Peer::Nothing]), "{head}");
            let all = NamespaceScope::Selector(Selector::default());
            let named = Peers::Any(vec![Peer::Pods { namespaces: all, pods: Selector::default() }]);
            assert_eq!((pass, &deny.peers), (&deny_all(), &named), "{head}");
            assert!(
                policy.namespaces.requirements.is_empty() && policy.pods.requirements.is_empty(),
                "{head}"
            );
            assert!(told.problems.iter().any(|p| p.message.contains(words)), "{head}: {:?}", told.problems);
            assert!(told.broken && policy.tier == Tier::Admin && policy.priority <= 1, "{head}");
        }
        let head = "tier: Admin, priority: 1, subject: {namespaces: {}}";
        for (spec, rest) in [
            (format!("{{{head}, egres: []}}"), ""),
            (format!("{{{head}}}\nspecs: {{}}"), ""),
            ("5".to_owned(), ""),
        ] {
            let (policy, told) = read(&spec);
            assert!(told.broken, "{rest}");
            assert_eq!((policy.ingress, policy.egress), (vec![deny_all()], vec![deny_all()]), "{spec}");
        }
        let (policy, _) = read(&format!("{{{head}, ingress: {{}}}}"));
        assert_eq!((policy.ingress, policy.egress.len()), (vec![deny_all()], 0));
    }
}
