//! The state file: read at the start, replaced as a whole when it changes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use policy_engine::rule_ids::RuleIds;
use serde::{Deserialize, Serialize};

const FILE: &str = "state.json";
const FORMAT: u32 = 1;

/// Content of the state file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    /// Numbers of rules, as flows and counters in the kernel name them.
    pub rules: RuleIds,
    /// Every endpoint id below this has been given.
    pub next_endpoint: u32,
}

#[derive(Serialize, Deserialize)]
struct File {
    format: u32,
    #[serde(flatten)]
    saved: Saved,
}

/// The state directory.
#[derive(Clone, Debug)]
pub struct Store {
    directory: PathBuf,
}

impl Store {
    /// Makes the directory if it is not there; only root may look into it.
    ///
    /// # Errors
    /// The system's answer.
    pub fn open(directory: &Path) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
        Ok(Self { directory: directory.to_owned() })
    }

    /// The last state; `None` when there is none.
    ///
    /// # Errors
    /// The file can't be read, or is not one of ours. Numbers of rules then start anew: old counters and the rules of
    /// running flows lose their names, nothing else.
    pub fn load(&self) -> io::Result<Option<Saved>> {
        let bytes = match fs::read(self.file()) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let file: File = serde_json::from_slice(&bytes)?;
        if file.format != FORMAT {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("format {} is not known", file.format),
            ));
        }
        Ok(Some(file.saved))
    }

    /// Replaces the state: a reader sees the old or the new one, whole. Nothing waits for the disk, since a change of policy
    /// would: the maps that the numbers are about go with the machine, so the file has to outlive this process only. One
    /// that is torn because the machine went down is not used.
    ///
    /// # Errors
    /// The system's answer; the old state then stays.
    pub fn save(&self, saved: &Saved) -> io::Result<()> {
        let text = serde_json::to_vec(&File { format: FORMAT, saved: saved.clone() })?;
        let fresh = self.directory.join(format!("{FILE}.new"));
        fs::write(&fresh, text)?;
        fs::rename(fresh, self.file())
    }

    /// Removes the state and, when nothing else is in it, the directory.
    ///
    /// # Errors
    /// The system's answer.
    pub fn remove(&self) -> io::Result<()> {
        for name in [FILE, "state.json.new", super::lock::FILE] {
            match fs::remove_file(self.directory.join(name)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                Ok(()) | Err(_) => {}
            }
        }
        match fs::remove_dir(&self.directory) {
            Err(e) if !matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {
                Err(e)
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn file(&self) -> PathBuf {
        self.directory.join(FILE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_is_kept_whole_and_a_foreign_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("a/b")).unwrap();
        assert_eq!(store.load().unwrap(), None);
        let saved = Saved { next_endpoint: 7, ..Saved::default() };
        store.save(&saved).unwrap();
        assert_eq!(store.load().unwrap(), Some(saved));
        for foreign in ["", "{}", "{\"format\": 9, \"next_endpoint\": 1, \"rules\": {}}"] {
            fs::write(dir.path().join("a/b").join(FILE), foreign).unwrap();
            assert!(store.load().is_err(), "{foreign:?}");
        }
        store.remove().unwrap();
        assert!(!dir.path().join("a/b").exists());
    }
}
