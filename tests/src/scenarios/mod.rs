//! All scenarios, by what they are about.

mod daemon;
mod deaths;
mod findings;
mod leaks;
mod limits;
mod memory;
mod node;
mod pressure;
mod tracking;
mod victims;

use crate::scenario::Scenario;

/// MiB in bytes.
const MIB: u64 = 1 << 20;

/// Causes of a verdict on processes that simply took too much anonymous memory. Which one depends
/// on what the tracer saw of the growth.
const OWN_MEMORY: &[&str] = &["spike", "leak", "working_set_over_limit"];

/// Every scenario.
pub fn all() -> impl Iterator<Item = &'static Scenario> {
    [
        limits::ALL,
        victims::ALL,
        memory::ALL,
        daemon::ALL,
        node::ALL,
        pressure::ALL,
        findings::ALL,
        tracking::ALL,
    ]
    .into_iter()
    .flatten()
    .chain(deaths::all())
    .chain(leaks::all())
}
