//! The command line of `policy-agent`.

mod args;
mod cleanup;
mod cni;
mod exit;
mod log;

use std::process::ExitCode;

use clap::Parser;

pub use args::{
    AttachArg, Cli, CniCommand, CniDirs, CniFailure, CniInstall, Command, ExistingFlows, HostNetwork,
    LogFormat, Loopback, MasqueradedIngress, Paths, RunArgs, ServicesArg, Unhookable, UnknownPods,
};
pub use exit::{Exit, Failure, chain};

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match &cli.command {
        Command::Run(args) => log::start(&args.log, args.log_format).and_then(|()| crate::agent::run(args)),
        Command::Cleanup(args) => cleanup::cleanup(args),
        Command::Cni(command) => cni::run(command),
        Command::Version => {
            println!("policy-agent {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.tell();
            failure.exit.into()
        }
    }
}
