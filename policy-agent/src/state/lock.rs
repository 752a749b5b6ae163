//! One agent per network namespace and per state directory.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;

pub(super) const FILE: &str = "lock";
/// Names of this kind belong to the network namespace and go with the last descriptor.
const SOCKET: &str = "policy-agent.lock";

/// Why the lock was not given.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another agent holds it.
    #[error("another policy-agent is running{}{}", .pid.map_or_else(String::new, |pid| format!(" (process {pid})")), .place)]
    Held {
        /// Its process, where it can be told.
        pid: Option<i32>,
        /// What it holds.
        place: String,
    },
    /// The lock can't be taken.
    #[error("lock {path}")]
    Failed {
        /// What was to be locked.
        path: String,
        /// The system's answer.
        source: io::Error,
    },
}

/// Held as long as the value lives; a process that is killed gives it back.
#[derive(Debug)]
pub struct Lock {
    _socket: UnixListener,
    _file: File,
}

impl Lock {
    /// Takes the lock of the calling thread's network namespace, then that of the state directory, which must exist.
    ///
    /// # Errors
    /// Another agent has one of them, or the system's answer.
    pub fn take(directory: &Path) -> Result<Self, LockError> {
        Ok(Self { _socket: lock_namespace()?, _file: lock_directory(directory)? })
    }
}

fn lock_namespace() -> Result<UnixListener, LockError> {
    let failed = |source| LockError::Failed { path: format!("@{SOCKET}"), source };
    let address = SocketAddr::from_abstract_name(SOCKET).map_err(failed)?;
    UnixListener::bind_addr(&address).map_err(|e| {
        if e.kind() == io::ErrorKind::AddrInUse {
            let pid = UnixStream::connect_addr(&address).ok().and_then(|s| peer(&s));
            LockError::Held { pid, place: " in this network namespace".to_owned() }
        } else {
            failed(e)
        }
    })
}

fn lock_directory(directory: &Path) -> Result<File, LockError> {
    let path = directory.join(FILE);
    let failed = |source| LockError::Failed { path: path.display().to_string(), source };
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {
            let pid = std::process::id().to_string();
            fs::write(&path, pid).map_err(failed)?;
            Ok(file)
        }
        Err(fs::TryLockError::WouldBlock) => {
            let pid = fs::read_to_string(&path).ok().and_then(|t| t.trim().parse().ok());
            Err(LockError::Held { pid, place: format!(" with the state directory {}", directory.display()) })
        }
        Err(fs::TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// The process that listens at the other end.
fn peer(stream: &UnixStream) -> Option<i32> {
    let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the pointers lead to a value of the given length, for the time of the call.
    let done = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut length,
        )
    };
    (done == 0 && credentials.pid > 0).then_some(credentials.pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_given_once_and_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let first = lock_directory(dir.path()).unwrap();
        let second = lock_directory(dir.path()).unwrap_err().to_string();
        assert!(second.contains(&std::process::id().to_string()), "{second}");
        drop(first);
        drop(lock_directory(dir.path()).unwrap());
    }
}
