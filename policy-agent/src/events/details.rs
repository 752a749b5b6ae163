//! What Hubble's fields cannot say, carried in `Flow.extensions` as a `Struct` that every Hubble tool can print.

use std::collections::BTreeMap;

use policy_engine::verdict::{Nearest, RuleRef};
use policy_engine::world::World;
use prost::Message as _;
use prost_types::value::Kind;
use prost_types::{Any, ListValue, Struct, Value};

use crate::events::names::clean;

/// Value of the key `schema`, by which a reader tells our Struct from others.
pub const SCHEMA: &str = "policyctl/1";

/// A message type of our own would make `hubble observe -o json` fail at the flow.
const STRUCT_URL: &str = "type.googleapis.com/google.protobuf.Struct";

/// The details of one flow. Every field is optional: what is unknown is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// Exact reason ([`policy_common::reason::Reason::name`]).
    pub reason: String,
    /// Policies that isolate the judged pod in the judged direction.
    pub isolated_by: Vec<String>,
    /// The rule that allows.
    pub allowed_by: Option<RuleText>,
    /// The rule that denies.
    pub denied_by: Option<RuleText>,
    /// The rule that came nearest.
    pub nearest_rule: Option<NearestText>,
    /// Events of the same endpoint held back by the rate limit since the one before.
    pub suppressed: u32,
    /// The world that judged the packet is no longer kept: names and policies are today's.
    pub as_of_now: bool,
    /// Verdict of the evaluator (`allow`), when it is not the kernel's.
    pub evaluator: Option<String>,
    /// Number of the enforced plan that explained the packet.
    pub enforcement: u64,
    /// Length of the packet in bytes.
    pub length: u32,
}

/// Position of a rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleText {
    /// `namespace/name`; of a ClusterNetworkPolicy its name.
    pub policy: String,
    /// `ingress` or `egress`.
    pub direction: String,
    /// Index in the rule list.
    pub index: u32,
    /// Tier of a ClusterNetworkPolicy; empty otherwise.
    pub tier: String,
    /// Its place in the tier.
    pub priority: u32,
    /// Name of its rule; empty when it has none.
    pub name: String,
}

/// The nearest rule and the field that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NearestText {
    /// The rule.
    pub rule: RuleText,
    /// Name of the field.
    pub field: String,
    /// What the rule wants.
    pub wanted: String,
    /// What the packet has.
    pub got: String,
}

impl RuleText {
    /// A rule of a world.
    #[must_use]
    pub fn new(world: &World, rule: &RuleRef) -> Self {
        let text = Self {
            policy: clean(&rule.policy.to_string()),
            direction: rule.direction.name().to_owned(),
            index: rule.index,
            ..Self::default()
        };
        let policy = world.cluster_policies.get(&rule.policy.name).filter(|_| rule.is_of_cluster());
        let Some(policy) = policy else { return text };
        let name = policy.rules(rule.direction).get(rule.index as usize).map_or("", |rule| &*rule.name);
        Self {
            tier: policy.tier.name().to_owned(),
            priority: policy.priority.into(),
            name: clean(name),
            ..text
        }
    }
}

impl NearestText {
    /// The nearest rule of a world.
    #[must_use]
    pub fn new(world: &World, nearest: &Nearest) -> Self {
        Self {
            rule: RuleText::new(world, &nearest.rule),
            field: nearest.field.name().to_owned(),
            wanted: clean(&nearest.wanted),
            got: clean(&nearest.got),
        }
    }
}

impl std::fmt::Display for RuleText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}[{}]", self.policy, self.direction, self.index)?;
        if !self.name.is_empty() {
            write!(f, " \"{}\"", self.name)?;
        }
        if !self.tier.is_empty() {
            write!(f, " ({} tier, priority {})", self.tier, self.priority)?;
        }
        Ok(())
    }
}

impl std::fmt::Display for NearestText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} {}, got {}", self.rule, self.field, self.wanted, self.got)
    }
}

impl Details {
    /// The extension of a flow.
    #[must_use]
    pub fn to_any(&self) -> Any {
        let mut fields = BTreeMap::from([
            ("schema".to_owned(), text(SCHEMA)),
            ("reason".to_owned(), text(&self.reason)),
            ("enforcement".to_owned(), number(self.enforcement as f64)),
            ("length".to_owned(), number(f64::from(self.length))),
        ]);
        if !self.isolated_by.is_empty() {
            let values = self.isolated_by.iter().map(|policy| text(policy)).collect();
            let kind = Some(Kind::ListValue(ListValue { values }));
            fields.insert("isolated_by".to_owned(), Value { kind });
        }
        if let Some(rule) = &self.allowed_by {
            fields.insert("allowed_by".to_owned(), object(rule_fields(rule)));
        }
        if let Some(rule) = &self.denied_by {
            fields.insert("denied_by".to_owned(), object(rule_fields(rule)));
        }
        if let Some(nearest) = &self.nearest_rule {
            let mut inner = rule_fields(&nearest.rule);
            inner.insert("field".to_owned(), text(&nearest.field));
            inner.insert("wanted".to_owned(), text(&nearest.wanted));
            inner.insert("got".to_owned(), text(&nearest.got));
            fields.insert("nearest_rule".to_owned(), object(inner));
        }
        if self.suppressed > 0 {
            fields.insert("suppressed".to_owned(), number(f64::from(self.suppressed)));
        }
        if self.as_of_now {
            fields.insert("as_of_now".to_owned(), Value { kind: Some(Kind::BoolValue(true)) });
        }
        if let Some(verdict) = &self.evaluator {
            fields.insert("evaluator".to_owned(), text(verdict));
        }
        Any { type_url: STRUCT_URL.to_owned(), value: Struct { fields }.encode_to_vec() }
    }

