//! What needs nothing but a kernel, so it runs in VMs too. One program: the suites hand on one loaded datapath
//! ([`policy_tests::pool`]), and loading is most of what an emulated machine does.
#![expect(clippy::unwrap_used, reason = "a test that can't go on has failed")]

mod datapath;
mod discovery;
mod exitrun;
mod hooks;
mod kernel;
mod progrun;
mod scenarios_testrun;
mod sockets;
