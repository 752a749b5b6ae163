//! Whether the API server has a kind at all: kinds of a CRD come and go with it.
//!
//! This is asked before the kind is listed. Discovery is open to every account, so an agent whose role lacks the rule for a
//! kind that the cluster does not have never hears of it; one that has the kind without the rule is told which is missing.

use std::time::Duration;

use kube::Client;
use serde_json::Value;
use tokio::time::timeout;

use super::fault::{Class, Fault, Request};
use super::kind::Kind;

/// Longest that the answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Asks the API server whether it serves a kind.
///
/// # Errors
/// It gives no answer that tells.
pub(super) async fn served(client: &Client, kind: Kind) -> Result<bool, Fault> {
    let asked = Request { verb: "discover", resource: kind.resource(), group: kind.group() };
    let request = http::Request::get(format!("/apis/{}", kind.api_version())).body(Vec::new());
    let request = request.map_err(|e| Fault::later(e.to_string()))?;
    let slow = || {
        Fault::later(format!(
            "the API server did not tell within {} s whether it has {kind}",
            PATIENCE.as_secs()
        ))
    };
    let answer = timeout(PATIENCE, client.request_text(request)).await.map_err(|_| slow())?;
    let text = match answer.map_err(|e| Fault::of(asked, &e)) {
        Ok(text) => text,
        Err(fault) if fault.class == Class::Absent => return Ok(false),
        Err(fault) => return Err(fault),
    };
    let list: Value = serde_json::from_str(&text)
        .map_err(|e| Fault::later(format!("the API server's answer to discover {kind} is no JSON: {e}")))?;
    Ok(names(&list, kind))
}

/// Whether an `APIResourceList` has the kind.
fn names(list: &Value, kind: Kind) -> bool {
    let resources = list["resources"].as_array().map_or(&[][..], Vec::as_slice);
    resources.iter().any(|resource| resource["name"] == kind.resource())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_found_by_its_resource() {
        let list = serde_json::json!({"kind": "APIResourceList", "resources": [
            {"name": "clusternetworkpolicies/status"}, {"name": "clusternetworkpolicies"}]});
        assert!(names(&list, Kind::ClusterPolicy) && !names(&list, Kind::Policy));
        assert!(!names(&Value::Null, Kind::ClusterPolicy));
    }
}
