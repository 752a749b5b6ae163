//! What must be true before anything is changed, each failure with its name and what to do about it.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use aya_obj::generated::bpf_map_type::{self, BPF_MAP_TYPE_ARRAY_OF_MAPS};

use crate::datapath::spec::MapId;
use crate::datapath::{self, Pins, bpf};

/// The oldest kernel that the programs are made for.
const OLDEST_KERNEL: (u32, u32) = (5, 10);
const KERNEL_TYPES: &str = "/sys/kernel/btf/vmlinux";

/// Capabilities by their number.
const CAPABILITIES: [(u32, &str); 4] =
    [(11, "CAP_NET_BROADCAST"), (12, "CAP_NET_ADMIN"), (38, "CAP_PERFMON"), (39, "CAP_BPF")];

/// Something that the agent needs is missing. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The process may not do what it must.
    #[error("missing capabilities: {}", .0.join(", "))]
    Capabilities(Vec<&'static str>),
    /// The kernel is too old.
    #[error("Linux {0} is older than {oldest}", oldest = format_args!("{}.{}", OLDEST_KERNEL.0, OLDEST_KERNEL.1))]
    Kernel(String),
    /// The kernel does not describe its types.
    #[error("the kernel has no type information ({KERNEL_TYPES})")]
    KernelTypes,
    /// The pin directory can't be used.
    #[error(transparent)]
    Pins(#[from] datapath::Error),
    /// The kernel refuses something that the datapath is made of.
    #[error("the kernel refuses {what}")]
    Refused {
        /// What was tried.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A fact about the system can't be read.
    #[error("read {path}")]
    Unreadable {
        /// Where it stands.
        path: &'static str,
        /// The answer.
        source: io::Error,
    },
}

impl Error {
    /// What the user can do about it, as one line.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Capabilities(missing) => Some(format!("run as root, or with {}", missing.join(", "))),
            Self::Kernel(_) => Some("boot a newer kernel".to_owned()),
            Self::KernelTypes => Some("boot a kernel with CONFIG_DEBUG_INFO_BTF=y".to_owned()),
            Self::Pins(e) => e.hint(),
            Self::Refused { source, .. } => Some(match source.kind() {
                io::ErrorKind::PermissionDenied => {
                    "run as root; in a container also unconfined by seccomp and in the host's user namespace"
                        .to_owned()
                }
                _ => "boot a kernel with CONFIG_BPF_SYSCALL=y and CONFIG_NET_CLS_BPF=y".to_owned(),
            }),
            Self::Unreadable { .. } => Some("mount /proc and /sys".to_owned()),
        }
    }
}

/// What the system is like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Release of the kernel, as it names itself.
    pub kernel: String,
    /// Whether it has TCX.
    pub tcx: bool,
}

/// Looks whether the datapath can work here. Changes nothing but this process's limit of locked memory.
///
/// # Errors
/// The first that is missing.
pub fn check(bpffs: &Path) -> Result<Facts, Error> {
    capabilities()?;
    let kernel = kernel()?;
    if !Path::new(KERNEL_TYPES).exists() {
        return Err(Error::KernelTypes);
    }
    Pins::new(bpffs).check()?;
    datapath::raise_memory_limit();
    maps()?;
    programs()?;
    Ok(Facts { kernel, tcx: datapath::tcx_supported() })
}

/// Whether the process may do what the agent does.
///
/// # Errors
/// What it may not do.
pub fn capabilities() -> Result<(), Error> {
    const PATH: &str = "/proc/self/status";
    let status = std::fs::read_to_string(PATH).map_err(|source| Error::Unreadable { path: PATH, source })?;
    let missing = missing_capabilities(&status)
        .ok_or_else(|| Error::Unreadable { path: PATH, source: io::Error::other("it has no line CapEff") })?;
    if missing.is_empty() { Ok(()) } else { Err(Error::Capabilities(missing)) }
}

fn missing_capabilities(status: &str) -> Option<Vec<&'static str>> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let effective = u64::from_str_radix(line.trim(), 16).ok()?;
    let has = |number: &u32| effective & 1 << number != 0;
    Some(CAPABILITIES.iter().filter(|(number, _)| !has(number)).map(|(_, name)| *name).collect())
}

fn kernel() -> Result<String, Error> {
    const PATH: &str = "/proc/sys/kernel/osrelease";
    let release = std::fs::read_to_string(PATH).map_err(|source| Error::Unreadable { path: PATH, source })?;
    let release = release.trim().to_owned();
    // A release that can't be read is no reason to refuse: the programs are tried in any case.
    match version(&release) {
        Some(version) if version < OLDEST_KERNEL => Err(Error::Kernel(release)),
        _ => Ok(release),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// One small map of each type that the datapath has, made and dropped.
fn maps() -> Result<(), Error> {
    let mut tried: Vec<bpf_map_type> = Vec::new();
    for id in MapId::ALL {
        let spec = id.spec();
        if tried.contains(&spec.kind) {
            continue;
        }
        tried.push(spec.kind);
        let entries = if spec.key == 0 { 65_536 } else { 1 }; // bytes of a ring: a multiple of every page size
        let refused = |source| Error::Refused { what: format!("maps of type {:?}", spec.kind), source };
        let inner = id.inner().filter(|_| spec.kind == BPF_MAP_TYPE_ARRAY_OF_MAPS);
        let inner = inner.map(|inner| bpf::create_map(&inner, 1, None)).transpose().map_err(refused)?;
        bpf::create_map(&spec, entries, inner.as_ref().map(AsFd::as_fd)).map_err(refused)?;
    }
    Ok(())
}

/// A tc program that does nothing: `r0 = -1; exit`.
fn programs() -> Result<(), Error> {
    let refused = |source| Error::Refused { what: "tc programs".to_owned(), source };
    bpf::load_tc("policy_probe", &[bpf::instruction(0xb7, 0, 0, -1), bpf::instruction(0x95, 0, 0, 0)])
        .map(drop)
        .map_err(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_told_by_name() {
        let status = |set: u64| format!("Name:\tx\nCapInh:\t0000000000000000\nCapEff:\t{set:016x}\n");
        assert_eq!(missing_capabilities(&status(u64::MAX >> 23)), Some(vec![]));
        let without = !(1 << 12 | 1 << 39);
        assert_eq!(missing_capabilities(&status(without)), Some(vec!["CAP_NET_ADMIN", "CAP_BPF"]));
        assert_eq!(missing_capabilities("Name:\tx\n"), None);
    }

    #[test]
    fn kernels_are_compared_by_number() {
        assert_eq!(version("6.12.117+deb13-amd64"), Some((6, 12)));
        assert_eq!(version("5.4.0-150-generic"), Some((5, 4)));
        assert!(version("5.9.1").unwrap() < OLDEST_KERNEL && version("5.10.0").unwrap() >= OLDEST_KERNEL);
        assert_eq!(version("next"), None);
    }

    #[test]
    fn a_directory_elsewhere_is_no_place_for_pins() {
        let elsewhere = tempfile::tempdir().unwrap();
        let e = Pins::new(&elsewhere.path().join("pins")).check().unwrap_err();
        assert_eq!(e.hint().as_deref(), Some("mount -t bpf bpf /sys/fs/bpf"));
        assert!(!elsewhere.path().join("pins").exists(), "nothing was made");
    }
}
