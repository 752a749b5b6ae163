//! `bench micro|path|scale`: benchmarks of the datapath and of the agent. `cargo xtask bench` runs it.

use policy_tests::bench;
use std::process::ExitCode;

fn main() -> ExitCode {
    let result = match std::env::args().nth(1).as_deref() {
        Some("micro") => bench::micro(),
        Some("path") => bench::path(),
        Some("scale") => bench::scale(),
        _ => {
            eprintln!("usage: bench micro|path|scale");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
