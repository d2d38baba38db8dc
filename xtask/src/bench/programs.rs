//! Run time of BPF programs as the kernel accounts it (`kernel.bpf_stats_enabled`).

use std::{collections::BTreeMap, fs, process::Command};

use anyhow::{Context as _, Result};
use serde::Deserialize;

use super::process::{self, Runs};
use crate::cmd;

const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// The accounting, switched on; dropping it puts the switch back.
pub(super) struct Accounting {
    before: String,
}

impl Accounting {
    pub(super) fn enable() -> Result<Self> {
        let before = fs::read_to_string(SWITCH).context(SWITCH)?;
        fs::write(SWITCH, "1").context(SWITCH)?;
        Ok(Self { before })
    }
}

impl Drop for Accounting {
    fn drop(&mut self) {
        if let Err(error) = fs::write(SWITCH, self.before.trim()) {
            cmd::status("Warning", format_args!("{SWITCH} is left at 1: {error}"));
        }
    }
}

/// What one program did during a measurement.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Ran {
    pub(super) name: String,
    pub(super) runs: Runs,
}

/// Programs of a process, and what each had done when this was made.
pub(super) struct Watch {
    pid: u32,
    start: BTreeMap<u32, Runs>,
}

impl Watch {
    pub(super) fn start(pid: u32) -> Result<Self> {
        let start = process::programs(pid)?;
        Ok(Self { pid, start })
    }

    /// Programs that ran since, the most expensive first.
    pub(super) fn ran(&self) -> Result<Vec<Ran>> {
        let names = names()?;
        let mut ran: Vec<Ran> = process::programs(self.pid)?
            .into_iter()
            .map(|(id, now)| {
                let start = self.start.get(&id).copied().unwrap_or_default();
                Ran {
                    name: names.get(&id).cloned().unwrap_or_else(|| id.to_string()),
                    runs: Runs {
                        count: now.count.saturating_sub(start.count),
                        ns: now.ns.saturating_sub(start.ns),
                    },
                }
            })
            .filter(|ran| ran.runs.count > 0)
            .collect();
        ran.sort_by_key(|ran| std::cmp::Reverse(ran.runs.ns));
        Ok(ran)
    }
}

/// Names of all loaded programs by id; `/proc` does not tell them.
fn names() -> Result<BTreeMap<u32, String>> {
    #[derive(Deserialize)]
    struct Loaded {
        id: u32,
        #[serde(default)]
        name: String,
    }
    let json = cmd::output(Command::new("bpftool").args(["prog", "show", "-j"]))?;
    let loaded: Vec<Loaded> =
        serde_json::from_str(&json).context("`bpftool prog show -j` is not as documented")?;
    Ok(loaded
        .into_iter()
        .map(|program| (program.id, program.name))
        .collect())
}
