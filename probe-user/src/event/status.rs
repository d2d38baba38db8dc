//! `probe_status`, `heartbeat`, `loss`, `gap`: whether the record can be trusted.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Time;

/// What is attached and what is not. The first event of a run: from its `time` on, kills are seen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProbeStatus {
    /// Version of oomprobe.
    pub version: String,
    /// True if every kill from this event on is seen, be it with less detail.
    pub attached: bool,
    /// Every signal and the hook that serves it.
    pub signals: Vec<SignalStatus>,
    /// Kernel structure fields that this kernel does not have; the values they give are null.
    pub layout_absent: Vec<String>,
    /// The kernel.
    pub kernel: KernelFacts,
    /// From the start of the process to the last attachment, ms.
    pub ready_ms: Option<f64>,
}

/// One signal and the hook that serves it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SignalStatus {
    /// What is observed, as `oom_decision` or `process_exit`.
    pub signal: String,
    /// The hook in use, as `fentry:oom_kill_process`. Null if none could be attached: answers
    /// that need the signal are null.
    pub hook: Option<String>,
    /// Better hooks that were refused, best first.
    pub refused: Vec<Refusal>,
}

/// A hook that could not be used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Refusal {
    /// The hook.
    pub hook: String,
    /// Why the kernel, or oomprobe, refused it.
    pub reason: String,
}

/// What matters about the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KernelFacts {
    /// `uname -r`.
    pub release: Option<String>,
    /// `uname -m`.
    pub machine: Option<String>,
    /// Where the memory controller is: `v1`, `hybrid` (v1 beside a v2 tree) or `v2`.
    pub cgroup: Option<String>,
    /// Other facts by name, as `"fentry": true`.
    pub features: BTreeMap<String, bool>,
}

/// oomprobe is alive.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Heartbeat {
    /// Since oomprobe was started, s.
    pub uptime_s: u64,
    /// Events written so far by kind, this one not included.
    pub events: BTreeMap<String, u64>,
    /// Records lost so far by reason. All zero: nothing was lost.
    pub lost: BTreeMap<String, u64>,
    /// Processes the kernel counted as OOM-killed since oomprobe was attached
    /// (`/proc/vmstat oom_kill`).
    pub kernel_oom_kills: Option<u64>,
    /// Of these, how many oomprobe saw.
    pub seen_oom_kills: u64,
}

/// Something was seen but could not be recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Loss {
    /// Why: `critical_ring_full`, `bulk_ring_full`, `death_ring_full`, `kernel_read_failed`,
    /// `victim_map_full`, `program_skipped` (the kernel did not run the program of `hook`, as the
    /// same program was stopped in the middle on that CPU: an upper bound), or another reason that
    /// userspace adds.
    pub reason: String,
    /// How many since the last `loss` of this reason.
    pub count: u64,
    /// How many since oomprobe was started.
    pub total: u64,
    /// Ring or queue it was lost in. Null if it was lost before any.
    pub ring: Option<String>,
    /// Hook whose program was not run.
    pub hook: Option<String>,
}

/// The kernel counted something that oomprobe did not see.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Gap {
    /// The kernel's counter, as `/proc/vmstat oom_kill` or a path of `memory.events`.
    pub counter: String,
    /// By how much it rose in the interval.
    pub expected: u64,
    /// How many of these oomprobe saw.
    pub seen: u64,
    /// `expected` less `seen`.
    pub missing: u64,
    /// Start of the interval; it ends with this event.
    pub since: Option<Time>,
}
