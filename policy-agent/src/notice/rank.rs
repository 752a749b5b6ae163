//! Which agents of a cluster try to write an Event, and when.
//!
//! All of them see a problem of a policy at the same moment, and in a large cluster thousands of equal requests are a
//! storm, though only one of them makes an object. So each notice puts the nodes into an order of its own, and only the
//! first [`TRIES`] nodes try, one after the other: the later ones stand in for nodes without a working agent. A
//! policy that does not fit is known to some nodes only, so there the agents spread their tries over a time instead.

use std::time::Duration;

use super::event::hash;
use super::{Notice, Reason};

/// Nodes that try.
const TRIES: usize = 4;
/// Time between two tries.
const BETWEEN: Duration = Duration::from_secs(15);
/// Time over which nodes spread, for each node of the cluster, and at most.
const SPREAD: Duration = Duration::from_millis(100);
const SPREAD_AT_MOST: Duration = Duration::from_secs(60);

/// How long this node waits before it tries; `None` = it leaves it to others.
pub(super) fn wait<'a>(
    notice: &Notice,
    node: &str,
    nodes: impl ExactSizeIterator<Item = &'a str>,
) -> Option<Duration> {
    let id = notice.id().to_string();
    let score = |name: &str| hash(&[&id, name]);
    let own = score(node);
    match notice.reason {
        Reason::NotHonoured | Reason::Advice => {
            let before = nodes.filter(|name| (score(name), *name) < (own, node)).count();
            (before < TRIES).then(|| BETWEEN * u32::try_from(before).unwrap_or(u32::MAX))
        }
        Reason::DoesNotFit => {
            let count = u32::try_from(nodes.len().saturating_sub(1)).unwrap_or(u32::MAX);
            let spread = SPREAD.saturating_mul(count).min(SPREAD_AT_MOST);
            Some(spread.mul_f64((own >> 32) as f64 / f64::from(u32::MAX)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use policy_engine::model::ObjectKey;

    fn notice(name: &str, reason: Reason) -> Notice {
        let policy = ObjectKey::new("x", name);
        Notice { policy, uid: "u".into(), version: 1, reason, field: String::new(), message: "m".to_owned() }
    }

    #[test]
    fn few_nodes_try_each_at_its_time_and_not_always_the_same() {
        let nodes: Vec<String> = (0..1000).map(|n| format!("node-{n}")).collect();
        let mut first = std::collections::BTreeSet::new();
        for policy in ["a", "b", "c", "d", "e"] {
            let notice = notice(policy, Reason::NotHonoured);
            let mut waits: Vec<(Duration, &String)> = nodes
                .iter()
                .filter_map(|n| Some((wait(&notice, n, nodes.iter().map(String::as_str))?, n)))
                .collect();
            waits.sort();
            let times: Vec<u64> = waits.iter().map(|(wait, _)| wait.as_secs()).collect();
            assert_eq!(times, [0, 15, 30, 45]);
            first.insert(waits[0].1);
        }
        assert!(first.len() > 2, "{first:?}");
    }

    #[test]
    fn a_node_alone_tries_at_once_and_many_spread() {
        for reason in [Reason::NotHonoured, Reason::DoesNotFit] {
            assert_eq!(wait(&notice("a", reason), "n", ["n"].into_iter()), Some(Duration::ZERO));
        }
        let nodes: Vec<String> = (0..5000).map(|n| format!("node-{n}")).collect();
        let notice = notice("a", Reason::DoesNotFit);
        let of = |node: &String| wait(&notice, node, nodes.iter().map(String::as_str)).unwrap();
        let waits: Vec<Duration> = nodes.iter().take(200).map(of).collect();
        assert!(waits.iter().all(|wait| *wait <= SPREAD_AT_MOST));
        let spread = *waits.iter().max().unwrap() - *waits.iter().min().unwrap();
        assert!(spread > Duration::from_secs(40), "{spread:?}");
    }
}
