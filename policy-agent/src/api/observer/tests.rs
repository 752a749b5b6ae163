//! `GetFlows` as Hubble's command line asks it, over a real socket.

use tokio_stream::StreamExt as _;
use tonic::{Code, Streaming};

use super::*;
use crate::api::fake::{Fake, Running, denied, directory};
use crate::ctl::client::connect;
use crate::proto::flow::{EventTypeFilter, FlowFilter};
use crate::proto::observer::observer_client::ObserverClient;

type Client = ObserverClient<tonic::transport::Channel>;

async fn client(running: &Running) -> Client {
    ObserverClient::new(connect(&running.path).await.unwrap())
}

fn drops() -> Vec<FlowFilter> {
    vec![FlowFilter {
        event_type: vec![EventTypeFilter { r#type: 1, ..EventTypeFilter::default() }],
        ..FlowFilter::default()
    }]
}

fn text(response: GetFlowsResponse) -> String {
    match response.response_types {
        Some(ResponseTypes::Flow(flow)) => {
            let kind = flow.event_type.unwrap().r#type;
            let Some(crate::proto::flow::layer4::Protocol::Tcp(tcp)) = flow.l4.unwrap().protocol else {
                panic!("not TCP")
            };
            format!("{}:{kind}", tcp.destination_port)
        }
        Some(ResponseTypes::LostEvents(lost)) => {
            format!("{} {}", lost.source().as_str_name(), lost.num_events_lost)
        }
        other => panic!("{other:?}"),
    }
}

async fn next(stream: &mut Streaming<GetFlowsResponse>) -> String {
    text(stream.message().await.unwrap().unwrap())
}

async fn all(client: &mut Client, request: GetFlowsRequest) -> Vec<String> {
    let stream = client.get_flows(request).await.unwrap().into_inner();
    stream.map(|response| text(response.unwrap())).collect().await
}

/// Three denied packets, one a second, to ports 1 to 3: each as verdict and as drop.
async fn filled() -> (tempfile::TempDir, Running, Client) {
    let dir = directory();
    let running = Running::start(dir.path(), Fake::default(), Bus::new(64, 64));
    for port in 1..=3 {
        denied(port, i64::from(port)).into_iter().for_each(|flow| running.bus.publish(flow));
    }
    let client = client(&running).await;
    (dir, running, client)
}

#[tokio::test]
async fn the_past_by_number_and_time() {
    let (_dir, running, mut client) = filled().await;
    let at = |second: i64| Some(timestamp(1_790_000_000_000_000_000 + second * 1_000_000_000));
    let request = GetFlowsRequest { whitelist: drops(), ..GetFlowsRequest::default() };
    let table: Vec<(GetFlowsRequest, &[&str])> = vec![
        (request.clone(), &["1:1", "2:1", "3:1"]),
        (GetFlowsRequest { number: 2, ..request.clone() }, &["2:1", "3:1"]),
        (GetFlowsRequest { number: u64::MAX, ..request.clone() }, &["1:1", "2:1", "3:1"]),
        (GetFlowsRequest { number: 2, first: true, ..request.clone() }, &["1:1", "2:1"]),
        (GetFlowsRequest { since: at(2), ..request.clone() }, &["2:1", "3:1"]),
        (GetFlowsRequest { since: at(1), until: at(2), ..request.clone() }, &["1:1", "2:1"]),
        (GetFlowsRequest { since: at(1), number: 1, ..request.clone() }, &["1:1"]),
        (GetFlowsRequest { blacklist: drops(), number: 1, ..GetFlowsRequest::default() }, &["3:5"]),
    ];
    for (request, expected) in table {
        let told = format!("{request:?}");
        assert_eq!(all(&mut client, request).await, expected, "{told}");
    }
    drop(client);
    running.stop().await;
}

#[tokio::test]
async fn following_begins_where_it_is_asked_to() {
    let (_dir, running, mut client) = filled().await;
    let request = GetFlowsRequest { follow: true, whitelist: drops(), ..GetFlowsRequest::default() };
    let mut live = client.get_flows(request.clone()).await.unwrap().into_inner();
    let mut last = client.get_flows(GetFlowsRequest { number: 1, ..request }).await.unwrap().into_inner();
    denied(4, 4).into_iter().for_each(|flow| running.bus.publish(flow));
    assert_eq!(next(&mut live).await, "4:1");
    assert_eq!([next(&mut last).await, next(&mut last).await], ["3:1", "4:1"]);
    // A server that ends ends its streams.
    running.stop().await;
    assert!(live.message().await.unwrap().is_none());
}

#[tokio::test]
async fn a_slow_client_gets_its_losses_counted() {
    let dir = directory();
    let running = Running::start(dir.path(), Fake::default(), Bus::new(8, 16));
    let mut client = client(&running).await;
    let request = GetFlowsRequest { follow: true, ..GetFlowsRequest::default() };
    let mut stream = client.get_flows(request).await.unwrap().into_inner();
    // On one thread the server cannot read while we publish, so its channel overflows by a known number.
    let flow = denied(1, 1).remove(0);
    tokio::task::yield_now().await;
    (0..100).for_each(|_| running.bus.publish(flow.clone()));
    let (mut flows, mut lost) = (0, 0);
    while flows + lost < 100 {
        let told = next(&mut stream).await;
        match told.strip_prefix("HUBBLE_RING_BUFFER ") {
            Some(count) => lost += count.parse::<u32>().unwrap(),
            None => flows += 1,
        }
    }
    assert_eq!((flows, lost), (16, 84));
    drop((stream, client));
    running.stop().await;
}

#[tokio::test]
async fn kernel_losses_pass_every_filter() {
    let (_dir, running, mut client) = filled().await;
    let never = vec![FlowFilter { uuid: vec!["none".into()], ..FlowFilter::default() }];
    let request = GetFlowsRequest { follow: true, whitelist: never, ..GetFlowsRequest::default() };
    let mut stream = client.get_flows(request).await.unwrap().into_inner();
    for (ring_full, suppressed) in [(1, 1), (3, 10)] {
        running.bus.report_losses([(7, crate::events::KernelLosses { ring_full, suppressed })].into());
    }
    let mut told = [next(&mut stream).await, next(&mut stream).await];
    told.sort();
    assert_eq!(told, ["OBSERVER_EVENTS_QUEUE 9", "PERF_EVENT_RING_BUFFER 2"]);
    drop((stream, client));
    running.stop().await;
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    let (_dir, running, mut client) = filled().await;
    let http = FlowFilter { http_method: vec!["GET".into()], ..FlowFilter::default() };
    for (request, word) in [
        (GetFlowsRequest { first: true, follow: true, ..GetFlowsRequest::default() }, "follow"),
        (GetFlowsRequest { whitelist: vec![http.clone()], ..GetFlowsRequest::default() }, "http_method"),
        (GetFlowsRequest { blacklist: vec![http], ..GetFlowsRequest::default() }, "http_method"),
    ] {
        let status = client.get_flows(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains(word), "{}", status.message());
    }
    drop(client);
    running.stop().await;
}

#[tokio::test]
async fn status_nodes_and_namespaces() {
    let (_dir, running, mut client) = filled().await;
    let status = client.server_status(ServerStatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.num_flows, status.max_flows, status.seen_flows), (6, 64, 6));
    assert_eq!(status.num_connected_nodes, None, "absent on a single node");
    let nodes = client.get_nodes(GetNodesRequest {}).await.unwrap().into_inner().nodes;
    assert_eq!((nodes[0].name.as_str(), nodes[0].state()), ("node-a", NodeState::NodeConnected));
    // The flows above are of 2026; one of now brings its namespace.
    let namespaces = client.get_namespaces(GetNamespacesRequest {}).await.unwrap().into_inner().namespaces;
    let flow = Flow { time: Some(now()), ..denied(1, 1).remove(0) };
    running.bus.publish(flow);
    let later = client.get_namespaces(GetNamespacesRequest {}).await.unwrap().into_inner().namespaces;
    assert!(later.iter().any(|namespace| namespace.namespace == "shop"), "{namespaces:?} {later:?}");
    drop(client);
    running.stop().await;
}
