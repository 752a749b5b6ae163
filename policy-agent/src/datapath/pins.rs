//! Where maps and links stay when the agent goes: the layout of the pin directory, and what may be adopted from it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::bpf::{self, Kind};
use super::error::{Error, Result};
use super::hook::Hook;
use super::map::Map;
use super::spec::{MapId, Spec};

/// Where pins are kept when nothing else is said.
pub const DEFAULT_ROOT: &str = "/sys/fs/bpf/policy-agent";

/// Beginning of the names of maps that are pinned for a moment only.
const PASSING: &str = "passing-";
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// The pin directory: `maps/NAME@HASH`, `links/<ifindex>-in|out|exit`,
/// `links/group-<id>-in|out`, `qdiscs/<ifindex>` (an empty directory for each
/// interface to which we added a clsact qdisc).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    /// The directory, which need not exist. Nothing is touched.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Fails unless the directory is, or would be, on a BPF file system.
    pub fn check(&self) -> Result<()> {
        let existing = self.root.ancestors().find(|path| path.exists());
        let Some(existing) = existing else { return Err(Error::NotBpffs(self.root.clone())) };
        if file_system(existing).map_err(|e| Error::path("look at", existing, e))? == BPF_FS_MAGIC {
            Ok(())
        } else {
            Err(Error::NotBpffs(self.root.clone()))
        }
    }

    /// Makes the directories.
    pub fn create(&self) -> Result<()> {
        self.check()?;
        for directory in [self.maps(), self.links(), self.qdiscs()] {
            fs::create_dir_all(&directory).map_err(|e| Error::path("create", directory, e))?;
        }
        Ok(())
    }

    /// Root of the directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Pin of a map.
    #[must_use]
    pub fn map(&self, map: MapId) -> PathBuf {
        self.maps().join(map.pin_name())
    }

    /// Pin of a link.
    #[must_use]
    pub fn link(&self, ifindex: u32, hook: Hook) -> PathBuf {
        self.links().join(format!("{ifindex}-{}", hook.name()))
    }

    /// Interfaces with a pinned link at one of these hooks.
    pub fn linked_interfaces(&self, hooks: &[Hook]) -> Result<BTreeSet<u32>> {
        let names = names(&self.links())?;
        let ours = names
            .iter()
            .filter_map(|name| name.split_once('-'))
            .filter(|(_, name)| hooks.iter().any(|hook| hook.name() == *name));
        Ok(ours.filter_map(|(number, _)| number.parse().ok()).collect())
    }

    /// Pin of a link to a control group. `side` = `in` or `out`.
    #[must_use]
    pub fn group_link(&self, id: u64, side: &str) -> PathBuf {
        self.links().join(format!("group-{id}-{side}"))
    }

    /// Control groups with a pinned link.
    pub fn linked_groups(&self) -> Result<BTreeSet<u64>> {
        let names = names(&self.links())?;
        let id = |name: &String| name.strip_prefix("group-")?.split('-').next()?.parse().ok();
        Ok(names.iter().filter_map(id).collect())
    }

    /// Notes that the clsact qdisc of the interface is ours.
    pub fn note_qdisc(&self, ifindex: u32) -> Result<()> {
        let mark = self.qdiscs().join(ifindex.to_string());
        match fs::create_dir(&mark) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(Error::path("create", mark, e)),
            _ => Ok(()),
        }
    }

    /// Forgets the clsact qdisc of the interface; true if it was noted.
    pub fn forget_qdisc(&self, ifindex: u32) -> Result<bool> {
        let mark = self.qdiscs().join(ifindex.to_string());
        match fs::remove_dir(&mark) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(Error::path("remove", mark, e)),
        }
    }

    /// Interfaces whose clsact qdisc is noted as ours.
    pub fn noted_qdiscs(&self) -> Result<Vec<u32>> {
        Self::numbers(&self.qdiscs())
    }

    /// Opens the map of the pin if there is one of the right shape, else creates and pins it. True = adopted.
    pub fn ensure_map(&self, map: MapId) -> Result<(Map, bool)> {
        let (spec, path) = (map.spec(), self.map(map));
        match bpf::open_pin(&path) {
            Ok(fd) => {
                check_shape(&path, &fd, &spec)?;
                return Ok((Map::new(fd, spec)?, true));
            }
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::path("open", path, e)),
            Err(_) => {}
        }
        let failed = |source| Error::Map { action: "create", map: spec.name, source };
        let template = map.inner().map(|inner| bpf::create_map(&inner, inner.entries, None)).transpose();
        let template = template.map_err(failed)?;
        let fd = bpf::create_map(&spec, spec.entries, template.as_ref().map(AsFd::as_fd)).map_err(failed)?;
        bpf::pin(fd.as_fd(), &path).map_err(|e| Error::path("pin", path, e))?;
        Ok((Map::new(fd, spec)?, false))
    }

    /// Pins the map again where its pin is gone or is another one's; `None` = it is as it should be. What was there.
    pub fn mend_map(&self, map: MapId, ours: &Map) -> Result<Option<String>> {
        let path = self.map(map);
        let failed = |e| Error::path("look at", &path, e);
        let id = |fd: &OwnedFd| bpf::map_info(fd.as_fd()).map(|info| info.id);
        let wanted = bpf::map_info(ours.as_fd()).map_err(failed)?.id;
        let found = match bpf::open_pin(&path) {
            Ok(fd) => match bpf::kind(fd.as_fd()).map_err(failed)? {
                Kind::Map => {
                    let held = id(&fd).map_err(failed)?;
                    if held == wanted {
                        return Ok(None);
                    }
                    format!("map {held}")
                }
                other => format!("a {other:?}").to_lowercase(),
            },
            Err(_) => "no pin".to_owned(),
        };
        self.create()?;
        remove_file(&path)?;
        bpf::pin(ours.as_fd(), &path).map_err(|e| Error::path("pin", path, e))?;
        Ok(Some(found))
    }

    /// Pin of a map that lives only while programs are loaded for the `number`th time.
    #[must_use]
    pub fn passing(&self, map: MapId, number: u32) -> PathBuf {
        self.maps().join(format!("{PASSING}{}-{number}-{}", map.spec().name, std::process::id()))
    }

    /// Removes pins of maps that this build does not use; call it once its own tables are committed. Hands back
    /// their names.
    pub fn remove_stale_maps(&self) -> Result<Vec<String>> {
        let ours: Vec<String> = MapId::ALL.into_iter().map(MapId::pin_name).collect();
        let mut removed = Vec::new();
        let passing = format!("-{}", std::process::id());
        for name in names(&self.maps())? {
            let is_passing = name.starts_with(PASSING) && name.ends_with(&passing);
            if !ours.contains(&name) && !is_passing {
                remove_file(&self.maps().join(&name))?;
                removed.push(name);
            }
        }
        Ok(removed)
    }

    /// Removes every pin and the directories. Links must have been detached before.
    pub fn remove(&self) -> Result<()> {
        self.check()?;
        for directory in [self.links(), self.maps()] {
            for name in names(&directory)? {
                remove_file(&directory.join(name))?;
            }
        }
        for ifindex in self.noted_qdiscs()? {
            self.forget_qdisc(ifindex)?;
        }
        for directory in [self.links(), self.maps(), self.qdiscs(), self.root.clone()] {
            match fs::remove_dir(&directory) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::path("remove", directory, e));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    fn qdiscs(&self) -> PathBuf {
        self.root.join("qdiscs")
    }

    /// The numbers with which the names in a directory begin, sorted.
    fn numbers(directory: &Path) -> Result<Vec<u32>> {
        let number = |name: &String| name.split('-').next().and_then(|n| n.parse().ok());
        let mut numbers: Vec<u32> = names(directory)?.iter().filter_map(number).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }
}

