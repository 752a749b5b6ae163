//! The socket, and the services on it.

use std::future::Future;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use anyhow::{Context as _, bail};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::api::agent::Agent;
use crate::api::observer::Observer;
use crate::api::view::AgentView;
use crate::events::Bus;
use crate::proto::agent::agent_server::AgentServer;
use crate::proto::observer::observer_server::ObserverServer;

/// The name under which `hubble status` asks for health; it is not the name of the gRPC service.
const HEALTH_NAME: &str = "hubble.server.Observer";

/// Only root and the socket's group may connect: the file's mode is the only access control.
const MODE: u32 = 0o660;

/// A bound socket.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl Socket {
    /// Binds the socket, so that errors show before anything is changed. A socket that nobody answers on is what an agent
    /// that was killed left behind: it is replaced. Needs a running runtime.
    ///
    /// # Errors
    /// If another process answers there, if something else than a socket is there, or if the file cannot be made.
    pub fn bind(path: &Path) -> anyhow::Result<Self> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
        }
        remove_stale(path)?;
        let listener = UnixListener::bind(path).with_context(|| format!("binding {}", path.display()))?;
        fs::set_permissions(path, fs::Permissions::from_mode(MODE))
            .with_context(|| format!("setting the mode of {}", path.display()))?;
        let inode = fs::metadata(path).with_context(|| path.display().to_string())?.ino();
        Ok(Self { listener, path: path.to_owned(), inode })
    }
}

/// Serves until `shutdown` is ready; then ends all streams and removes the socket.
///
/// # Errors
/// When the transport fails.
pub async fn serve(
    socket: Socket,
    view: Arc<dyn AgentView>,
    bus: Arc<Bus>,
    shutdown: impl Future<Output = ()> + Send,
) -> anyhow::Result<()> {
    let Socket { listener, path, inode } = socket;
    let (close, closing) = watch::channel(false);
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_service_status(HEALTH_NAME, tonic_health::ServingStatus::Serving).await;
    let observer = Observer::new(view.node_name(), bus, closing);
    let ending = async {
        shutdown.await;
        // An error only says that no stream is open.
        let _: Result<_, _> = close.send(true);
    };
    let served = Server::builder()
        .add_service(health_service)
        .add_service(ObserverServer::new(observer))
        .add_service(AgentServer::new(Agent::new(view)))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), ending)
        .await;
    // A successor may have put its own socket there.
    if fs::metadata(&path).is_ok_and(|found| found.ino() == inode) {
        fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
    }
    served.with_context(|| format!("serving {}", path.display()))
}

fn remove_stale(path: &Path) -> anyhow::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    if !found.file_type().is_socket() {
        bail!("{} exists and is not a socket", path.display());
    }
    match UnixStream::connect(path) {
        Ok(_) => bail!("another process serves {}", path.display()),
        Err(error) if is_stale(&error) => {
            fs::remove_file(path).with_context(|| format!("removing the stale {}", path.display()))
        }
        Err(error) => Err(error).with_context(|| format!("asking who serves {}", path.display())),
    }
}

fn is_stale(error: &io::Error) -> bool {
    error.kind() == ErrorKind::ConnectionRefused
}

#[cfg(test)]
mod tests;
