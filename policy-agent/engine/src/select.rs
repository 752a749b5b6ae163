//! Label selectors, as `LabelSelector` of the API defines them.

use std::collections::BTreeMap;

use crate::model::{ClusterPolicy, Pod, Requirement, Selector};

impl Selector {
    /// Whether all requirements hold for these labels; a selector without requirements matches everything.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.requirements.iter().all(|requirement| requirement.holds(labels))
    }

    /// The first requirement that does not hold.
    #[must_use]
    pub fn first_failing(&self, labels: &BTreeMap<String, String>) -> Option<&Requirement> {
        self.requirements.iter().find(|requirement| !requirement.holds(labels))
    }
}

impl ClusterPolicy {
    /// Whether it has rules and its subject holds the pod of a namespace with these labels.
    #[must_use]
    pub fn concerns(&self, namespace: &BTreeMap<String, String>, pod: &Pod) -> bool {
        let has_rules = !(self.ingress.is_empty() && self.egress.is_empty());
        has_rules && self.namespaces.matches(namespace) && self.pods.matches(&pod.labels)
    }
}

impl Requirement {
    /// Whether these labels satisfy the requirement. `NotIn` and `DoesNotExist` hold for an absent key.
    #[must_use]
    pub fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        match self {
            Self::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            Self::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
            Self::Exists(key) => labels.contains_key(key),
            Self::DoesNotExist(key) => !labels.contains_key(key),
            Self::Never => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn one(requirement: Requirement) -> Selector {
        Selector { requirements: vec![requirement] }
    }

    fn values(values: &[&str]) -> Vec<String> {
        values.iter().map(|value| (*value).to_owned()).collect()
    }

    #[test]
    fn empty_selector_matches_everything() {
        assert!(Selector::default().matches(&labels(&[])));
        assert!(Selector::default().matches(&labels(&[("a", "b")])));
    }

    /// Edge cases 5 to 9, with absent, empty and other values.
    #[test]
    fn truth_table_of_the_operators() {
        let key = || "k".to_owned();
        let cases = [
            (Requirement::In(key(), values(&["a", "b"])), [false, false, true, false]),
            (Requirement::In(key(), values(&[""])), [false, true, false, false]),
            (Requirement::NotIn(key(), values(&["a", "b"])), [true, true, false, true]),
            (Requirement::NotIn(key(), values(&[""])), [true, false, true, true]),
            (Requirement::Exists(key()), [false, true, true, true]),
            (Requirement::DoesNotExist(key()), [true, false, false, false]),
            (Requirement::Never, [false, false, false, false]),
        ];
        let given = [labels(&[]), labels(&[("k", "")]), labels(&[("k", "a")]), labels(&[("k", "c")])];
        for (requirement, expected) in cases {
            for (labels, expected) in given.iter().zip(expected) {
                assert_eq!(
                    one(requirement.clone()).matches(labels),
                    expected,
                    "{requirement:?} on {labels:?}"
                );
            }
        }
    }

    /// Edge cases 4, 11: requirements are joined by AND, also on one key.
    #[test]
    fn all_requirements_must_hold() {
        let both = Selector {
            requirements: vec![
                Requirement::Exists("k".into()),
                Requirement::NotIn("k".into(), values(&["a"])),
            ],
        };
        assert!(both.matches(&labels(&[("k", "b")])));
        assert!(!both.matches(&labels(&[("k", "a")])));
        assert!(!both.matches(&labels(&[])));
        assert_eq!(both.first_failing(&labels(&[])), Some(&Requirement::Exists("k".into())));
    }
}
