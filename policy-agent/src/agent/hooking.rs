//! Interfaces of pods are hooked and unhooked on a thread of their own: each hook waits for the kernel, and no change of
//! policy may wait behind it.
//!
//! ```text
//! writer: endpoint closed, interface announced ──> hooks thread: attach ──> writer: interface set, endpoint hooked
//! ```
//! The thread writes no map. It does its jobs in the order in which the writer gave them, so no interface is hooked and
//! unhooked at the same time, and what the newest endpoint of an interface needs is done last.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::core::Core;
use super::endpoints::tell_hooked;
use super::kernel::Kernel;
use crate::cli::chain;
use crate::datapath::Attached;

/// Hooks are looked at while interfaces are being hooked only if that has been put off for so long.
const PUT_OFF: Duration = Duration::from_secs(20);

/// An endpoint and its interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target {
    slot: u16,
    id: u32,
    ifindex: u32,
}

/// Something to do at an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Job {
    Hook(Target),
    Unhook(u32),
}

/// What has been done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Done {
    /// An interface was hooked, or why not.
    Hooked(Target, Result<Attached, String>),
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
}

impl Hooking {
    /// Starts the thread, in the network namespace of the caller. `done` returns false when nobody listens any more.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(super) fn start(
        kernel: Arc<Kernel>,
        done: impl Fn(Done) -> bool + Send + 'static,
    ) -> io::Result<Self> {
        let (jobs, inbox) = channel();
        thread::Builder::new().name("hooks".to_owned()).spawn(move || run(&kernel, &inbox, &done))?;
        Ok(Self { jobs })
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
    while let Ok(job) = inbox.recv() {
        let told = match job {
            Job::Hook(target) => {
                let attached = kernel.hooks.attach(target.ifindex);
                Some(Done::Hooked(target, attached.map_err(|error| chain(&error))))
            }
            Job::Unhook(ifindex) => {
                let failed = kernel.hooks.detach(ifindex).err();
                failed.map(|error| Done::NotUnhooked { ifindex, error: chain(&error) })
            }
        };
        if told.is_some_and(|told| !done(told)) {
            return;
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
                    self.hooking.send(Job::Hook(target));
                }
                Err(error) => {
                    let ifindex = local.ifindex;
                    self.not_hooked(*slot, ifindex, &chain(&error));
                }
            }
        }
    }

    /// Takes in what was done at interfaces.
    pub(super) fn hooked(&mut self, done: Vec<Done>) {
        for done in done {
            match done {
                Done::Hooked(target, result) => self.end_hooking(target, result),
                Done::NotUnhooked { ifindex, error } => {
                    self.fail(format!("unhook interface {ifindex}: {error}"));
                }
            }
        }
    }

    fn end_hooking(&mut self, target: Target, result: Result<Attached, String>) {
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
        match result.and_then(|_| set.map_err(|error| chain(&error))) {
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
            Err(error) => self.not_hooked(slot, ifindex, &error),
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
