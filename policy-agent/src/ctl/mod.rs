//! `policyctl`: the command line client, and the offline questions to the evaluator.

pub mod args;
pub mod client;
pub mod explain;
pub mod failure;
pub mod get;
pub mod matrix;
pub mod monitor;
pub mod offline;
pub mod screen;
pub mod status;
pub mod verify;
pub mod wait;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;

use crate::ctl::args::{Cli, Command};
use crate::ctl::failure::Failure;
use crate::ctl::screen::Screen;

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut screen = Screen::of_process();
    let result = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("cannot start: {error}")))
        .and_then(|runtime| runtime.block_on(run(&cli, &mut screen)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) if failure.reader_gone => ExitCode::SUCCESS,
        Err(failure) => {
            // There is nowhere left to tell that standard error is closed.
            let _: Result<_, _> = writeln!(screen.err, "{failure}");
            failure.exit.into()
        }
    }
}

/// Runs a command.
///
/// # Errors
/// Those of the command.
pub async fn run(cli: &Cli, screen: &mut Screen<'_>) -> Result<(), Failure> {
    let socket = &cli.socket;
    match &cli.command {
        Command::Monitor(args) => monitor::run(socket, args, screen).await,
        Command::Get(what) => get::run(socket, what, screen).await,
        Command::Status(args) => status::run(socket, args, screen).await,
        Command::Wait(args) => wait::run(socket, args, screen).await,
        Command::Verify(args) => verify::run(socket, args, screen).await,
        Command::Matrix(args) => matrix::run(args, screen),
        Command::Explain(args) => explain::run(args, screen),
    }
}

#[cfg(test)]
mod docs;
#[cfg(test)]
mod tests;
