//! A place in an object: the value and its field path, with the log that problems go to.

use std::cell::{Cell, RefCell};

use serde_json::{Map, Value};

use super::Read;
use crate::model::Problem;
use crate::world::Delta;

/// Problems of one object.
pub(super) struct Log {
    object: String,
    problems: RefCell<Vec<Problem>>,
    broken: Cell<bool>,
}

impl Log {
    pub(super) fn new(object: String) -> Self {
        Self { object, problems: RefCell::default(), broken: Cell::new(false) }
    }

    pub(super) fn finish(self, delta: Option<Delta>) -> Read {
        Read { delta, problems: self.problems.into_inner(), broken: self.broken.into_inner() }
    }
}

/// A value with its path.
#[derive(Clone)]
pub(super) struct At<'a> {
    log: &'a Log,
    path: String,
    value: &'a Value,
}

impl<'a> At<'a> {
    pub(super) fn new(log: &'a Log, path: &str, value: &'a Value) -> Self {
        Self { log, path: path.to_owned(), value }
    }

    /// Says that this part is not honoured; `message` tells why and what happens instead.
    pub(super) fn bad(&self, message: impl Into<String>) {
        self.log.broken.set(true);
        self.note(message);
    }

    /// Says how this part is understood.
    pub(super) fn note(&self, message: impl Into<String>) {
        let (object, field) = (self.log.object.clone(), self.path.clone());
        self.log.problems.borrow_mut().push(Problem { object, field, message: message.into() });
    }

    /// Says that the value has the wrong type.
    pub(super) fn wrong_type(&self, wanted: &str, consequence: &str) {
        self.bad(format!("must be {wanted}, is {}: {consequence}", type_name(self.value)));
    }

    /// A field; `None` when it is absent or null, which the API treats alike.
    pub(super) fn field(&self, name: &str) -> Option<At<'a>> {
        let value = self.value.get(name).filter(|value| !value.is_null())?;
        Some(self.child(
            if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) },
            value,
        ))
    }

    /// [`At::field`] that says what null means here: a key without a value is easily written by mistake.
    pub(super) fn field_or_null(&self, name: &str, meaning: &str) -> Option<At<'a>> {
        if self.value.get(name).is_some_and(Value::is_null) {
            self.note(format!("{name} is null, which means the same as leaving it out: {meaning}"));
        }
        self.field(name)
    }

    /// The value as an object.
    pub(super) fn object(&self, consequence: &str) -> Option<&'a Map<String, Value>> {
        let found = self.value.as_object();
        if found.is_none() {
            self.wrong_type("an object", consequence);
        }
        found
    }

    /// Entries of an object whose keys are free; the path of each is `path[key]`.
    pub(super) fn entries(
        &self,
        consequence: &str,
    ) -> Option<impl Iterator<Item = (&'a str, At<'a>)> + use<'a>> {
        let fields = self.object(consequence)?;
        let (path, log) = (self.path.clone(), self.log);
        Some(
            fields
                .iter()
                .map(move |(key, value)| (key.as_str(), At { log, path: format!("{path}[{key}]"), value })),
        )
    }

    /// Items of a list.
    pub(super) fn items(&self, consequence: &str) -> Option<Vec<At<'a>>> {
        let Some(items) = self.value.as_array() else {
            self.wrong_type("a list", consequence);
            return None;
        };
        let at = |(i, value)| self.child(format!("{}[{i}]", self.path), value);
        Some(items.iter().enumerate().map(at).collect())
    }

    /// The value as a string.
    pub(super) fn text(&self, consequence: &str) -> Option<&'a str> {
        let found = self.value.as_str();
        if found.is_none() {
            self.wrong_type("a string", consequence);
        }
        found
    }

    /// The value as a boolean.
    pub(super) fn boolean(&self, consequence: &str) -> Option<bool> {
        let found = self.value.as_bool();
        if found.is_none() {
            self.wrong_type("true or false", consequence);
        }
        found
    }

    /// The value as a port number.
    pub(super) fn port_number(&self, consequence: &str) -> Option<u16> {
        let Value::Number(number) = self.value else {
            self.wrong_type("a whole number", consequence);
            return None;
        };
        let port = number.as_u64().and_then(|number| u16::try_from(number).ok()).filter(|port| *port > 0);
        if port.is_none() {
            self.bad(format!("{number} is no port, ports are 1 to 65535: {consequence}"));
        }
        port
    }

    /// Whether all fields are known; tells of each that is not. A field of a later API version may narrow what this
    /// part means, so the caller must not honour the rest as if it was not there.
    pub(super) fn only(&self, known: &[&str], consequence: &str) -> bool {
        let Some(fields) = self.value.as_object() else { return true };
        let mut all_known = true;
        for key in fields.keys().filter(|key| !known.contains(&key.as_str())) {
            let path = if self.path.is_empty() { key.clone() } else { format!("{}.{key}", self.path) };
            self.child(path, self.value).bad(format!("unknown field: {consequence}"));
            all_known = false;
        }
        all_known
    }

    /// The raw value, for types that the API mixes.
    pub(super) fn value(&self) -> &'a Value {
        self.value
    }

    fn child(&self, path: String, value: &'a Value) -> At<'a> {
        At { log: self.log, path, value }
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
