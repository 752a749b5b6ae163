//! The bpf(2) commands that aya does not offer: maps without BTF, links by interface index, queries.

use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use aya_obj::generated::{
    BPF_F_BEFORE, bpf_attach_type, bpf_attr, bpf_cmd, bpf_link_info, bpf_link_type, bpf_map_info,
    bpf_prog_info, bpf_prog_type,
};

use super::spec::Spec;

/// Which of the kernel's objects a descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A map.
    Map,
    /// A program.
    Program,
    /// A link.
    Link,
    /// Something else.
    Other,
}

/// A program as the kernel names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProgramId {
    /// Id, unique as long as the program is loaded.
    pub id: u32,
    /// Name, at most 15 characters; empty when it can't be read.
    pub name: String,
}

/// A TCX link as the kernel describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcxLink {
    /// Id, unique as long as the link lives.
    pub id: u32,
    /// The interface; 0 once it is gone.
    pub ifindex: u32,
    /// The hook.
    pub attach_type: u32,
    /// The program.
    pub program: u32,
}

fn bpf(cmd: bpf_cmd, attr: &mut bpf_attr) -> io::Result<RawFd> {
    // SAFETY: the attribute outlives the call, has the size that is given, and every pointer in it comes from a
    // live borrow of the caller.
    let result = unsafe { libc::syscall(libc::SYS_bpf, cmd as u32, &raw mut *attr, size_of::<bpf_attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as RawFd) }
}

fn attr() -> bpf_attr {
    // SAFETY: the union consists of integers: all zeroes is a valid value of each of its parts.
    unsafe { zeroed() }
}

fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: called only with the descriptor that a successful command has just returned.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn c_path(path: &Path) -> io::Result<std::ffi::CString> {
    use std::os::unix::ffi::OsStrExt;
    Ok(std::ffi::CString::new(path.as_os_str().as_bytes())?)
}

/// Creates a map as the table says, with another number of entries if asked. An inner map's template goes with an
/// array of maps. No BTF: Linux 6.1 refuses inner maps whose template has some and they have none.
pub fn create_map(spec: &Spec, entries: u32, inner: Option<BorrowedFd<'_>>) -> io::Result<OwnedFd> {
    let mut attr = attr();
    // SAFETY: all parts of the union are plain integers.
    let map = unsafe { &mut attr.__bindgen_anon_1 };
    map.map_type = spec.kind as u32;
    map.key_size = spec.key;
    map.value_size = spec.value;
    map.max_entries = entries;
    map.map_flags = spec.flags;
    map.inner_map_fd = inner.map_or(0, |fd| fd.as_raw_fd() as u32);
    for (to, from) in map.map_name.iter_mut().zip(spec.name.bytes().take(15)) {
        *to = from as _;
    }
    bpf(bpf_cmd::BPF_MAP_CREATE, &mut attr).map(owned)
}

/// One of the commands on an element; the caller vouches for the lengths of what it points to.
pub(super) fn element(
    cmd: bpf_cmd,
    map: BorrowedFd<'_>,
    key: *const u8,
    value: *mut u8,
    flags: u64,
) -> io::Result<()> {
    let mut attr = attr();
    // SAFETY: all parts of the union are plain integers.
    let element = unsafe { &mut attr.__bindgen_anon_2 };
    element.map_fd = map.as_raw_fd() as u32;
    element.key = key as u64;
    element.__bindgen_anon_1.value = value as u64;
    element.flags = flags;
    bpf(cmd, &mut attr).map(drop)
}

/// Opens a map by its id.
pub fn map_by_id(id: u32) -> io::Result<OwnedFd> {
    let mut attr = attr();
    attr.__bindgen_anon_6.__bindgen_anon_1.map_id = id;
    bpf(bpf_cmd::BPF_MAP_GET_FD_BY_ID, &mut attr).map(owned)
}

/// Pins a map, program or link.
pub fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = attr();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    attr.__bindgen_anon_4.bpf_fd = fd.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr).map(drop)
}

/// Opens what is pinned at the path.
pub fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = attr();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    bpf(bpf_cmd::BPF_OBJ_GET, &mut attr).map(owned)
}

/// What a descriptor is. The info commands don't say: they fill another struct.
pub fn kind(fd: BorrowedFd<'_>) -> io::Result<Kind> {
    let target = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    Ok(match target.to_string_lossy().trim_start_matches("anon_inode:").trim_matches(['[', ']']) {
        "bpf-map" => Kind::Map,
        "bpf-prog" => Kind::Program,
        "bpf-link" | "bpf_link" => Kind::Link,
        _ => Kind::Other,
    })
}

