//! A notice as an object of `events.k8s.io/v1`.

use serde_json::{Value, json};

use super::{Notice, Reason};
use crate::source::kube::kind::Kind;

/// Longest text that an Event may have, in bytes.
const NOTE: usize = 1024;
/// Longest name that an object may have, in bytes.
const NAME: usize = 253;
/// Longest name of a reporter, in bytes.
const INSTANCE: usize = 128;
/// Who reports.
const CONTROLLER: &str = "policy-agent.io/policy-agent";

impl Reason {
    const fn name(self) -> &'static str {
        match self {
            Self::NotHonoured => "NotHonoured",
            Self::Advice => "Advice",
            Self::DoesNotFit => "DoesNotFit",
        }
    }

    const fn kind(self) -> &'static str {
        match self {
            Self::NotHonoured | Self::DoesNotFit => "Warning",
            Self::Advice => "Normal",
        }
    }
}

impl Notice {
    /// Number of what it says: the same on every node.
    pub(super) fn id(&self) -> u64 {
        let Self { policy, uid, version, reason, field, message } = self;
        let version = version.to_string();
        // How much does not fit differs from node to node.
        let message = if *reason == Reason::DoesNotFit { "" } else { message };
        hash(&[&policy.namespace, &policy.name, uid, &version, reason.name(), field, message])
    }

    /// The object, as this node writes it at this time (RFC 3339 with microseconds).
    pub(super) fn event(&self, node: &str, time: &str) -> Value {
        let Self { policy, uid, version, reason, field, message } = self;
        let id = format!("{:016x}", self.id());
        let name = cut(&policy.name, NAME - id.len() - 1).trim_end_matches(['.', '-']);
        // Events about objects of the whole cluster are in this namespace: the API server asks for it.
        let (namespace, mut regarding) = match &*policy.namespace {
            "" => (
                "default",
                json!({"apiVersion": Kind::ClusterPolicy.api_version(), "kind": Kind::ClusterPolicy.name()}),
            ),
            own => (
                own,
                json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "namespace": own}),
            ),
        };
        (regarding["name"], regarding["uid"]) = ((*policy.name).into(), (**uid).into());
        if *version > 0 {
            regarding["resourceVersion"] = version.to_string().into();
        }
        if !field.is_empty() {
            regarding["fieldPath"] = field.as_str().into();
        }
        let note = match (reason, field.as_str()) {
            (Reason::DoesNotFit, _) => format!("node {node}: {message}"),
            (Reason::NotHonoured | Reason::Advice, "") => message.clone(),
            (Reason::NotHonoured | Reason::Advice, field) => format!("{field}: {message}"),
        };
        json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event",
            "metadata": {"namespace": namespace, "name": format!("{name}.{id}")},
            "eventTime": time, "type": reason.kind(), "reason": reason.name(), "action": "Enforce",
            "regarding": regarding, "note": cut(&note, NOTE),
            "reportingController": CONTROLLER, "reportingInstance": cut(node, INSTANCE),
        })
    }
}

/// The beginning of a text, of at most so many bytes.
fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

/// FNV-1a over texts and their ends: agents of different versions must agree on it.
pub(super) fn hash(texts: &[&str]) -> u64 {
    let bytes = texts.iter().flat_map(|text| text.bytes().chain([0xff]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use policy_engine::model::ObjectKey;

    fn notice(reason: Reason, message: &str) -> Notice {
        Notice {
            policy: ObjectKey::new("shop", "p"),
            uid: "u".into(),
            version: 7,
            reason,
            field: "spec.ingress[0]".to_owned(),
            message: message.to_owned(),
        }
    }

    #[test]
    fn all_nodes_write_the_same_name_for_the_same_thing_only() {
        let one = notice(Reason::NotHonoured, "m");
        let name = |notice: &Notice, node| notice.event(node, "t")["metadata"]["name"].clone();
        assert_eq!(name(&one, "a"), name(&one, "b"));
        assert_ne!(name(&one, "a"), name(&Notice { version: 8, ..one.clone() }, "a"));
        assert_ne!(name(&one, "a"), name(&notice(Reason::NotHonoured, "n"), "a"));
        let sizes = ["1 needed", "2 needed"].map(|m| name(&notice(Reason::DoesNotFit, m), "a"));
        assert_eq!(sizes[0], sizes[1]);
        assert_ne!(hash(&["a", "b"]), hash(&["ab", ""]));
    }

    #[test]
    fn a_policy_of_the_cluster_is_told_of_in_the_namespace_that_the_api_asks_for() {
        let mut notice = notice(Reason::NotHonoured, "m");
        notice.policy = ObjectKey::new("", "p");
        let event = notice.event("n", "t");
        assert_eq!(event["metadata"]["namespace"], "default");
        let wanted = json!({
            "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy", "name": "p", "uid": "u",
            "resourceVersion": "7", "fieldPath": "spec.ingress[0]",
        });
        assert_eq!(event["regarding"], wanted);
    }

    #[test]
    fn texts_fit_into_their_fields() {
        let mut long = notice(Reason::NotHonoured, &"ü".repeat(2000));
        long.policy = ObjectKey::new("shop", &"x.".repeat(126));
        let event = long.event(&"n".repeat(300), "t");
        let length = |value: &Value| value.as_str().unwrap().len();
        assert!(length(&event["note"]) <= NOTE && length(&event["reportingInstance"]) <= INSTANCE);
        assert!(length(&event["metadata"]["name"]) <= NAME);
        assert!(!event["metadata"]["name"].as_str().unwrap().contains(".."));
        assert_eq!(event["type"], "Warning");
        assert_eq!(notice(Reason::Advice, "m").event("n", "t")["note"], "spec.ingress[0]: m");
    }
}
