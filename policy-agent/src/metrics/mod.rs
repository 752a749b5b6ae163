//! Prometheus metrics, health and readiness over HTTP.

mod collect;
mod serve;

pub use collect::Metrics;
pub use serve::{bind, serve};
