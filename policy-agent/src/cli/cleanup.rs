//! `policy-agent cleanup`: nothing of the agent is left.

use std::fs;
use std::io;
use std::os::unix::net::UnixStream;

use super::{Exit, Failure, Paths};
use crate::datapath::{Pins, remove_all};
use crate::preflight;
use crate::state::{Lock, Store};

/// Removes hooks, maps and state of an agent that is not running.
///
/// # Errors
/// An agent is running, or the system's answer.
pub(super) fn cleanup(paths: &Paths) -> Result<(), Failure> {
    preflight::capabilities()?;
    // The lock needs its directory; it goes again below.
    let store = Store::open(&paths.state_dir).map_err(|e| at(&paths.state_dir, &e))?;
    let lock = Lock::take(&paths.state_dir)?;
    let pins = Pins::new(&paths.bpffs);
    let (unhooked, groups) = if paths.bpffs.exists() { remove_all(&pins)? } else { (0, 0) };
    // A socket that somebody answers on belongs to an agent elsewhere.
    if matches!(UnixStream::connect(&paths.socket), Err(e) if e.kind() == io::ErrorKind::ConnectionRefused) {
        fs::remove_file(&paths.socket).map_err(|e| at(&paths.socket, &e))?;
    }
    store.remove().map_err(|e| at(&paths.state_dir, &e))?;
    drop(lock);
    let of = if unhooked == 1 { "interface" } else { "interfaces" };
    let and = match groups {
        0 => String::new(),
        1 => " and 1 control group".to_owned(),
        several => format!(" and {several} control groups"),
    };
    println!("removed: hooks of {unhooked} {of}{and}, maps, state");
    Ok(())
}

fn at(path: &std::path::Path, error: &io::Error) -> Failure {
    let exit = if error.kind() == io::ErrorKind::PermissionDenied { Exit::Permission } else { Exit::Failed };
    Failure::text(exit, format!("{}: {error}", path.display()))
}
