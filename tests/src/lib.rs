//! Test harness: nodes made of network namespaces, packets that sockets cannot send, scenarios with truth tables.

pub mod agent;
pub mod backend;
pub mod bench;
pub mod churn;
pub mod cluster;
pub mod daemon;
pub mod demo;
pub mod group;
pub mod lab;
pub mod monitor;
pub mod nat;
pub mod net;
pub mod pins;
pub mod pool;
pub mod probe;
pub mod programs;
pub mod report;
pub mod scenario;
pub mod shortage;
pub mod soak;
pub mod stream;
pub mod systemd;
pub mod tamper;
pub mod test_run;
pub mod twin;
pub mod verifier;

pub use policy_packets as pkt;
