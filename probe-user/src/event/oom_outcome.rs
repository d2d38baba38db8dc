//! `oom_outcome`: what became of the victims.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Process, Time};

/// What became of the victims of an `oom_kill`: written when they are gone, or 10 s after the
/// kill if one is not.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OomOutcome {
    /// The `oom_kill` this belongs to.
    pub incident: String,
    /// Every victim of the incident, as in the `oom_kill`, then the late ones.
    pub victims: Vec<VictimOutcome>,
    /// Victims that became known only after the `oom_kill` was written. Included in `victims`.
    pub late_victims: u32,
    /// Usage of the limit owner after the kill. Null for a node OOM, or if the cgroup is gone.
    pub limit_usage_bytes: Option<u64>,
    /// Its usage at the decision less `limit_usage_bytes`; negative if it grew again.
    pub freed_bytes: Option<i64>,
    /// True if the victim's container lives on: Kubernetes will not report the kill. Null outside
    /// containers.
    pub container_survived: Option<bool>,
}

/// What became of one victim.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VictimOutcome {
    /// The process as it was seen last.
    pub process: Process,
    /// When its last thread exited.
    pub exited_at: Option<Time>,
    /// When the OOM reaper had freed its memory. Null if it has not, or needed not.
    pub reaped_at: Option<Time>,
    /// From SIGKILL to the exit of the last thread, ms.
    pub kill_to_exit_ms: Option<f64>,
    /// Exit code, if it exited by itself before the signal arrived.
    pub exit_code: Option<i32>,
    /// Signal that ended it: 9 for an OOM kill.
    pub signal: Option<i32>,
    /// True if it still was not gone after 10 s: stuck in the kernel, as a rule in I/O.
    pub still_alive: bool,
}
