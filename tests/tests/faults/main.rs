//! What may go wrong around the agent, under a steady flow matrix with a check on every packet.
//!
//! Two sentences must hold, whatever the fault: no packet is heard that neither the old nor the new policy allows, and
//! what both allow is not lost where only the agent was hurt.

#![expect(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod clock;
mod files;
mod full;
mod hooking;
mod interfaces;
mod kills;
mod setup;
mod subscribers;
mod upgrade;
