//! Which API server, and as whom.

use std::path::Path;
use std::time::Duration;

use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};

/// Longest that a connection may take to come up.
const CONNECT: Duration = Duration::from_secs(10);
/// Set in every pod.
const IN_CLUSTER: &str = "KUBERNETES_SERVICE_HOST";

/// Why there is no client. Nothing was asked of a server yet.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// In a pod, but the pod's account cannot be used.
    #[error("the configuration inside of the cluster cannot be used")]
    InCluster(#[source] InClusterError),
    /// The kubeconfig cannot be used.
    #[error("the kubeconfig cannot be used")]
    Kubeconfig(#[source] KubeconfigError),
    /// Neither in a pod, nor is there a kubeconfig.
    #[error("no API server: this is no pod, and there is no kubeconfig")]
    Nowhere(#[source] KubeconfigError),
    /// No client can be made of the configuration.
    #[error("the configuration of the API server's client is wrong")]
    Client(#[source] Box<kube::Error>),
}

impl Error {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::InCluster(_) => "the pod needs a ServiceAccount whose token is mounted \
                                   (automountServiceAccountToken), or give --kubeconfig"
                .to_owned(),
            Self::Kubeconfig(_) | Self::Client(_) => {
                "give --kubeconfig a file that `kubectl --kubeconfig FILE get nodes` accepts, and --context \
                 one of its contexts"
                    .to_owned()
            }
            Self::Nowhere(_) => {
                "give --kubeconfig FILE, or --manifests DIR to enforce objects from files".to_owned()
            }
        }
    }
}

/// A client of an API server.
#[derive(Clone)]
pub struct Connection {
    /// The client.
    pub client: Client,
    /// The server's address.
    pub location: String,
}

/// The API server of a kubeconfig; without one that of the pod this runs in, else that of `KUBECONFIG` or
/// `~/.kube/config`. A context is one of a kubeconfig. No server is asked.
///
/// # Errors
/// The configuration cannot be used.
pub async fn connect(kubeconfig: Option<&Path>, context: Option<&str>) -> Result<Connection, Error> {
    let in_cluster = std::env::var_os(IN_CLUSTER).is_some();
    let mut config = if let Some(path) = kubeconfig {
        let read = Kubeconfig::read_from(path).map_err(Error::Kubeconfig)?;
        of(read, context).await.map_err(Error::Kubeconfig)?
    } else if in_cluster && context.is_none() {
        Config::incluster().map_err(Error::InCluster)?
    } else {
        let read = Kubeconfig::read().map_err(|error| match error {
            KubeconfigError::FindPath | KubeconfigError::ReadConfig(..) => Error::Nowhere(error),
            other => Error::Kubeconfig(other),
        })?;
        of(read, context).await.map_err(Error::Kubeconfig)?
    };
    config.connect_timeout = Some(CONNECT);
    // Whoever asks tries again by itself, and tells about it.
    config.default_retry = false;
    let agent = http::HeaderValue::from_static(concat!("policy-agent/", env!("CARGO_PKG_VERSION")));
    config.headers.push((http::header::USER_AGENT, agent));
    let location = config.cluster_url.to_string().trim_end_matches('/').to_owned();
    let client = Client::try_from(config).map_err(|e| Error::Client(Box::new(e)))?;
    Ok(Connection { client, location })
}

async fn of(kubeconfig: Kubeconfig, context: Option<&str>) -> Result<Config, KubeconfigError> {
    let options = KubeConfigOptions { context: context.map(str::to_owned), ..KubeConfigOptions::default() };
    Config::from_custom_kubeconfig(kubeconfig, &options).await
}
