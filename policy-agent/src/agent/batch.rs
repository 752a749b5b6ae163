//! What happened since the writer's last turn, as one.

use std::time::Instant;

use super::claims::Claim;
use super::hooking::Done;
use super::looking::Looked;
use super::tags::Probed;
use crate::source::SourceState;
use crate::source::objects::Update;

/// Everything that the core takes in at one time.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// News of the source.
    pub updates: Vec<Update>,
    /// Since when the first of them waits.
    pub since: Option<Instant>,
    /// How the source is doing, if that is news.
    pub source: Option<SourceState>,
    /// Interfaces or addresses changed.
    pub network: bool,
    /// What container runtimes say of pods.
    pub claims: Vec<Claim>,
    /// Plans up to this number, and these slots, are out of every program's sight.
    pub passed: Option<(u64, Vec<u16>)>,
    /// Whether there are more flow maps in store.
    pub stocked: Option<bool>,
    /// What was done at interfaces.
    pub hooked: Vec<Done>,
    /// What probes of tags have shown.
    pub probed: Probed,
    /// What was seen of interfaces.
    pub looked: Option<Looked>,
    /// Look at the hooks.
    pub check_hooks: bool,
}