/// Removes a pin; that it is gone already is fine.
pub(super) fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::path("remove", path, e)),
        _ => Ok(()),
    }
}

fn names(directory: &Path) -> Result<Vec<String>> {
    let failed = |e| Error::path("read", directory, e);
    let entries = match fs::read_dir(directory) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    entries.map(|e| Ok(e.map_err(failed)?.file_name().to_string_lossy().into_owned())).collect()
}

fn check_shape(path: &Path, fd: &OwnedFd, spec: &Spec) -> Result<()> {
    let foreign = |found: String| Error::ForeignPin {
        path: path.to_owned(),
        found,
        expected: format!("a map {}", spec.describe()),
    };
    let failed = |e| Error::path("look at", path, e);
    let kind = bpf::kind(fd.as_fd()).map_err(failed)?;
    if kind != Kind::Map {
        return Err(foreign(format!("a {kind:?}").to_lowercase()));
    }
    let info = bpf::map_info(fd.as_fd()).map_err(failed)?;
    let found = (info.type_, info.key_size, info.value_size, info.max_entries, info.map_flags);
    if found == (spec.kind as u32, spec.key, spec.value, spec.entries, spec.flags) {
        return Ok(());
    }
    let (kind, key, value, entries, flags) = found;
    Err(foreign(format!("a map type {kind} key {key} value {value} entries {entries} flags {flags:#x}")))
}

fn file_system(path: &Path) -> io::Result<i64> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the struct consists of integers.
    let mut found: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are valid for the call.
    let result = unsafe { libc::statfs(path.as_ptr(), &raw mut found) };
    if result == 0 { Ok(found.f_type as i64) } else { Err(io::Error::last_os_error()) }
}
