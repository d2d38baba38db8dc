//! `before` of an `oom_kill`: what led up to it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Confidence;

/// The last seconds of the limit owner (of the node, if no limit was hit) before a kill.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Before {
    /// What was sampled, oldest first, at most 60. Empty if the cgroup was younger than a sample.
    pub samples: Vec<MemorySample>,
    /// From the first of the limit hits that led to the kill to the kill, ms. A pause of ten
    /// seconds begins a new series of hits.
    pub first_limit_hit_ms: Option<f64>,
    /// Hits of the hard limit (`max`) in `span_ms`; of a cgroup younger than that, since it was
    /// made.
    pub max_hits: Option<u64>,
    /// Hits of `memory.high` in `span_ms`.
    pub high_hits: Option<u64>,
    /// Time in which some task of it waited for memory in `span_ms` (PSI `some`), ms.
    pub stall_ms: Option<f64>,
    /// Pages that were thrown out and read back in `span_ms` (`workingset_refault_*`).
    pub refaults: Option<u64>,
    /// How fast usage grew in the last ten seconds before the limit was reached, bytes per second.
    pub growth_bytes_per_s: Option<f64>,
    /// How sure that rate is.
    pub growth_confidence: Option<Confidence>,
    /// Time from half the limit to the limit, ms. Null if it is longer than the record.
    pub half_to_limit_ms: Option<f64>,
    /// Whether it thrashed before it was killed: waited more than a tenth of the last ten seconds
    /// while pages it needed were thrown out. Null if that cannot be told.
    pub thrashed: Option<bool>,
    /// How long it waited for its CPU quota just before. Null without a CPU limit, of the node, and
    /// if it was not watched long enough.
    pub cpu_throttled: Option<CpuThrottled>,
    /// How far back the record goes, ms.
    pub span_ms: f64,
}

/// Waiting for a CPU quota (`cpu.stat`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CpuThrottled {
    /// Periods in which it used up its quota (`nr_throttled`).
    pub throttled_periods: u64,
    /// Share of all periods in which it had something to run.
    pub throttled_ratio: f64,
    /// How long it waited, summed over processors, ms.
    pub throttled_ms: f64,
    /// In so much time, ms.
    pub window_ms: f64,
}

impl CpuThrottled {
    /// Fewer throttled periods, or a smaller part of all, are a burst.
    const PERIODS: u64 = 10;
    const RATIO: f64 = 0.5;

    /// Whether so many periods, and such a share of all, held the tasks up.
    pub fn is_wait(throttled_periods: u64, throttled_ratio: f64) -> bool {
        throttled_periods >= Self::PERIODS && throttled_ratio >= Self::RATIO
    }

    /// Whether it held the tasks up.
    pub fn held_up(&self) -> bool {
        Self::is_wait(self.throttled_periods, self.throttled_ratio)
    }
}

/// The memory of a cgroup or of the node at one moment. Counters are since the cgroup was made,
/// or since boot.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MemorySample {
    /// Before the kill, ms.
    pub before_ms: f64,
    /// Bytes charged; of the node, what is not available.
    pub usage_bytes: u64,
    /// Anonymous memory.
    pub anon_bytes: Option<u64>,
    /// Page cache without shared memory.
    pub file_bytes: Option<u64>,
    /// tmpfs and shared memory.
    pub shmem_bytes: Option<u64>,
    /// Slab of both sorts.
    pub slab_bytes: Option<u64>,
    /// Swap used.
    pub swap_bytes: Option<u64>,
    /// Hits of the hard limit so far.
    pub max_events: Option<u64>,
    /// Hits of `memory.high` so far.
    pub high_events: Option<u64>,
    /// Pages thrown out and read back so far.
    pub refaults: Option<u64>,
    /// Time in which some task waited for memory so far (PSI `some`), ms.
    pub stall_ms: Option<f64>,
}
