//! How a task tells its user that something went wrong, and what to do about it.

use std::{error::Error, fmt};

/// An error with the command or thought that helps.
pub(crate) fn hint(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    anyhow::Error::new(Hinted { message: message.into(), hint: hint.into() })
}

/// An unknown argument of a task.
pub(crate) fn argument(task: &str, argument: &str) -> anyhow::Error {
    hint(format!("{task}: unknown argument '{argument}'"), "`cargo xtask` shows each task's arguments")
}

/// Prints the error, its causes, and the hints among them, on stderr.
pub(crate) fn print(error: &anyhow::Error) {
    eprintln!("error: {error}");
    for cause in error.chain().skip(1) {
        eprintln!("  because: {cause}");
    }
    for hinted in error.chain().filter_map(|cause| cause.downcast_ref::<Hinted>()) {
        for line in hinted.hint.lines() {
            eprintln!("hint: {line}");
        }
    }
}

#[derive(Debug)]
struct Hinted {
    message: String,
    hint: String,
}

impl fmt::Display for Hinted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Hinted {}
