//! How a command ends badly: a message, what to do about it, and the exit code.

use std::fmt;
use std::io;
use std::path::Path;

/// Exit code of a failure.
pub const FAILED: u8 = 1;
/// Exit code of a wait that was not met; also that of a bad command line.
pub const NOT_MET: u8 = 2;
/// Exit code of a check that found something.
pub const DRIFTED: u8 = 3;

/// A failure.
#[derive(Debug)]
pub struct Failure {
    /// What went wrong; empty when it has been told already.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// Exit code.
    pub exit: u8,
    /// Whoever read our output is gone: nothing is wrong.
    pub reader_gone: bool,
}

impl Failure {
    /// A failure in words.
    #[must_use]
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, exit: FAILED, reader_gone: false }
    }

    /// With a hint.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// The agent does not answer at this socket.
    #[must_use]
    pub fn unreachable(socket: &Path, error: &tonic::transport::Error) -> Self {
        let cause = innermost(error);
        let kind = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        let hint = match kind {
            Some(io::ErrorKind::PermissionDenied) => {
                "run as root, or as a member of the socket's group".to_owned()
            }
            Some(io::ErrorKind::NotFound) => {
                "start policy-agent, or name its socket with --socket or POLICY_AGENT_SOCKET".to_owned()
            }
            _ => "is policy-agent running? see its log".to_owned(),
        };
        Self::new(format!("cannot reach the agent at {}: {cause}", socket.display())).hint(hint)
    }
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        let failure = Self::new(format!("the agent answers: {}", status.message()));
        match status.code() {
            tonic::Code::Unavailable => {
                Self::new("the connection to the agent broke").hint("is it still running?")
            }
            tonic::Code::Unimplemented => {
                failure.hint("agent and policyctl are of different versions, or this is not a policy-agent")
            }
            _ => failure,
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        let reader_gone = error.kind() == io::ErrorKind::BrokenPipe;
        Self { reader_gone, ..Self::new(format!("writing the output: {error}")) }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(format!("{error:#}"))
    }
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

fn innermost<'a>(error: &'a (dyn std::error::Error + 'static)) -> &'a (dyn std::error::Error + 'static) {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause
}
