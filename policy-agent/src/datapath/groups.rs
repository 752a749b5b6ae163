//! Programs at control groups: attached by links beside those of others, pinned, taken over without a gap, removed.
//!
//! All programs of a group and of those above it run, and a packet passes only if each lets it pass: their order makes
//! no difference to what is dropped.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use aya_obj::generated::bpf_attach_type::{self, BPF_CGROUP_INET_EGRESS, BPF_CGROUP_INET_INGRESS};
use policy_common::abi::{Cgroup, meta_words};

use super::bpf::{self, Kind};
use super::error::{Error, Result};
use super::executor::Executor;
use super::hooks::Attached;
use super::load::Program;
use super::map::from_bytes;
use super::pins::{Pins, remove_file};
use super::spec::MapId;

/// Program for packets towards sockets of a control group.
pub const GROUP_IN_PROGRAM: &str = "cgroup_in";
/// Program for packets from them.
pub const GROUP_OUT_PROGRAM: &str = "cgroup_out";

/// Both programs. What is sent first: it is what could do harm.
#[derive(Debug)]
pub struct GroupPrograms {
    /// For packets from sockets.
    pub out: Program,
    /// For packets towards sockets.
    pub inward: Program,
}

/// Loads both programs.
type Load = Box<dyn Fn() -> Result<GroupPrograms> + Send + Sync>;

const SIDES: [(&str, bpf_attach_type); 2] =
    [("out", BPF_CGROUP_INET_EGRESS), ("in", BPF_CGROUP_INET_INGRESS)];

/// All that is attached to control groups. Groups are named by the kernel's ids, which are never used again.
pub struct Groups {
    pins: Pins,
    load: Load,
    programs: Mutex<Option<GroupPrograms>>,
}

impl std::fmt::Debug for Groups {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Groups").field("pins", &self.pins).finish_non_exhaustive()
    }
}

impl Groups {
    /// Attaches what `load` makes, once the first group asks for it.
    #[must_use]
    pub fn new(pins: Pins, load: Load) -> Self {
        Self { pins, load, programs: Mutex::new(None) }
    }

