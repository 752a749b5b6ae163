//! policy-agent
fn main() {}
