//! Connections to the agent's socket.

use std::path::Path;

use tonic::transport::{Channel, Endpoint};

use crate::ctl::failure::Failure;
use crate::proto::agent::agent_client::AgentClient;
use crate::proto::observer::observer_client::ObserverClient;

/// Largest answer that is taken: a list of all policies of a large cluster.
const MAX_ANSWER: usize = 256 << 20;

/// Connects to the socket.
///
/// # Errors
/// When nobody answers there, or this user may not connect.
pub async fn connect(socket: &Path) -> Result<Channel, Failure> {
    let path = std::path::absolute(socket).map_err(anyhow::Error::from)?;
    let endpoint = Endpoint::try_from(format!("unix:{}", path.display()))
        .map_err(|_| Failure::new(format!("{} cannot be the path of a socket", socket.display())))?;
    endpoint.connect().await.map_err(|error| Failure::unreachable(socket, &error))
}

/// A client of the agent's own service.
///
/// # Errors
/// Those of [`connect`].
pub async fn agent(socket: &Path) -> Result<AgentClient<Channel>, Failure> {
    Ok(AgentClient::new(connect(socket).await?).max_decoding_message_size(MAX_ANSWER))
}

/// A client of the observer service.
///
/// # Errors
/// Those of [`connect`].
pub async fn observer(socket: &Path) -> Result<ObserverClient<Channel>, Failure> {
    Ok(ObserverClient::new(connect(socket).await?))
}
