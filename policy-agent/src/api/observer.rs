//! Hubble's observer service on top of the bus: the past, the future, or both, through filters.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prost_types::Timestamp;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::api::filter::Filters;
use crate::events::Bus;
use crate::events::bus::{Message, Subscription};
use crate::events::clock::{nanoseconds, timestamp};
use crate::events::ring::{Period, Range, namespaces, search};
use crate::proto::flow::{Flow, LostEvent, LostEventSource};
use crate::proto::observer::observer_server::Observer as Service;
use crate::proto::observer::{
    GetFlowsRequest, GetFlowsResponse, GetNamespacesRequest, GetNamespacesResponse, GetNodesRequest,
    GetNodesResponse, Namespace, Node, ServerStatusRequest, ServerStatusResponse,
    get_flows_response::ResponseTypes,
};
use crate::proto::relay::{NodeState, NodeStatusEvent};

/// Messages that wait for a client's socket. More would only hide that the client is slow.
const CLIENT_QUEUE: usize = 64;

/// Losses are gathered and told at most this often.
const LOST_INTERVAL: Duration = Duration::from_secs(1);

/// Namespaces are listed if they had flows in this time.
const NAMESPACE_WINDOW: Duration = Duration::from_secs(3_600);

/// The service.
#[derive(Debug)]
pub struct Observer {
    node: String,
    bus: Arc<Bus>,
    /// Becomes true when the server ends: streams end then, else they would hold it open.
    closing: watch::Receiver<bool>,
}

impl Observer {
    /// The service of a node.
    #[must_use]
    pub fn new(node: String, bus: Arc<Bus>, closing: watch::Receiver<bool>) -> Self {
        Self { node, bus, closing }
    }

    fn version() -> String {
        format!("policy-agent v{}", env!("CARGO_PKG_VERSION"))
    }
}

#[tonic::async_trait]
impl Service for Observer {
    type GetFlowsStream = ReceiverStream<Result<GetFlowsResponse, Status>>;

    async fn get_flows(
        &self,
        request: Request<GetFlowsRequest>,
    ) -> Result<Response<Self::GetFlowsStream>, Status> {
        let query = Query::parse(request.into_inner())?;
        let subscription = self.bus.subscribe();
        let (client, stream) = mpsc::channel(CLIENT_QUEUE);
        let reader = Reader { node: self.node.clone(), query, client, lost: Lost::default() };
        let mut closing = self.closing.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = reader.run(subscription) => {}
                _ = closing.wait_for(|closing| *closing) => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn get_nodes(&self, _: Request<GetNodesRequest>) -> Result<Response<GetNodesResponse>, Status> {
        let stats = self.bus.stats();
        let node = Node {
            name: self.node.clone(),
            version: Self::version(),
            state: NodeState::NodeConnected.into(),
            uptime_ns: nanoseconds_of(stats.started.elapsed()),
            num_flows: stats.kept as u64,
            max_flows: stats.capacity as u64,
            seen_flows: stats.seen,
            ..Node::default()
        };
        Ok(Response::new(GetNodesResponse { nodes: vec![node] }))
    }

    async fn get_namespaces(
        &self,
        _: Request<GetNamespacesRequest>,
    ) -> Result<Response<GetNamespacesResponse>, Status> {
        let since = nanoseconds(&now()).saturating_sub_unsigned(nanoseconds_of(NAMESPACE_WINDOW));
        let found = namespaces(&self.bus.past(), Period { since: Some(since), until: None });
        let namespaces =
            found.into_iter().map(|namespace| Namespace { cluster: String::new(), namespace }).collect();
        Ok(Response::new(GetNamespacesResponse { namespaces }))
    }

    async fn server_status(
        &self,
        _: Request<ServerStatusRequest>,
    ) -> Result<Response<ServerStatusResponse>, Status> {
        let stats = self.bus.stats();
        let uptime = stats.started.elapsed();
        Ok(Response::new(ServerStatusResponse {
            num_flows: stats.kept as u64,
            max_flows: stats.capacity as u64,
            seen_flows: stats.seen,
            uptime_ns: nanoseconds_of(uptime),
            version: Self::version(),
            flows_rate: stats.seen as f64 / uptime.as_secs_f64().max(1.0),
            ..ServerStatusResponse::default()
        }))
    }
}

/// A request, understood.
#[derive(Debug)]
struct Query {
    range: Range,
    follow: bool,
    period: Period,
    filters: Filters,
}

impl Query {
    fn parse(request: GetFlowsRequest) -> Result<Self, Status> {
        let GetFlowsRequest {
            number,
            follow,
            blacklist,
            whitelist,
            since,
            until,
            first,
            field_mask: _,
            extensions,
        } = request;
        if first && follow {
            return Err(Status::invalid_argument("first and follow exclude each other"));
        }
        if extensions.is_some() {
            return Err(Status::invalid_argument("request extensions are not supported"));
        }
        let range = match (number, since.is_some()) {
            // The live part has no limit, so a number cannot mean one that began at `since`.
            (_, true) if follow => Range::All,
            (0, false) if follow => Range::None,
            (0, _) => Range::All,
            // A start in time decides where to begin; the number then only ends it.
            (number, true) => Range::First(number),
            (number, false) if first => Range::First(number),
            (number, false) => Range::Last(number),
        };
        let bound = |time: Option<Timestamp>| time.as_ref().map(nanoseconds);
        let filters = Filters::parse(whitelist, blacklist)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(Self { range, follow, period: Period { since: bound(since), until: bound(until) }, filters })
    }

