//! A real Kubernetes under test: etcd and kube-apiserver alone, or whole nodes.

mod api_server;
mod client;
pub mod deploy;
pub mod nodes;
mod process;
mod programs;

pub use api_server::{ApiServer, Options};
use api_server::{compact, write_keys};
pub use client::{Answer, Client};
pub use nodes::{Cluster, Cni, Proxy, Shape};
pub use process::Process;
pub use programs::{program, version};