fn info<T>(fd: BorrowedFd<'_>) -> io::Result<T> {
    // SAFETY: used with the kernel's info structs only, which consist of integers.
    let mut info: T = unsafe { zeroed() };
    let mut attr = attr();
    attr.info.bpf_fd = fd.as_raw_fd() as u32;
    attr.info.info_len = size_of::<T>() as u32;
    attr.info.info = &raw mut info as u64;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info)
}

/// Facts about a map.
pub fn map_info(fd: BorrowedFd<'_>) -> io::Result<bpf_map_info> {
    info(fd)
}

/// Facts about a program.
pub fn program_info(fd: BorrowedFd<'_>) -> io::Result<bpf_prog_info> {
    info(fd)
}

/// Facts about a link; `None` when it is not a TCX link.
pub fn tcx_link(fd: BorrowedFd<'_>) -> io::Result<Option<TcxLink>> {
    let info: bpf_link_info = info(fd)?;
    if info.type_ != bpf_link_type::BPF_LINK_TYPE_TCX as u32 {
        return Ok(None);
    }
    // SAFETY: the kernel filled the TCX part, as the type says.
    let tcx = unsafe { info.__bindgen_anon_1.tcx };
    Ok(Some(TcxLink {
        id: info.id,
        ifindex: tcx.ifindex,
        attach_type: tcx.attach_type,
        program: info.prog_id,
    }))
}

/// Attaches a program by TCX before every other program of the hook. The index is one of the calling thread's
/// network namespace.
pub fn attach_tcx(
    program: BorrowedFd<'_>,
    ifindex: u32,
    attach_type: bpf_attach_type,
) -> io::Result<OwnedFd> {
    let mut attr = attr();
    // SAFETY: all parts of the union are plain integers.
    let link = unsafe { &mut attr.link_create };
    link.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
    link.__bindgen_anon_2.target_ifindex = ifindex;
    link.attach_type = attach_type as u32;
    link.flags = BPF_F_BEFORE; // before nobody in particular: first
    bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr).map(owned)
}

/// A link to a control group as the kernel describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupLink {
    /// Id of the group; 0 once it is gone.
    pub group: u64,
    /// The side.
    pub attach_type: u32,
    /// The program.
    pub program: u32,
}

/// Facts about a link; `None` when it is not one to a control group.
pub fn group_link(fd: BorrowedFd<'_>) -> io::Result<Option<GroupLink>> {
    let info: bpf_link_info = info(fd)?;
    if info.type_ != bpf_link_type::BPF_LINK_TYPE_CGROUP as u32 {
        return Ok(None);
    }
    // SAFETY: the kernel filled the part for control groups, as the type says.
    let group = unsafe { info.__bindgen_anon_1.cgroup };
    let (attach_type, program) = (group.attach_type, info.prog_id);
    Ok(Some(GroupLink { group: group.cgroup_id, attach_type, program }))
}

/// Attaches a program to a control group, beside those of others: a link always does.
pub fn attach_group(
    program: BorrowedFd<'_>,
    group: BorrowedFd<'_>,
    attach_type: bpf_attach_type,
) -> io::Result<OwnedFd> {
    let mut attr = attr();
    // SAFETY: all parts of the union are plain integers.
    let link = unsafe { &mut attr.link_create };
    link.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
    link.__bindgen_anon_2.target_fd = group.as_raw_fd() as u32;
    link.attach_type = attach_type as u32;
    bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr).map(owned)
}

/// Replaces the program of a link, in place and without a gap.
pub fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = attr();
    attr.link_update.link_fd = link.as_raw_fd() as u32;
    // SAFETY: all parts of the union are plain integers.
    let update = unsafe { &mut attr.link_update };
    update.__bindgen_anon_1.new_prog_fd = program.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attr).map(drop)
}

/// Detaches a link at once; closing its last descriptor would do so a little later.
pub fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = attr();
    attr.link_detach.link_fd = link.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr).map(drop)
}

