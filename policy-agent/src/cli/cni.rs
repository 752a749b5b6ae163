//! `policy-agent cni`: the chained plugin is put on the node, or taken off it.

use std::thread;
use std::time::Duration;

use super::{CniCommand, CniFailure, CniInstall, Exit, Failure};
use crate::cni::PLUGIN;
use crate::cni::install::{Install, InstallError, uninstall};

/// How often a configuration that others write is looked at.
const LOOK: Duration = Duration::from_secs(5);

/// Runs the command.
///
/// # Errors
/// What the system refuses, or a configuration that nothing can be chained to.
pub(super) fn run(command: &CniCommand) -> Result<(), Failure> {
    match command {
        CniCommand::Install(args) => install(args),
        CniCommand::Uninstall(dirs) => {
            for path in uninstall(&dirs.bin_dir, &dirs.conf_dir)? {
                eprintln!("taken out of {}", path.display());
            }
            Ok(())
        }
    }
}

fn install(args: &CniInstall) -> Result<(), Failure> {
    let told = |error: std::io::Error| Failure::text(Exit::Failed, format!("where is this program: {error}"));
    let install = Install {
        program: std::env::current_exe().map_err(told)?.with_file_name(PLUGIN),
        bin_dir: args.dirs.bin_dir.clone(),
        conf_dir: args.dirs.conf_dir.clone(),
        socket: args.socket.clone(),
        on_failure: match args.on_failure {
            CniFailure::Fail => "fail".to_owned(),
            CniFailure::Allow => "allow".to_owned(),
        },
    };
    let mut trouble = String::new();
    loop {
        match install.install() {
            Ok(done) => {
                trouble.clear();
                if done.program_changed || done.configuration_changed {
                    eprintln!("chained in {}", done.configuration.display());
                }
            }
            Err(error) if args.follow => {
                // The network's own agent may still be at work.
                let text = error.to_string();
                if text != trouble {
                    eprintln!("not chained: {text}");
                    trouble = text;
                }
            }
            Err(error) => return Err(error.into()),
        }
        if !args.follow {
            return Ok(());
        }
        thread::sleep(LOOK);
    }
}

impl From<InstallError> for Failure {
    fn from(error: InstallError) -> Self {
        let failure = Self::new(Exit::Failed, &error);
        match error {
            InstallError::NoNetwork(_) => {
                failure.hint("install the network first, or give --follow to wait for it")
            }
            InstallError::NoList(_) => failure.hint("write it as a .conflist with a list of plugins"),
            InstallError::File { .. } | InstallError::Unreadable { .. } => failure,
        }
    }
}
