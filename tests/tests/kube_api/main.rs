//! The agent on a real API server: lists, watches, outages, lost history, permissions and credentials, with real packets.
#![expect(clippy::unwrap_used, reason = "a helper of a test that fails is a failed test")]

mod away;
mod changes;
mod churn;
mod crd;
mod lists;
mod notices;
mod outage;
mod refused;
mod services;
mod setup;
