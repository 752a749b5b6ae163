//! From the embedded object to a datapath that is ready: maps first, then both programs, links never.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use aya::programs::{CgroupSkb, ProgramError, ProgramFd, SchedClassifier};
use aya::{Ebpf, EbpfLoader};

use super::bpf;
use super::error::{Error, Result};
use super::executor::Executor;
use super::groups::{GROUP_IN_PROGRAM, GROUP_OUT_PROGRAM, GroupPrograms, Groups};
use super::hook::Hook;
use super::hooks::{Attach, Hooks};
use super::map::Map;
use super::pins::{Pins, remove_file};
use super::ring::EventRing;
use super::spec::MapId;
use super::trial::TrialMaker;
use crate::memory::GiveBack;

/// Program for packets towards the pod: tc egress of the host's end.
pub const IN_PROGRAM: &str = "pod_in";
/// Program for packets from the pod: tc ingress of the host's end.
pub const OUT_PROGRAM: &str = "pod_out";
/// Program for packets that leave the node by other devices.
pub const EXIT_PROGRAM: &str = "node_exit";

/// Settings of the datapath.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory for pins, on a BPF file system.
    pub bpffs: PathBuf,
    /// How to attach.
    pub attach: Attach,
    /// Values of the object's `Global<u32>` constants by name. A name that the object does not have is an error.
    pub constants: BTreeMap<&'static str, u32>,
}

impl Config {
    /// The usual settings with this pin directory.
    #[must_use]
    pub fn new(bpffs: impl Into<PathBuf>) -> Self {
        Self { bpffs: bpffs.into(), attach: Attach::Auto, constants: BTreeMap::new() }
    }
}

/// A verified tc program.
#[derive(Debug)]
pub struct Program {
    fd: OwnedFd,
    /// Id in the kernel.
    pub id: u32,
    /// Instructions that the verifier walked; `None` before Linux 5.16.
    pub verified: Option<u32>,
}

impl Program {
    /// Takes the descriptor of a loaded program.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn new(fd: OwnedFd, name: &'static str) -> Result<Self> {
        let info = bpf::program_info(fd.as_fd());
        let info = info.map_err(|source| Error::Map { action: "look at program", map: name, source })?;
        let verified = Some(info.verified_insns).filter(|count| *count > 0);
        Ok(Self { fd, id: info.id, verified })
    }
}

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// All programs, loaded together.
#[derive(Debug)]
pub struct Programs {
    /// For packets towards the pod.
    pub pod_in: Program,
    /// For packets from the pod.
    pub pod_out: Program,
    /// For packets that leave the node by other devices.
    pub node_exit: Program,
}

impl Programs {
    /// The program of a hook.
    #[must_use]
    pub fn of(&self, hook: Hook) -> &Program {
        match hook {
            Hook::In => &self.pod_in,
            Hook::Out => &self.pod_out,
            Hook::Exit => &self.node_exit,
        }
    }
}

/// What loading found and made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Maps that an earlier agent left and that are used again.
    pub adopted: Vec<&'static str>,
    /// Maps that are new and empty.
    pub created: Vec<&'static str>,
    /// Instructions that the verifier walked, by program; empty before Linux 5.16.
    pub verified: BTreeMap<&'static str, u32>,
}

/// A datapath that is ready.
#[derive(Debug)]
pub struct Datapath {
    /// Every write to a map.
    pub executor: Executor,
    /// Every attached program.
    pub hooks: Hooks,
    /// Every program at a control group.
    pub groups: Groups,
    /// Every event.
    pub ring: EventRing,
    /// What loading found.
    pub report: LoadReport,
    /// Programs for trials.
    pub trial: TrialMaker,
}

