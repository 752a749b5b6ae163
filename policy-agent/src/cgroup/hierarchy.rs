//! The hierarchy of version 2, which may be mounted anywhere, and the groups in it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use policy_common::abi::CGROUP_LEVELS;
use policy_engine::model::GroupHint;

/// Levels below the root in which the group of a systemd unit is looked for.
const UNIT_LEVELS: usize = 6;
/// Groups of users' own managers: their units may have the names of the system's.
const USERS: &str = "user.slice";

/// Why there is no hierarchy of version 2.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// It is not mounted.
    #[error("no cgroup v2 hierarchy is mounted")]
    NotMounted,
    /// Only a part of it is.
    #[error("only {0} of the cgroup v2 hierarchy is mounted, not its root")]
    Part(String),
    /// The directory that was given is not on one.
    #[error("{0} is not on a cgroup v2 hierarchy")]
    NotThere(PathBuf),
    /// It can't be looked for.
    #[error("{0}")]
    Unreadable(String),
}

impl Missing {
    /// What the user can do about it.
    #[must_use]
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::NotMounted => {
                "mount -t cgroup2 none /sys/fs/cgroup/unified, or boot with systemd.unified_cgroup_hierarchy=1"
            }
            Self::Part(_) | Self::NotThere(_) => {
                "mount the host's whole hierarchy and name it by --cgroup-root"
            }
            Self::Unreadable(_) => "name the hierarchy by --cgroup-root",
        }
    }
}

/// A control group that is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// The kernel's id, never used again.
    pub id: u64,
    /// Level below the root.
    pub level: u32,
    /// Path below the root, beginning with a slash.
    pub path: String,
    /// Its directory.
    pub directory: PathBuf,
    /// Whether processes are in it or below it.
    pub populated: bool,
}

/// The hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    root: PathBuf,
    own: String,
    hybrid: bool,
}

impl Hierarchy {
    /// Finds the hierarchy, or takes the one mounted at `given`.
    ///
    /// # Errors
    /// There is none.
    pub fn find(given: Option<&Path>) -> Result<Self, Missing> {
        let read =
            |path: &str| fs::read_to_string(path).map_err(|e| Missing::Unreadable(format!("{path}: {e}")));
        Self::parse(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?, given)
    }

    fn parse(mounts: &str, own: &str, given: Option<&Path>) -> Result<Self, Missing> {
        let mut whole = Vec::new();
        let mut part = None;
        let mut hybrid = false;
        for line in mounts.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let fields: Vec<&str> = left.split(' ').collect();
            let (Some(root), Some(point)) = (fields.get(3), fields.get(4)) else { continue };
            match right.split(' ').next() {
                Some("cgroup2") if *root == "/" => whole.push(PathBuf::from(unescape(point))),
                Some("cgroup2") => part = Some(unescape(root)),
                // A named hierarchy without controllers is systemd's own book-keeping.
                Some("cgroup") => hybrid |= !right.contains("name="),
                _ => {}
            }
        }
        let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/").to_owned();
        let root = match given {
            Some(given) if whole.iter().any(|point| given == point) => given.to_owned(),
            Some(given) => return Err(Missing::NotThere(given.to_owned())),
            None => match (whole.into_iter().next(), part) {
                (Some(root), _) => root,
                (None, Some(part)) => return Err(Missing::Part(part)),
                (None, None) => return Err(Missing::NotMounted),
            },
        };
        Ok(Self { root, own, hybrid })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether controllers of version 1 are mounted beside it. Before Linux 5.15, sockets of groups with `net_cls` or
    /// `net_prio` are then not known by their group of version 2.
    #[must_use]
    pub const fn is_hybrid(&self) -> bool {
        self.hybrid
    }

    /// The group that a workload names.
    ///
    /// # Errors
    /// In words: it is not there, can't be told from others, or would take the agent itself.
    pub fn locate(&self, hint: &GroupHint) -> Result<Group, String> {
        let path = match hint {
            GroupHint::Path(path) => checked(path)?,
            GroupHint::Unit(unit) => self.of_unit(unit)?,
        };
        if path == "/" {
            return Err("the root of the hierarchy holds everything, this agent too: name a group below it"
                .to_owned());
        }
        if self.own == path || self.own.strip_prefix(&path).is_some_and(|rest| rest.starts_with('/')) {
            return Err(format!(
                "control group {path} holds this agent itself ({}), which its policy would cut off",
                self.own
            ));
        }
        let directory = self.root.join(path.trim_start_matches('/'));
        let failed = |e: io::Error| match e.kind() {
            io::ErrorKind::NotFound => format!("there is no control group {path} in {}", self.root.display()),
            _ => format!("control group {path}: {e}"),
        };
        let real = directory.canonicalize().map_err(failed)?;
        let facts = fs::metadata(&real).map_err(failed)?;
        let device = fs::metadata(&self.root).map_err(failed)?.dev();
        if !facts.is_dir() || facts.dev() != device || real != directory {
            return Err(format!("{path} is no control group of {}", self.root.display()));
        }
        let level = path.matches('/').count() as u32;
        if level > CGROUP_LEVELS {
            return Err(format!(
                "control group {path} is {level} levels deep: {CGROUP_LEVELS} are supported"
            ));
        }
        // Without the file, which the root alone lacks, nothing is known of its processes.
        let populated = fs::read_to_string(real.join("cgroup.events"))
            .map_or(true, |events| events.lines().any(|line| line == "populated 1"));
        Ok(Group { id: facts.ino(), level, path, directory, populated })
    }

