//! Tiers, flattened: what ClusterNetworkPolicies before and behind the NetworkPolicies make of a rule set.
//!
//! Each policy's rules become a rule set in words of our own. Sets of one priority are joined by their strongest word,
//! those of a tier by the first that says anything, and the tiers likewise.

use std::sync::Arc;

use policy_common::abi::{Interval, Outcome, action};

use super::policies::{Row, RowRule};
use super::sets::{Match, flatten};
use crate::desired::SetContent;
use crate::model::{Action, ClusterPolicy, ContainerPort, Pod, Tier};
use crate::world::World;

/// When a rule is asked. In a tier: by priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Before NetworkPolicies.
    Admin(u16),
    /// With them.
    Namespace,
    /// Behind them.
    Baseline(u16),
}

impl Stage {
    /// That of a policy's rules.
    pub(crate) fn of(policy: &ClusterPolicy) -> Self {
        match policy.tier {
            Tier::Admin => Self::Admin(policy.priority),
            Tier::Baseline => Self::Baseline(policy.priority),
        }
    }
}

/// Words in the sets of this file, in the place of an action: nothing said = [`Outcome::DROP`].
mod say {
    pub(super) const ACCEPT: u8 = policy_common::abi::action::ALLOW;
    pub(super) const DENY: u8 = 14;
    pub(super) const PASS: u8 = 15;
}

/// What a rule says. `id` = its number.
pub(crate) fn word(action: Action, id: impl FnOnce() -> u32) -> Outcome {
    match action {
        Action::Accept => Outcome::new(say::ACCEPT, id()),
        Action::Deny => Outcome::new(say::DENY, id()),
        Action::Pass => Outcome::new(say::PASS, 0),
    }
}

/// All policies of the cluster, in the order in which they are asked.
pub(crate) fn in_order(world: &World) -> Vec<&Arc<ClusterPolicy>> {
    let mut all: Vec<_> = world.cluster_policies.values().collect();
    all.sort_by(|a, b| (a.tier, a.priority, &a.name).cmp(&(b.tier, b.priority, &b.name)));
    all
}

/// Those of them that have rules for a pod.
pub(crate) fn concerning<'a>(
    world: &World,
    policies: &[&'a Arc<ClusterPolicy>],
    pod: &Pod,
) -> Vec<&'a Arc<ClusterPolicy>> {
    if policies.is_empty() {
        return Vec::new();
    }
    let labels = world.namespace_labels(&pod.key.namespace);
    policies.iter().copied().filter(|policy| policy.concerns(&labels, pod)).collect()
}

/// The rule set of the rules of a row that match a class. `names`: ports of the pod that packets go to.
pub(crate) fn set(row: &Row, matching: &[&RowRule], names: &[ContainerPort]) -> SetContent {
    let of = |rules: &[&RowRule]| {
        let rules = rules.iter().map(|rule| Match { ports: row.ports(rule), outcome: rule.outcome });
        flatten(rules, names)
    };
    let (mut admin, mut baseline) = (SetContent::default(), SetContent::default());
    let of_namespace: Vec<&RowRule> =
        matching.iter().copied().filter(|rule| rule.stage == Stage::Namespace).collect();
    for rung in matching.chunk_by(|a, b| a.stage == b.stage) {
        let tier = match rung.first().map(|rule| rule.stage) {
            Some(Stage::Admin(_)) => &mut admin,
            Some(Stage::Baseline(_)) => &mut baseline,
            Some(Stage::Namespace) | None => continue,
        };
        let policies = rung.chunk_by(|a, b| a.is_of_one_policy(b)).map(of);
        let said = policies.reduce(|a, b| join(&a, &b, stronger)).unwrap_or_default();
        *tier = join(tier, &said, first);
    }
    let below = if row.spec.policies.is_empty() {
        join(&baseline, &SetContent::open(), decide)
    } else {
        of(&of_namespace)
    };
    join(&admin, &below, decide)
}

/// The word that says anything, the first of two.
fn first(a: Outcome, b: Outcome) -> Outcome {
    if a == Outcome::DROP { b } else { a }
}

