//! An agent that answers what a test wants, behind a real server on a socket of its own.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use policy_common::event::Event;
use policy_engine::model::ObjectKey;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::api::{AgentView, Socket, Verifying, Waiting, serve};
use crate::events::Bus;
use crate::events::fixture::{dropped_syn, history, world};
use crate::events::{Enricher, Now, Views};
use crate::proto::agent::{Endpoint, Policy, StatusResponse, VerifyResponse, WaitResponse};
use crate::proto::flow::Flow;

/// Fixed answers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fake {
    pub(crate) status: StatusResponse,
    pub(crate) policies: Vec<Policy>,
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) wait: WaitResponse,
    pub(crate) verify: VerifyResponse,
}

impl AgentView for Fake {
    fn node_name(&self) -> String {
        "node-a".to_owned()
    }

    fn status(&self) -> StatusResponse {
        self.status.clone()
    }

    fn policies(&self) -> Vec<Policy> {
        self.policies.clone()
    }

    fn endpoints(&self) -> Vec<Endpoint> {
        self.endpoints.clone()
    }

    fn wait(&self, _: Duration, _: Option<ObjectKey>) -> Waiting<'_> {
        Box::pin(async { self.wait.clone() })
    }

    fn verify(&self) -> Verifying<'_> {
        Box::pin(async { Ok(self.verify.clone()) })
    }

    fn claim(&self, _: ObjectKey, _: &str, _: Vec<IpAddr>, _: Duration) -> Waiting<'_> {
        Box::pin(async { self.wait.clone() })
    }
}

/// A directory for a socket.
pub(crate) fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// A server under way.
pub(crate) struct Running {
    pub(crate) path: PathBuf,
    pub(crate) bus: Arc<Bus>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    /// Serves `agent.sock` in a directory.
    pub(crate) fn start(directory: &Path, fake: Fake, bus: Bus) -> Self {
        let path = directory.join("agent.sock");
        let bus = Arc::new(bus);
        let socket = Socket::bind(&path).unwrap();
        let (stop, stopped) = oneshot::channel();
        let shutdown = async {
            let _: Result<_, _> = stopped.await;
        };
        let task = tokio::spawn(serve(socket, Arc::new(fake), bus.clone(), shutdown));
        Self { path, bus, stop, task }
    }

    /// Ends the server and waits for its end.
    pub(crate) async fn stop(self) {
        self.stop.send(()).unwrap();
        self.task.await.unwrap().unwrap();
    }
}

/// The verdict and the drop of a packet from `shop/web` to `port` of `shop/db`, so many seconds after the start.
pub(crate) fn denied(port: u16, second: i64) -> Vec<Flow> {
    told(&dropped_syn(port), second)
}

/// The flows of a record, so many seconds after the start.
pub(crate) fn told(event: &Event, second: i64) -> Vec<Flow> {
    let wall = 1_790_000_000_000_000_000 + second * 1_000_000_000;
    let now = Now { monotonic: event.time, wall };
    Enricher::new("node-a", Views::Both).flows(event, &history(world()), now)
}
