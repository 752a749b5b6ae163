//! Reads JSON and keeps only the fields that count: what is left out is never in memory.

use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// The fields of a value that are kept. A value of another type than the shape expects is kept whole: whoever reads it
/// says that it is wrong.
#[derive(Debug)]
pub(super) enum Shape {
    /// Everything.
    All,
    /// These fields of an object.
    Only(Fields),
    /// These fields of an object, which is left out where it has none of them.
    Few(Fields),
    /// All fields of an object, these in another shape.
    But(Fields),
    /// Each item of a list.
    Each(&'static Shape),
    /// An object with a list of items in this shape.
    List(&'static Shape),
}

type Fields = &'static [(&'static str, Shape)];

impl Shape {
    /// The shape of a field; `None` when it is left out.
    fn field(&self, name: &str) -> Option<&Shape> {
        let find = |fields: Fields| fields.iter().find(|(key, _)| *key == name).map(|(_, shape)| shape);
        match self {
            Self::All | Self::Each(_) => Some(&Self::All),
            Self::Only(fields) | Self::Few(fields) => find(fields),
            Self::But(fields) => find(fields).or(Some(&Self::All)),
            Self::List(items) => Some(if name == "items" { items } else { &Self::All }),
        }
    }

    /// Reads a text of one value.
    ///
    /// # Errors
    /// The text is no JSON.
    pub(super) fn read(&self, text: &[u8]) -> serde_json::Result<Value> {
        let mut reader = serde_json::Deserializer::from_slice(text);
        let value = self.deserialize(&mut reader)?;
        reader.end()?;
        Ok(value)
    }
}

impl<'de> DeserializeSeed<'de> for &Shape {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &Shape {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let shape = match self {
            Shape::Each(shape) => shape,
            Shape::All | Shape::Only(_) | Shape::Few(_) | Shape::But(_) | Shape::List(_) => &Shape::All,
        };
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(shape)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            match self.field(&key) {
                Some(shape) => {
                    let value = entries.next_value_seed(shape)?;
                    let has_none = value.as_object().is_some_and(Map::is_empty);
                    if !(has_none && matches!(shape, Shape::Few(_))) {
                        object.insert(key, value);
                    }
                }
                None => {
                    entries.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::kind::Kind;
    use super::*;

    fn shaped(kind: Kind, value: &Value) -> Value {
        kind.shape().read(value.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_pod_keeps_what_policy_needs_and_nothing_that_its_owner_can_write_to_the_node() {
        let seen = shaped(
            Kind::Pod,
            &json!({
                "metadata": {"name": "a", "namespace": "x", "labels": {"app": "a"}, "managedFields": [{"a": 1}],
                    "annotations": {"policy-agent.io/interface": "eth0", "kubernetes.io/config.mirror": "f00"}},
                "spec": {"nodeName": "n", "volumes": [1, 2], "containers": [
                    {"image": "i", "env": [], "ports": [{"name": "web", "containerPort": 80, "hostPort": 8}]}]},
                "status": {"phase": "Running", "podIP": "10.0.0.1", "conditions": [{"type": "Ready"}]},
            }),
        );
        let wanted = json!({
            "metadata": {"name": "a", "namespace": "x", "labels": {"app": "a"},
                "annotations": {"kubernetes.io/config.mirror": "f00"}},
            "spec": {"nodeName": "n", "containers": [{"ports": [{"name": "web", "containerPort": 80}]}]},
            "status": {"phase": "Running", "podIP": "10.0.0.1"},
        });
        assert_eq!(seen, wanted);
    }

    #[test]
    fn a_policy_keeps_every_field_that_is_not_bookkeeping() {
        let seen = shaped(
            Kind::Policy,
            &json!({
                "metadata": {"name": "p", "namespace": "x", "managedFields": [1]},
                "spec": {"podSelector": {}, "tier": "new", "ingress": [{"from": null, "via": 1.5}]},
                "later": true,
            }),
        );
        let wanted = json!({
            "metadata": {"name": "p", "namespace": "x"},
            "spec": {"podSelector": {}, "tier": "new", "ingress": [{"from": null, "via": 1.5}]},
            "later": true,
        });
        assert_eq!(seen, wanted);
    }

    #[test]
    fn values_of_another_type_are_kept_for_the_reader_to_complain() {
        let odd = json!({"metadata": "none", "spec": [1, {"a": -2}], "status": {"podIPs": {"ip": 3}}});
        assert_eq!(shaped(Kind::Pod, &odd), odd);
        assert!(Shape::All.read(b"{} x").is_err());
        assert!(Shape::All.read(b"{\"a\":").is_err());
    }
}
