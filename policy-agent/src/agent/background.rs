//! Everything that waits for a grace period, on a thread of its own.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use super::drain::Drained;
use crate::datapath::{Grace, Retirement};

/// Events are explained by rows and rules as they were: they must be read before those are used again. A reader that
/// takes longer than this has lost its events anyway.
const DRAIN: Duration = Duration::from_secs(2);

/// Something that must wait.
#[derive(Debug)]
pub(super) struct Work {
    /// Plans up to this number.
    pub upto: u64,
    /// Endpoints that were removed.
    pub retirements: Vec<Retirement>,
}

/// What has waited long enough.
#[derive(Clone, Debug, Default)]
pub(super) struct Passed {
    /// Plans up to this number.
    pub upto: u64,
    /// Slots that are free.
    pub slots: Vec<u16>,
}

/// The way to the thread.
#[derive(Clone, Debug)]
pub(super) struct Background {
    work: Sender<Work>,
}

impl Background {
    /// Starts the thread. `done` is told what has waited long enough; it returns false when nobody listens any more.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(super) fn start(
        grace: Arc<Grace>,
        drained: Drained,
        done: impl Fn(Passed) -> bool + Send + 'static,
    ) -> io::Result<Self> {
        let (work, inbox) = channel();
        thread::Builder::new()
            .name("grace".to_owned())
            .spawn(move || run(&grace, &drained, &inbox, &done))?;
        Ok(Self { work })
    }

    /// Hands over work.
    pub(super) fn send(&self, work: Work) {
        // The thread ends only with the process or with whoever listens to it.
        drop(self.work.send(work));
    }
}

fn run(grace: &Grace, drained: &Drained, inbox: &Receiver<Work>, done: &impl Fn(Passed) -> bool) {
    while let Ok(first) = inbox.recv() {
        let mut upto = first.upto;
        let mut retirements = first.retirements;
        for more in inbox.try_iter() {
            upto = upto.max(more.upto);
            retirements.extend(more.retirements);
        }
        if let Err(error) = grace.wait() {
            // Nothing that was retired may be used again: tables fill up, which is told, and nothing is judged wrongly.
            tracing::error!("no grace period can be waited for: {error}");
            continue;
        }
        let mut slots = Vec::new();
        for retirement in retirements {
            match retirement.run() {
                Ok(freed) => slots.extend(freed),
                Err(error) => tracing::error!("an endpoint's slot stays taken: {error}"),
            }
        }
        drained.wait(DRAIN);
        if !done(Passed { upto, slots }) {
            return;
        }
    }
}
