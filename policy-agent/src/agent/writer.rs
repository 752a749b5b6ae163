//! The one thread that owns the core: everything that happened since its last turn is one batch, hence one plan.

use std::net::IpAddr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant, SystemTime};

use policy_engine::model::ObjectKey;
use tokio::sync::oneshot;

use super::background::Passed;
use super::batch::Batch;
use super::check::Report;
use super::claims::Claim;
use super::core::Core;
use super::hooking::Done;
use super::looking::Looked;
use super::tags::Probed;
use super::view::{Published, Shown, View};
use crate::source::objects::Located;
use crate::source::{Source, SourceState, Told};

/// How often every hook is looked at.
const CHECK_HOOKS: Duration = Duration::from_secs(10);

/// What the thread hears.
#[derive(Debug)]
pub(super) enum Input {
    /// The source has news, since this moment.
    Source(Told, Instant),
    /// Interfaces or addresses changed.
    Network,
    /// A grace period is over.
    Passed(Passed),
    /// There are more flow maps in store, for endpoints that wait for them; false = there are not.
    Stocked(bool),
    /// An interface was hooked, or could not be.
    Hooked(Done),
    /// Probes of tags have come back, or not.
    Probed(Probed),
    /// Interfaces were looked at.
    Looked(Looked),
    /// A container runtime gave addresses to a pod.
    Claim(Claim),
    /// Somebody wants everything in the kernel checked.
    Verify(oneshot::Sender<Report>),
    /// Somebody waits until everything that the sources hold now is enforced.
    Wait(Waiter),
    /// End; what is enforced stays.
    Stop,
}

/// Somebody who waits.
#[derive(Debug)]
pub(super) struct Waiter {
    /// When the answer is given in any case.
    pub deadline: Instant,
    /// This pod alone is waited for: its key, and addresses that it must have.
    pub pod: Option<(ObjectKey, Vec<IpAddr>)>,
    /// Where it is given.
    pub reply: oneshot::Sender<Waited>,
}

/// What somebody waits for beside the writer's own work.
#[derive(Debug)]
struct Waiting {
    /// The source's answer to this request.
    read: u64,
    /// The answer to this look at the interfaces; none was asked for yet.
    look: Option<u64>,
    waiter: Waiter,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Waited {
    /// Number of the plan in force.
    pub plan: u64,
    /// What is missing; nothing = everything is enforced.
    pub missing: Vec<String>,
}

/// The thread's state.
#[derive(Debug)]
pub(super) struct Writer {
    core: Core,
    inbox: Receiver<Input>,
    source: Source,
    published: Published,
    waiting: Vec<Waiting>,
    verifying: Vec<oneshot::Sender<Report>>,
    answered: u64,
    told: Vec<Located>,
    /// The sources have told all that they hold.
    synced: bool,
    /// Since when, until that was enforced once.
    starting: Option<Instant>,
    next_check: Instant,
}

impl Writer {
    /// A writer that hears `inbox`.
    #[must_use]
    pub(super) fn new(core: Core, inbox: Receiver<Input>, source: Source, published: Published) -> Self {
        let next_check = Instant::now() + CHECK_HOOKS;
        Self {
            core,
            inbox,
            source,
            published,
            waiting: Vec::new(),
            verifying: Vec::new(),
            answered: 0,
            told: Vec::new(),
            synced: false,
            starting: None,
            next_check,
        }
    }

    /// Works until it is told to stop.
    pub(super) fn run(mut self) {
        while let Some(batch) = self.gather() {
            let changed = batch.updates.iter().any(|update| !update.deltas.is_empty());
            self.core.handle(batch);
            if changed {
                self.core.tally.last_change = Some(SystemTime::now());
            }
            self.core.check_in_turn(Instant::now());
            let report = (!self.verifying.is_empty()).then(|| self.core.check_all());
            self.publish();
            if let Some(report) = report {
                // Whoever asked may have gone.
                self.verifying.drain(..).for_each(|asked| drop(asked.send(report.clone())));
            }
        }
    }