    /// Reads the extension of a flow; `None` if it is not ours.
    #[must_use]
    pub fn from_any(any: &Any) -> Option<Self> {
        if any.type_url.rsplit('/').next() != Some("google.protobuf.Struct") {
            return None;
        }
        let Struct { fields } = Struct::decode(any.value.as_slice()).ok()?;
        if string(&fields, "schema")? != SCHEMA {
            return None;
        }
        Some(Self {
            reason: string(&fields, "reason").unwrap_or_default(),
            isolated_by: strings(&fields, "isolated_by"),
            allowed_by: inner(&fields, "allowed_by").and_then(rule),
            denied_by: inner(&fields, "denied_by").and_then(rule),
            nearest_rule: inner(&fields, "nearest_rule").and_then(nearest),
            suppressed: integer(&fields, "suppressed") as u32,
            as_of_now: matches!(fields.get("as_of_now"), Some(Value { kind: Some(Kind::BoolValue(true)) })),
            evaluator: string(&fields, "evaluator"),
            enforcement: integer(&fields, "enforcement"),
            length: integer(&fields, "length") as u32,
        })
    }
}

type Fields = BTreeMap<String, Value>;

fn text(value: &str) -> Value {
    Value { kind: Some(Kind::StringValue(value.to_owned())) }
}

fn number(value: f64) -> Value {
    Value { kind: Some(Kind::NumberValue(value)) }
}

fn object(fields: Fields) -> Value {
    Value { kind: Some(Kind::StructValue(Struct { fields })) }
}

fn rule_fields(rule: &RuleText) -> Fields {
    let mut fields = BTreeMap::from([
        ("policy".to_owned(), text(&rule.policy)),
        ("direction".to_owned(), text(&rule.direction)),
        ("index".to_owned(), number(f64::from(rule.index))),
    ]);
    if !rule.tier.is_empty() {
        fields.insert("tier".to_owned(), text(&rule.tier));
        fields.insert("priority".to_owned(), number(f64::from(rule.priority)));
    }
    if !rule.name.is_empty() {
        fields.insert("name".to_owned(), text(&rule.name));
    }
    fields
}

fn string(fields: &Fields, key: &str) -> Option<String> {
    match &fields.get(key)?.kind {
        Some(Kind::StringValue(value)) => Some(value.clone()),
        _ => None,
    }
}

fn strings(fields: &Fields, key: &str) -> Vec<String> {
    let Some(Some(Kind::ListValue(list))) = fields.get(key).map(|value| &value.kind) else {
        return Vec::new();
    };
    let strings = list.values.iter().filter_map(|value| match &value.kind {
        Some(Kind::StringValue(text)) => Some(text.clone()),
        _ => None,
    });
    strings.collect()
}

/// A number that is none, or out of range, saturates: the cast does so by itself.
fn integer(fields: &Fields, key: &str) -> u64 {
    match fields.get(key).map(|value| &value.kind) {
        Some(Some(Kind::NumberValue(value))) => *value as u64,
        _ => 0,
    }
}

fn inner<'a>(fields: &'a Fields, key: &str) -> Option<&'a Fields> {
    match &fields.get(key)?.kind {
        Some(Kind::StructValue(inner)) => Some(&inner.fields),
        _ => None,
    }
}

fn rule(fields: &Fields) -> Option<RuleText> {
    Some(RuleText {
        policy: string(fields, "policy")?,
        direction: string(fields, "direction")?,
        index: integer(fields, "index") as u32,
        tier: string(fields, "tier").unwrap_or_default(),
        priority: integer(fields, "priority") as u32,
        name: string(fields, "name").unwrap_or_default(),
    })
}

fn nearest(fields: &Fields) -> Option<NearestText> {
    Some(NearestText {
        rule: rule(fields)?,
        field: string(fields, "field")?,
        wanted: string(fields, "wanted")?,
        got: string(fields, "got")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule() -> RuleText {
        RuleText {
            policy: "shop/db-allow".into(),
            direction: "ingress".into(),
            index: 2,
            ..RuleText::default()
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let full = Details {
            reason: "no_rule_matched".into(),
            isolated_by: vec!["shop/a".into(), "shop/b".into()],
            allowed_by: Some(rule()),
            denied_by: Some(RuleText { tier: "Admin".into(), priority: 7, name: "n".into(), ..rule() }),
            nearest_rule: Some(NearestText {
                rule: rule(),
                field: "port".into(),
                wanted: "5432/TCP".into(),
                got: "9999/TCP".into(),
            }),
            suppressed: u32::MAX,
            as_of_now: true,
            evaluator: Some("allow".into()),
            enforcement: 12,
            length: 60,
        };
        assert_eq!(Details::from_any(&full.to_any()), Some(full));
        let least = Details { reason: "no_flow".into(), ..Details::default() };
        assert_eq!(Details::from_any(&least.to_any()), Some(least));
    }

    #[test]
    fn a_foreign_extension_is_not_ours() {
        let mut any = Details::default().to_any();
        any.type_url = "type.googleapis.com/google.protobuf.StringValue".into();
        assert_eq!(Details::from_any(&any), None);
        let other = Struct { fields: BTreeMap::from([("schema".into(), text("other/1"))]) };
        let any = Any { type_url: STRUCT_URL.into(), value: other.encode_to_vec() };
        assert_eq!(Details::from_any(&any), None);
    }
}
