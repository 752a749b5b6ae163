//! Label selectors in Kubernetes' text form, on labels of the form `source:key=value`.

use std::collections::BTreeSet;

/// All requirements must hold.
#[derive(Debug)]
pub(super) struct Selector(Vec<Requirement>);

#[derive(Debug)]
struct Requirement {
    key: Key,
    test: Test,
}

/// A key, of one source or of any.
#[derive(Debug)]
struct Key {
    source: Option<String>,
    name: String,
}

#[derive(Debug)]
enum Test {
    Exists,
    Missing,
    In(BTreeSet<String>),
    NotIn(BTreeSet<String>),
}

impl Selector {
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        let mut requirements = Vec::new();
        let mut rest = text;
        loop {
            let (part, tail) = split_requirement(rest)?;
            requirements.push(Requirement::parse(part.trim())?);
            match tail {
                Some(tail) => rest = tail,
                None => return Ok(Self(requirements)),
            }
        }
    }

    pub(super) fn matches(&self, labels: &[String]) -> bool {
        self.0.iter().all(|requirement| requirement.matches(labels))
    }
}

impl Requirement {
    fn parse(text: &str) -> Result<Self, &'static str> {
        if let Some(key) = text.strip_prefix('!') {
            return Ok(Self { key: Key::parse(key)?, test: Test::Missing });
        }
        if let Some(rest) = text.strip_suffix(')') {
            return Self::parse_set(rest);
        }
        let one = |value: &str| value_of(value).map(|value| BTreeSet::from([value]));
        // The longer operators first: each of them contains an equals sign.
        let (key, test) = if let Some((key, value)) = text.split_once("!=") {
            (key, Test::NotIn(one(value)?))
        } else if let Some((key, value)) = text.split_once("==") {
            (key, Test::In(one(value)?))
        } else if let Some((key, value)) = text.split_once('=') {
            (key, Test::In(one(value)?))
        } else {
            (text, Test::Exists)
        };
        Ok(Self { key: Key::parse(key)?, test })
    }

    /// `key in (a,b` or `key notin (a,b`.
    fn parse_set(text: &str) -> Result<Self, &'static str> {
        let (head, values) = text.split_once('(').ok_or("parenthesis without its partner")?;
        let values = values.split(',').map(value_of).collect::<Result<BTreeSet<_>, _>>()?;
        let mut words = head.split_whitespace();
        let key = Key::parse(words.next().unwrap_or_default())?;
        let test = match (words.next(), words.next()) {
            (Some("in"), None) => Test::In(values),
            (Some("notin"), None) => Test::NotIn(values),
            _ => return Err("expected in or notin before the parenthesis"),
        };
        Ok(Self { key, test })
    }

    fn matches(&self, labels: &[String]) -> bool {
        let mut values = labels.iter().filter_map(|label| self.key.value_in(label));
        match &self.test {
            Test::Exists => values.next().is_some(),
            Test::Missing => values.next().is_none(),
            Test::In(wanted) => values.any(|value| wanted.contains(value)),
            Test::NotIn(refused) => !values.any(|value| refused.contains(value)),
        }
    }
}

impl Key {
    fn parse(text: &str) -> Result<Self, &'static str> {
        let text = text.trim();
        let (source, name) = match text.split_once(':') {
            Some((source, name)) => (Some(source), name),
            None => (None, text),
        };
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
        if name.is_empty() || !name.chars().all(allowed) || source.is_some_and(str::is_empty) {
            return Err("bad label key");
        }
        let source = source.filter(|source| *source != "any").map(str::to_owned);
        Ok(Self { source, name: name.to_owned() })
    }

    /// The value that a label gives to this key.
    fn value_in<'a>(&self, label: &'a str) -> Option<&'a str> {
        let (key, value) = label.split_once('=').unwrap_or((label, ""));
        let (source, name) = key.split_once(':').unwrap_or(("", key));
        (name == self.name && self.source.as_ref().is_none_or(|wanted| wanted == source)).then_some(value)
    }
}

/// Cuts the first requirement off: at a comma outside of parentheses.
fn split_requirement(text: &str) -> Result<(&str, Option<&str>), &'static str> {
    let mut inside = false;
    for (at, c) in text.char_indices() {
        match c {
            '(' if inside => return Err("nested parenthesis"),
            '(' => inside = true,
            ')' if !inside => return Err("parenthesis without its partner"),
            ')' => inside = false,
            ',' if !inside => return Ok((&text[..at], Some(&text[at + 1..]))),
            _ => {}
        }
    }
    if inside { Err("parenthesis without its partner") } else { Ok((text, None)) }
}

fn value_of(text: &str) -> Result<String, &'static str> {
    let text = text.trim();
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.chars().all(allowed) { Ok(text.to_owned()) } else { Err("bad label value") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_on_labels_with_sources() {
        let labels = ["k8s:app=web", "k8s:tier=", "reserved:world"].map(str::to_owned);
        for (text, hit) in [
            ("app", true),
            ("app=web", true),
            ("app==web", true),
            ("k8s:app=web", true),
            ("any:app=web", true),
            ("container:app=web", false),
            ("app!=web", false),
            ("app!=db", true),
            ("nothing!=db", true),
            ("app in (db, web)", true),
            ("app notin (db,web)", false),
            ("app in (web),tier=", true),
            ("app=web,!tier", false),
            ("!other , app = web", true),
            ("reserved:world", true),
            ("!reserved:world", false),
            ("reserved:host", false),
        ] {
            assert_eq!(Selector::parse(text).unwrap().matches(&labels), hit, "{text}");
        }
    }

    #[test]
    fn what_is_no_selector_is_refused() {
        for text in
            ["", "a,", "!", "a in (b", "a in b)", "a within (b)", "(a)", "a in ((b))", "a=b=c", "a b", ":a"]
        {
            assert!(Selector::parse(text).is_err(), "{text}");
        }
    }
}
