//! A full list, read page by page from the server's data store: the newest state, never one that a cache is late with.

use std::time::Duration;

use kube::Client;
use serde_json::Value;
use tokio::time::timeout;

use super::fault::{Fault, Request};
use super::kind::Kind;
use super::shape::Shape;

/// Objects of a page: bounds what is in memory at once, here and in the server.
const PAGE: usize = 500;
/// Longest that a page may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is read of each object.
#[derive(Clone, Copy, Debug)]
pub(super) enum Content {
    /// The fields that count.
    Objects,
    /// Names and versions.
    Versions,
}

const VERSIONS: Shape = Shape::Each(&Shape::Only(&[(
    "metadata",
    Shape::Only(&[("name", Shape::All), ("namespace", Shape::All), ("resourceVersion", Shape::All)]),
)]));

/// A list that is being read.
pub(super) struct Pages {
    client: Client,
    kind: Kind,
    content: Content,
    /// Where the next page begins; `None` after the last one.
    next: Option<String>,
}

/// One page.
#[derive(Debug, Default)]
pub(super) struct Page {
    /// Its objects.
    pub items: Vec<Value>,
    /// Version of the whole list, the same on each page.
    pub version: String,
}

impl Pages {
    /// A list from its beginning.
    pub(super) fn new(client: Client, kind: Kind, content: Content) -> Self {
        Self { client, kind, content, next: Some(String::new()) }
    }

    /// The next page; `None` after the last one.
    ///
    /// # Errors
    /// The server's answer. An expired list must be begun again.
    pub(super) async fn next(&mut self) -> Result<Option<Page>, Fault> {
        let Some(token) = self.next.take() else { return Ok(None) };
        let asked = Request::list(self.kind);
        let mut uri = format!("{}?limit={PAGE}", self.kind.path());
        if !token.is_empty() {
            uri.push_str("&continue=");
            uri.push_str(&encoded(&token));
        }
        let (items, accept) = match self.content {
            Content::Objects => (self.kind.items(), "application/json"),
            Content::Versions => (
                &VERSIONS,
                "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json",
            ),
        };
        let request = http::Request::get(uri).header(http::header::ACCEPT, accept).body(Vec::new());
        let request = request.map_err(|e| Fault::later(e.to_string()))?;
        let text = timeout(PATIENCE, self.client.request_text(request)).await;
        let text = text.map_err(|_| slow(asked))?.map_err(|e| Fault::of(asked, &e))?;
        let mut list = Shape::List(items).read(text.as_bytes()).map_err(|e| unreadable(asked, &e))?;
        let of = |name: &str| list["metadata"][name].as_str().unwrap_or_default().to_owned();
        let (version, next) = (of("resourceVersion"), of("continue"));
        self.next = (!next.is_empty()).then_some(next);
        let items = match list["items"].take() {
            Value::Array(items) => items,
            Value::Null => Vec::new(),
            other => {
                return Err(Fault::later(format!(
                    "the API server's list of {} is no list: {other}",
                    self.kind
                )));
            }
        };
        Ok(Some(Page { items, version }))
    }
}

fn slow(asked: Request) -> Fault {
    let Request { verb, resource, .. } = asked;
    Fault::later(format!(
        "the API server did not answer to {verb} {resource} within {} s",
        PATIENCE.as_secs()
    ))
}

fn unreadable(asked: Request, error: &serde_json::Error) -> Fault {
    let Request { verb, resource, .. } = asked;
    Fault::later(format!("the API server's answer to {verb} {resource} is no JSON: {error}"))
}

/// A value in a query.
fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_encoded() {
        assert_eq!(encoded("eyJ2IjoibWV0YSJ9"), "eyJ2IjoibWV0YSJ9");
        assert_eq!(encoded("a+b/c=&d"), "a%2Bb%2Fc%3D%26d");
    }
}