    /// Directories in which the group that is named may appear, or from which it may go.
    #[must_use]
    pub fn watched(&self, hint: &GroupHint) -> BTreeSet<PathBuf> {
        let mut found = BTreeSet::from([self.root.clone()]);
        match hint {
            GroupHint::Path(path) => {
                let mut directory = self.root.clone();
                for part in Path::new(path.trim_start_matches('/')).components() {
                    directory.push(part);
                    if directory.is_dir() {
                        found.insert(directory.clone());
                    }
                }
            }
            GroupHint::Unit(_) => self.walk(&self.root, UNIT_LEVELS, &mut |directory, name| {
                let slice = name.ends_with(".slice");
                if slice {
                    found.insert(directory.to_owned());
                }
                slice
            }),
        }
        found
    }

    fn of_unit(&self, unit: &str) -> Result<String, String> {
        let known = [".service", ".slice", ".scope", ".socket"].iter().any(|kind| unit.ends_with(kind));
        if !known || unit.contains('/') {
            return Err(format!("\"{unit}\" is no unit with a control group: name it like nginx.service"));
        }
        let mut found = Vec::new();
        self.walk(&self.root, UNIT_LEVELS, &mut |directory, name| {
            if name == unit {
                found.extend(
                    directory.strip_prefix(&self.root).ok().map(|path| format!("/{}", path.display())),
                );
            }
            name.ends_with(".slice")
        });
        match found.as_slice() {
            [one] => Ok(one.clone()),
            [] => Err(format!("unit {unit} has no control group: it is not running")),
            several => Err(format!("unit {unit} has several control groups: {}", several.join(", "))),
        }
    }

    /// Calls `visit` for the groups below a directory, and goes into those for which it says so.
    fn walk(&self, directory: &Path, levels: usize, visit: &mut dyn FnMut(&Path, &str) -> bool) {
        let Ok(entries) = fs::read_dir(directory) else { return };
        for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| *name != USERS) else { continue };
            let path = entry.path();
            if visit(&path, name) && levels > 1 {
                self.walk(&path, levels - 1, visit);
            }
        }
    }
}

/// A path as `/a/b`: absolute, without tricks.
fn checked(path: &str) -> Result<String, String> {
    let plain = |part: &Component<'_>| matches!(part, Component::Normal(_) | Component::RootDir);
    if !path.starts_with('/') || !Path::new(path).components().all(|part| plain(&part)) {
        return Err(format!(
            "\"{path}\" is no path of a control group: it begins with / and counts from the root of the hierarchy"
        ));
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    Ok(format!("/{}", parts.join("/")))
}

/// Undoes the octal escapes of mountinfo.
fn unescape(field: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(field.to_owned(), |text, (escape, plain)| text.replace(escape, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw
";

    #[test]
    fn the_hierarchy_is_found_where_it_is_mounted() {
        let hybrid = Hierarchy::parse(HYBRID, "4:cpu:/x\n0::/a.slice/agent.service\n", None).unwrap();
        assert_eq!(hybrid.root(), Path::new("/sys/fs/cgroup/unified"));
        assert!(hybrid.is_hybrid());
        let plain = "35 24 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
        assert!(!Hierarchy::parse(plain, "0::/\n", None).unwrap().is_hybrid());
        assert_eq!(Hierarchy::parse("", "", None), Err(Missing::NotMounted));
        let part = "35 24 0:30 /kubepods/x /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(Hierarchy::parse(part, "0::/\n", None), Err(Missing::Part("/kubepods/x".to_owned())));
        let given = Path::new("/host/cgroup");
        assert_eq!(Hierarchy::parse(plain, "", Some(given)), Err(Missing::NotThere(given.to_owned())));
    }

    #[test]
    fn the_agent_is_never_cut_off_and_paths_stay_inside() {
        let found = Hierarchy::parse(HYBRID, "0::/a.slice/agent.service\n", None).unwrap();
        let told = |path: &str| found.locate(&GroupHint::Path(path.to_owned())).unwrap_err();
        for path in ["/a.slice", "/a.slice/agent.service", "//a.slice/"] {
            assert!(told(path).contains("holds this agent"), "{path}: {}", told(path));
        }
        assert!(told("/").contains("root"), "{}", told("/"));
        for path in ["a", "/../etc", "/a/../../b", ""] {
            assert!(told(path).contains("is no path"), "{path}: {}", told(path));
        }
        assert!(told("/a.slice/agent").contains("there is no control group"), "a name that begins alike");
        let unit = found.locate(&GroupHint::Unit("nginx".to_owned())).unwrap_err();
        assert!(unit.contains("nginx.service"), "{unit}");
    }
}
