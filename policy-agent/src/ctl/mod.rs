//! `policyctl`: the agent's command line client.

pub mod client;
