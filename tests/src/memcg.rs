//! What the kernel itself counts of a memory cgroup, and what it may be told beside a limit.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::cgroup::{Cgroup, Version};

/// Counters since the cgroup was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Hits of the hard limit: `max` of `memory.events.local`. On v1 `memory.failcnt`, which counts
    /// attempts to charge that failed: a hit has one or two, and an attempt to charge ahead may
    /// fail without a hit.
    pub max_hits: u64,
    /// Hits of `memory.high`; 0 on v1.
    pub high_hits: u64,
    /// Time in which some task waited for memory (PSI `some`), µs. `None` on v1.
    pub waited_us: Option<u64>,
    /// Pages thrown out and read back.
    pub refaults: u64,
}

impl Counters {
    /// Reads them.
    pub fn read(cgroup: &Cgroup) -> Result<Self> {
        let stat = read(cgroup, "memory.stat")?;
        let of = |key| number(&stat, key).unwrap_or(0);
        let refaults = of("workingset_refault_anon") + of("workingset_refault_file");
        if cgroup.version() == Version::V1 {
            let failed = read(cgroup, "memory.failcnt")?;
            return Ok(Self {
                max_hits: failed.trim().parse().context("memory.failcnt")?,
                refaults,
                ..Self::default()
            });
        }
        let events = read(cgroup, "memory.events.local")?;
        let hits =
            |key| number(&events, key).with_context(|| format!("memory.events.local: {key}"));
        Ok(Self {
            max_hits: hits("max")?,
            high_hits: hits("high")?,
            waited_us: Some(waited_us(&read(cgroup, "memory.pressure")?)?),
            refaults,
        })
    }

    /// Hits of either limit.
    pub fn hits(&self) -> u64 {
        self.max_hits + self.high_hits
    }
}

/// Share of the next `time` in which some task of `cgroup` waits for memory, in percent. `None`
/// where the kernel does not account for it.
pub fn waiting_percent(cgroup: &Cgroup, time: Duration) -> Result<Option<u128>> {
    let look = || anyhow::Ok((Instant::now(), Counters::read(cgroup)?.waited_us));
    let (start, before) = look()?;
    std::thread::sleep(time);
    let (end, after) = look()?;
    Ok(before.zip(after).map(|(before, after)| {
        u128::from(after.saturating_sub(before)) * 100 / (end - start).as_micros().max(1)
    }))
}

/// v2: what is charged to it now, bytes.
pub fn current(cgroup: &Cgroup) -> Result<u64> {
    let text = read(cgroup, "memory.current")?;
    text.trim().parse().context("memory.current")
}

/// Limits memory alone. With a limit on memory and swap as well, v1 counts no hit in any file.
pub fn limit(cgroup: &Cgroup, bytes: u64) -> Result<()> {
    let name = match cgroup.version() {
        Version::V1 => "memory.limit_in_bytes",
        Version::V2 => "memory.max",
    };
    write(cgroup, name, &bytes.to_string())
}

/// Bytes charged to it, kernel memory included.
pub fn usage_bytes(cgroup: &Cgroup) -> Result<u64> {
    let name = match cgroup.version() {
        Version::V1 => "memory.usage_in_bytes",
        Version::V2 => "memory.current",
    };
    read(cgroup, name)?.trim().parse().context(name)
}

/// v2: throttles and reclaims from so many bytes on.
pub fn set_high(cgroup: &Cgroup, bytes: u64) -> Result<()> {
    write(cgroup, "memory.high", &bytes.to_string())
}

/// v2: may use swap beside its limit.
pub fn allow_swap(cgroup: &Cgroup) -> Result<()> {
    write(cgroup, "memory.swap.max", "max")
}

/// v2: makes a block device as slow for it as a disk that reads so many bytes a second.
pub fn throttle_reads(cgroup: &Cgroup, device: &str, bytes_per_s: u64) -> Result<()> {
    let above = cgroup.directory().ancestors().skip(1);
    let controls: Vec<_> = above
        .map(|directory| directory.join("cgroup.subtree_control"))
        .take_while(|control| control.exists())
        .collect();
    for control in controls.iter().rev() {
        fs::write(control, "+io").with_context(|| format!("{}: enable io", control.display()))?;
    }
    write(cgroup, "io.max", &format!("{device} rbps={bytes_per_s}"))
}

fn read(cgroup: &Cgroup, name: &str) -> Result<String> {
    let file = cgroup.directory().join(name);
    fs::read_to_string(&file).with_context(|| file.display().to_string())
}

fn write(cgroup: &Cgroup, name: &str, value: &str) -> Result<()> {
    let file: &Path = &cgroup.directory().join(name);
    fs::write(file, value).with_context(|| format!("{} = {value}", file.display()))
}

fn number(text: &str, key: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))
        .and_then(|value| value.trim().parse().ok())
}

/// `total` of the line `some avg10=… total=…`.
fn waited_us(text: &str) -> Result<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix("some ")?.rsplit_once("total="))
        .and_then(|(_, total)| total.parse().ok())
        .with_context(|| format!("memory.pressure: {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_their_whole_name() {
        let text = "workingset_refault_file 7\nmaxi 3\nmax 5\n";
        assert_eq!(number(text, "max"), Some(5));
        assert_eq!(number(text, "workingset_refault"), None);
        let psi = "some avg10=0.00 avg60=1.00 avg300=0.00 total=42\nfull avg10=0.00 total=7\n";
        assert_eq!(waited_us(psi).unwrap(), 42);
        assert!(waited_us("").is_err());
    }
}
