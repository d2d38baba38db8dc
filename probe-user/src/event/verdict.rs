//! The conclusion of an event, as [`crate::verdict`] draws it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What an event means and what to do about it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Verdict {
    /// What filled the memory.
    pub cause: Cause,
    /// How sure that is.
    pub confidence: Confidence,
    /// One sentence for a person.
    pub summary: String,
    /// What the conclusion rests on, with numbers; most telling first.
    pub evidence: Vec<String>,
    /// Commands to run next, most useful first; each can be pasted into a shell.
    pub next_steps: Vec<String>,
    /// What Kubernetes will show for it. Null outside Kubernetes.
    pub kubernetes_will_report: Option<KubernetesReport>,
}

/// What filled the memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Anonymous memory grew steadily.
    Leak,
    /// Anonymous memory was allocated within a moment.
    Spike,
    /// Cached file data that could not be given back in time.
    PageCache,
    /// Files in tmpfs (memory-backed emptyDir, /dev/shm) or other shared memory.
    Tmpfs,
    /// The kernel's own memory: slab, stacks, page tables, per-CPU, vmalloc.
    KernelMemory,
    /// Socket buffers.
    Sockets,
    /// The processes need more than the limit allows; whether by leak or by spike is not known.
    WorkingSetOverLimit,
    /// The node has less memory than its processes use.
    NodeExhausted,
    /// Somebody else in the same limit filled it: the victim is not the culprit.
    Neighbour,
    /// The evidence does not tell.
    #[default]
    Unknown,
}

/// How sure a verdict is.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Confidence {
    /// A guess from little evidence.
    #[default]
    Low,
    /// The evidence points there, but a part of it is missing or was read late.
    Medium,
    /// Measured at the decision, and nothing contradicts it.
    High,
}

/// What Kubernetes will show.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KubernetesReport {
    /// Whether the container's status will say `OOMKilled`. Null if that cannot be told.
    pub oom_killed: Option<bool>,
    /// Whether that status will not be true: `OOMKilled` for another death, or another word for an
    /// OOM kill.
    #[serde(default)]
    pub wrong: bool,
    /// Why, and what will be seen instead.
    pub why: String,
}
