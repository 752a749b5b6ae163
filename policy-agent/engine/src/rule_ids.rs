//! Stable numbers of rules: what the kernel stores beside a verdict, and what turns it back into a policy's rule.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use policy_common::abi::Direction;
use serde::{Deserialize, Serialize};

use crate::model::ObjectKey;
use crate::verdict::RuleRef;

/// Retired numbers that are remembered before the oldest is given to another rule: events and flows may still name
/// them.
const RETIRED_KEPT: usize = 4096;
/// Numbers have 24 bits; 0 means no rule.
const LAST: u32 = 0xff_ffff;

/// A rule of one incarnation of a policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleKey {
    /// Position.
    pub rule: RuleRef,
    /// UID of the policy; empty when it has none.
    pub uid: Arc<str>,
}

/// Numbers of rules. The same rule keeps its number, also across restarts if this is saved.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(into = "Saved", try_from = "Saved")]
pub struct RuleIds {
    ids: HashMap<RuleKey, u32>,
    rules: HashMap<u32, RuleKey>,
    retired: VecDeque<u32>,
    last: u32,
    changes: u64,
}

/// The same numbers for the same rules, whatever there was before.
impl PartialEq for RuleIds {
    fn eq(&self, other: &Self) -> bool {
        self.last == other.last && self.retired == other.retired && self.rules == other.rules
    }
}

impl Eq for RuleIds {}

/// A saved list of numbers that contradicts itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("rule number {0} is out of range or given twice")]
pub struct BadRuleIds(u32);

impl RuleIds {
    /// Number of a rule, given now if it had none. `None` when all 16 million are in use.
    pub fn id(&mut self, key: &RuleKey) -> Option<u32> {
        if let Some(id) = self.ids.get(key) {
            return Some(*id);
        }
        self.changes += 1;
        let id = if self.retired.len() > RETIRED_KEPT || self.last == LAST {
            let id = self.retired.pop_front()?;
            if let Some(old) = self.rules.remove(&id) {
                self.ids.remove(&old);
            }
            id
        } else {
            self.last += 1;
            self.last
        };
        self.ids.insert(key.clone(), id);
        self.rules.insert(id, key.clone());
        Some(id)
    }

    /// Number of a rule that has one.
    #[must_use]
    pub fn find(&self, key: &RuleKey) -> Option<u32> {
        self.ids.get(key).copied()
    }

    /// The rule of a number, also while it is retired.
    #[must_use]
    pub fn rule(&self, id: u32) -> Option<&RuleRef> {
        self.rules.get(&id).map(|k| &k.rule)
    }

    /// Rules with their numbers, the retired ones left out.
    pub fn in_use(&self) -> impl Iterator<Item = (u32, &RuleRef)> {
        let retired: BTreeSet<u32> = self.retired.iter().copied().collect();
        self.rules.iter().filter(move |(id, _)| !retired.contains(id)).map(|(id, key)| (*id, &key.rule))
    }

    /// Grows with every change: as long as it stays the same, so does all the rest.
    #[must_use]
    pub const fn changes(&self) -> u64 {
        self.changes
    }

    /// Retires the numbers that are not in use and takes back those that are.
    pub fn retain(&mut self, used: &BTreeSet<u32>) {
        let before = self.retired.len();
        self.retired.retain(|id| !used.contains(id));
        let retired: BTreeSet<u32> = self.retired.iter().copied().collect();
        let mut gone: Vec<u32> =
            self.rules.keys().copied().filter(|id| !used.contains(id) && !retired.contains(id)).collect();
        gone.sort_unstable();
        self.changes += u64::from(!gone.is_empty() || self.retired.len() != before);
        self.retired.extend(gone);
    }
}

/// Form on disk.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Saved {
    last: u32,
    rules: Vec<SavedRule>,
    retired: Vec<u32>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct SavedRule {
    id: u32,
    namespace: String,
    name: String,
    uid: String,
    egress: bool,
    index: u32,
}

impl From<RuleIds> for Saved {
    fn from(ids: RuleIds) -> Self {
        let mut rules: Vec<_> = ids
            .rules
            .iter()
            .map(|(id, key)| SavedRule {
                id: *id,
                namespace: key.rule.policy.namespace.to_string(),
                name: key.rule.policy.name.to_string(),
                uid: key.uid.to_string(),
                egress: key.rule.direction == Direction::Egress,
                index: key.rule.index,
            })
            .collect();
        rules.sort_unstable_by_key(|r| r.id);
        Self { last: ids.last, rules, retired: ids.retired.into() }
    }
}

impl TryFrom<Saved> for RuleIds {
    type Error = BadRuleIds;

    fn try_from(saved: Saved) -> Result<Self, BadRuleIds> {
        let mut ids = Self { last: saved.last.min(LAST), ..Self::default() };
        for rule in saved.rules {
            let key = RuleKey {
                rule: RuleRef {
                    policy: ObjectKey::new(&rule.namespace, &rule.name),
                    direction: if rule.egress { Direction::Egress } else { Direction::Ingress },
                    index: rule.index,
                },
                uid: rule.uid.into(),
            };
            let twice =
                ids.ids.insert(key.clone(), rule.id).is_some() || ids.rules.insert(rule.id, key).is_some();
            if twice || rule.id == 0 || rule.id > ids.last {
                return Err(BadRuleIds(rule.id));
            }
        }
        ids.retired = saved.retired.into_iter().filter(|id| ids.rules.contains_key(id)).collect();
        Ok(ids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str, index: u32) -> RuleKey {
        let policy = ObjectKey::new("ns", name);
        RuleKey { rule: RuleRef { policy, direction: Direction::Ingress, index }, uid: "u".into() }
    }

    #[test]
    fn numbers_are_stable_and_saved() {
        let mut ids = RuleIds::default();
        let (a, b) = (ids.id(&key("a", 0)).unwrap(), ids.id(&key("a", 1)).unwrap());
        assert_eq!((a, b), (1, 2));
        let changes = ids.changes();
        ids.retain(&BTreeSet::from([a, b]));
        assert_eq!(ids.changes(), changes);
        ids.retain(&BTreeSet::from([b]));
        assert!(ids.changes() > changes);
        let changes = ids.changes();
        ids.retain(&BTreeSet::from([b]));
        assert_eq!(ids.changes(), changes);
        assert_eq!(ids.rule(a), Some(&key("a", 0).rule));
        assert_eq!(ids.id(&key("a", 0)), Some(a));
        let text = serde_json::to_string(&ids).unwrap();
        let mut back: RuleIds = serde_json::from_str(&text).unwrap();
        assert_eq!(back, ids);
        assert_eq!(back.id(&key("c", 0)), Some(3));
        assert!(serde_json::from_str::<RuleIds>(&text.replace("\"last\":2", "\"last\":1")).is_err());
    }

    #[test]
    fn retired_numbers_come_back_late() {
        let mut ids = RuleIds::default();
        for i in 0..=u32::try_from(RETIRED_KEPT).unwrap() {
            assert_eq!(ids.id(&key("a", i)), Some(i + 1));
        }
        ids.retain(&BTreeSet::new());
        assert_eq!(ids.id(&key("b", 0)), Some(1));
        assert_eq!(ids.id(&key("b", 1)), Some(u32::try_from(RETIRED_KEPT).unwrap() + 2));
        assert_eq!(ids.rule(1), Some(&key("b", 0).rule));
    }
}
