//! Interfaces of pods are hooked and unhooked on a thread of their own: each hook waits for the kernel, and no change of
//! policy may wait behind it.
//!
//! ```text
//! writer: endpoint closed, interface announced ──> hooks thread: bridge ──> writer: interface set, endpoint hooked
//!                                                                └─ attach, in turn ──> writer: done
//! ```
//! A new interface is judged by filters at once (a bridge): a hundred pods that start together would wait seconds for their
//! links, and pass packets unjudged.
//!
//! The thread writes no map. It does its jobs in the order in which the writer gave them, so no interface is hooked and
//! unhooked at the same time, and what the newest endpoint of an interface needs is done last.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::core::Core;
use super::endpoints::{CHATTER, tell_hooked};
use super::kernel::Kernel;
use crate::cli::chain;
use crate::datapath::{Attached, Error};

/// Hooks are looked at while interfaces are being hooked only if that has been put off for so long.
const PUT_OFF: Duration = Duration::from_secs(20);

/// An endpoint and its interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target {
    slot: u16,
    id: u32,
    ifindex: u32,
}

/// Why an interface is not hooked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// The error with its causes.
    pub(super) text: String,
    /// The interface is not there any more: that is no fault where its pod has ended.
    pub(super) gone: bool,
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self { text: chain(&error), gone: error.is_gone() }
    }
}

/// Something to do at an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Job {
    /// Whether the interface has carried nothing yet.
    Hook(Target, bool),
    Unhook(u32),
}

/// What has been done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Done {
    /// Packets of a new interface are judged; its hooks are not all as they should be yet.
    Bridged(Target),
    /// An interface was hooked, or why not.
    Hooked(Target, Result<Attached, Fault>),
    /// An interface could not be unhooked.
    NotUnhooked {
        /// The interface.
        ifindex: u32,
        /// Why.
        error: String,
    },
}

/// The way to the thread.
#[derive(Clone, Debug)]
pub(super) struct Hooking {
    jobs: Sender<Job>,
    /// New interfaces are judged before their turn comes.
    bridging: bool,
}

impl Hooking {
    /// Starts the thread, in the network namespace of the caller. `bridging`: new interfaces are judged before their turn
    /// comes, for an agent that stays. `done` returns false when nobody listens any more.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(super) fn start(
        kernel: Arc<Kernel>,
        bridging: bool,
        done: impl Fn(Done) -> bool + Send + 'static,
    ) -> io::Result<Self> {
        let (jobs, inbox) = channel();
        thread::Builder::new().name("hooks".to_owned()).spawn(move || run(&kernel, &inbox, &done))?;
        Ok(Self { jobs, bridging })
    }

    /// The interface is no pod's any more. Until that is done its packets pass unjudged: its word is gone.
    pub(super) fn unhook(&self, ifindex: u32) {
        self.send(Job::Unhook(ifindex));
    }

    fn send(&self, job: Job) {
        // The thread ends only with the process or with whoever listens to it.
        drop(self.jobs.send(job));
    }
}

fn run(kernel: &Kernel, inbox: &Receiver<Job>, done: &impl Fn(Done) -> bool) {
    let mut queue = VecDeque::new();
    loop {
        let first = if queue.is_empty() { inbox.recv().ok() } else { None };
        if queue.is_empty() && first.is_none() {
            return;
        }
        for job in first.into_iter().chain(inbox.try_iter()) {
            queue.push_back(job);
            if !bridge(kernel, &queue, done) {
                return;
            }
        }
        let Some(job) = queue.pop_front() else { continue };
        if perform(kernel, &job).is_some_and(|told| !done(told)) {
            return;
        }
    }
}

/// Has the newest job's interface judged before its turn comes. False when nobody listens any more.
fn bridge(kernel: &Kernel, queue: &VecDeque<Job>, done: &impl Fn(Done) -> bool) -> bool {
    let Some(Job::Hook(target, true)) = queue.back() else { return true };
    // What is to be taken away first would take this along.
    if queue.contains(&Job::Unhook(target.ifindex)) {
        return true;
    }
    match kernel.hooks.bridge(target.ifindex) {
        Ok(true) => done(Done::Bridged(*target)),
        Ok(false) => true,
        Err(error) => {
            tracing::debug!(ifindex = target.ifindex, "hooked in its turn: {}", chain(&error));
            true
        }
    }
}

