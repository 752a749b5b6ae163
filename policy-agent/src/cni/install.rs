//! Puts the plugin into the node's CNI configuration, behind the plugins that are there, and takes it out again.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::PLUGIN;

/// Where the node's runtime looks, and what the plugin is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Install {
    /// The program to copy.
    pub program: PathBuf,
    /// Directory of the node's plugins.
    pub bin_dir: PathBuf,
    /// Directory of the node's configurations.
    pub conf_dir: PathBuf,
    /// Socket of the agent as the runtime sees it.
    pub socket: PathBuf,
    /// `fail` or `allow`, see [`super::config::OnFailure`].
    pub on_failure: String,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Installed {
    /// The configuration that runtimes use: the first by name.
    pub configuration: PathBuf,
    /// The program was copied.
    pub program_changed: bool,
    /// The configuration was changed.
    pub configuration_changed: bool,
}

/// Why it cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The system refuses.
    #[error("{path}: {source}")]
    File {
        /// Path.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// There is no configuration.
    #[error("{0}: no configuration of a network is there yet")]
    NoNetwork(PathBuf),
    /// The first configuration is a single plugin.
    #[error("{0} configures a single plugin: nothing can be chained behind it")]
    NoList(PathBuf),
    /// It cannot be understood.
    #[error("{path} is no list of plugins: {what}")]
    Unreadable {
        /// Path.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

type Result<T> = std::result::Result<T, InstallError>;

fn file(path: &Path) -> impl Fn(io::Error) -> InstallError + '_ {
    move |source| InstallError::File { path: path.to_owned(), source }
}

impl Install {
    /// Copies the program and chains it last in the configuration that runtimes use. Does nothing where that is so
    /// already.
    ///
    /// # Errors
    /// What the system refuses, or a configuration that cannot be chained to; then it is as it was.
    pub fn install(&self) -> Result<Installed> {
        let configuration = first(&self.conf_dir)?;
        let mut list = read(&configuration)?;
        // The program first: a configuration that names a program which is not there starts no pod at all.
        let program_changed = self.copy()?;
        let ours = json!({"type": PLUGIN, "socket": self.socket, "onFailure": self.on_failure});
        let before = list.clone();
        let plugins = plugins(&configuration, &mut list)?;
        plugins.retain(|plugin| plugin["type"] != PLUGIN);
        plugins.push(ours);
        let configuration_changed = list != before;
        if configuration_changed {
            write(&configuration, &pretty(&list), 0o600)?;
        }
        Ok(Installed { configuration, program_changed, configuration_changed })
    }

    fn copy(&self) -> Result<bool> {
        let target = self.bin_dir.join(PLUGIN);
        let program = fs::read(&self.program).map_err(file(&self.program))?;
        if fs::read(&target).is_ok_and(|there| there == program) {
            return Ok(false);
        }
        fs::create_dir_all(&self.bin_dir).map_err(file(&self.bin_dir))?;
        write(&target, &program, 0o755)?;
        Ok(true)
    }
}

/// Takes the plugin out of every configuration, then removes the program. Returns the configurations that changed.
///
/// # Errors
/// What the system refuses.
pub fn uninstall(bin_dir: &Path, conf_dir: &Path) -> Result<Vec<PathBuf>> {
    let mut changed = Vec::new();
    for path in configurations(conf_dir)? {
        let Ok(mut list) = read(&path) else { continue };
        let plugins = plugins(&path, &mut list)?;
        let before = plugins.len();
        plugins.retain(|plugin| plugin["type"] != PLUGIN);
        if plugins.len() != before {
            write(&path, &pretty(&list), 0o600)?;
            changed.push(path);
        }
    }
    let program = bin_dir.join(PLUGIN);
    match fs::remove_file(&program) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file(&program)(error)),
        Ok(()) | Err(_) => Ok(changed),
    }
}

