//! policyctl
fn main() {}