/// The stronger of two words of one priority: deny over accept over pass.
fn stronger(a: Outcome, b: Outcome) -> Outcome {
    let rank = |word: Outcome| match word.action() {
        say::DENY => 3,
        say::ACCEPT => 2,
        say::PASS => 1,
        _ => 0,
    };
    if rank(b) > rank(a) { b } else { a }
}

/// What a word means to the kernel, where `below` = what the next tier decides.
fn decide(word: Outcome, below: Outcome) -> Outcome {
    match word.action() {
        say::DENY => Outcome::new(action::DROP, word.rule()),
        say::ACCEPT => Outcome::new(action::ALLOW, word.rule()),
        // Passed on, or nothing said.
        _ => below,
    }
}

/// Two rule sets made one, port by port.
fn join(a: &SetContent, b: &SetContent, both: fn(Outcome, Outcome) -> Outcome) -> SetContent {
    let default = both(a.default, b.default);
    let mut joined = SetContent { other: both(a.other, b.other), default, ..SetContent::default() };
    for (protocol, intervals) in joined.intervals.iter_mut().enumerate() {
        let (of_a, of_b) = (&a.intervals[protocol], &b.intervals[protocol]);
        // The ports at which either begins to say something else.
        let edges = |i: &Interval| [u32::from(i.low), u32::from(i.high) + 1];
        let mut edges: Vec<u32> = of_a.iter().chain(of_b).flat_map(edges).collect();
        edges.sort_unstable();
        edges.dedup();
        for span in edges.windows(2) {
            let (Ok(low), Ok(high)) = (u16::try_from(span[0]), u16::try_from(span[1] - 1)) else { continue };
            let outcome = both(at(of_a, low, a.default), at(of_b, low, b.default));
            match intervals.last_mut() {
                _ if outcome == default => {}
                Some(last) if last.outcome == outcome && last.high.checked_add(1) == Some(low) => {
                    last.high = high;
                }
                Some(_) | None => intervals.push(Interval { low, high, outcome }),
            }
        }
    }
    joined
}

/// What sorted intervals say of a port.
fn at(intervals: &[Interval], port: u16, default: Outcome) -> Outcome {
    let index = intervals.partition_point(|interval| interval.high < port);
    intervals.get(index).filter(|interval| interval.low <= port).map_or(default, |interval| interval.outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interval(low: u16, high: u16, outcome: Outcome) -> Interval {
        Interval { low, high, outcome }
    }

    fn tcp(intervals: &[Interval], default: Outcome) -> SetContent {
        SetContent { intervals: [intervals.to_vec(), Vec::new(), Vec::new()], other: default, default }
    }

    #[test]
    fn sets_are_joined_port_by_port() {
        let [deny, accept, pass] = Action::ALL.map(|action| word(action, || 7));
        let none = Outcome::DROP;
        let a =
            tcp(&[interval(0, 99, pass), interval(100, 200, deny), interval(65_535, 65_535, accept)], none);
        let b = tcp(&[interval(50, 150, accept)], none);
        let joined = join(&a, &b, stronger);
        let wanted = [
            interval(0, 49, pass),
            interval(50, 99, accept),
            interval(100, 200, deny),
            interval(65_535, 65_535, accept),
        ];
        assert_eq!((joined.intervals[0].as_slice(), joined.default), (&wanted[..], none));
        assert_eq!(join(&a, &b, first).intervals[0][0], interval(0, 99, pass));
        // Towards the kernel: what is passed on, or not named, is as the next tier says.
        let decided = join(&joined, &SetContent::open(), decide);
        let (allow, drop) = (Outcome::new(action::ALLOW, 7), Outcome::new(action::DROP, 7));
        let wanted = [interval(50, 99, allow), interval(100, 200, drop), interval(65_535, 65_535, allow)];
        assert_eq!(
            (decided.intervals[0].as_slice(), decided.default),
            (&wanted[..], SetContent::open().default)
        );
        assert_eq!(decided.other, SetContent::open().other);
    }

    #[test]
    fn a_denial_without_a_number_is_one_all_the_same() {
        let deny = word(Action::Deny, || 0);
        assert_eq!(
            decide(first(deny, word(Action::Accept, || 1)), Outcome::new(action::ALLOW, 0)),
            Outcome::DROP
        );
    }
}
