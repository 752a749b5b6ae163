//! What ClusterNetworkPolicies say: tier by tier, priority by priority, rule by rule.

use std::sync::Arc;

use policy_common::abi::Direction;

use super::{peers_match, ports_match, remote_address};
use crate::model::{Action, ClusterPolicy, Pod, Tier};
use crate::verdict::{Query, RuleRef};
use crate::world::World;

/// The first word of a tier, and the rule that says it.
pub(super) type Word = (Action, RuleRef);

/// The policies that have rules for a pod in a direction, in the order in which they are asked.
pub(super) fn concerning<'a>(
    world: &'a World,
    pod: &Pod,
    direction: Direction,
) -> Vec<&'a Arc<ClusterPolicy>> {
    let labels = world.namespace_labels(&pod.key.namespace);
    let all = world.cluster_policies.values();
    let mut policies: Vec<_> =
        all.filter(|p| !p.rules(direction).is_empty() && p.concerns(&labels, pod)).collect();
    policies.sort_by_key(|policy| (policy.tier, policy.priority, policy.name.clone()));
    policies
}

/// What a tier says of a flow; `None` if none of its rules matches.
pub(super) fn ask(
    world: &World,
    tier: Tier,
    policies: &[&Arc<ClusterPolicy>],
    direction: Direction,
    query: &Query,
) -> Option<Word> {
    let of_tier: Vec<_> = policies.iter().filter(|policy| policy.tier == tier).collect();
    // The first priority at which any policy has a word. Where several have one, the strongest counts.
    of_tier.chunk_by(|a, b| a.priority == b.priority).find_map(|equal| {
        let words = equal.iter().filter_map(|policy| first(world, policy, direction, query));
        words.min_by_key(|(action, _)| *action)
    })
}

/// The first rule of a policy that matches.
fn first(world: &World, policy: &ClusterPolicy, direction: Direction, query: &Query) -> Option<Word> {
    let remote = remote_address(direction, query);
    let matches = |rule: &&crate::model::TierRule| {
        // No peer of such a policy looks into "its own" namespace.
        peers_match(world, "", &rule.peers, remote) && ports_match(world, &rule.ports, query)
    };
    let (index, rule) = (0..).zip(policy.rules(direction)).find(|(_, rule)| matches(rule))?;
    Some((rule.action, RuleRef { policy: policy.key(), direction, index }))
}
