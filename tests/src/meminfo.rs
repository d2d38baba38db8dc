//! `/proc/meminfo`, as a test needs it: an oracle of its own, not oomprobe's reader.

use std::fs;

use anyhow::{Context as _, Result};

/// A line's value, bytes.
pub fn bytes(key: &str) -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    let mut lines = text.lines();
    let kib: u64 = lines
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
        .and_then(|rest| rest.trim().strip_suffix(" kB"))
        .with_context(|| format!("/proc/meminfo: {key}"))?
        .parse()?;
    Ok(kib << 10)
}
