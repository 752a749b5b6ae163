//! `LabelSelector`. Whatever cannot be honoured becomes a requirement that never holds.

use serde_json::Value;

use super::at::At;
use super::label;
use crate::model::{Requirement, Selector};

/// Reads a selector; `consequence` says what it means when a part of it is bad.
pub(super) fn selector(at: &At<'_>, consequence: &str) -> Selector {
    let mut requirements = Vec::new();
    if at.object(consequence).is_none() || !at.only(&["matchLabels", "matchExpressions"], consequence) {
        requirements.push(Requirement::Never);
    }
    if let Some(labels) = at.field("matchLabels") {
        match labels.entries(consequence) {
            Some(entries) => {
                requirements.extend(entries.map(|(key, at)| label_equals(key, &at, consequence)));
            }
            None => requirements.push(Requirement::Never),
        }
    }
    if let Some(expressions) = at.field("matchExpressions") {
        match expressions.items(consequence) {
            Some(items) => requirements.extend(items.iter().map(|at| expression(at, consequence))),
            None => requirements.push(Requirement::Never),
        }
    }
    Selector { requirements }
}

fn label_equals(key: &str, at: &At<'_>, consequence: &str) -> Requirement {
    let value = match at.value() {
        // A key without a value is the empty string, as the API server decodes it.
        Value::Null => "",
        _ => match at.text(consequence) {
            Some(value) => value,
            None => return Requirement::Never,
        },
    };
    if key_is_good(at, key, consequence) && value_is_good(at, value, consequence) {
        Requirement::In(key.to_owned(), vec![value.to_owned()])
    } else {
        Requirement::Never
    }
}

fn expression(at: &At<'_>, consequence: &str) -> Requirement {
    read_expression(at, consequence).unwrap_or(Requirement::Never)
}

fn read_expression(at: &At<'_>, consequence: &str) -> Option<Requirement> {
    at.object(consequence)?;
    if !at.only(&["key", "operator", "values"], consequence) {
        return None;
    }
    let key = required(at, "key", consequence)?;
    if !key_is_good(&at.field("key")?, key, consequence) {
        return None;
    }
    let operator = required(at, "operator", consequence)?;
    let values = match at.field("values") {
        Some(values) => read_values(&values, consequence)?,
        None => Vec::new(),
    };
    match (operator, values.is_empty()) {
        ("In", false) => Some(Requirement::In(key.to_owned(), values)),
        ("NotIn", false) => Some(Requirement::NotIn(key.to_owned(), values)),
        ("Exists", true) => Some(Requirement::Exists(key.to_owned())),
        ("DoesNotExist", true) => Some(Requirement::DoesNotExist(key.to_owned())),
        ("In" | "NotIn", true) => {
            at.bad(format!("operator {operator} needs values: {consequence}"));
            None
        }
        ("Exists" | "DoesNotExist", false) => {
            at.field("values")?.bad(format!("operator {operator} takes no values: {consequence}"));
            None
        }
        _ => {
            let known = "In, NotIn, Exists and DoesNotExist are known";
            at.field("operator")?.bad(format!("unknown operator \"{operator}\" ({known}): {consequence}"));
            None
        }
    }
}

fn required<'a>(at: &At<'a>, name: &str, consequence: &str) -> Option<&'a str> {
    match at.field(name) {
        Some(field) => field.text(consequence),
        None => {
            at.bad(format!("has no {name}: {consequence}"));
            None
        }
    }
}

fn read_values(at: &At<'_>, consequence: &str) -> Option<Vec<String>> {
    let items = at.items(consequence)?;
    // No short cut: every bad value is told.
    let values: Vec<Option<String>> = items
        .iter()
        .map(|item| {
            item.text(consequence).filter(|value| value_is_good(item, value, consequence)).map(str::to_owned)
        })
        .collect();
    values.into_iter().collect()
}

/// A malformed key is on no object, so `NotIn` or `DoesNotExist` of it would match everything.
fn key_is_good(at: &At<'_>, key: &str, consequence: &str) -> bool {
    let good = label::is_key(key);
    if !good {
        at.bad(format!("\"{key}\" is no label key: {consequence}"));
    }
    good
}

fn value_is_good(at: &At<'_>, value: &str, consequence: &str) -> bool {
    let good = label::is_value(value);
    if !good {
        at.bad(format!("\"{value}\" is no label value: {consequence}"));
    }
    good
}
