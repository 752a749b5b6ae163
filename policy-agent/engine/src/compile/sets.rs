//! Flattens the rules that match a class to one rule set: the first rule that names a port decides it.

use std::collections::BTreeSet;

use policy_common::abi::{Interval, Outcome};

use crate::desired::SetContent;
use crate::model::{ContainerPort, PortMatch, Ports, Protocol};

/// One rule that matches, in order of decision.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Match<'a> {
    /// Ports of the rule.
    pub(crate) ports: &'a Ports,
    /// What it decides.
    pub(crate) outcome: Outcome,
}

/// The rule set of these rules. `names`: ports of the pod that packets go to.
pub(crate) fn flatten<'a>(rules: impl Iterator<Item = Match<'a>>, names: &[ContainerPort]) -> SetContent {
    let mut set = SetContent::default();
    let mut ranges: [Vec<(u16, u16, usize)>; 3] = Default::default();
    let mut outcomes = Vec::new();
    for rule in rules {
        let ports = match rule.ports {
            // Later rules decide nothing any more.
            Ports::All => {
                set.other = rule.outcome;
                set.default = rule.outcome;
                break;
            }
            Ports::Any(ports) => ports,
        };
        for port in ports {
            push(&mut ranges, port, outcomes.len(), names);
        }
        outcomes.push(rule.outcome);
    }
    for (intervals, ranges) in set.intervals.iter_mut().zip(&ranges) {
        *intervals = disjoint(ranges, &outcomes);
    }
    set
}

fn index(protocol: Protocol) -> usize {
    match protocol {
        Protocol::Tcp => 0,
        Protocol::Udp => 1,
        Protocol::Sctp => 2,
    }
}

fn push(ranges: &mut [Vec<(u16, u16, usize)>; 3], port: &PortMatch, rule: usize, names: &[ContainerPort]) {
    match port {
        PortMatch::Protocol(protocol) => ranges[index(*protocol)].push((0, u16::MAX, rule)),
        PortMatch::Range(protocol, low, high) if low <= high => {
            ranges[index(*protocol)].push((*low, *high, rule));
        }
        PortMatch::Range(..) | PortMatch::Nothing => {}
        PortMatch::Named(protocol, name) => {
            for port in names.iter().filter(|p| p.protocol == *protocol && p.name == *name) {
                ranges[index(*protocol)].push((port.port, port.port, rule));
            }
        }
    }
}

/// Disjoint sorted intervals; the lowest rule number wins, neighbours with one outcome are one.
fn disjoint(ranges: &[(u16, u16, usize)], outcomes: &[Outcome]) -> Vec<Interval> {
    let mut edges: Vec<(u32, bool, usize)> = Vec::with_capacity(ranges.len() * 2);
    for (low, high, rule) in ranges {
        edges.push((u32::from(*low), true, *rule));
        edges.push((u32::from(*high) + 1, false, *rule));
    }
    edges.sort_unstable();
    let mut active: Vec<u32> = vec![0; outcomes.len()];
    let mut first: BTreeSet<usize> = BTreeSet::new();
    let mut intervals: Vec<Interval> = Vec::new();
    let mut position = 0;
    for (at, begins, rule) in edges {
        if at > position
            && let Some(rule) = first.first()
        {
            extend(&mut intervals, position, at - 1, outcomes[*rule]);
        }
        position = at;
        if begins {
            active[rule] += 1;
            first.insert(rule);
        } else {
            active[rule] -= 1;
            if active[rule] == 0 {
                first.remove(&rule);
            }
        }
    }
    intervals
}

fn extend(intervals: &mut Vec<Interval>, low: u32, high: u32, outcome: Outcome) {
    let (Ok(low), Ok(high)) = (u16::try_from(low), u16::try_from(high)) else { return };
    match intervals.last_mut() {
        Some(last) if last.outcome == outcome && u32::from(last.high) + 1 == u32::from(low) => {
            last.high = high;
        }
        _ => intervals.push(Interval { low, high, outcome }),
    }
}

#[cfg(test)]
mod tests {
    use policy_common::abi::action;

    use super::*;

    fn outcome(rule: u32) -> Outcome {
        Outcome::new(action::ALLOW, rule)
    }

    fn set(rules: &[Ports], names: &[ContainerPort]) -> SetContent {
        flatten((1..).zip(rules).map(|(i, ports)| Match { ports, outcome: outcome(i) }), names)
    }

    fn tcp(low: u16, high: u16) -> PortMatch {
        PortMatch::Range(Protocol::Tcp, low, high)
    }

    #[test]
    fn first_rule_decides_each_port() {
        let rules = [
            Ports::Any(vec![tcp(80, 80), tcp(443, 443)]),
            Ports::Any(vec![tcp(1, 100), PortMatch::Protocol(Protocol::Udp), PortMatch::Nothing]),
            Ports::All,
            Ports::Any(vec![tcp(0, 65_535)]),
        ];
        let set = set(&rules, &[]);
        let seen: Vec<_> = set.intervals[0].iter().map(|i| (i.low, i.high, i.outcome.rule())).collect();
        assert_eq!(seen, [(1, 79, 2), (80, 80, 1), (81, 100, 2), (443, 443, 1)]);
        assert_eq!(set.intervals[1], [Interval { low: 0, high: 65_535, outcome: outcome(2) }]);
        assert_eq!((set.other, set.default), (outcome(3), outcome(3)));
    }

    #[test]
    fn neighbours_merge_and_names_resolve() {
        let port = |port, protocol| ContainerPort { name: "web".into(), port, protocol };
        let names = [port(81, Protocol::Tcp), port(83, Protocol::Tcp), port(9, Protocol::Udp)];
        let named = PortMatch::Named(Protocol::Tcp, "web".into());
        let set = set(&[Ports::Any(vec![tcp(80, 80), named, tcp(82, 82), tcp(82, 90)])], &names);
        assert_eq!(set.intervals[0], [Interval { low: 80, high: 90, outcome: outcome(1) }]);
        assert_eq!(set.len(), 1);
        assert_eq!((set.other, set.default), (Outcome::DROP, Outcome::DROP));
        assert!(flatten(std::iter::empty(), &names).is_empty());
        let nothing = Ports::Any(vec![PortMatch::Nothing, tcp(9, 3)]);
        assert!(flatten([Match { ports: &nothing, outcome: outcome(1) }].into_iter(), &[]).is_empty());
    }
}