    fn publish(&mut self) {
        let view = self.core.view();
        self.tell(&view);
        if let Some(since) = self.starting.take_if(|_| view.missing().is_empty()) {
            tracing::info!(
                milliseconds = since.elapsed().as_millis(),
                "all that the sources hold is enforced"
            );
        }
        // Whoever has the answer may ask for the status at once.
        let shown = self.published.publish(view);
        self.answer(&shown);
    }

    /// Waits for something to do, then takes all there is. `None` = stop.
    fn gather(&mut self) -> Option<Batch> {
        let mut batch = Batch::default();
        let deadlines = self.waiting.iter().map(|waiting| waiting.waiter.deadline);
        let until = deadlines.chain(self.core.again_at()).fold(self.next_check, Instant::min);
        match self.inbox.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(input) => self.take(input, &mut batch)?,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return None,
        }
        while let Ok(input) = self.inbox.try_recv() {
            self.take(input, &mut batch)?;
        }
        let now = Instant::now();
        if self.next_check <= now {
            self.next_check = now + CHECK_HOOKS;
            batch.check_hooks = true;
        }
        Some(batch)
    }

    fn take(&mut self, input: Input, batch: &mut Batch) -> Option<()> {
        match input {
            Input::Source(Told { update, answered, state }, since) => {
                self.answered = self.answered.max(answered);
                if state.synced {
                    if !self.synced {
                        (self.synced, self.starting) = (true, Some(since));
                    }
                    if !update.deltas.is_empty() {
                        batch.since.get_or_insert(since);
                    }
                    batch.updates.push(update);
                }
                batch.source = Some(state);
            }
            Input::Network => batch.network = true,
            Input::Claim(claim) => {
                batch.network = true;
                batch.claims.push(claim);
            }
            Input::Passed(Passed { upto, slots }) => {
                let (number, freed) = batch.passed.get_or_insert_default();
                *number = upto.max(*number);
                freed.extend(slots);
            }
            Input::Stocked(more) => batch.stocked = Some(more),
            Input::Hooked(done) => batch.hooked.push(done),
            Input::Probed(probed) => batch.probed.extend(probed),
            Input::Looked(looked) => batch.looked = Some(looked),
            Input::Verify(asked) => self.verifying.push(asked),
            Input::Wait(waiter) => {
                batch.network = true;
                // A runtime knows more than the sources: nothing that they have not told yet matters to it.
                let claimed = waiter.pod.as_ref().is_some_and(|(_, addresses)| !addresses.is_empty());
                let number = if claimed { 0 } else { self.source.read_again() };
                self.waiting.push(Waiting { read: number, look: None, waiter });
            }
            Input::Stop => return None,
        }
        Some(())
    }

    fn answer(&mut self, view: &Shown) {
        let now = Instant::now();
        let all = view.missing();
        for mut waiting in std::mem::take(&mut self.waiting) {
            // Whoever came with the last batch made the core ask.
            let look = *waiting.look.get_or_insert(self.core.looking.asked());
            let read = self.answered >= waiting.read;
            let missing = match &waiting.waiter.pod {
                Some((pod, addresses)) => view.missing_of(pod, addresses),
                None => all.clone(),
            };
            let seen = self.core.looking.is_answered(look);
            if waiting.waiter.deadline > now && (!read || !seen || !missing.is_empty()) {
                self.waiting.push(waiting);
                continue;
            }
            let waiter = waiting.waiter;
            let mut missing = missing;
            if !read && missing.is_empty() {
                let SourceState { error, .. } = &view.source;
                missing.extend((!error.is_empty()).then(|| error.clone()));
                missing.push(self.source.unanswered().to_owned());
            }
            // Whoever asked may have gone.
            drop(waiter.reply.send(Waited { plan: view.plan, missing }));
        }
    }

    /// Each problem is logged when it appears.
    fn tell(&mut self, view: &View) {
        if view.problems == self.told {
            return;
        }
        for problem in view.problems.iter().filter(|p| !self.told.contains(p)) {
            let Located { location, object, field, message, broken, version: _ } = problem;
            if *broken {
                tracing::warn!(location, object, field, "{message}");
            } else {
                tracing::info!(location, object, field, "{message}");
            }
        }
        self.told.clone_from(&view.problems);
    }
}

/// The way to the writer.
pub(super) type Inputs = Sender<Input>;
