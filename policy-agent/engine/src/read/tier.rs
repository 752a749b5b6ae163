//! ClusterNetworkPolicy: its tier and priority, the pods that it is about, and its rules.
//!
//! A rule of which a part cannot be read is closed: it accepts nothing, or denies everything. If it cannot be told where
//! the policy stands or whom it is about, it comes first, for all whom it may have meant, and what would open anything
//! is closed. If a field is not known, the policy denies everything: the field may be a misspelt list of rules.

use policy_common::abi::Direction;
use serde_json::Value;

use super::at::At;
use super::tier_rule;
use super::{Meta, selector};
use crate::model::{Action, ClusterPolicy, Peers, Ports, Requirement, Selector, Tier, TierRule};
use crate::world::Delta;

const CLOSED: &str = "the policy comes first; its Accept rules match nothing, its Pass rules deny everything";
const DENIES: &str = "the policy denies everything to its pods, in both directions";
/// Last priority.
const LAST: u64 = 1000;

/// Reads a ClusterNetworkPolicy.
pub(super) fn policy(root: &At<'_>, meta: &Meta<'_>) -> Delta {
    let mut known = root.only(&["apiVersion", "kind", "metadata", "spec", "status"], DENIES);
    let spec = root.field("spec");
    match &spec {
        Some(spec) => {
            let fields = ["tier", "priority", "subject", "ingress", "egress"];
            known = spec.object(DENIES).is_some() && spec.only(&fields, DENIES) && known;
        }
        None => root.bad(format!("has no spec: {DENIES}")),
    }
    known = known && spec.is_some();
    let tier = spec.as_ref().and_then(tier);
    let priority = spec.as_ref().and_then(priority);
    let subject = spec.as_ref().map_or_else(Subject::unknown, subject);
    let trusted = tier.is_some() && priority.is_some() && subject.readable;
    let rules = |direction| {
        let read = spec.as_ref().map_or_else(Vec::new, |spec| rules(spec, direction));
        match (known, trusted) {
            (true, true) => read,
            (true, false) => read.into_iter().map(in_doubt).collect(),
            (false, _) => vec![deny_all()],
        }
    };
    Delta::ClusterPolicy(ClusterPolicy {
        name: meta.key.name.clone(),
        uid: meta.uid.clone(),
        ingress: rules(Direction::Ingress),
        egress: rules(Direction::Egress),
        // Nothing comes before this.
        tier: tier.unwrap_or(Tier::Admin),
        priority: priority.unwrap_or(0),
        namespaces: subject.namespaces,
        pods: subject.pods,
    })
}

/// A rule of a policy that stands somewhere else than it was meant to, or is about more pods.
fn in_doubt(rule: TierRule) -> TierRule {
    match rule.action {
        Action::Accept | Action::Pass => rule.closed(),
        Action::Deny => rule,
    }
}

/// What a rule becomes of which nothing can be read.
pub(super) fn deny_all() -> TierRule {
    TierRule { name: "".into(), action: Action::Deny, peers: Peers::All, ports: Ports::All }
}

fn tier(spec: &At<'_>) -> Option<Tier> {
    let Some(at) = spec.field("tier") else {
        spec.bad(format!("has no tier: {CLOSED}"));
        return None;
    };
    let name = at.text(CLOSED)?;
    let found = Tier::ALL.into_iter().find(|tier| tier.name() == name);
    if found.is_none() {
        at.bad(format!("unknown tier \"{name}\" (Admin and Baseline are known): {CLOSED}"));
    }
    found
}

fn priority(spec: &At<'_>) -> Option<u16> {
    let Some(at) = spec.field("priority") else {
        spec.bad(format!("has no priority: {CLOSED}"));
        return None;
    };
    let Value::Number(number) = at.value() else {
        at.wrong_type("a whole number", CLOSED);
        return None;
    };
    let priority = number.as_u64().filter(|number| *number <= LAST);
    if priority.is_none() {
        at.bad(format!("{number} is no priority, priorities are 0 to {LAST}: {CLOSED}"));
    }
    u16::try_from(priority?).ok()
}

/// Whom a policy is about.
struct Subject {
    namespaces: Selector,
    pods: Selector,
    readable: bool,
}

impl Subject {
    /// Everybody, in doubt.
    fn unknown() -> Self {
        Self { namespaces: Selector::default(), pods: Selector::default(), readable: false }
    }
}

/// The pods that the policy is about. What cannot be read is left out, which selects more of them.
fn subject(spec: &At<'_>) -> Subject {
    const WIDER: &str = "the policy is about more pods than it says; its Accept rules match nothing, its Pass rules deny everything";
    let Some(at) = spec.field("subject") else {
        spec.bad(format!("has no subject: {WIDER}"));
        return Subject::unknown();
    };
    if at.object(WIDER).is_none() || !at.only(&["namespaces", "pods"], WIDER) {
        return Subject::unknown();
    }
    match (at.field("namespaces"), at.field("pods")) {
        (Some(namespaces), None) => {
            let (namespaces, readable) = wide(&namespaces, WIDER);
            Subject { namespaces, pods: Selector::default(), readable }
        }
        (None, Some(pods)) => pods_of(&pods, WIDER),
        (Some(_), Some(_)) => {
            at.bad(format!("has namespaces and pods: {WIDER}"));
            Subject::unknown()
        }
        (None, None) => {
            at.bad(format!("has neither namespaces nor pods: {WIDER}"));
            Subject::unknown()
        }
    }
}

fn pods_of(at: &At<'_>, wider: &str) -> Subject {
    if at.object(wider).is_none() || !at.only(&["namespaceSelector", "podSelector"], wider) {
        return Subject::unknown();
    }
    let all = || (Selector::default(), true);
    let (namespaces, first) = at.field("namespaceSelector").map_or_else(all, |at| wide(&at, wider));
    let (pods, second) = match at.field("podSelector") {
        Some(at) => wide(&at, wider),
        None => {
            at.bad(format!("has no podSelector: {wider}"));
            (Selector::default(), false)
        }
    };
    Subject { namespaces, pods, readable: first && second }
}

/// A selector without the requirements that cannot be read, and whether that are all.
fn wide(at: &At<'_>, wider: &str) -> (Selector, bool) {
    let mut read = selector::selector(at, wider);
    let all = read.requirements.len();
    read.requirements.retain(|requirement| *requirement != Requirement::Never);
    let readable = read.requirements.len() == all;
    (read, readable)
}

fn rules(spec: &At<'_>, direction: Direction) -> Vec<TierRule> {
    const LIST: &str = "everything is denied in this direction";
    let Some(at) = spec.field(direction.name()) else { return Vec::new() };
    match at.items(LIST) {
        Some(items) => items.iter().map(|item| tier_rule::rule(item, direction)).collect(),
        None => vec![deny_all()],
    }
}
