//! The demo: real policies on real packets between network namespaces. `cargo xtask demo` runs it.

use policy_tests::demo;
use std::process::ExitCode;

fn main() -> ExitCode {
    match demo::run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            if demo::stop::asked() {
                eprintln!("interrupted; everything is cleaned up");
                return ExitCode::from(130);
            }
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