/// Creates or adopts every map and verifies all programs. Attaches nothing, changes no content of a map that was
/// adopted.
///
/// # Errors
/// What is missing, foreign or refused. Maps that were created stay pinned, empty.
pub fn load(config: &Config, object: &'static [u8]) -> Result<Datapath> {
    let (executor, ring, mut report) = open_maps(&config.bpffs)?;
    let pins = executor.pins().clone();
    let constants = config.constants.clone();
    let spare_pins = pins.clone();
    let maps = Arc::new(MapFds::of(&executor)?);
    let trial = TrialMaker::new(&pins, &maps, &constants, object);
    let (group_pins, group_maps, group_constants) = (pins.clone(), maps.clone(), constants.clone());
    // Verified when the first control group is to be hooked: most nodes have none.
    let of_groups = move || load_group_programs(&group_pins, &group_maps.all(), &group_constants, object);
    let groups = Groups::new(pins.clone(), Box::new(of_groups));
    let again = move || load_programs(&spare_pins, &maps.all(), &constants, object);
    let programs = again()?;
    let named = [(IN_PROGRAM, Hook::In), (OUT_PROGRAM, Hook::Out), (EXIT_PROGRAM, Hook::Exit)];
    for (name, program) in named.map(|(name, hook)| (name, programs.of(hook))) {
        report.verified.extend(program.verified.map(|count| (name, count)));
    }
    let hooks = Hooks::new(pins, programs, Box::new(again), config.attach)?;
    Ok(Datapath { executor, hooks, groups, ring, report, trial })
}

/// Creates or adopts every map, without any program.
///
/// # Errors
/// What is missing, foreign or refused.
pub fn open_maps(bpffs: &Path) -> Result<(Executor, EventRing, LoadReport)> {
    raise_memory_limit();
    let pins = Pins::new(bpffs);
    pins.create()?;
    let mut report = LoadReport::default();
    let mut maps = Vec::with_capacity(MapId::ALL.len());
    for id in MapId::ALL {
        let (map, adopted) = pins.ensure_map(id)?;
        if adopted { &mut report.adopted } else { &mut report.created }.push(id.spec().name);
        maps.push(map);
    }
    let ring = EventRing::new(&maps[MapId::Events as usize])?;
    Ok((Executor::new(maps, pins)?, ring, report))
}

/// Descriptors of all maps, in the order of [`MapId::ALL`].
#[derive(Debug)]
pub(super) struct MapFds(Vec<OwnedFd>);

impl MapFds {
    fn of(executor: &Executor) -> Result<Self> {
        MapId::ALL.into_iter().map(|id| executor.map(id).try_clone_fd()).collect::<Result<_>>().map(Self)
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<BorrowedFd<'_>> {
        self.0.iter().map(AsFd::as_fd).collect()
    }
}

/// Loads the programs of interfaces with these maps, in the order of [`MapId::ALL`].
pub(super) fn load_programs(
    pins: &Pins,
    maps: &[BorrowedFd<'_>],
    constants: &BTreeMap<&'static str, u32>,
    object: &[u8],
) -> Result<Programs> {
    let mut loaded = load_object(pins, maps, constants, object)?;
    let mut take = |name: &'static str| {
        let program: &mut SchedClassifier = loaded
            .object
            .program_mut(name)
            .and_then(|p| p.try_into().ok())
            .ok_or(Error::MissingProgram(name))?;
        program.load().and_then(|()| program.fd()).map_err(refused(name)).and_then(|fd| own(fd, name))
    };
    Ok(Programs { pod_in: take(IN_PROGRAM)?, pod_out: take(OUT_PROGRAM)?, node_exit: take(EXIT_PROGRAM)? })
}

/// The same for control groups.
pub(super) fn load_group_programs(
    pins: &Pins,
    maps: &[BorrowedFd<'_>],
    constants: &BTreeMap<&'static str, u32>,
    object: &[u8],
) -> Result<GroupPrograms> {
    let mut loaded = load_object(pins, maps, constants, object)?;
    let mut take = |name: &'static str| {
        let program: &mut CgroupSkb = loaded
            .object
            .program_mut(name)
            .and_then(|p| p.try_into().ok())
            .ok_or(Error::MissingProgram(name))?;
        program.load().and_then(|()| program.fd()).map_err(refused(name)).and_then(|fd| own(fd, name))
    };
    Ok(GroupPrograms { out: take(GROUP_OUT_PROGRAM)?, inward: take(GROUP_IN_PROGRAM)? })
}

