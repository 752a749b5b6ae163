//! How the process ends: one number for each kind of trouble, with what to do about it.

use std::error::Error;
use std::fmt;
use std::io;
use std::process::ExitCode;

use crate::datapath;
use crate::preflight;
use crate::state::LockError;

/// Exit codes beside 0. They are part of the interface: scripts and supervisors tell trouble apart by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Anything else.
    Failed = 1,
    /// Bad command line (given by the parser too).
    Usage = 2,
    /// Not root, or a capability is missing.
    Permission = 3,
    /// The kernel lacks something.
    Kernel = 4,
    /// The pin directory is not on a BPF file system, or something else is pinned there.
    Bpffs = 5,
    /// Another agent is running.
    Running = 6,
    /// The manifests cannot be read.
    Manifests = 7,
    /// `--once`: not everything is enforced.
    Incomplete = 8,
    /// No API server is configured, or its configuration cannot be used.
    Cluster = 9,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why the process ends, and what the user can do.
#[derive(Debug)]
pub struct Failure {
    /// Exit code.
    pub exit: Exit,
    /// What went wrong, causes included.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Failure {
    /// A failure with its causes as one line.
    #[must_use]
    pub fn new(exit: Exit, error: &(dyn Error + 'static)) -> Self {
        Self { exit, message: chain(error), hint: None }
    }

    /// A failure in words.
    #[must_use]
    pub fn text(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: None }
    }

    /// With a hint.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// Writes it for a person.
    pub(super) fn tell(&self) {
        anstream::eprintln!("{self}");
    }
}

/// An error with its causes, as one line.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !message.ends_with(&text) {
            message.push_str(": ");
            message.push_str(&text);
        }
        source = cause.source();
    }
    message
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

impl From<datapath::Error> for Failure {
    fn from(error: datapath::Error) -> Self {
        use datapath::Error as E;
        let exit = match &error {
            E::NotBpffs(_) | E::ForeignPin { .. } => Exit::Bpffs,
            E::Object(_) | E::Program { .. } | E::MissingProgram(_) | E::NoTcx => Exit::Kernel,
            E::Path { source, .. }
            | E::Map { source, .. }
            | E::Interface { source, .. }
            | E::Netlink { source, .. }
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                Exit::Permission
            }
            E::Path { .. }
            | E::Map { .. }
            | E::Interface { .. }
            | E::Netlink { .. }
            | E::Bounds { .. }
            | E::Plan { .. }
            | E::Occupied { .. }
            | E::Reserved { .. }
            | E::Endpoint { .. }
            | E::HookTaken { .. } => Exit::Failed,
        };
        Self { hint: error.hint(), ..Self::new(exit, &error) }
    }
}

impl From<preflight::Error> for Failure {
    fn from(error: preflight::Error) -> Self {
        use preflight::Error as E;
        let exit = match error {
            E::Pins(error) => return error.into(),
            E::Capabilities(_) => Exit::Permission,
            E::Refused { ref source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Exit::Permission
            }
            E::Kernel(_) | E::KernelTypes | E::Refused { .. } => Exit::Kernel,
            E::Unreadable { .. } => Exit::Failed,
        };
        Self { hint: error.hint(), ..Self::new(exit, &error) }
    }
}

impl From<LockError> for Failure {
    fn from(error: LockError) -> Self {
        match &error {
            LockError::Held { pid, .. } => {
                let stop = pid.map_or_else(|| "it".to_owned(), |pid| format!("it (kill {pid})"));
                Self::new(Exit::Running, &error)
                    .hint(format!("stop {stop} first; what it enforces stays in force and is taken over"))
            }
            LockError::Failed { source, .. } => {
                let exit = match source.kind() {
                    io::ErrorKind::PermissionDenied => Exit::Permission,
                    _ => Exit::Failed,
                };
                Self::new(exit, &error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_and_hints_are_told() {
        let error = datapath::Error::NotBpffs("/tmp".into());
        let failure = Failure::from(error);
        assert_eq!(failure.exit, Exit::Bpffs);
        assert!(failure.to_string().contains("hint: mount -t bpf"), "{failure}");
        let held = LockError::Held { pid: Some(7), place: " here".to_owned() };
        let failure = Failure::from(held);
        assert_eq!(failure.exit, Exit::Running);
        assert!(failure.to_string().contains("process 7"), "{failure}");
    }
}
