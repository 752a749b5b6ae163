//! Flow maps in store for the next pods, made on a thread of their own.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use super::core::Core;
use crate::cli::chain;
use crate::datapath::SpareMaker;

/// Slots whose flow maps are in store: pods that may start at once without waiting for the kernel.
pub(super) const STORE: usize = 4;

/// What is to be made.
#[derive(Debug)]
struct Wanted {
    slots: Vec<u16>,
    /// For both families.
    six: bool,
    /// Pods wait for them.
    tell: bool,
}

/// The way to the thread.
#[derive(Clone, Debug)]
pub(super) struct Spares {
    wanted: Sender<Wanted>,
}

impl Spares {
    /// Starts the thread. `done` is told whether there is more in store where pods wait for it; it returns false when
    /// nobody listens any more.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(super) fn start(maker: SpareMaker, done: impl Fn(bool) -> bool + Send + 'static) -> io::Result<Self> {
        let (wanted, inbox) = channel();
        thread::Builder::new().name("spares".to_owned()).spawn(move || run(&maker, &inbox, &done))?;
        Ok(Self { wanted })
    }
}

fn run(maker: &SpareMaker, inbox: &Receiver<Wanted>, done: &impl Fn(bool) -> bool) {
    if let Err(error) = maker.clear() {
        tracing::warn!("flow maps that an earlier agent had in store stay: {}", chain(&error));
    }
    while let Ok(newest) = inbox.recv() {
        // Only the newest wish counts.
        let Wanted { slots, six, tell } = inbox.try_iter().last().unwrap_or(newest);
        let made = maker.make(&slots, six).unwrap_or_else(|error| {
            tracing::warn!("no flow maps in store, new pods wait for theirs: {}", chain(&error));
            0
        });
        if tell && !done(made > 0) {
            return;
        }
    }
}

impl Core {
    /// How many endpoints may be made now without waiting for the kernel. When there is nothing in store and nothing comes,
    /// the writer waits itself.
    pub(super) fn room(&mut self, first: bool) -> usize {
        let stocked = std::mem::replace(&mut self.stocked, true);
        if first || !stocked { usize::MAX } else { self.kernel.read().spare_slots().len() }
    }

    /// Fills up the store, with as many more as pods wait for.
    pub(super) fn stock(&self) {
        let there = self.kernel.read().spare_slots();
        let waiting = self.table.waiting();
        let missing = (STORE + waiting).saturating_sub(there.len());
        let slots: Vec<u16> = self.table.free().filter(|slot| !there.contains(slot)).take(missing).collect();
        if slots.is_empty() && waiting == 0 {
            return;
        }
        let six = self.table.iter().any(|local| local.addresses.iter().any(std::net::IpAddr::is_ipv6));
        // The thread ends only with the process; without it pods wait for their maps.
        drop(self.spares.wanted.send(Wanted { slots, six, tell: waiting > 0 }));
    }
}
