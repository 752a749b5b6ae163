//! What can go wrong between the agent and the kernel, each with what to do about it.

use std::io;
use std::path::PathBuf;

/// Result of an operation on the kernel's side of the datapath.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure of the datapath's user side.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory for pins is not on a BPF file system.
    #[error("{} is not on a BPF file system", .0.display())]
    NotBpffs(PathBuf),
    /// A pin has the name of ours and is something else.
    #[error("{} is pinned by something else: it is {found}, expected {expected}", .path.display())]
    ForeignPin {
        /// The pin.
        path: PathBuf,
        /// What is there.
        found: String,
        /// What should be there.
        expected: String,
    },
    /// A file or directory operation failed.
    #[error("{action} {}", .path.display())]
    Path {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// An operation on a map failed.
    #[error("{action} map {map}")]
    Map {
        /// What was tried.
        action: &'static str,
        /// The map.
        map: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// An index or a length is outside a map.
    #[error("{map}: {what} {index} is outside its {limit} entries")]
    Bounds {
        /// The map.
        map: &'static str,
        /// What the index counts.
        what: &'static str,
        /// The index.
        index: u64,
        /// The first index outside.
        limit: u64,
    },
    /// An index has a fixed meaning and is never written.
    #[error("{map}: {what} {index} is reserved")]
    Reserved {
        /// The map.
        map: &'static str,
        /// What the index counts.
        what: &'static str,
        /// The index.
        index: u32,
    },
    /// The kernel object was refused before any program was checked.
    #[error("load the kernel object")]
    Object(#[from] aya::EbpfError),
    /// A program was refused.
    #[error("load the kernel program {name}")]
    Program {
        /// The program.
        name: &'static str,
        /// The verifier's answer.
        source: Box<aya::programs::ProgramError>,
    },
    /// The kernel object has no such program.
    #[error("the kernel object has no tc program {0}")]
    MissingProgram(&'static str),
    /// A plan can't be carried out as it stands; nothing was written.
    #[error("plan {number}, write {index}: {problem}")]
    Plan {
        /// Number of the plan.
        number: u64,
        /// Position of the write.
        index: usize,
        /// What is wrong with it.
        problem: Box<Error>,
    },
    /// An address or prefix is in the kernel's table already, with another slot.
    #[error("{map}: {key} is there already with slot {found}, not {wanted}")]
    Occupied {
        /// The map.
        map: &'static str,
        /// The address or prefix.
        key: String,
        /// Slot in the kernel.
        found: u32,
        /// Slot of the plan.
        wanted: u32,
    },
    /// An endpoint's description can't be honoured.
    #[error("endpoint slot {slot}: {problem}")]
    Endpoint {
        /// The slot.
        slot: u16,
        /// What is wrong.
        problem: String,
    },
    /// An operation on an interface failed.
    #[error("{action} interface {ifindex}")]
    Interface {
        /// What was tried.
        action: &'static str,
        /// The interface's index.
        ifindex: u32,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Something else holds the place that our clsact filter needs.
    #[error("interface {ifindex} can't be hooked: {holder}")]
    HookTaken {
        /// The interface's index.
        ifindex: u32,
        /// Who holds the place.
        holder: String,
    },
    /// TCX was asked for and the kernel has none.
    #[error("this kernel has no TCX (Linux 6.6 or newer)")]
    NoTcx,
    /// A netlink exchange failed.
    #[error("netlink: {action}")]
    Netlink {
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Error {
    /// What the user can do about it, as one line.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let permission = |source: &io::Error| {
            (source.kind() == io::ErrorKind::PermissionDenied).then(|| {
                "run as root, or with CAP_BPF, CAP_NET_ADMIN, CAP_NET_BROADCAST and CAP_PERFMON".to_owned()
            })
        };
        match self {
            Self::NotBpffs(_) => Some("mount -t bpf bpf /sys/fs/bpf".to_owned()),
            Self::ForeignPin { path, .. } => {
                Some(format!("choose another --bpffs, or remove {} if nothing uses it", path.display()))
            }
            Self::HookTaken { .. } => {
                Some("tc filter show dev IFACE ingress; tc qdisc show dev IFACE".to_owned())
            }
            Self::NoTcx => Some("use --attach clsact, or auto".to_owned()),
            Self::Path { source, .. } | Self::Map { source, .. } | Self::Interface { source, .. } => {
                permission(source)
            }
            Self::Object(_) | Self::Program { .. } | Self::MissingProgram(_) => {
                Some("this build does not fit this kernel: see the verifier's log above".to_owned())
            }
            Self::Plan { problem, .. } => problem.hint(),
            Self::Bounds { .. }
            | Self::Reserved { .. }
            | Self::Occupied { .. }
            | Self::Endpoint { .. }
            | Self::Netlink { .. } => None,
        }
    }

    /// Whether the interface that was to be worked on is not there any more.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Interface { source, .. } | Self::Netlink { source, .. } => {
                source.raw_os_error() == Some(libc::ENODEV)
            }
            Self::NotBpffs(_)
            | Self::ForeignPin { .. }
            | Self::Path { .. }
            | Self::Map { .. }
            | Self::Object(_)
            | Self::Program { .. }
            | Self::MissingProgram(_)
            | Self::Bounds { .. }
            | Self::Reserved { .. }
            | Self::Occupied { .. }
            | Self::Plan { .. }
            | Self::Endpoint { .. }
            | Self::HookTaken { .. }
            | Self::NoTcx => false,
        }
    }

    pub(crate) fn path(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Path { action, path: path.into(), source }
    }

    pub(crate) fn interface(action: &'static str, ifindex: u32) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Interface { action, ifindex, source }
    }

    pub(crate) fn netlink(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Netlink { action, source }
    }
}
