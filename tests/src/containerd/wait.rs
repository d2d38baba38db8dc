//! Waiting for another program's state to change, with a deadline.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Between two looks: short against what is waited for, long against the cost of a look.
const INTERVAL: Duration = Duration::from_millis(10);

/// The deadline for anything that needs no waiting but on the machine: only a hang reaches it.
pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// Asks `look` until it gives a value, or fails with "`what`: not seen in time".
pub(crate) fn until<T>(
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