/// Configurations in the order in which runtimes take the first.
fn configurations(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(file(dir))? {
        let path = entry.map_err(file(dir))?.path();
        let known = path.extension().is_some_and(|e| e == "conflist" || e == "conf" || e == "json");
        if known && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn first(dir: &Path) -> Result<PathBuf> {
    configurations(dir)?.into_iter().next().ok_or_else(|| InstallError::NoNetwork(dir.to_owned()))
}

fn read(path: &Path) -> Result<Map<String, Value>> {
    let text = fs::read(path).map_err(file(path))?;
    let unreadable = |what: String| InstallError::Unreadable { path: path.to_owned(), what };
    let value: Value = serde_json::from_slice(&text).map_err(|error| unreadable(error.to_string()))?;
    match value {
        Value::Object(list) if list.contains_key("plugins") => Ok(list),
        Value::Object(_) => Err(InstallError::NoList(path.to_owned())),
        _ => Err(unreadable("it is no object".to_owned())),
    }
}

fn plugins<'a>(path: &Path, list: &'a mut Map<String, Value>) -> Result<&'a mut Vec<Value>> {
    let plugins = list.get_mut("plugins").and_then(Value::as_array_mut);
    let what = || "its plugins are no list".to_owned();
    plugins.ok_or_else(|| InstallError::Unreadable { path: path.to_owned(), what: what() })
}

fn pretty(list: &Map<String, Value>) -> Vec<u8> {
    format!("{:#}\n", Value::Object(list.clone())).into_bytes()
}

/// Replaces a file in one step; of a file that was there the mode stays.
fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let mode = path.metadata().map_or(mode, |meta| meta.permissions().mode() & 0o7777);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // Runtimes read neither hidden files nor this ending.
    let staged = path.with_file_name(format!(".{name}.policy-agent"));
    drop(fs::remove_file(&staged));
    let written = || {
        let mut to = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&staged)?;
        to.write_all(bytes)?;
        to.sync_all()?;
        fs::rename(&staged, path)
    };
    written().map_err(|error| {
        drop(fs::remove_file(&staged));
        file(path)(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = r#"{"cniVersion": "1.0.0", "name": "net",
        "plugins": [{"type": "ptp", "mtu": 1400}, {"type": "portmap"}]}"#;

    fn node(name: &str, text: &str) -> (tempfile::TempDir, Install) {
        let dir = tempfile::tempdir().unwrap();
        let at = |part: &str| dir.path().join(part);
        fs::create_dir(at("conf")).unwrap();
        fs::write(at("program"), "the program").unwrap();
        fs::write(at("conf").join(name), text).unwrap();
        let install = Install {
            program: at("program"),
            bin_dir: at("bin"),
            conf_dir: at("conf"),
            socket: "/run/policy-agent/agent.sock".into(),
            on_failure: "fail".to_owned(),
        };
        (dir, install)
    }

    fn types(path: &Path) -> Vec<String> {
        let list: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        list["plugins"].as_array().unwrap().iter().map(|p| p["type"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn it_is_chained_last_once_and_taken_out_again() {
        let (_dir, install) = node("10-net.conflist", LIST);
        fs::write(install.conf_dir.join("99-later.conflist"), LIST).unwrap();
        let done = install.install().unwrap();
        assert!(done.program_changed && done.configuration_changed, "{done:?}");
        assert_eq!(types(&done.configuration), ["ptp", "portmap", PLUGIN]);
        assert_eq!(types(&install.conf_dir.join("99-later.conflist")), ["ptp", "portmap"]);
        let program = install.bin_dir.join(PLUGIN);
        assert_eq!(program.metadata().unwrap().permissions().mode() & 0o777, 0o755);
        let again = install.install().unwrap();
        assert!(!again.program_changed && !again.configuration_changed, "{again:?}");
        // The network's own agent writes its configuration anew.
        fs::write(&done.configuration, LIST).unwrap();
        assert!(install.install().unwrap().configuration_changed);
        let changed = uninstall(&install.bin_dir, &install.conf_dir).unwrap();
        assert_eq!(changed, std::slice::from_ref(&done.configuration));
        assert_eq!(types(&done.configuration), ["ptp", "portmap"]);
        assert!(!program.exists());
        assert_eq!(uninstall(&install.bin_dir, &install.conf_dir).unwrap(), [] as [PathBuf; 0]);
        let left: Vec<_> = fs::read_dir(&install.conf_dir).unwrap().collect();
        assert_eq!(left.len(), 2, "no staged file is left: {left:?}");
    }

    #[test]
    fn what_cannot_be_chained_to_is_named_and_stays() {
        let (_dir, install) = node("10-net.conf", r#"{"type": "ptp"}"#);
        assert!(matches!(install.install(), Err(InstallError::NoList(_))));
        assert!(!install.bin_dir.exists());
        let (_dir, install) = node("10-net.conflist", "{");
        assert!(matches!(install.install(), Err(InstallError::Unreadable { .. })));
        let (_dir, install) = node("note.txt", "");
        assert!(matches!(install.install(), Err(InstallError::NoNetwork(_))));
    }
}
