//! TCX: links in an ordered chain at the hook, pinned, taken over by replacing the program behind them.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use aya_obj::generated::bpf_attach_type::BPF_TCX_INGRESS;

use super::bpf::{self, Kind, ProgramId, TcxLink};
use super::error::{Error, Result};
use super::hook::Hook;
use super::load::Program;
use super::pins::{Pins, remove_file};

/// Whether the kernel has TCX (Linux 6.6).
#[must_use]
pub fn supported() -> bool {
    // Kernels that do not know the type say so before they look for the interface.
    !matches!(bpf::query_tcx(1, BPF_TCX_INGRESS), Err(e) if e.kind() == io::ErrorKind::InvalidInput)
}

/// Programs of a hook in their order; none where there is no TCX or no such interface.
pub(super) fn programs(ifindex: u32, hook: Hook) -> Result<Vec<ProgramId>> {
    match bpf::query_tcx(ifindex, hook.attach_type()) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENODEV | libc::ENOENT)) => {
            Ok(Vec::new())
        }
        other => other.map_err(Error::interface("list the TCX programs of", ifindex)),
    }
}

/// The pinned link of a hook, if it is alive and still this interface's. A dead one's pin is removed.
pub(super) fn pinned(pins: &Pins, ifindex: u32, hook: Hook) -> Result<Option<(OwnedFd, TcxLink)>> {
    let path = pins.link(ifindex, hook);
    let Some(fd) = open(&path)? else { return Ok(None) };
    let link = bpf::tcx_link(fd.as_fd()).map_err(|e| Error::path("look at", &path, e))?;
    let Some(link) = link else { return Err(foreign(&path, "another kind of link")) };
    if is_at(&link, ifindex, hook) {
        return Ok(Some((fd, link)));
    }
    // Its interface is gone and the index was given to another one.
    remove_file(&path)?;
    Ok(None)
}

/// What a link is, as long as it is alive and this hook's.
pub(super) fn alive(link: &OwnedFd, ifindex: u32, hook: Hook) -> Option<TcxLink> {
    bpf::tcx_link(link.as_fd()).ok().flatten().filter(|link| is_at(link, ifindex, hook))
}

fn is_at(link: &TcxLink, ifindex: u32, hook: Hook) -> bool {
    link.ifindex == ifindex && link.attach_type == hook.attach_type() as u32
}

/// Whether the pin of the hook is this link's.
pub(super) fn is_pinned(pins: &Pins, ifindex: u32, hook: Hook, link: &TcxLink) -> bool {
    let there = bpf::open_pin(&pins.link(ifindex, hook)).ok();
    let id = there.and_then(|fd| bpf::tcx_link(fd.as_fd()).ok().flatten()).map(|link| link.id);
    id == Some(link.id)
}

/// Pins a link where its pin should be, whatever is there.
pub(super) fn pin(pins: &Pins, ifindex: u32, hook: Hook, link: &OwnedFd) -> Result<()> {
    pins.create()?;
    let path = pins.link(ifindex, hook);
    // Under a name of its own first: a rename changes the pin in one step.
    let fresh =
        path.with_file_name(format!("{}-new", path.file_name().unwrap_or_default().to_string_lossy()));
    remove_file(&fresh)?;
    bpf::pin(link.as_fd(), &fresh).map_err(|e| Error::path("pin", &fresh, e))?;
    fs::rename(&fresh, &path).map_err(|e| Error::path("rename", &fresh, e))
}

/// Puts the program behind the pinned link.
pub(super) fn replace(link: &OwnedFd, ifindex: u32, program: &Program) -> Result<()> {
    bpf::update_link(link.as_fd(), program.as_fd())
        .map_err(Error::interface("take over the link of", ifindex))
}

/// Attaches a program that is not at the hook yet, first in order, and pins the link; an older link that is pinned
/// there is detached afterwards. A link that cannot be pinned lives as long as the descriptor that is handed back: the
/// pins' check tells of it.
pub(super) fn attach(pins: &Pins, ifindex: u32, hook: Hook, program: &Program) -> Result<OwnedFd> {
    let old = open(&pins.link(ifindex, hook))?;
    let link = bpf::attach_tcx(program.as_fd(), ifindex, hook.attach_type())
        .map_err(Error::interface("attach to", ifindex))?;
    if let Err(error) = pin(pins, ifindex, hook, &link) {
        tracing::error!(
            "the hook of interface {ifindex} ends with this agent: {}",
            crate::cli::chain(&error)
        );
    }
    old.map_or(Ok(()), |old| detach_open(&old, ifindex))?;
    Ok(link)
}

/// Detaches the pinned link and removes its pin. What a stranger has pinned there is left alone.
pub(super) fn detach(pins: &Pins, ifindex: u32, hook: Hook) -> Result<()> {
    let path = pins.link(ifindex, hook);
    match open(&path) {
        Ok(Some(link)) => {
            detach_open(&link, ifindex)?;
            remove_file(&path)
        }
        Ok(None) | Err(Error::ForeignPin { .. }) => Ok(()),
        Err(e) => Err(e),
    }
}

pub(super) fn detach_open(link: &OwnedFd, ifindex: u32) -> Result<()> {
    match bpf::detach_link(link.as_fd()) {
        // Its interface went first.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOLINK | libc::ENODEV | libc::ENOENT)) => Ok(()),
        other => other.map_err(Error::interface("detach from", ifindex)),
    }
}

fn open(path: &Path) -> Result<Option<OwnedFd>> {
    match bpf::open_pin(path) {
        Ok(fd) => match bpf::kind(fd.as_fd()).map_err(|e| Error::path("look at", path, e))? {
            Kind::Link => Ok(Some(fd)),
            Kind::Map => Err(foreign(path, "a map")),
            Kind::Program => Err(foreign(path, "a program")),
            Kind::Other => Err(foreign(path, "something unknown")),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::path("open", path, e)),
    }
}

fn foreign(path: &Path, found: &str) -> Error {
    Error::ForeignPin { path: path.to_owned(), found: found.to_owned(), expected: "a TCX link".to_owned() }
}
