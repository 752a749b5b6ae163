//! clsact, for kernels without TCX: one filter at the first priority, its program replaced in place.

use std::io;
use std::os::fd::AsFd;

use super::error::{Error, Result};
use super::hook::{Hook, POD};
use super::load::Program;
use super::pins::Pins;
use crate::netlink::{Filter, Tc};

/// Nothing runs before this priority.
const PRIORITY: u16 = 1;

/// Handles of our own, so that other users of the first priority keep theirs, and both hooks of one side. The second is
/// used to go first again: the newest filter of a priority is the first.
const fn handles(hook: Hook) -> [u32; 2] {
    match hook {
        Hook::In | Hook::Out => [0x0070_6f6c, 0x0070_6f6d],
        Hook::Exit => [0x0070_6f6e, 0x0070_6f6f],
    }
}

fn is_ours(filter: &Filter, hook: Hook) -> bool {
    filter.kind == "bpf" && filter.priority == PRIORITY && filter.name == hook.filter()
}

/// Filters of a hook in their order, and the position of ours.
pub(super) fn filters(tc: &Tc, ifindex: u32, hook: Hook) -> Result<(Vec<Filter>, Option<usize>)> {
    let found = tc.filters(ifindex, hook.parent());
    let found = found.map_err(Error::interface("list the tc filters of", ifindex))?;
    let ours = found.iter().position(|filter| is_ours(filter, hook));
    Ok((found, ours))
}

/// Puts the program behind our filter, which is made if there is none. True = it was there.
pub(super) fn attach(tc: &Tc, pins: &Pins, ifindex: u32, hook: Hook, program: &Program) -> Result<bool> {
    let (found, ours) = filters(tc, ifindex, hook)?;
    if let Some(filter) = ours.and_then(|position| found.get(position)) {
        tc.set_filter(ifindex, hook.parent(), filter, program.as_fd(), false)
            .map_err(Error::interface("take over the tc filter of", ifindex))?;
        return Ok(true);
    }
    ensure_qdisc(tc, pins, ifindex)?;
    add(tc, ifindex, hook, program, handles(hook)[0])?;
    Ok(false)
}

/// Adds our filter anew, so that it is the first of its priority, then removes the one that is not.
pub(super) fn go_first(tc: &Tc, ifindex: u32, hook: Hook, program: &Program) -> Result<()> {
    let (found, ours) = filters(tc, ifindex, hook)?;
    let Some(old) = ours.and_then(|position| found.get(position)) else { return Ok(()) };
    let [one, two] = handles(hook);
    let handle = if old.handle == one { two } else { one };
    add(tc, ifindex, hook, program, handle)?;
    tc.remove_filter(ifindex, hook.parent(), old).map_err(Error::interface("remove a tc filter of", ifindex))
}

/// Judges at a pod's interface at once, where nobody else does anything: no class of packets is ours to order. False =
/// somebody does, and nothing was changed.
pub(super) fn bridge<'a>(
    tc: &Tc,
    pins: &Pins,
    ifindex: u32,
    program: impl Fn(Hook) -> &'a Program,
) -> Result<bool> {
    if tc.qdisc(ifindex).map_err(Error::interface("list the qdiscs of", ifindex))?.is_some() {
        return Ok(false);
    }
    add_qdisc(tc, pins, ifindex)?;
    let done = POD.iter().try_for_each(|hook| add(tc, ifindex, *hook, program(*hook), handles(*hook)[0]));
    if done.is_err() {
        remove(tc, ifindex, POD)?;
        leave(tc, pins, ifindex)?;
    }
    done.map(|()| true)
}

/// Removes our filters of these hooks. True if there was one.
pub(super) fn remove(tc: &Tc, ifindex: u32, hooks: &[Hook]) -> Result<bool> {
    let mut had = false;
    for hook in hooks {
        let (found, _) = filters(tc, ifindex, *hook)?;
        for filter in found.iter().filter(|filter| is_ours(filter, *hook)) {
            had = true;
            gone(tc.remove_filter(ifindex, hook.parent(), filter))
                .map_err(Error::interface("remove a tc filter of", ifindex))?;
        }
    }
    Ok(had)
}

/// Removes the qdisc if we added it, nobody uses it and we have nothing else at the interface: packets that leave by it
/// meanwhile are lost.
pub(super) fn leave(tc: &Tc, pins: &Pins, ifindex: u32) -> Result<()> {
    if Hook::ALL.iter().any(|hook| pins.link(ifindex, *hook).exists()) {
        return Ok(());
    }
    for hook in [Hook::In, Hook::Out] {
        if !filters(tc, ifindex, hook)?.0.is_empty() {
            return Ok(());
        }
    }
    if pins.forget_qdisc(ifindex)? {
        gone(tc.remove_clsact(ifindex)).map_err(Error::interface("remove the clsact qdisc of", ifindex))?;
    }
    Ok(())
}

fn add(tc: &Tc, ifindex: u32, hook: Hook, program: &Program, handle: u32) -> Result<()> {
    let filter = Filter {
        priority: PRIORITY,
        handle,
        kind: "bpf".to_owned(),
        name: hook.filter().to_owned(),
        program: 0,
    };
    match tc.set_filter(ifindex, hook.parent(), &filter, program.as_fd(), true) {
        // The priority belongs to another kind of filter, or to another protocol.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => {
            let (found, _) = filters(tc, ifindex, hook)?;
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
        Some("clsact") => Ok(()),
        Some(kind) => {
            let holder = format!("it has an {kind} qdisc where clsact would be");
            Err(Error::HookTaken { ifindex, holder })
        }
        None => add_qdisc(tc, pins, ifindex),
    }
}

fn add_qdisc(tc: &Tc, pins: &Pins, ifindex: u32) -> Result<()> {
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
