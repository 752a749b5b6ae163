//! The kernel side as the writer and its onlookers share it.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::datapath::{Executor, Hooks, LoadReport};

/// Maps and hooks. Only the writer takes the lock for writing; counters are read beside it.
#[derive(Debug)]
pub struct Kernel {
    executor: RwLock<Executor>,
    /// Attached programs.
    pub hooks: Hooks,
    /// What loading found.
    pub report: LoadReport,
}

impl Kernel {
    /// Shares a loaded datapath.
    #[must_use]
    pub fn new(executor: Executor, hooks: Hooks, report: LoadReport) -> Self {
        Self { executor: RwLock::new(executor), hooks, report }
    }

    /// For everything that reads, or writes what is not part of a plan.
    pub fn read(&self) -> RwLockReadGuard<'_, Executor> {
        // The executor's maps are whole after every write, so a panic elsewhere leaves nothing half done.
        self.executor.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// For plans.
    pub fn write(&self) -> RwLockWriteGuard<'_, Executor> {
        self.executor.write().unwrap_or_else(PoisonError::into_inner)
    }
}
