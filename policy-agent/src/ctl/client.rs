//! Connections to the agent's socket.

use std::path::Path;

use anyhow::Context as _;
use tonic::transport::{Channel, Endpoint};

/// Connects to the socket.
///
/// # Errors
/// When nobody answers there, or this user may not connect.
pub async fn connect(socket: &Path) -> anyhow::Result<Channel> {
    let address = format!("unix:{}", std::path::absolute(socket).context("current directory")?.display());
    Endpoint::try_from(address)
        .with_context(|| format!("{} is no socket path", socket.display()))?
        .connect()
        .await
        .with_context(|| format!("cannot reach the agent at {}", socket.display()))
}
