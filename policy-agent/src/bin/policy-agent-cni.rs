//! The chained CNI plugin. Everything it does is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    policy_agent::cni::main()
}
