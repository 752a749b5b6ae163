//! From records of the kernel's ring to flows that name pods, policies and rules.
//!
//! ```text
//! record -> Enricher (with the world of the record's epoch, out of the History) -> Bus -> Ring (the past)
//!                                                                                   └-> subscribers (live)
//! ```

mod bare;
pub mod bus;
pub mod clock;
pub mod details;
pub mod enrich;
#[cfg(test)]
pub(crate) mod fixture;
pub mod history;
pub mod names;
pub mod packet;
pub mod reasons;
pub mod ring;

pub use bus::{Bus, KernelLosses};
pub use clock::Now;
pub use enrich::{Enricher, Views};
pub use history::{EndpointState, Generation, History};
