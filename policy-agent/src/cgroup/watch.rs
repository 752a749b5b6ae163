//! Tells when groups appear or go, by inotify.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

const EVENTS: u32 = libc::IN_CREATE
    | libc::IN_DELETE
    | libc::IN_MOVED_FROM
    | libc::IN_MOVED_TO
    | libc::IN_DELETE_SELF
    | libc::IN_ONLYDIR;

/// Watches directories. A watch goes with its directory; one that is no longer needed brings needless looks only.
#[derive(Debug)]
pub struct Watch {
    inotify: Arc<OwnedFd>,
    watched: BTreeSet<PathBuf>,
}

impl Watch {
    /// Calls `changed` after every change, on a thread of its own, until it returns false.
    ///
    /// # Errors
    /// The system has no watches left.
    pub fn start(changed: impl Fn() -> bool + Send + 'static) -> io::Result<Self> {
        // SAFETY: a call without pointers.
        let fd = unsafe { libc::inotify_init1(libc::IN_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call has just returned this descriptor.
        let inotify = Arc::new(unsafe { OwnedFd::from_raw_fd(fd) });
        let heard = inotify.clone();
        let listen = move || {
            let mut buffer = [0u8; 4096];
            loop {
                // SAFETY: the buffer is valid for its length.
                let read = unsafe {
                    libc::read(heard.as_raw_fd(), buffer.as_mut_ptr().cast::<libc::c_void>(), buffer.len())
                };
                let interrupted = io::Error::last_os_error().kind() == io::ErrorKind::Interrupted;
                if read <= 0 && !(read < 0 && interrupted) || !changed() {
                    return;
                }
            }
        };
        thread::Builder::new().name("cgroups".to_owned()).spawn(listen)?;
        Ok(Self { inotify, watched: BTreeSet::new() })
    }

    /// Watches these directories too. True: one of them was not watched yet, so what happened in it before was not
    /// told.
    ///
    /// # Errors
    /// The system has no watches left. That a directory went meanwhile is fine.
    pub fn add(&mut self, directories: &BTreeSet<PathBuf>) -> io::Result<bool> {
        let mut fresh = false;
        // A directory that came back has a new watch, under its old name.
        self.watched.retain(|directory| directories.contains(directory) && directory.is_dir());
        for directory in directories {
            self.watch(directory)?;
            fresh |= self.watched.insert(directory.clone());
        }
        Ok(fresh)
    }

    fn watch(&self, directory: &Path) -> io::Result<()> {
        let path = std::ffi::CString::new(directory.as_os_str().as_bytes())?;
        // SAFETY: the path is valid for the call.
        let watch = unsafe { libc::inotify_add_watch(self.inotify.as_raw_fd(), path.as_ptr(), EVENTS) };
        let error = io::Error::last_os_error();
        match watch {
            ..0 if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Err(error)
            }
            _ => Ok(()),
        }
    }
}