fn refused(name: &'static str) -> impl Fn(ProgramError) -> Error {
    move |source| Error::Program { name, source: Box::new(source) }
}

fn own(fd: &ProgramFd, name: &'static str) -> Result<Program> {
    let fd = fd.as_fd().try_clone_to_owned();
    Program::new(fd.map_err(|source| Error::Map { action: "duplicate program", map: name, source })?, name)
}

/// Opens the object with these maps. The loader, which holds the kernel's type information, is to be dropped soon:
/// descriptors of programs are all that is needed later, and each program holds its maps.
///
/// The loader opens maps by path, and makes new, empty ones where a path leads nowhere. So it gets paths of this
/// moment, and never depends on what has become of the pins.
fn load_object(
    pins: &Pins,
    maps: &[BorrowedFd<'_>],
    constants: &BTreeMap<&'static str, u32>,
    object: &[u8],
) -> Result<Loaded> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let paths: Vec<_> = MapId::ALL.into_iter().map(|id| (id.spec().name, pins.passing(id, number))).collect();
    let pinned = paths.iter().zip(maps).try_for_each(|((_, path), map)| {
        remove_file(path)?;
        bpf::pin(*map, path).map_err(|e| Error::path("pin", path, e))
    });
    let loaded = pinned.and_then(|()| open_object(&paths, constants, object));
    paths.iter().try_for_each(|(_, path)| remove_file(path))?;
    loaded.map(|object| Loaded { object, _behind: GiveBack })
}

/// The open object.
struct Loaded {
    object: Ebpf,
    /// The kernel's type information takes some 20 MB until here, while other threads take memory that is kept.
    _behind: GiveBack,
}

fn open_object(
    paths: &[(&str, PathBuf)],
    constants: &BTreeMap<&'static str, u32>,
    object: &[u8],
) -> Result<Ebpf> {
    let mut loader = EbpfLoader::new();
    for (name, path) in paths {
        loader.map_pin_path(name, path.as_path());
    }
    for (name, value) in constants {
        loader.override_global(name, value, true);
    }
    Ok(loader.load(object)?)
}

/// Before Linux 5.11 maps are charged to this limit, which is 64 KiB by default. Where it can't be raised the
/// creation of a map says so.
pub(crate) fn raise_memory_limit() {
    let unlimited = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the pointer is valid for the call.
    if unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const unlimited) } != 0 {
        tracing::debug!("the limit of locked memory stays: {}", std::io::Error::last_os_error());
    }
}

/// Maps by their id.
#[derive(Debug)]
pub(super) struct Maps(Vec<Map>);

impl Maps {
    /// Takes the maps in the order of [`MapId::ALL`].
    pub(super) fn new(maps: Vec<Map>) -> Self {
        debug_assert_eq!(maps.len(), MapId::ALL.len());
        Self(maps)
    }
}

impl std::ops::Index<MapId> for Maps {
    type Output = Map;

    fn index(&self, id: MapId) -> &Map {
        &self.0[id as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::super::OBJECT;
    use super::*;

    /// A map of the object whose shape differs from the table would be adopted all the same: nobody checks later.
    #[test]
    fn the_object_declares_every_map_as_the_table_says() {
        let object = aya_obj::Object::parse(OBJECT).unwrap();
        for id in MapId::ALL {
            let spec = id.spec();
            let map = object.maps.get(spec.name).unwrap_or_else(|| panic!("{} is missing", spec.name));
            let shape = |m: &aya_obj::Map| (m.map_type(), m.key_size(), m.value_size(), m.map_flags());
            let wanted = (spec.kind as u32, spec.key, spec.value, spec.flags);
            assert_eq!(shape(map), wanted, "{}", spec.name);
            assert_eq!(map.max_entries(), spec.entries, "{}", spec.name);
            let inner = map.inner().map(|m| shape(&m));
            let wanted = id.inner().map(|s| (s.kind as u32, s.key, s.value, s.flags));
            assert_eq!(inner, wanted, "inner map of {}", spec.name);
        }
    }
}
