//! Waiting for a fact with a deadline and a sentence for the case that it never comes true.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a fact is looked at.
const INTERVAL: Duration = Duration::from_millis(5);

/// The deadline for what needs no waiting but on the machine: only a hang reaches it.
pub fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// Asks `look` until it gives a value, or fails with "`what` not seen in time".
pub fn until<T>(
    deadline: Instant,
    what: &str,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    loop {
        let late = Instant::now() >= deadline;
        if let Some(value) = look()? {
            return Ok(value);
        }
        if late {
            bail!("{what}: not seen in time");
        }
        std::thread::sleep(INTERVAL);
    }
}
