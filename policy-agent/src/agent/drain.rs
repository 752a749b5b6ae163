//! Records of the kernel's ring become flows on the bus.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::kernel::Kernel;
use crate::datapath::EventRing;
use crate::events::{Bus, Enricher, History, KernelLosses, Now};

/// The kernel wakes readers only for some records, so the ring is looked at this often in any case.
const LOOK: Duration = Duration::from_millis(100);
/// How often losses are told.
const LOSSES: Duration = Duration::from_secs(1);
/// Records that are taken before other tasks have their turn.
const BURST: usize = 256;

/// How often the ring has been found empty.
#[derive(Clone, Debug, Default)]
pub(super) struct Drained(Arc<(Mutex<u64>, Condvar)>);

impl Drained {
    /// Waits until the ring was emptied by a reading that began after this call, at most for so long.
    pub(super) fn wait(&self, at_most: Duration) {
        let (count, changed) = &*self.0;
        let start = count.lock().unwrap_or_else(PoisonError::into_inner);
        // A reading may be under way: the one after it counts.
        let wanted = *start + 2;
        drop(changed.wait_timeout_while(start, at_most, |count| *count < wanted));
    }

    fn emptied(&self) {
        let (count, changed) = &*self.0;
        *count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        changed.notify_all();
    }
}

/// Everything that turns records into flows.
#[derive(Debug)]
pub(super) struct Drain {
    /// The ring.
    pub ring: EventRing,
    /// Maker of flows.
    pub enricher: Enricher,
    /// Worlds to explain with.
    pub history: Arc<Mutex<History>>,
    /// Where flows go.
    pub bus: Arc<Bus>,
    /// Told when the ring is empty.
    pub drained: Drained,
    /// For the counters of losses.
    pub kernel: Arc<Kernel>,
}

impl Drain {
    /// Runs for ever.
    pub(super) async fn run(mut self) {
        let ready = match readiness(&self.ring) {
            Ok(ready) => Some(ready),
            Err(error) => {
                tracing::warn!("events come late: the ring cannot be waited for: {error}");
                None
            }
        };
        let mut losses = tokio::time::interval(LOSSES);
        losses.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                () = wake(ready.as_ref()) => {}
                () = tokio::time::sleep(LOOK) => {}
                _ = losses.tick() => self.tell_losses(),
            }
            while self.take() {
                tokio::task::yield_now().await;
            }
            self.drained.emptied();
        }
    }

    /// Takes some records; true if there may be more.
    fn take(&mut self) -> bool {
        for _ in 0..BURST {
            let Some(event) = self.ring.next_event() else { return false };
            let Ok(now) = Now::read() else { continue };
            let flows = {
                let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
                self.enricher.flows(&event, &history, now)
            };
            flows.into_iter().for_each(|flow| self.bus.publish(flow));
        }
        true
    }

    fn tell_losses(&self) {
        let executor = self.kernel.read();
        let Ok(endpoints) = executor.endpoints() else { return };
        let mut losses = BTreeMap::new();
        // Slot 0 stands for the node, which has no id.
        for (slot, id) in endpoints.iter().map(|e| (e.slot, e.id)).chain([(0, 0)]) {
            let Ok(totals) = executor.endpoint_totals(slot) else { continue };
            let lost = KernelLosses { ring_full: totals.ring_full, suppressed: totals.suppressed };
            losses.insert(id, lost);
        }
        drop(executor);
        self.bus.report_losses(losses);
    }
}

/// The ring's readability, by a descriptor of its own.
fn readiness(ring: &EventRing) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the ring keeps its descriptor open for the time of the borrow.
    let fd = unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) }.try_clone_to_owned()?;
    // SAFETY: the value owns its descriptor and nobody can replace it in there.
    let ready = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    ready.map_err(io::Error::from)
}

async fn wake(ready: Option<&AsyncFd<OwnedFd>>) {
    match ready {
        Some(ready) => {
            if let Ok(mut guard) = ready.readable().await {
                guard.clear_ready();
            }
        }
        None => std::future::pending().await,
    }
}
