//! The kernel side as the writer and its onlookers share it.

use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::datapath::{self, Executor, Groups, Hooks, LoadReport, Trial, TrialMaker};

/// Maps and hooks. Only the writer takes the lock for writing; counters are read beside it.
#[derive(Debug)]
pub struct Kernel {
    executor: RwLock<Executor>,
    /// Attached programs.
    pub hooks: Hooks,
    /// Programs attached to control groups.
    pub groups: Groups,
    /// What loading found.
    pub report: LoadReport,
    maker: TrialMaker,
    trial: Mutex<Option<Trial>>,
    trial_failure: Mutex<Option<datapath::Error>>,
}

impl Kernel {
    /// Shares a loaded datapath.
    #[must_use]
    pub fn new(
        executor: Executor,
        hooks: Hooks,
        groups: Groups,
        report: LoadReport,
        maker: TrialMaker,
    ) -> Self {
        Self {
            executor: RwLock::new(executor),
            hooks,
            groups,
            report,
            maker,
            trial: Mutex::default(),
            trial_failure: Mutex::default(),
        }
    }

    /// For everything that reads, or writes what is not part of a plan.
    pub fn read(&self) -> RwLockReadGuard<'_, Executor> {
        // The executor's maps are whole after every write, so a panic elsewhere leaves nothing half done.
        self.executor.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether all programs that trials need are loaded: those of sockets once a control group is an endpoint.
    pub fn is_ready_for_trials(&self) -> bool {
        let sockets = self.groups.is_used();
        self.trial().as_ref().is_some_and(|trial| trial.is_for_sockets() || !sockets)
    }

    /// Programs for trials, once they are loaded.
    pub fn trial(&self) -> MutexGuard<'_, Option<Trial>> {
        self.trial.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Loads the programs for trials, unless they are there. It takes most of a second.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn prepare_trial(&self) -> datapath::Result<()> {
        if !self.is_ready_for_trials() {
            let made = self.maker.make(self.groups.is_used())?;
            *self.trial() = Some(made);
        }
        Ok(())
    }

    /// The same on a thread of its own; why it failed is kept for [`Kernel::trial_failure`].
    pub fn prepare_trial_aside(&self) {
        if let Err(error) = self.prepare_trial() {
            *self.trial_failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        }
    }

    /// Why the programs for trials could not be loaded, told once.
    pub fn trial_failure(&self) -> Option<datapath::Error> {
        self.trial_failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// For plans.
    pub fn write(&self) -> RwLockWriteGuard<'_, Executor> {
        self.executor.write().unwrap_or_else(PoisonError::into_inner)
    }
}
