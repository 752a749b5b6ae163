//! Flow maps in store for the next pods, made on a thread of their own.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use super::core::Core;
use crate::cli::chain;
use crate::datapath::SpareMaker;

/// Slots whose flow maps are in store: pods that may start at once without waiting for the kernel.
pub(super) const STORE: usize = 4;

/// What is to be made: slots, and whether for both families.
type Wanted = (Vec<u16>, bool);

/// The way to the thread.
#[derive(Clone, Debug)]
pub(super) struct Spares {
    wanted: Sender<Wanted>,
}

impl Spares {
    /// Starts the thread.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(super) fn start(maker: SpareMaker) -> io::Result<Self> {
        let (wanted, inbox) = channel();
        thread::Builder::new().name("spares".to_owned()).spawn(move || run(&maker, &inbox))?;
        Ok(Self { wanted })
    }
}

fn run(maker: &SpareMaker, inbox: &Receiver<Wanted>) {
    if let Err(error) = maker.clear() {
        tracing::warn!("flow maps that an earlier agent had in store stay: {}", chain(&error));
    }
    while let Ok(newest) = inbox.recv() {
        // Only the newest wish counts.
        let (slots, six) = inbox.try_iter().last().unwrap_or(newest);
        if let Err(error) = maker.make(&slots, six) {
            tracing::warn!("no flow maps in store, new pods wait for theirs: {}", chain(&error));
        }
    }
}

impl Core {
    /// Fills up the store.
    pub(super) fn stock(&self) {
        let there = self.kernel.read().spare_slots();
        let missing = STORE.saturating_sub(there.len());
        let slots: Vec<u16> = self.table.free().filter(|slot| !there.contains(slot)).take(missing).collect();
        if slots.is_empty() {
            return;
        }
        let six = self.table.iter().any(|local| local.addresses.iter().any(std::net::IpAddr::is_ipv6));
        // The thread ends only with the process; without it pods wait for their maps.
        drop(self.spares.wanted.send((slots, six)));
    }
}
