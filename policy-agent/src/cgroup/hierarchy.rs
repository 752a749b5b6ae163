//! The hierarchy of version 2, which may be mounted anywhere, and the groups in it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use policy_common::abi::CGROUP_LEVELS;
use policy_engine::model::GroupHint;

/// Levels below the root in which the group of a systemd unit is looked for.
const UNIT_LEVELS: usize = 6;
/// Levels below the root in which pods' groups are looked for: a kubelet may run inside a container.
const POD_LEVELS: usize = 8;
/// Groups of users' own managers: their units may have the names of the system's.
const USERS: &str = "user.slice";

/// Groups that were looked for, or why one is not there.
pub type Found = BTreeMap<GroupHint, Result<Group, String>>;

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
    /// Id of the group that this process sees as the root, where it may not see the whole.
    own_id: Option<u64>,
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
        let mounts = read("/proc/self/mountinfo")?;
        let mut found = Self::parse(&mounts, &read("/proc/self/cgroup")?, given, &has_events)?;
        found.own_id = namespace_root(&mounts);
        Ok(found)
    }

    fn parse(
        mounts: &str,
        own: &str,
        given: Option<&Path>,
        is_part: &dyn Fn(&Path) -> bool,
    ) -> Result<Self, Missing> {
        let mut whole = Vec::new();
        let mut part = None;
        let mut hybrid = false;
        for line in mounts.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let fields: Vec<&str> = left.split(' ').collect();
            let (Some(root), Some(point)) = (fields.get(3), fields.get(4)) else { continue };
            let point = PathBuf::from(unescape(point));
            match right.split(' ').next() {
                // Above the namespace's root: a mount of the host's, seen from a container.
                Some("cgroup2")
                    if root.split('/').all(|part| part.is_empty() || part == "..") && !is_part(&point) =>
                {
                    whole.push(point);
                }
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
        Ok(Self { root, own, own_id: None, hybrid })
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
            GroupHint::Pod(uid) => self.of_pod(uid, &self.pods())?,
        };
        self.at(path)
    }

    /// All groups that are named. `before`: what was found the last time, which saves looking through everything for what
    /// is where it was.
    #[must_use]
    pub fn locate_all(&self, hints: &BTreeSet<GroupHint>, before: &Found) -> Found {
        let mut pods = None;
        let mut one = |hint: &GroupHint| {
            let GroupHint::Pod(uid) = hint else { return self.locate(hint) };
            if let Some(Ok(known)) = before.get(hint)
                && let Ok(again) = self.at(known.path.clone())
            {
                return Ok(again);
            }
            self.at(self.of_pod(uid, pods.get_or_insert_with(|| self.pods()))?)
        };
        hints.iter().map(|hint| (hint.clone(), one(hint))).collect()
    }

    /// The group of a path that was checked.
    fn at(&self, path: String) -> Result<Group, String> {
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
        if self.own_id.is_some_and(|own| holds(&real, &facts, own)) {
            return Err(format!(
                "control group {path} holds this agent itself, which its policy would cut off"
            ));
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

    /// Directories in which groups that are named may appear, or from which they may go.
    #[must_use]
    pub fn watched_for(&self, hints: &BTreeSet<GroupHint>) -> BTreeSet<PathBuf> {
        let mut found = BTreeSet::from([self.root.clone()]);
        let mut kubelets = false;
        for hint in hints {
            match hint {
                GroupHint::Pod(_) => kubelets = true,
                GroupHint::Path(_) | GroupHint::Unit(_) => self.watched(hint, &mut found),
            }
        }
        if kubelets {
            self.walk(&self.root, POD_LEVELS, &mut |directory, name| {
                let pod = pod_uid(name).is_some();
                // Few groups, and all under which a kubelet makes others: its own root, and one for each class.
                let may = name.contains("kubepods") || name.contains("kubelet");
                let inside =
                    directory.parent().is_some_and(|parent| found.contains(parent) && parent != self.root);
                if !pod && (may || inside) {
                    found.insert(directory.to_owned());
                }
                !pod
            });
        }
        found
    }

    fn watched(&self, hint: &GroupHint, found: &mut BTreeSet<PathBuf>) {
        match hint {
            GroupHint::Pod(_) => {}
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
    }

    /// Every group that a kubelet may have made for a pod, by the pod's UID.
    fn pods(&self) -> BTreeMap<String, Vec<String>> {
        let mut pods: BTreeMap<String, Vec<String>> = BTreeMap::new();
        self.walk(&self.root, POD_LEVELS, &mut |directory, name| {
            let Some(uid) = pod_uid(name) else { return true };
            let path = directory.strip_prefix(&self.root).unwrap_or(directory);
            pods.entry(uid).or_default().push(format!("/{}", path.display()));
            false
        });
        pods
    }

    fn of_pod(&self, uid: &str, pods: &BTreeMap<String, Vec<String>>) -> Result<String, String> {
        if uid.is_empty() {
            return Err("it has no UID by which its control group could be found".to_owned());
        }
        match pods.get(&uid.replace('-', "_")).map(Vec::as_slice) {
            Some([one]) => Ok(one.clone()),
            None | Some([]) => {
                Err(format!("no control group of a pod with UID {uid} is in {}", self.root.display()))
            }
            Some(several) => {
                Err(format!("several control groups are of a pod with UID {uid}: {}", several.join(", ")))
            }
        }
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

/// UID in the name of a pod's group, with `_` for `-`: kubelets write `pod<uid>` or, for systemd,
/// `kubepods-burstable-pod<uid>.slice`, where `-` would mean a level.
fn pod_uid(name: &str) -> Option<String> {
    let plain = name.strip_suffix(".slice").map_or(Some(name), |unit| unit.rsplit('-').next())?;
    let uid = plain.strip_prefix("pod")?;
    let digits = |c: char| c.is_ascii_hexdigit() || matches!(c, '-' | '_');
    (uid.len() >= 32 && uid.chars().all(digits)).then(|| uid.replace('-', "_"))
}

/// Whether a group is the one with this id, or has it below: a pod's container.
fn holds(directory: &Path, facts: &fs::Metadata, id: u64) -> bool {
    let below = || fs::read_dir(directory).into_iter().flatten().flatten();
    facts.ino() == id
        || below().any(|entry| {
            entry.metadata().is_ok_and(|facts| facts.is_dir() && holds(&entry.path(), &facts, id))
        })
}

/// Only the real root has no events of its own: in a cgroup namespace, every path counts from the namespace's root.
fn has_events(directory: &Path) -> bool {
    directory.join("cgroup.events").exists()
}

/// Id of the group at the root of this process's cgroup namespace, if that is not the root of everything.
fn namespace_root(mounts: &str) -> Option<u64> {
    let point = mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let fields: Vec<&str> = left.split(' ').collect();
        (right.starts_with("cgroup2 ") && fields.get(3) == Some(&"/")).then(|| unescape(fields[4]))
    })?;
    let point = PathBuf::from(point);
    has_events(&point).then(|| fs::metadata(&point).ok().map(|facts| facts.ino()))?
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
        let hybrid =
            Hierarchy::parse(HYBRID, "4:cpu:/x\n0::/a.slice/agent.service\n", None, &|_| false).unwrap();
        assert_eq!(hybrid.root(), Path::new("/sys/fs/cgroup/unified"));
        assert!(hybrid.is_hybrid());
        let plain = "35 24 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
        assert!(!Hierarchy::parse(plain, "0::/\n", None, &|_| false).unwrap().is_hybrid());
        assert_eq!(Hierarchy::parse("", "", None, &|_| false), Err(Missing::NotMounted));
        let part = "35 24 0:30 /kubepods/x /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(
            Hierarchy::parse(part, "0::/\n", None, &|_| false),
            Err(Missing::Part("/kubepods/x".to_owned()))
        );
        let given = Path::new("/host/cgroup");
        assert_eq!(
            Hierarchy::parse(plain, "", Some(given), &|_| false),
            Err(Missing::NotThere(given.to_owned()))
        );
    }

    #[test]
    fn the_names_of_pods_groups_are_read_as_both_drivers_write_them() {
        let uid = "0f3a4b5c-1111-4222-8333-444455556666";
        let read = Some(uid.replace('-', "_"));
        for name in [
            format!("pod{uid}"),
            format!("kubepods-burstable-pod{}.slice", uid.replace('-', "_")),
            format!("kubelet-kubepods-besteffort-pod{}.slice", uid.replace('-', "_")),
            format!("kubepods-pod{}.slice", uid.replace('-', "_")),
        ] {
            assert_eq!(pod_uid(&name), read, "{name}");
        }
        // A static pod's is a hash.
        assert!(pod_uid("poda1b2c3d4e5f60718293a4b5c6d7e8f90").is_some());
        for name in
            ["podman", "podman.slice", "kubepods.slice", "pod", "machine-libpod_pod_1.slice", "pods.slice"]
        {
            assert_eq!(pod_uid(name), None, "{name}");
        }
    }

    #[test]
    fn a_container_sees_the_hosts_hierarchy_beside_its_own_part() {
        let mounts = "\
40 23 0:30 / /sys/fs/cgroup ro - cgroup2 cgroup rw
41 23 0:30 /../../../.. /host/cgroup ro - cgroup2 cgroup rw
";
        let given = Path::new("/host/cgroup");
        let found = Hierarchy::parse(mounts, "0::/\n", Some(given), &|_| false).unwrap();
        assert_eq!(found.root(), given);
        let part = "41 23 0:30 /../pod1 /host/cgroup ro - cgroup2 cgroup rw\n";
        assert!(matches!(Hierarchy::parse(part, "0::/\n", None, &|_| false), Err(Missing::Part(_))));
        let own = |point: &Path| point != given;
        let found = Hierarchy::parse(mounts, "0::/\n", None, &own).unwrap();
        assert_eq!(found.root(), given, "its own part is not the whole");
    }

    #[test]
    fn the_agent_is_never_cut_off_and_paths_stay_inside() {
        let found = Hierarchy::parse(HYBRID, "0::/a.slice/agent.service\n", None, &|_| false).unwrap();
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
