//! The chained CNI plugin: ADD returns only when the pod's policy is in the kernel, so no packet goes before it.
//!
//! Without it a new pod talks for the time between its interface and our hook. The plugin tells the agent which pod the
//! runtime is making and which addresses an earlier plugin of the chain gave it, and waits for the agent's word.

pub mod config;
pub mod install;
pub mod invocation;
pub mod plugin;

pub use plugin::main;

/// Type of the plugin in configurations, and name of its file.
pub const PLUGIN: &str = "policy-agent-cni";
