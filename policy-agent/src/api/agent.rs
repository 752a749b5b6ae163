//! Our own service: what `policyctl status`, `get` and `wait` ask.

use std::sync::Arc;
use std::time::Duration;

use tonic::{Request, Response, Status};

use crate::api::view::AgentView;
use crate::proto::agent::agent_server::Agent as Service;
use crate::proto::agent::{
    ListEndpointsRequest, ListEndpointsResponse, ListPoliciesRequest, ListPoliciesResponse, StatusRequest,
    StatusResponse, WaitRequest, WaitResponse,
};

/// Longest time that the server waits in one call; a client with more patience calls again.
const LONGEST_WAIT: Duration = Duration::from_secs(600);

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
        let timeout = Duration::from_millis(request.into_inner().timeout_ms).min(LONGEST_WAIT);
        Ok(Response::new(self.view.wait(timeout).await))
    }
}
