//! `policyctl matrix`: every pair of pods of a directory of manifests.

use std::io::Write as _;

use policy_engine::matrix::matrix;

use crate::ctl::args::{MatrixArgs, TableForm};
use crate::ctl::failure::Failure;
use crate::ctl::offline;
use crate::ctl::screen::Screen;

/// Runs the command.
///
/// # Errors
/// When the manifests cannot be read or the output cannot be written.
pub fn run(args: &MatrixArgs, screen: &mut Screen<'_>) -> Result<(), Failure> {
    let world = offline::world(&args.manifests, screen)?;
    let matrix = matrix(&world, &args.port);
    match args.output {
        TableForm::Json => {
            let text = serde_json::to_string(&matrix).map_err(anyhow::Error::from)?;
            writeln!(screen.out, "{text}")?;
        }
        TableForm::Table => {
            let mut text = String::new();
            matrix.text(&mut text).map_err(anyhow::Error::from)?;
            write!(screen.out, "{text}")?;
        }
    }
    Ok(())
}