    /// Whether a group has asked for the programs.
    #[must_use]
    pub fn is_used(&self) -> bool {
        self.programs.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Other descriptors of the programs for packets from sockets and towards them, to run them on packets of one's
    /// own.
    ///
    /// # Errors
    /// The kernel's answer to the programs, or no descriptor is left.
    pub fn programs(&self) -> Result<[OwnedFd; 2]> {
        let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        let programs = self.loaded(&mut programs)?;
        let copy = |program: &Program| {
            let copied = program.as_fd().try_clone_to_owned();
            copied.map_err(|source| Error::Map { action: "duplicate program", map: "groups", source })
        };
        Ok([copy(&programs.out)?, copy(&programs.inward)?])
    }

    fn loaded<'a>(&self, programs: &'a mut Option<GroupPrograms>) -> Result<&'a GroupPrograms> {
        match programs {
            Some(programs) => Ok(programs),
            None => Ok(programs.insert((self.load)()?)),
        }
    }

    /// Attaches both programs to the group, or takes over what an earlier agent attached, without a packet in between
    /// that is not judged. Doing it again changes nothing.
    ///
    /// # Errors
    /// The kernel's answer. Nothing that was not attached before stays.
    pub fn attach(&self, id: u64, directory: &Path) -> Result<Attached> {
        let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        let programs = self.loaded(&mut programs)?;
        let mut done = Attached::default();
        for ((name, kind), program) in SIDES.into_iter().zip([&programs.out, &programs.inward]) {
            match self.attach_one(id, directory, (name, kind), program) {
                Ok(true) => done.taken_over += 1,
                Ok(false) => done.fresh += 1,
                Err(error) => {
                    if done.taken_over == 0 {
                        self.detach(id)?;
                    }
                    return Err(error);
                }
            }
        }
        Ok(done)
    }

    fn attach_one(
        &self,
        id: u64,
        directory: &Path,
        (name, kind): (&str, bpf_attach_type),
        program: &Program,
    ) -> Result<bool> {
        let path = self.pin(id, name);
        if let Some((link, at)) = open(&path)? {
            if at.group == id && at.attach_type == kind as u32 {
                if at.program != program.id {
                    bpf::update_link(link.as_fd(), program.as_fd())
                        .map_err(|e| Error::path("take over the link of", directory, e))?;
                }
                return Ok(true);
            }
            // Its group is gone.
            remove_file(&path)?;
        }
        let group = File::open(directory).map_err(|e| Error::path("open", directory, e))?;
        let link = bpf::attach_group(program.as_fd(), group.as_fd(), kind)
            .map_err(|e| Error::path("attach to control group", directory, e))?;
        bpf::pin(link.as_fd(), &path).map_err(|e| Error::path("pin", &path, e))?;
        Ok(false)
    }

    /// Whether both programs are attached.
    ///
    /// # Errors
    /// A pin can't be read.
    pub fn is_attached(&self, id: u64) -> Result<bool> {
        for (name, _) in SIDES {
            if open(&self.pin(id, name))?.is_none_or(|(_, at)| at.group != id) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Detaches both programs. The group may be gone already.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn detach(&self, id: u64) -> Result<()> {
        detach(&self.pins, id)
    }

    /// Groups to which this or an earlier agent has attached something, those that are gone too.
    ///
    /// # Errors
    /// The pins can't be listed.
    pub fn attached(&self) -> Result<BTreeSet<u64>> {
        self.pins.linked_groups()
    }

    fn pin(&self, id: u64, name: &str) -> PathBuf {
        self.pins.group_link(id, name)
    }
}

/// Detaches everything from all groups. Hands back how many there were.
pub(super) fn detach_all(pins: &Pins) -> Result<usize> {
    let groups = pins.linked_groups()?;
    groups.iter().try_for_each(|id| detach(pins, *id))?;
    Ok(groups.len())
}

fn detach(pins: &Pins, id: u64) -> Result<()> {
    for (name, _) in SIDES {
        let path = pins.group_link(id, name);
        match open(&path) {
            Ok(Some((link, _))) => {
                match bpf::detach_link(link.as_fd()) {
                    // Its group went first.
                    Err(e)
                        if matches!(e.raw_os_error(), Some(libc::ENOLINK | libc::ENODEV | libc::ENOENT)) => {}
                    other => other.map_err(|e| Error::path("detach", &path, e))?,
                }
                remove_file(&path)?;
            }
            // What a stranger has pinned there is left alone.
            Ok(None) | Err(Error::ForeignPin { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn open(path: &Path) -> Result<Option<(OwnedFd, bpf::GroupLink)>> {
    let fd = match bpf::open_pin(path) {
        Ok(fd) => fd,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::path("open", path, e)),
    };
    let failed = |e| Error::path("look at", path, e);
    let foreign = |found: &str| Error::ForeignPin {
        path: path.to_owned(),
        found: found.to_owned(),
        expected: "a link of a control group".to_owned(),
    };
    if bpf::kind(fd.as_fd()).map_err(failed)? != Kind::Link {
        return Err(foreign("no link"));
    }
    match bpf::group_link(fd.as_fd()).map_err(failed)? {
        Some(at) => Ok(Some((fd, at))),
        None => Err(foreign("another kind of link")),
    }
}

impl Executor {
    /// Tells the programs which endpoint a control group is: from here on packets of its sockets are judged, once a
    /// program is attached to it or above it.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn set_group(&self, id: u64, group: &Cgroup) -> Result<()> {
        let deepest = self.meta(meta_words::CGROUP_LEVEL)?.max(u64::from(group.level));
        self.set_meta(meta_words::CGROUP_LEVEL, deepest)?;
        self.store_group(id, Some(*group))
    }

    /// Forgets a control group: packets of its sockets pass unjudged, or are judged as those of the nearest endpoint
    /// above it.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn clear_group(&self, id: u64) -> Result<()> {
        self.store_group(id, None)
    }

    /// Control groups that are endpoints, by id.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn groups(&self) -> Result<Vec<(u64, Cgroup)>> {
        let map = &self.maps[MapId::Cgroups];
        let all = map.elements().map_err(map.failed("read"))?;
        Ok(all.iter().filter_map(|(key, value)| Some((from_bytes(key)?, from_bytes(value)?))).collect())
    }
}