    fn matches(&self, flow: &Flow) -> bool {
        self.period.contains(flow) && self.filters.matches(flow)
    }

    fn is_over(&self, flow: &Flow) -> bool {
        let time = flow.time.as_ref().map_or(0, nanoseconds);
        self.period.until.is_some_and(|until| until < time)
    }
}

/// Events lost on the way to one client and not yet told.
#[derive(Debug, Default)]
struct Lost {
    counts: Vec<(LostEventSource, u64, Timestamp)>,
    told: Option<Instant>,
}

impl Lost {
    fn add(&mut self, source: LostEventSource, count: u64) {
        match self.counts.iter_mut().find(|(other, ..)| *other == source) {
            Some((_, total, _)) => *total += count,
            None => self.counts.push((source, count, now())),
        }
    }

    /// When the losses may be told; `None` while there are none.
    fn due(&self) -> Option<Instant> {
        let earliest = self.told.map_or_else(Instant::now, |told| told + LOST_INTERVAL);
        (!self.counts.is_empty()).then_some(earliest)
    }

    fn take(&mut self) -> Vec<LostEvent> {
        self.told = Some(Instant::now());
        let event = |(source, count, first): (LostEventSource, u64, Timestamp)| LostEvent {
            source: source.into(),
            num_events_lost: count,
            cpu: None,
            first: Some(first),
            last: Some(now()),
        };
        std::mem::take(&mut self.counts).into_iter().map(event).collect()
    }
}

/// The client is gone, or has all that it asked for.
struct End;

/// Serves one client.
struct Reader {
    node: String,
    query: Query,
    client: mpsc::Sender<Result<GetFlowsResponse, Status>>,
    lost: Lost,
}

impl Reader {
    async fn run(mut self, subscription: Subscription) {
        let Subscription { past, live } = subscription;
        let found = search(&past, self.query.range, |flow| self.query.matches(flow));
        drop(past);
        for flow in found {
            if self.send_flow(&flow).await.is_err() {
                return;
            }
        }
        if self.query.follow {
            let End = self.follow(live).await;
        }
    }

    async fn follow(&mut self, mut live: tokio::sync::broadcast::Receiver<Message>) -> End {
        loop {
            let client = self.client.clone();
            let due = self.lost.due();
            let step = tokio::select! {
                message = live.recv() => self.take(message).await,
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.tell_losses().await,
                () = client.closed() => Err(End),
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    async fn take(&mut self, message: Result<Message, RecvError>) -> Result<(), End> {
        match message {
            Ok(Message::Flow(flow)) if self.query.is_over(&flow) => Err(End),
            Ok(Message::Flow(flow)) if self.query.matches(&flow) => self.send_flow(&flow).await,
            Ok(Message::Flow(_)) => Ok(()),
            Ok(Message::Notice(message)) => {
                let (state_change, node_names) = (NodeState::NodeError.into(), vec![self.node.clone()]);
                let status = NodeStatusEvent { state_change, node_names, message };
                self.send(ResponseTypes::NodeStatus(status), Some(now())).await
            }
            Ok(Message::Lost { source, count }) => {
                self.lost.add(source, count);
                Ok(())
            }
            Err(RecvError::Lagged(count)) => {
                self.lost.add(LostEventSource::HubbleRingBuffer, count);
                Ok(())
            }
            Err(RecvError::Closed) => Err(End),
        }
    }

    async fn tell_losses(&mut self) -> Result<(), End> {
        for event in self.lost.take() {
            let time = event.last;
            self.send(ResponseTypes::LostEvents(event), time).await?;
        }
        Ok(())
    }

    async fn send_flow(&self, flow: &Flow) -> Result<(), End> {
        self.send(ResponseTypes::Flow(Box::new(flow.clone())), flow.time).await
    }

    async fn send(&self, response: ResponseTypes, time: Option<Timestamp>) -> Result<(), End> {
        let response =
            GetFlowsResponse { node_name: self.node.clone(), time, response_types: Some(response) };
        self.client.send(Ok(response)).await.map_err(|_| End)
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    timestamp(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}

fn nanoseconds_of(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
