//! Policies as `policyctl get policies` lists them.

use policy_engine::model::{ClusterPolicy, ObjectKey, Pod, Policy, Requirement, Selector};

use super::view::View;
use crate::proto::agent as proto;
use crate::source::objects::policy_of;

/// A NetworkPolicy.
pub(super) fn of_policy(policy: &Policy, view: &View) -> proto::Policy {
    let selected: Vec<_> = view
        .world
        .pods
        .range(ObjectKey::new(&policy.key.namespace, "")..)
        .take_while(|(key, _)| key.namespace == policy.key.namespace)
        .filter(|(_, pod)| pod.is_subject() && policy.pod_selector.matches(&pod.labels))
        .collect();
    let local = selected.iter().filter(|(_, pod)| pod.node.as_ref() == Some(&view.world.node_name)).count();
    let problems = view.problems.iter().filter(|p| policy_of(p).as_ref() == Some(&policy.key)).count();
    proto::Policy {
        namespace: policy.key.namespace.to_string(),
        name: policy.key.name.to_string(),
        kind: "NetworkPolicy".to_owned(),
        ingress: policy.ingress.is_some(),
        egress: policy.egress.is_some(),
        ingress_rules: number(policy.ingress.as_ref().map_or(0, Vec::len)),
        egress_rules: number(policy.egress.as_ref().map_or(0, Vec::len)),
        selected_pods: number(selected.len()),
        local_pods: number(local),
        selector: selector(&policy.pod_selector),
        problems: number(problems),
        ..proto::Policy::default()
    }
}

/// A ClusterNetworkPolicy.
pub(super) fn of_cluster_policy(policy: &ClusterPolicy, view: &View) -> proto::Policy {
    let world = &view.world;
    let subject = |pod: &Pod| {
        policy.namespaces.matches(&world.namespace_labels(&pod.key.namespace))
            && policy.pods.matches(&pod.labels)
    };
    let selected: Vec<_> = world.pods.values().filter(|pod| pod.is_subject() && subject(pod)).collect();
    let local = selected.iter().filter(|pod| pod.node.as_ref() == Some(&world.node_name)).count();
    let problems = view.problems.iter().filter(|p| policy_of(p) == Some(policy.key())).count();
    let parts = [("namespaces", &policy.namespaces), ("pods", &policy.pods)];
    let parts = parts.into_iter().filter(|(_, part)| !part.requirements.is_empty());
    let parts: Vec<String> = parts.map(|(what, part)| format!("{what} {}", selector(part))).collect();
    proto::Policy {
        name: policy.name.to_string(),
        kind: "ClusterNetworkPolicy".to_owned(),
        ingress_rules: number(policy.ingress.len()),
        egress_rules: number(policy.egress.len()),
        selected_pods: number(selected.len()),
        local_pods: number(local),
        selector: parts.join("; "),
        problems: number(problems),
        tier: policy.tier.name().to_owned(),
        priority: policy.priority.into(),
        ..proto::Policy::default()
    }
}

fn number(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// A selector as `kubectl` writes it.
fn selector(selector: &Selector) -> String {
    let part = |requirement: &Requirement| match requirement {
        Requirement::In(key, values) if values.len() == 1 => format!("{key}={}", values[0]),
        Requirement::In(key, values) => format!("{key} in ({})", values.join(",")),
        Requirement::NotIn(key, values) if values.len() == 1 => format!("{key}!={}", values[0]),
        Requirement::NotIn(key, values) => format!("{key} notin ({})", values.join(",")),
        Requirement::Exists(key) => key.clone(),
        Requirement::DoesNotExist(key) => format!("!{key}"),
        Requirement::Never => "(unreadable)".to_owned(),
    };
    selector.requirements.iter().map(part).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_written_as_kubectl_does() {
        let list = |values: &[&str]| values.iter().map(|v| (*v).to_owned()).collect();
        let all = Selector {
            requirements: vec![
                Requirement::In("a".into(), list(&["b"])),
                Requirement::NotIn("c".into(), list(&["d", "e"])),
                Requirement::DoesNotExist("f".into()),
            ],
        };
        assert_eq!(selector(&all), "a=b,c notin (d,e),!f");
        assert_eq!(selector(&Selector::default()), "");
    }
}
