//! clsact, for kernels without TCX: one filter at the first priority, its program replaced in place.

use std::io;
use std::os::fd::AsFd;

use policy_common::abi::Direction;

use super::error::{Error, Result};
use super::load::Program;
use super::pins::Pins;
use crate::netlink::{Filter, Parent, Tc};

/// Nothing runs before this priority.
const PRIORITY: u16 = 1;
/// Handles of our own, so that other users of the first priority keep theirs. The second is used to go first again:
/// the newest filter of a priority is the first.
const HANDLES: [u32; 2] = [0x0070_6f6c, 0x0070_6f6d];

fn parent(direction: Direction) -> Parent {
    match direction {
        Direction::Ingress => Parent::Egress,
        Direction::Egress => Parent::Ingress,
    }
}

/// How our filters are known, by whichever agent made them.
fn name(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "policy-agent:in",
        Direction::Egress => "policy-agent:out",
    }
}

fn is_ours(filter: &Filter, direction: Direction) -> bool {
    filter.kind == "bpf" && filter.priority == PRIORITY && filter.name == name(direction)
}

/// Filters of a hook in their order, and the position of ours.
pub(super) fn filters(tc: &Tc, ifindex: u32, direction: Direction) -> Result<(Vec<Filter>, Option<usize>)> {
    let found = tc.filters(ifindex, parent(direction));
    let found = found.map_err(Error::interface("list the tc filters of", ifindex))?;
    let ours = found.iter().position(|filter| is_ours(filter, direction));
    Ok((found, ours))
}

/// Puts the program behind our filter, which is made if there is none. True = it was there.
pub(super) fn attach(
    tc: &Tc,
    pins: &Pins,
    ifindex: u32,
    direction: Direction,
    program: &Program,
) -> Result<bool> {
    let (found, ours) = filters(tc, ifindex, direction)?;
    if let Some(filter) = ours.and_then(|position| found.get(position)) {
        tc.set_filter(ifindex, parent(direction), filter, program.as_fd(), false)
            .map_err(Error::interface("take over the tc filter of", ifindex))?;
        return Ok(true);
    }
    ensure_qdisc(tc, pins, ifindex)?;
    add(tc, ifindex, direction, program, HANDLES[0])?;
    Ok(false)
}

/// Adds our filter anew, so that it is the first of its priority, then removes the one that is not.
pub(super) fn go_first(tc: &Tc, ifindex: u32, direction: Direction, program: &Program) -> Result<()> {
    let (found, ours) = filters(tc, ifindex, direction)?;
    let Some(old) = ours.and_then(|position| found.get(position)) else { return Ok(()) };
    let handle = if old.handle == HANDLES[0] { HANDLES[1] } else { HANDLES[0] };
    add(tc, ifindex, direction, program, handle)?;
    tc.remove_filter(ifindex, parent(direction), old)
        .map_err(Error::interface("remove a tc filter of", ifindex))
}

/// Removes our filter and, if we added it and nobody uses it, the qdisc. True if there was a filter.
pub(super) fn detach(tc: &Tc, pins: &Pins, ifindex: u32) -> Result<bool> {
    let mut had = false;
    let mut foreign = false;
    for direction in [Direction::Ingress, Direction::Egress] {
        let (found, _) = filters(tc, ifindex, direction)?;
        foreign |= found.iter().any(|filter| !is_ours(filter, direction));
        for filter in found.iter().filter(|filter| is_ours(filter, direction)) {
            had = true;
            gone(tc.remove_filter(ifindex, parent(direction), filter))
                .map_err(Error::interface("remove a tc filter of", ifindex))?;
        }
    }
    if pins.forget_qdisc(ifindex)? && !foreign {
        gone(tc.remove_clsact(ifindex)).map_err(Error::interface("remove the clsact qdisc of", ifindex))?;
    }
    Ok(had)
}

fn add(tc: &Tc, ifindex: u32, direction: Direction, program: &Program, handle: u32) -> Result<()> {
    let filter = Filter {
        priority: PRIORITY,
        handle,
        kind: "bpf".to_owned(),
        name: name(direction).to_owned(),
        program: 0,
    };
    match tc.set_filter(ifindex, parent(direction), &filter, program.as_fd(), true) {
        // The priority belongs to another kind of filter, or to another protocol.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => {
            let (found, _) = filters(tc, ifindex, direction)?;
            let other = found.iter().find(|f| f.priority == PRIORITY && f.kind != "bpf");
            let holder = other.map(|f| format!("a {} filter has the first priority", f.kind));
            Err(match holder {
                Some(holder) => Error::HookTaken { ifindex, holder },
                None => Error::interface("add a tc filter to", ifindex)(e),
            })
        }
        other => other.map_err(Error::interface("add a tc filter to", ifindex)),
    }
}

fn ensure_qdisc(tc: &Tc, pins: &Pins, ifindex: u32) -> Result<()> {
    let there = tc.qdisc(ifindex).map_err(Error::interface("list the qdiscs of", ifindex))?;
    match there.as_deref() {
        Some("clsact") => return Ok(()),
        Some(kind) => {
            let holder = format!("it has an {kind} qdisc where clsact would be");
            return Err(Error::HookTaken { ifindex, holder });
        }
        None => {}
    }
    // Noted first: an agent that dies between the two leaves a note too many, not a qdisc that nobody removes.
    pins.note_qdisc(ifindex)?;
    match tc.add_clsact(ifindex) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => pins.forget_qdisc(ifindex).map(drop),
        Err(e) => {
            pins.forget_qdisc(ifindex)?;
            Err(Error::interface("add a clsact qdisc to", ifindex)(e))
        }
        Ok(()) => Ok(()),
    }
}

/// That it is gone already is fine.
fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::EINVAL)) => Ok(()),
        other => other,
    }
}
