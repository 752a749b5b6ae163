//! A real Kubernetes under test: etcd and kube-apiserver alone, or whole nodes.

mod api_server;
mod client;
mod process;
mod programs;

pub use api_server::{ApiServer, Options};
pub use client::{Answer, Client};
pub use process::Process;
pub use programs::{program, version};
