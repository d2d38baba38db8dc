//! What ended a process.

mod facts;

pub use facts::{EarlierOom, Facts, NodeState, OomPart};

use crate::event::DeathVerdict;

/// Explains a death.
pub fn process_death(facts: &Facts<'_>) -> DeathVerdict {
    let _ = facts;
    DeathVerdict::default()
}