/// Programs at a TCX hook, in the order in which they run. `InvalidInput` on kernels without TCX.
pub fn query_tcx(ifindex: u32, attach_type: bpf_attach_type) -> io::Result<Vec<ProgramId>> {
    let mut ids = [0u32; 64]; // the kernel's own limit of programs at one hook
    let mut attr = attr();
    attr.query.attach_type = attach_type as u32;
    // SAFETY: all parts of the union are plain integers.
    let query = unsafe { &mut attr.query };
    query.__bindgen_anon_1.target_ifindex = ifindex;
    query.prog_ids = ids.as_mut_ptr() as u64;
    query.__bindgen_anon_2.count = ids.len() as u32;
    bpf(bpf_cmd::BPF_PROG_QUERY, &mut attr)?;
    // SAFETY: as above; the kernel wrote the count.
    let count = unsafe { attr.query.__bindgen_anon_2.count } as usize;
    Ok(ids.iter().take(count).map(|id| program_by_id(*id)).collect())
}

/// The program with this id; without a name when it is gone already.
pub fn program_by_id(id: u32) -> ProgramId {
    let mut attr = attr();
    attr.__bindgen_anon_6.__bindgen_anon_1.prog_id = id;
    let info = bpf(bpf_cmd::BPF_PROG_GET_FD_BY_ID, &mut attr).map(owned).and_then(|fd| {
        use std::os::fd::AsFd;
        program_info(fd.as_fd())
    });
    ProgramId { id, name: info.map_or_else(|_| String::new(), |info| text(&info.name)) }
}

fn text(name: &[std::ffi::c_char]) -> String {
    let bytes: Vec<u8> = name.iter().take_while(|c| **c != 0).map(|c| *c as u8).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// An instruction as the kernel reads it; `registers` is {destination 4, source 4} from the low bits up.
#[must_use]
pub const fn instruction(code: u8, registers: u8, offset: i16, immediate: i32) -> u64 {
    let [o0, o1] = offset.to_ne_bytes();
    let [i0, i1, i2, i3] = immediate.to_ne_bytes();
    u64::from_ne_bytes([code, registers, o0, o1, i0, i1, i2, i3])
}

/// Loads a tc program of a few instructions, for probes and tests.
pub fn load_tc(name: &str, instructions: &[u64]) -> io::Result<OwnedFd> {
    load_few(bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS, name, instructions)
}

/// Loads a program for control groups of a few instructions, for tests.
pub fn load_group(name: &str, instructions: &[u64]) -> io::Result<OwnedFd> {
    load_few(bpf_prog_type::BPF_PROG_TYPE_CGROUP_SKB, name, instructions)
}

/// Loads a socket filter of a few instructions.
pub(super) fn load_filter(name: &str, instructions: &[u64]) -> io::Result<OwnedFd> {
    load_few(bpf_prog_type::BPF_PROG_TYPE_SOCKET_FILTER, name, instructions)
}

fn load_few(kind: bpf_prog_type, name: &str, instructions: &[u64]) -> io::Result<OwnedFd> {
    let mut attr = attr();
    // SAFETY: all parts of the union are plain integers.
    let program = unsafe { &mut attr.__bindgen_anon_3 };
    program.prog_type = kind as u32;
    program.insns = instructions.as_ptr() as u64;
    program.insn_cnt = instructions.len() as u32;
    program.license = c"Apache-2.0".as_ptr() as u64;
    for (to, from) in program.prog_name.iter_mut().zip(name.bytes().take(15)) {
        *to = from as _;
    }
    bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr).map(owned)
}

/// Runs a tc program once on an empty frame and hands back what it returns.
pub fn run_tc(program: BorrowedFd<'_>) -> io::Result<u32> {
    run_on(program, &[0; 64])
}

/// Runs a tc program once on a frame, as if it were at the loopback device, and hands back what it returns.
pub fn run_on(program: BorrowedFd<'_>, frame: &[u8]) -> io::Result<u32> {
    let mut attr = attr();
    attr.test.prog_fd = program.as_raw_fd() as u32;
    attr.test.data_in = frame.as_ptr() as u64;
    attr.test.data_size_in = frame.len() as u32;
    bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr)?;
    // SAFETY: all parts of the union are plain integers; the kernel wrote the result.
    Ok(unsafe { attr.test.retval })
}

/// Number of CPUs that the kernel keeps values for in per-CPU maps.
pub fn possible_cpus() -> io::Result<usize> {
    let list = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = list.trim().rsplit([',', '-']).next().and_then(|n| n.parse::<usize>().ok());
    last.map(|n| n + 1).ok_or_else(|| io::Error::other(format!("can't read the CPU list {list:?}")))
}
