//! What the services need to know of the agent.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::time::Duration;

use policy_engine::model::ObjectKey;

use crate::proto::agent::{Endpoint, Policy, StatusResponse, VerifyResponse, WaitResponse};

/// An answer that may take its time.
pub type Waiting<'a> = Pin<Box<dyn Future<Output = WaitResponse> + Send + 'a>>;

/// The answer to a check.
pub type Verifying<'a> = Pin<Box<dyn Future<Output = Result<VerifyResponse, String>> + Send + 'a>>;

/// The agent as its API sees it. Answers come from state at hand: none of the first three may block.
pub trait AgentView: Send + Sync + 'static {
    /// Name of the node.
    fn node_name(&self) -> String;

    /// How the agent and its kernel side are doing.
    fn status(&self) -> StatusResponse;

    /// The policies held, by namespace and name.
    fn policies(&self) -> Vec<Policy>;

    /// The local pods, by namespace and name.
    fn endpoints(&self) -> Vec<Endpoint>;

    /// Waits until the kernel enforces everything that the sources held when this was called (for files: a scan that
    /// began after the call has been applied), at most for the timeout; zero answers at once. When it ends undone, the
    /// answer says what is missing. Dropping the future gives up. With a pod, it waits for that pod of the node alone.
    fn wait(&self, timeout: Duration, pod: Option<ObjectKey>) -> Waiting<'_>;

    /// Checks everything in the kernel, and puts right what somebody else changed. An error says why there is no answer.
    fn verify(&self) -> Verifying<'_>;

    /// A container runtime gave the pod these addresses: waits until the kernel enforces its policy, as
    /// [`AgentView::wait`] does. `addresses` is not empty; an empty UID is not known.
    fn claim(&self, pod: ObjectKey, uid: &str, addresses: Vec<IpAddr>, timeout: Duration) -> Waiting<'_>;
}