fn perform(kernel: &Kernel, job: &Job) -> Option<Done> {
    match *job {
        Job::Hook(target, _) => {
            let attached = kernel.hooks.attach(target.ifindex);
            Some(Done::Hooked(target, attached.map_err(Fault::from)))
        }
        Job::Unhook(ifindex) => {
            let failed = kernel.hooks.detach(ifindex).err();
            failed.map(|error| Done::NotUnhooked { ifindex, error: chain(&error) })
        }
    }
}

impl Core {
    /// Has these endpoints' interfaces hooked: their words are announced, the rest is done beside the writer.
    pub(super) fn hook(&mut self, slots: &[u16]) {
        self.hook_groups(slots);
        for slot in slots {
            let Some(local) = self.table.get_mut(*slot) else { continue };
            if local.group.is_some() || local.attaching {
                continue;
            }
            let announced = self.kernel.read().announce_interface(local.ifindex, *slot);
            match announced {
                Ok(()) => {
                    local.attaching = true;
                    let target = Target { slot: *slot, id: local.id, ifindex: local.ifindex };
                    let new = self.hooking.bridging && local.unprotected <= CHATTER;
                    self.hooking.send(Job::Hook(target, new));
                }
                Err(error) => {
                    let ifindex = local.ifindex;
                    self.not_hooked(*slot, ifindex, error.into());
                }
            }
        }
    }

    /// Takes in what was done at interfaces.
    pub(super) fn hooked(&mut self, done: Vec<Done>) {
        for done in done {
            match done {
                Done::Bridged(target) => self.bridged(target),
                Done::Hooked(target, result) => self.end_hooking(target, result),
                Done::NotUnhooked { ifindex, error } => {
                    self.fail(format!("unhook interface {ifindex}: {error}"));
                }
            }
        }
    }

    /// Nothing gets by any more; the interface counts as being hooked until its links are in place.
    fn bridged(&mut self, target: Target) {
        let Target { slot, id, ifindex } = target;
        let Some(local) = self.table.get_mut(slot).filter(|local| local.id == id) else {
            if let Some(next) = self.table.attaching_at(ifindex) {
                next.unhooked_before = true;
            }
            return;
        };
        // What fails here fails again when the links are in place, and is told then.
        if self.kernel.read().set_interface(ifindex, slot).is_ok() {
            local.hooked = true;
            local.failure = None;
            tell_hooked(local, true);
        }
    }

    fn end_hooking(&mut self, target: Target, result: Result<Attached, Fault>) {
        let Target { slot, id, ifindex } = target;
        let fresh = result.as_ref().is_ok_and(|attached| attached.fresh > 0);
        let Some(local) = self.table.get_mut(slot).filter(|local| local.id == id) else {
            // Its hooks are new for the interface's next endpoint, too.
            if fresh && let Some(next) = self.table.attaching_at(ifindex) {
                next.unhooked_before = true;
            }
            return;
        };
        local.attaching = false;
        // Also when one hook failed: then a packet without a tag is judged where it goes.
        let set = self.kernel.read().set_interface(ifindex, slot);
        match result.and_then(|_| set.map_err(Fault::from)) {
            // Since its bridge.
            Ok(()) if local.hooked => {}
            Ok(()) => {
                local.hooked = true;
                local.failure = None;
                let fresh = fresh || local.unhooked_before;
                // Taken over: the earlier agent's programs were there all the time.
                if !fresh {
                    local.unprotected = 0;
                }
                tell_hooked(local, fresh);
            }
            Err(fault) => self.not_hooked(slot, ifindex, fault),
        }
    }

    /// Whether hooks may be looked at now: while interfaces are being hooked each look would wait for the kernel.
    pub(super) fn may_check(&mut self, wanted: bool, now: Instant) -> bool {
        if wanted {
            self.check_wanted.get_or_insert(now);
        }
        let Some(since) = self.check_wanted else { return false };
        let may = !self.table.is_attaching() || now.saturating_duration_since(since) > PUT_OFF;
        if may {
            self.check_wanted = None;
        }
        may
    }
}
