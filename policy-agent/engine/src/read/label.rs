//! Labels of objects, and the forms that the API demands of label keys, label values and port names.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::at::At;
use crate::model::Labels;

/// Reads `metadata.labels`. Scalars that are no strings are taken by their text, as whoever wrote `tier: 1` meant them;
/// other values are left out.
pub(super) fn labels(metadata: &At<'_>) -> Labels {
    let mut labels = BTreeMap::new();
    let entries = metadata.field("labels").and_then(|at| at.entries("the object counts as without labels"));
    for (key, at) in entries.into_iter().flatten() {
        let value = match at.value() {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            Value::Bool(_) | Value::Number(_) => {
                let text = at.value().to_string();
                at.bad(format!("must be a string: read as \"{text}\""));
                text
            }
            Value::Array(_) | Value::Object(_) => {
                at.wrong_type("a string", "this label is left out");
                continue;
            }
        };
        labels.insert(key.to_owned(), value);
    }
    Arc::new(labels)
}

/// Whether the API accepts it as a label key: an optional DNS name and a slash, then a name.
pub(super) fn is_key(key: &str) -> bool {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    !name.is_empty() && is_value(name) && prefix.is_none_or(is_dns_name)
}

/// Whether the API accepts it as a label value.
pub(super) fn is_value(value: &str) -> bool {
    let ends_well = |c: Option<char>| c.is_none_or(|c| c.is_ascii_alphanumeric());
    value.len() <= 63
        && value.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        && ends_well(value.chars().next())
        && ends_well(value.chars().last())
}

/// Whether the API accepts it as a port name: it must hold a letter, so no number is one.
pub(super) fn is_port_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        && name.chars().any(|c| c.is_ascii_lowercase())
        && !name.contains("--")
        && !name.starts_with('-')
        && !name.ends_with('-')
}

fn is_dns_name(name: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        for good in ["app", "k8s-app", "kubernetes.io/metadata.name", "a.b_c-d", "A1"] {
            assert!(is_key(good), "{good}");
        }
        let long = "a".repeat(64);
        for bad in ["", "/a", "a/", "a b", "-a", "a.", "A.b/c", "a/b/c", "é", &long] {
            assert!(!is_key(bad), "{bad}");
        }
        assert!(is_value("") && is_value(&long[1..]) && !is_value(&long) && !is_value("a b"));
        for good in ["http", "p-80", "8080a"] {
            assert!(is_port_name(good), "{good}");
        }
        for bad in ["", "80", "HTTP", "a--b", "-a", "a-", "a_b", "sixteen-letters-"] {
            assert!(!is_port_name(bad), "{bad}");
        }
    }
}
