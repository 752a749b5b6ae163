//! Watches of a server that answers from a script.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use kube::client::Body;
use tokio::sync::mpsc::{Receiver, channel};

use super::*;

/// What the server answers, in order; then it hangs.
#[derive(Clone, Default)]
struct Script {
    answers: Arc<Mutex<VecDeque<(u16, String)>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Script {
    fn new(answers: &[(u16, String)]) -> Self {
        Self { answers: Arc::new(Mutex::new(answers.iter().cloned().collect())), ..Self::default() }
    }

    fn start(&self) -> Receiver<Message> {
        self.watch(Kind::Pod)
    }

    fn watch(&self, kind: Kind) -> Receiver<Message> {
        let (out, messages) = channel(64);
        let script = self.clone();
        let service = tower::service_fn(move |request: http::Request<Body>| {
            script.asked.lock().unwrap().push(request.uri().to_string());
            let next = script.answers.lock().unwrap().pop_front();
            async move {
                let Some((status, body)) = next else { return std::future::pending().await };
                let answer = http::Response::builder().status(status).body(Body::from(body.into_bytes()));
                Ok::<_, Infallible>(answer.unwrap())
            }
        });
        tokio::spawn(Watcher::new(Client::new(service, "default"), kind, out, Again::new()).run());
        messages
    }

    /// The queries, without those parts that are always the same.
    fn asked(&self) -> Vec<String> {
        let asked = self.asked.lock().unwrap();
        let parts = |uri: &String| {
            let query = uri.split_once('?').unwrap().1.to_owned();
            let varies = |part: &&str| !part.starts_with("timeoutSeconds") && !part.starts_with("allow");
            query.split('&').filter(varies).collect::<Vec<_>>().join("&")
        };
        asked.iter().map(parts).collect()
    }
}

/// The next events in short, until one begins with the text.
async fn until(messages: &mut Receiver<Message>, last: &str) -> Vec<String> {
    let mut seen = Vec::new();
    loop {
        let message = timeout(Duration::from_secs(20), messages.recv()).await;
        let text = match message.expect("in time").expect("the task runs") {
            Message::Of(_, Event::Listed(object)) => format!("listed {}", object.key.name),
            Message::Of(_, Event::Put(object)) => format!("put {}", object.key.name),
            Message::Of(_, Event::Gone(object)) => format!("gone {}", object.key.name),
            Message::Of(_, Event::Failed(fault)) => format!("failed {}", fault.message),
            Message::Of(_, other) => format!("{other:?}").to_lowercase(),
            Message::Point(_) => unreachable!("nobody asked"),
        };
        seen.push(text.clone());
        if text.starts_with(last) {
            return seen;
        }
    }
}

fn pod(name: &str, version: u32) -> String {
    format!("{{\"metadata\":{{\"name\":\"{name}\",\"namespace\":\"x\",\"resourceVersion\":\"{version}\"}}}}")
}

fn event(what: &str, object: &str) -> String {
    format!("{{\"type\":\"{what}\",\"object\":{object}}}\n")
}

fn bookmark(version: u32, end: bool) -> String {
    let annotations = if end { ",\"annotations\":{\"k8s.io/initial-events-end\":\"true\"}" } else { "" };
    event("BOOKMARK", &format!("{{\"metadata\":{{\"resourceVersion\":\"{version}\"{annotations}}}}}"))
}

fn status(code: u16) -> String {
    format!(
        "{{\"kind\":\"Status\",\"metadata\":{{}},\"status\":\"Failure\",\"message\":\"m\",\"reason\":\"r\",\"code\":{code}}}"
    )
}

fn page(version: u32, next: &str, items: &[String]) -> (u16, String) {
    let metadata = format!("{{\"resourceVersion\":\"{version}\",\"continue\":\"{next}\"}}");
    (200, format!("{{\"kind\":\"PodList\",\"metadata\":{metadata},\"items\":[{}]}}", items.join(",")))
}

const STREAMED: &str = "watch=true&resourceVersion=&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";

#[tokio::test]
async fn a_streamed_list_goes_on_as_a_watch_and_is_taken_up_where_it_broke_off() {
    let first = [
        event("ADDED", &pod("a", 5)),
        bookmark(9, true),
        event("MODIFIED", &pod("a", 11)),
        bookmark(15, false),
    ];
    // Cut off in the middle of a line.
    let cut = format!("{}{}", event("DELETED", &pod("a", 21)), &event("ADDED", &pod("b", 22))[..30]);
    let script = Script::new(&[(200, first.concat()), (200, cut), (200, event("ADDED", &pod("b", 22)))]);
    let mut messages = script.start();
    let seen = until(&mut messages, "put b").await;
    let wanted = [
        "begin",
        "listed a",
        "connected",
        "complete(9)",
        "put a",
        "progress(15)",
        "connected",
        "gone a",
        "connected",
        "put b",
    ];
    assert_eq!(seen, wanted);
    let resumed = ["watch=true&resourceVersion=15", "watch=true&resourceVersion=21"];
    assert_eq!(script.asked()[..3], [STREAMED, resumed[0], resumed[1]]);
}

#[tokio::test]
async fn a_server_without_streams_is_asked_for_pages_and_a_lost_version_for_a_new_list() {
    let script = Script::new(&[
        (422, status(422)),
        page(30, "t/1", &[pod("a", 5)]),
        page(30, "", &[pod("b", 6)]),
        (200, event("ERROR", &status(410))),
        page(40, "", &[]),
        (410, status(410)),
        page(50, "", &[pod("c", 45)]),
    ]);
    let mut messages = script.start();
    let seen = until(&mut messages, "complete(50)").await;
    let gone = "failed the API server no longer has the changes of pods since the last one seen (410)";
    let list = |parts: &[&'static str]| parts.to_vec();
    let wanted = [
        list(&["begin", "listed a", "listed b", "connected", "complete(30)", "connected", gone]),
        list(&["begin", "connected", "complete(40)", gone]),
        list(&["begin", "listed c", "connected", "complete(50)"]),
    ];
    assert_eq!(seen, wanted.concat());
    let asked = script.asked();
    let pages = ["limit=500", "limit=500&continue=t%2F1", "watch=true&resourceVersion=30", "limit=500"];
    assert_eq!(asked[0], STREAMED);
    assert_eq!(asked[1..5], pages);
}

#[tokio::test]
async fn an_old_data_store_refuses_inside_of_the_stream() {
    let script = Script::new(&[(200, event("ERROR", &status(500))), page(7, "", &[])]);
    assert_eq!(until(&mut script.start(), "complete").await, ["begin", "begin", "connected", "complete(7)"]);
}

#[tokio::test]
async fn refusals_are_told_and_tried_again() {
    let script =
        Script::new(&[(403, status(403)), (401, status(401)), (503, status(503)), (200, bookmark(7, true))]);
    let seen = until(&mut script.start(), "complete").await;
    assert!(seen[0].contains("forbids to watch pods (403)"), "{seen:?}");
    assert!(seen[1].contains("credentials (401)") && seen[2].contains("(503)"), "{seen:?}");
    assert_eq!(seen[3..], ["begin", "connected", "complete(7)"]);
}

#[tokio::test]
async fn a_line_that_is_no_event_leads_to_a_list() {
    let script = Script::new(&[
        (200, format!("{}{}", bookmark(7, true), "{\"type\":\"NEW\",\"object\":{}}\n")),
        (200, bookmark(9, true)),
    ]);
    let seen = until(&mut script.start(), "complete(9)").await;
    assert!(seen[3].starts_with("failed the API server sent no event"), "{seen:?}");
    assert_eq!(script.asked()[1], STREAMED);
}

/// A kind of a CRD, which goes while it is watched.
#[tokio::test]
async fn a_kind_that_the_server_may_lack_is_looked_for_first_and_gone_when_it_says_so_twice() {
    let has = |resource: &str| (200, format!("{{\"resources\":[{{\"name\":\"{resource}\"}}]}}"));
    let policy = "{\"metadata\":{\"name\":\"t\",\"resourceVersion\":\"5\"}}";
    let first = [event("ADDED", policy), bookmark(9, true)];
    let script = Script::new(&[
        (403, status(403)),
        has("clusternetworkpolicies"),
        (200, first.concat()),
        (404, status(404)),
        (404, status(404)),
        has("others"),
    ]);
    let seen = until(&mut script.watch(Kind::ClusterPolicy), "absent").await;
    assert!(seen[0].contains("forbids to discover clusternetworkpolicies (403)"), "{seen:?}");
    assert_eq!(seen[1..], ["begin", "listed t", "connected", "complete(9)", "connected", "absent"]);
    let asked = script.asked.lock().unwrap();
    let path = |n: usize| asked[n].split('?').next().unwrap().to_owned();
    let (group, objects) = ("/apis/policy.networking.k8s.io/v1alpha2", Kind::ClusterPolicy.path());
    assert_eq!([0, 1, 2, 3, 4, 5].map(path), [group, group, objects, objects, group, group]);
}
