//! One line of a watch: what happened, and to which object.

use std::fmt;

use kube::core::Status;
use serde::Deserializer as _;
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use super::kind::Kind;
use super::object::Object;
use super::shape::Shape;

/// Marks the bookmark after the last object of a list that comes as a stream.
const LIST_END: &str = "k8s.io/initial-events-end";

/// What a line says.
#[derive(Debug)]
pub(super) enum Line {
    /// An object was made or changed, or is in the list.
    Put(Object),
    /// An object was deleted.
    Gone(Object),
    /// Everything up to this version was told.
    Bookmark {
        /// The version.
        version: String,
        /// It is the end of the list.
        list_end: bool,
    },
    /// The server ends the watch, and why.
    Error(Box<Status>),
}

impl Line {
    /// Reads a line.
    ///
    /// # Errors
    /// It is no event of a watch: cut off, for example.
    pub(super) fn read(kind: Kind, text: &[u8]) -> serde_json::Result<Self> {
        let mut reader = serde_json::Deserializer::from_slice(text);
        let event = reader.deserialize_map(Event(kind))?;
        reader.end()?;
        event
    }
}

/// Reads the event of a kind: its object in the shape of the kind, unless it is none.
struct Event(Kind);

impl<'de> Visitor<'de> for Event {
    type Value = serde_json::Result<Line>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an event of a watch")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let (mut what, mut object) = (String::new(), Value::Null);
        while let Some(key) = entries.next_key::<String>()? {
            match key.as_str() {
                "type" => what = entries.next_value()?,
                "object" => {
                    let shape = match what.as_str() {
                        "ADDED" | "MODIFIED" | "DELETED" => self.0.shape(),
                        _ => &Shape::All,
                    };
                    object = entries.next_value_seed(shape)?;
                }
                _ => {
                    entries.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(line(self.0, &what, object))
    }
}

fn line(kind: Kind, what: &str, object: Value) -> serde_json::Result<Line> {
    let named = |object| Object::of(kind, object).ok_or_else(|| wrong("an object without a name"));
    match what {
        "ADDED" | "MODIFIED" => named(object).map(Line::Put),
        "DELETED" => named(object).map(Line::Gone),
        "BOOKMARK" => {
            let metadata = &object["metadata"];
            let version = metadata["resourceVersion"].as_str().unwrap_or_default().to_owned();
            let list_end = metadata["annotations"][LIST_END] == "true";
            Ok(Line::Bookmark { version, list_end })
        }
        "ERROR" => serde_json::from_value(object).map(Line::Error),
        other => Err(wrong(&format!("event {other:?} is not known"))),
    }
}

fn wrong(message: &str) -> serde_json::Error {
    serde_json::Error::custom(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> serde_json::Result<Line> {
        Line::read(Kind::Pod, text.as_bytes())
    }

    #[test]
    fn lines_of_every_sort() {
        let object = r#"{"kind":"Pod","metadata":{"name":"a","namespace":"x","uid":"u","resourceVersion":"7","annotations":{"k":"v"}}}"#;
        match read(&format!("{{\"type\":\"ADDED\",\"object\":{object}}}\n")).unwrap() {
            Line::Put(Object { key, uid, version, value }) => {
                assert_eq!((key, &*uid, version), (policy_engine::model::ObjectKey::new("x", "a"), "u", 7));
                assert_eq!(
                    (&value["apiVersion"], &value["metadata"]["annotations"]),
                    (&"v1".into(), &Value::Null)
                );
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(
            read(&format!("{{\"type\":\"DELETED\",\"object\":{object}}}")).unwrap(),
            Line::Gone(_)
        ));
        let bookmark = r#"{"type":"BOOKMARK","object":{"kind":"Pod","metadata":{"resourceVersion":"9","annotations":{"k8s.io/initial-events-end":"true"}}}}"#;
        match read(bookmark).unwrap() {
            Line::Bookmark { version, list_end } => assert_eq!((version.as_str(), list_end), ("9", true)),
            other => panic!("{other:?}"),
        }
        let error = r#"{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"too old resource version: 1 (9)","reason":"Expired","code":410}}"#;
        match read(error).unwrap() {
            Line::Error(status) => assert_eq!(status.code, 410),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_no_event_is_an_error() {
        for text in [
            "",
            "{\"type\":\"ADDED\",\"obj",
            "{}",
            "{\"type\":\"ADDED\",\"object\":{}}",
            "[]",
            "{\"type\":\"NEW\"}",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
