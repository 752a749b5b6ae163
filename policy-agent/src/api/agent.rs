//! Our own service: what `policyctl status`, `get` and `wait` ask.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use policy_engine::model::ObjectKey;
use tonic::{Request, Response, Status};

use crate::api::view::AgentView;
use crate::proto::agent::agent_server::Agent as Service;
use crate::proto::agent::{
    ClaimRequest, ListEndpointsRequest, ListEndpointsResponse, ListPoliciesRequest, ListPoliciesResponse,
    StatusRequest, StatusResponse, VerifyRequest, VerifyResponse, WaitRequest, WaitResponse,
};

/// Longest time that the server waits in one call; a client with more patience calls again.
const LONGEST_WAIT: Duration = Duration::from_secs(600);

fn limited(timeout_ms: u64) -> Duration {
    Duration::from_millis(timeout_ms).min(LONGEST_WAIT)
}

/// The service.
pub struct Agent {
    view: Arc<dyn AgentView>,
}

impl Agent {
    /// The service of an agent.
    #[must_use]
    pub fn new(view: Arc<dyn AgentView>) -> Self {
        Self { view }
    }
}

#[tonic::async_trait]
impl Service for Agent {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(self.view.status()))
    }

    async fn list_policies(
        &self,
        _: Request<ListPoliciesRequest>,
    ) -> Result<Response<ListPoliciesResponse>, Status> {
        Ok(Response::new(ListPoliciesResponse { policies: self.view.policies() }))
    }

    async fn list_endpoints(
        &self,
        _: Request<ListEndpointsRequest>,
    ) -> Result<Response<ListEndpointsResponse>, Status> {
        Ok(Response::new(ListEndpointsResponse { endpoints: self.view.endpoints() }))
    }

    async fn wait(&self, request: Request<WaitRequest>) -> Result<Response<WaitResponse>, Status> {
        let WaitRequest { timeout_ms, namespace, pod } = request.into_inner();
        let pod = match (namespace.is_empty(), pod.is_empty()) {
            (true, true) => None,
            (false, false) => Some(ObjectKey::new(&namespace, &pod)),
            (true, false) | (false, true) => {
                return Err(Status::invalid_argument("a pod needs a namespace and a name"));
            }
        };
        Ok(Response::new(self.view.wait(limited(timeout_ms), pod).await))
    }

    async fn verify(&self, _: Request<VerifyRequest>) -> Result<Response<VerifyResponse>, Status> {
        self.view.verify().await.map(Response::new).map_err(Status::internal)
    }

    async fn claim(&self, request: Request<ClaimRequest>) -> Result<Response<WaitResponse>, Status> {
        let ClaimRequest { namespace, pod, uid, addresses, timeout_ms } = request.into_inner();
        if namespace.is_empty() || pod.is_empty() {
            return Err(Status::invalid_argument("a pod needs a namespace and a name"));
        }
        let read = |text: &String| {
            text.parse().map_err(|_| Status::invalid_argument(format!("{text:?} is no address")))
        };
        let addresses: Vec<IpAddr> = addresses.iter().map(read).collect::<Result<_, _>>()?;
        if addresses.is_empty() {
            return Err(Status::invalid_argument("a claim needs the addresses that the pod was given"));
        }
        let pod = ObjectKey::new(&namespace, &pod);
        Ok(Response::new(self.view.claim(pod, &uid, addresses, limited(timeout_ms)).await))
    }
}
