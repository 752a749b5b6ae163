//! Makes a scenario that fails small: parts are taken away for as long as it still fails.

use serde_json::Value;

/// A place in a document.
type Path = Vec<Step>;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Key(String),
    Index(usize),
}

/// Takes away elements of lists and fields of objects, the largest first, for as long as `fails` says yes, and at most
/// so many questions. What `fails` cannot read it must deny.
pub fn shrink(document: &Value, mut questions: usize, mut fails: impl FnMut(&Value) -> bool) -> Value {
    let mut best = document.clone();
    loop {
        let mut smaller = false;
        for path in removable(&best) {
            if questions == 0 {
                return best;
            }
            // An earlier removal may have moved or taken what this path named.
            let Some(candidate) = without(&best, &path) else { continue };
            questions -= 1;
            if fails(&candidate) {
                best = candidate;
                smaller = true;
            }
        }
        for candidate in merged(&best) {
            if questions == 0 {
                return best;
            }
            questions -= 1;
            if fails(&candidate) {
                best = candidate;
                smaller = true;
                break;
            }
        }
        if !smaller {
            return best;
        }
    }
}

/// Everything that can be taken away: short paths first, since they hold most; the last elements of a list first, so
/// that those before keep their places.
fn removable(document: &Value) -> Vec<Path> {
    let mut found = Vec::new();
    walk(document, &mut Vec::new(), &mut found);
    found.sort_by_key(Vec::len);
    found
}

fn walk(value: &Value, path: &mut Path, found: &mut Vec<Path>) {
    let mut visit = |step: Step, child: &Value| {
        path.push(step);
        found.push(path.clone());
        walk(child, path, found);
        path.pop();
    };
    match value {
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate().rev() {
                visit(Step::Index(index), item);
            }
        }
        Value::Object(fields) => {
            for (key, field) in fields {
                visit(Step::Key(key.clone()), field);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn without(document: &Value, path: &[Step]) -> Option<Value> {
    let (last, parents) = path.split_last()?;
    let mut copy = document.clone();
    let mut at = &mut copy;
    for step in parents {
        at = match step {
            Step::Key(key) => at.get_mut(key)?,
            Step::Index(index) => at.get_mut(*index)?,
        };
    }
    match (last, at) {
        (Step::Key(key), Value::Object(fields)) => drop(fields.remove(key)?),
        (Step::Index(index), Value::Array(items)) if *index < items.len() => drop(items.remove(*index)),
        (_, _) => return None,
    }
    Some(copy)
}

/// Two steps in a row as one.
fn merged(document: &Value) -> Vec<Value> {
    let Some(steps) = document["steps"].as_array() else { return Vec::new() };
    (1..steps.len())
        .map(|n| {
            let actions = |n: usize| steps[n]["actions"].as_array().cloned().unwrap_or_default();
            let mut copy = document.clone();
            copy["steps"][n - 1]["actions"] = [actions(n - 1), actions(n)].concat().into();
            if let Some(steps) = copy["steps"].as_array_mut() {
                steps.remove(n);
            }
            copy
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_does_not_matter_goes() {
        let document = json!({"a": [1, 2, {"b": [3, 4]}], "c": {"d": 5}});
        let fails = |value: &Value| value.to_string().contains('4');
        assert_eq!(shrink(&document, 1000, fails), json!({"a": [{"b": [4]}]}));
        assert_eq!(shrink(&document, 0, fails), document);
    }

    #[test]
    fn steps_become_one() {
        let document = json!({"steps": [{"actions": [1]}, {"actions": [2]}]});
        let fails = |value: &Value| {
            let text = value.to_string();
            text.contains('1') && text.contains('2')
        };
        assert_eq!(shrink(&document, 1000, fails), json!({"steps": [{"actions": [1, 2]}]}));
    }
}
