//! The one thing that the agent writes: new objects.

use std::time::Duration;

use kube::{Client, Error};
use serde_json::Value;
use tokio::time::timeout;

use super::fault::{Class, Fault, Request};

/// Longest that the server may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What became of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// It was created.
    Created,
    /// One of its name was there.
    Present,
    /// The server does not want it, now or ever.
    Refused(String),
    /// It may work later.
    Failed(String),
}

/// Creates an object at a path.
pub async fn write(
    client: &Client,
    path: &str,
    resource: &'static str,
    group: &'static str,
    object: &Value,
) -> Written {
    let asked = Request { verb: "create", resource, group };
    let request = http::Request::post(path).header(http::header::CONTENT_TYPE, "application/json");
    let request = match request.body(object.to_string().into_bytes()) {
        Ok(request) => request,
        Err(error) => return Written::Refused(error.to_string()),
    };
    let error = match timeout(PATIENCE, client.request_text(request)).await {
        Ok(Ok(_)) => return Written::Created,
        Ok(Err(error)) => error,
        Err(_) => return Written::Failed("the API server did not answer in time".to_owned()),
    };
    let fault = Fault::of(asked, &error);
    // Too many requests, and a server in trouble, pass; missing permissions may come, but nobody needs old news then.
    let passes = match &error {
        Error::Api(status) => status.code == 401 || status.code == 429 || status.code >= 500,
        _ => true,
    };
    match fault.class {
        Class::Exists => Written::Present,
        Class::Expired | Class::Unsupported => Written::Refused(fault.to_string()),
        Class::Later if passes => Written::Failed(fault.to_string()),
        Class::Later | Class::Absent => Written::Refused(fault.to_string()),
    }
}
