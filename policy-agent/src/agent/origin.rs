//! Where the agent's objects come from, as its flags say: checked before anything is changed, started later.

use std::path::PathBuf;
use std::sync::Arc;

use super::view::Published;
use crate::cli::{Exit, Failure, RunArgs, ServicesArg};
use crate::notice::{Count, Sender};
use crate::source::files::read_dir;
use crate::source::kube::KubeSource;
use crate::source::kube::connect::{self, Connection, connect};
use crate::source::kube::kind::{self, Kind};
use crate::source::service::FilesSource;
use crate::source::{Source, Told};

/// Where objects come from.
pub(super) enum Origin {
    /// Manifests in a directory.
    Files(PathBuf),
    /// An API server.
    Kubernetes(Connection),
}

impl Origin {
    /// What the flags say. No API server is asked: one that does not answer yet is waited for.
    pub(super) async fn of(args: &RunArgs) -> Result<Self, Failure> {
        let Some(manifests) = &args.manifests else {
            let made = connect(args.kubeconfig.as_deref(), args.context.as_deref()).await;
            return Ok(Self::Kubernetes(made?));
        };
        read_dir(manifests).map_err(|error| {
            Failure::text(Exit::Manifests, format!("--manifests {}: {error}", manifests.display()))
                .hint("give a directory of YAML or JSON files that can be read")
        })?;
        Ok(Self::Files(manifests.clone()))
    }

    /// Name of its kind, for people.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Files(_) => "files",
            Self::Kubernetes(_) => "kubernetes",
        }
    }

    /// Directory or address.
    pub(super) fn location(&self) -> String {
        match self {
            Self::Files(path) => path.display().to_string(),
            Self::Kubernetes(Connection { location, .. }) => location.clone(),
        }
    }

    /// Starts to tell the owners of policies what is wrong with them, where there is somebody to tell it to.
    pub(super) fn tell_owners(&self, node: &str, published: &Published) -> Arc<Count> {
        let count = Arc::new(Count::default());
        match self {
            Self::Files(_) => {}
            Self::Kubernetes(Connection { client, .. }) => {
                let sender = Sender {
                    client: client.clone(),
                    node: node.to_owned(),
                    published: published.clone(),
                    count: count.clone(),
                };
                tokio::spawn(sender.run());
            }
        }
        count
    }

    /// Starts the source, on the runtime of the caller.
    pub(super) fn start(
        &self,
        node: &str,
        services: ServicesArg,
        tell: impl Fn(Told) -> bool + Send + 'static,
    ) -> Result<Source, Failure> {
        match self {
            Self::Files(path) => FilesSource::start(path, tell)
                .map(Source::Files)
                .map_err(|e| Failure::text(Exit::Manifests, format!("--manifests {}: {e}", path.display()))),
            Self::Kubernetes(connection) => {
                let mut kinds = kind::NEEDED.to_vec();
                kinds.push(Kind::ClusterPolicy);
                match services {
                    ServicesArg::Tag => {}
                    ServicesArg::Backends | ServicesArg::Auto => kinds.push(Kind::EndpointSlice),
                }
                Ok(Source::Kubernetes(KubeSource::start(connection, node, &kinds, tell)))
            }
        }
    }
}

impl From<connect::Error> for Failure {
    fn from(error: connect::Error) -> Self {
        let hint = error.hint();
        Self::new(Exit::Cluster, &error).hint(hint)
    }
}
