//! NetworkPolicy: whom it selects, which directions it isolates, and its rules.
//!
//! A part that cannot be read must never open anything. That decides more than leaving the part out: a policy whose
//! pods or directions are in doubt isolates all that it may have meant, and allows nothing there, for its rules would
//! otherwise reach pods that other policies isolate.

use policy_common::abi::Direction;
use serde_json::Value;

use super::at::At;
use super::{Meta, rule, selector};
use crate::model::{Policy, Requirement, Rule, Selector};
use crate::world::Delta;

const NO_RULE: &str = "the policy isolates and none of its rules matches";

/// Reads a NetworkPolicy.
pub(super) fn policy(root: &At<'_>, meta: &Meta<'_>) -> Delta {
    let known = root.only(&["apiVersion", "kind", "metadata", "spec", "status"], NO_RULE);
    let spec = root.field_or_null("spec", "all pods of the namespace, isolated in ingress");
    let (pod_selector, directions, trusted) = match &spec {
        Some(at) => {
            let known = at.object(NO_RULE).is_some()
                && at.only(&["podSelector", "policyTypes", "ingress", "egress"], NO_RULE)
                && known;
            let (pod_selector, readable) = target(at);
            (pod_selector, directions(at, known), known && readable)
        }
        None if known => (Selector::default(), Directions::by_default(false), true),
        None => (Selector::default(), Directions::unreadable(), false),
    };
    let rules = |direction| {
        let isolation = directions.of(direction);
        let trusted = trusted && isolation == Isolation::Named;
        read_rules(spec.as_ref(), direction, isolation, trusted)
    };
    Delta::Policy(Policy {
        key: meta.key.clone(),
        uid: meta.uid.clone(),
        pod_selector,
        ingress: rules(Direction::Ingress),
        egress: rules(Direction::Egress),
    })
}

/// The pods that the policy selects, and whether that could be read. What cannot be read is left out, which selects
/// more pods.
fn target(spec: &At<'_>) -> (Selector, bool) {
    const WIDER: &str = "this part of the selector is left out, so more pods are isolated, and none of the policy's rules matches";
    let Some(at) = spec.field_or_null("podSelector", "every pod of the namespace") else {
        return (Selector::default(), true);
    };
    let mut read = selector::selector(&at, WIDER);
    let all = read.requirements.len();
    read.requirements.retain(|requirement| *requirement != Requirement::Never);
    let readable = read.requirements.len() == all;
    (read, readable)
}

/// Whether a policy isolates in a direction.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Isolation {
    /// No.
    No,
    /// Yes, by `policyTypes` or their default.
    Named,
    /// To be safe, because `policyTypes` cannot be read: its rules are not trusted.
    InDoubt,
}

struct Directions {
    ingress: Isolation,
    egress: Isolation,
}

impl Directions {
    fn by_default(has_egress_rules: bool) -> Self {
        let egress = if has_egress_rules { Isolation::Named } else { Isolation::No };
        Self { ingress: Isolation::Named, egress }
    }

    fn unreadable() -> Self {
        Self { ingress: Isolation::InDoubt, egress: Isolation::InDoubt }
    }

    fn of(&self, direction: Direction) -> Isolation {
        match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        }
    }
}

/// The directions that the policy isolates. `known`: the rest of the object was understood, so that absent fields are
/// really absent and not misspelt.
fn directions(spec: &At<'_>, known: bool) -> Directions {
    const BOTH: &str =
        "the policy isolates both directions, without rules where policyTypes does not name them";
    const DEFAULT: &str = "Ingress, and Egress if there are egress rules";
    let Some(at) = spec.field_or_null("policyTypes", DEFAULT) else { return default_directions(spec, known) };
    let Some(items) = at.items(BOTH) else { return Directions::unreadable() };
    if items.is_empty() {
        return default_directions(spec, known);
    }
    let (mut ingress, mut egress, mut readable) = (false, false, true);
    for item in &items {
        match item.text(BOTH) {
            Some("Ingress") => ingress = true,
            Some("Egress") => egress = true,
            Some(other) => {
                item.bad(format!("unknown policy type \"{other}\" (Ingress and Egress are known): {BOTH}"));
                readable = false;
            }
            None => readable = false,
        }
    }
    let unnamed = if readable { Isolation::No } else { Isolation::InDoubt };
    let isolation = |named: bool| if named { Isolation::Named } else { unnamed };
    Directions { ingress: isolation(ingress), egress: isolation(egress) }
}

/// Ingress always; egress if there are egress rules.
fn default_directions(spec: &At<'_>, known: bool) -> Directions {
    if !known {
        return Directions::unreadable();
    }
    let has_egress_rules = match spec.field("egress").map(|at| at.value()) {
        Some(Value::Array(rules)) => !rules.is_empty(),
        // Of the wrong type: whatever was meant, it was about egress.
        Some(_) => true,
        None => false,
    };
    Directions::by_default(has_egress_rules)
}

fn read_rules(
    spec: Option<&At<'_>>,
    direction: Direction,
    isolation: Isolation,
    trusted: bool,
) -> Option<Vec<Rule>> {
    let at = spec.and_then(|spec| spec.field(direction.name()));
    if isolation == Isolation::No {
        if let Some(at) = at.filter(|at| at.value().as_array().is_none_or(|rules| !rules.is_empty())) {
            at.note(format!("has no effect: policyTypes does not name {}", type_name(direction)));
        }
        return None;
    }
    let items = at.and_then(|at| at.items("no rule matches")).unwrap_or_default();
    let rules: Vec<Rule> = items.iter().map(|item| rule::rule(item, direction)).collect();
    // Read all the same, so that every problem is told at once.
    Some(if trusted { rules } else { Vec::new() })
}

fn type_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "Ingress",
        Direction::Egress => "Egress",
    }
}
