//! `triage`: one look at the whole node.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Cgroup, Container, Finding, K8s, Process, SkbBalance, Time};

/// What one look of a few seconds at the node found. Rates and ratios are over those seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Triage {
    /// How long the look took, ms.
    pub duration_ms: u64,
    /// True if there is no finding.
    pub healthy: bool,
    /// What is wrong, most serious first.
    pub findings: Vec<Finding>,
    /// The node's memory.
    pub memory: NodeMemory,
    /// Who waited for what. A resource whose pressure the kernel does not tell is left out.
    pub pressure: Vec<NodePressure>,
    /// How hard memory had to be looked for.
    pub reclaim: Reclaim,
    /// Processors and what runs on them.
    pub cpu: Cpu,
    /// What the OOM killer did.
    pub oom: OomHistory,
    /// Socket buffers in the slab, and how many of them were found in queues. Null unless slab that
    /// cannot be given back fills the node: only then sockets are looked for.
    pub socket_buffers: Option<SkbBalance>,
    /// The connection tracking table. Null if the module is not loaded. In a container with a
    /// network namespace of its own, `count` is that namespace's.
    pub conntrack: Option<ConntrackTable>,
    /// The file systems the kubelet watches, each once.
    pub disks: Vec<Disk>,
    /// The biggest by usage: containers, pods that hold much beside their containers, and on a
    /// node without them its services.
    pub top: Vec<TopCgroup>,
    /// How many such cgroups there are.
    pub cgroups: u64,
    /// What could not be read, so that no finding about it could be made.
    pub not_read: Vec<NotRead>,
}

/// The node's memory at the end of the look (`/proc/meminfo`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NodeMemory {
    /// RAM the kernel manages.
    pub total_bytes: Option<u64>,
    /// Estimate of what new processes could get without swapping.
    pub available_bytes: Option<u64>,
    /// Not used for anything.
    pub free_bytes: Option<u64>,
    /// Anonymous memory.
    pub anon_bytes: Option<u64>,
    /// Page cache and buffers, without tmpfs.
    pub file_bytes: Option<u64>,
    /// tmpfs and shared memory.
    pub shmem_bytes: Option<u64>,
    /// File data that is not written back yet.
    pub dirty_bytes: Option<u64>,
    /// Swap space.
    pub swap_total_bytes: Option<u64>,
    /// Swap space not used.
    pub swap_free_bytes: Option<u64>,
    /// Promised to processes, used or not (`Committed_AS`).
    pub committed_bytes: Option<u64>,
    /// Most that may be promised; binding only if `overcommit_mode` is 2.
    pub commit_limit_bytes: Option<u64>,
    /// `vm.overcommit_memory`: 0 heuristic, 1 always, 2 strict.
    pub overcommit_mode: Option<u64>,
    /// Slab that shrinks under pressure.
    pub slab_reclaimable_bytes: Option<u64>,
    /// Slab that does not.
    pub slab_unreclaimable_bytes: Option<u64>,
    /// The biggest slab caches, biggest first. Empty if `/proc/slabinfo` cannot be read.
    pub slab_caches: Vec<SlabCache>,
}

/// A slab cache.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SlabCache {
    /// Name. Caches that the kernel merged go by the name of one of them.
    pub name: String,
    /// Bytes of its slabs, free objects included.
    pub bytes: u64,
    /// Objects in use.
    pub objects: u64,
}

/// Pressure of the node on one resource (PSI).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NodePressure {
    /// `cpu`, `memory` or `io`.
    pub resource: String,
    /// Share of the time in which at least one task waited, 0 to 1.
    pub some_ratio: Option<f64>,
    /// Share of the time in which no task got on, 0 to 1. Null for the CPU of older kernels.
    pub full_ratio: Option<f64>,
    /// `some` as the kernel averages it over 60 s.
    pub some_60s_ratio: Option<f64>,
    /// `full` as the kernel averages it over 60 s.
    pub full_60s_ratio: Option<f64>,
}

/// Reclaim, refaults and swap of the node (`/proc/vmstat`). Null where the kernel does not count.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Reclaim {
    /// Pages that kswapd looked at, per second.
    pub kswapd_scanned_per_s: Option<f64>,
    /// Pages that tasks looked at themselves, as memory was short, per second.
    pub direct_scanned_per_s: Option<f64>,
    /// Pages that either gave back, per second.
    pub reclaimed_per_s: Option<f64>,
    /// Times a task had to reclaim before it got its page (`allocstall_*`), per second.
    pub direct_stalls_per_s: Option<f64>,
    /// Times a task had to wait for a large page to be made, per second.
    pub compact_stalls_per_s: Option<f64>,
    /// Anonymous pages that were needed again soon after they were swapped out, per second.
    pub refaults_anon_per_s: Option<f64>,
    /// File pages that were needed again soon after they were thrown out, per second.
    pub refaults_file_per_s: Option<f64>,
    /// Pages swapped in, per second.
    pub swap_in_per_s: Option<f64>,
    /// Pages swapped out, per second.
    pub swap_out_per_s: Option<f64>,
    /// Faults that had to read from a disk, per second.
    pub major_faults_per_s: Option<f64>,
}

/// Processors and what runs on them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Cpu {
    /// Online processors.
    pub cpus: Option<u64>,
    /// Load average over one minute: tasks that run, are ready to, or wait for a disk.
    pub load1: Option<f64>,
    /// Over five minutes.
    pub load5: Option<f64>,
    /// Over a quarter of an hour.
    pub load15: Option<f64>,
    /// Tasks that ran or were ready to, oomprobe included: the lesser of start and end.
    pub running: Option<u64>,
    /// Tasks that waited for a disk: the lesser of start and end.
    pub blocked: Option<u64>,
    /// Who was held up most by a CPU limit, worst first; only those who were.
    pub throttled: Vec<Throttled>,
}

/// A cgroup that was held up by its CPU limit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Throttled {
    /// The cgroup.
    pub cgroup: Cgroup,
    /// Its pod.
    pub k8s: Option<K8s>,
    /// Its container.
    pub container: Option<Container>,
    /// Periods in which it had something to run.
    pub periods: u64,
    /// Of those, periods in which it used up its quota and had to wait.
    pub throttled_periods: u64,
    /// `throttled_periods` by `periods`.
    pub throttled_ratio: f64,
    /// How long it waited, summed over processors, ms.
    pub throttled_ms: f64,
}

/// What the OOM killer did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OomHistory {
    /// Processes it killed since boot (`/proc/vmstat oom_kill`).
    pub kills_since_boot: Option<u64>,
    /// Of those, during the look.
    pub kills_now: Option<u64>,
    /// For how long the node is up, s.
    pub uptime_s: u64,
    /// The last kills that the kernel log still has, newest first, at most 5.
    pub recent: Vec<RecentKill>,
}

/// A kill as the kernel log tells it. `oomprobe trace` tells more, while it runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RecentKill {
    /// When it was.
    pub time: Time,
    /// How long ago, s.
    pub age_s: u64,
    /// The chosen process; its memory as the kernel printed it.
    pub process: Process,
    /// Processes killed with it, itself included.
    pub victims: u64,
    /// The cgroup it was in.
    pub cgroup: Option<Cgroup>,
    /// Its pod.
    pub k8s: Option<K8s>,
    /// Its container.
    pub container: Option<Container>,
    /// The cgroup whose limit was hit. Null: the node was out of memory, or the log lost the line.
    pub limit_cgroup: Option<Cgroup>,
    /// The kernel's reason: "Memory cgroup out of memory", "Out of memory", …
    pub message: Option<String>,
}

/// The connection tracking table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ConntrackTable {
    /// Connections.
    pub count: u64,
    /// Most there may be: beyond that packets are dropped.
    pub max: u64,
}

/// A file system.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Disk {
    /// The directories on it that matter.
    pub paths: Vec<String>,
    /// Size.
    pub total_bytes: u64,
    /// What an unprivileged process can still write.
    pub available_bytes: u64,
    /// Files it can hold. Null where that is not fixed.
    pub inodes: Option<u64>,
    /// Of those, how many can still be made.
    pub inodes_available: Option<u64>,
    /// Below this share of free space, in percent, it counts as full: the kubelet's default
    /// threshold where there is a kubelet.
    pub threshold_percent: u64,
    /// True if that is the kubelet's threshold, below which it evicts pods.
    pub kubelet: bool,
}

/// A cgroup and its memory at the end of the look.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TopCgroup {
    /// The cgroup.
    pub cgroup: Cgroup,
    /// Its pod.
    pub k8s: Option<K8s>,
    /// Its container.
    pub container: Option<Container>,
    /// Bytes charged, descendants included.
    pub usage_bytes: u64,
    /// Usage without the page cache that is given up first: what `kubectl top` shows and the
    /// kubelet evicts by.
    pub working_set_bytes: Option<u64>,
    /// By how much usage grew, bytes per second; negative if it shrank.
    pub growth_bytes_per_s: Option<f64>,
    /// Anonymous memory.
    pub anon_bytes: Option<u64>,
    /// Page cache without tmpfs.
    pub file_bytes: Option<u64>,
    /// tmpfs and shared memory.
    pub shmem_bytes: Option<u64>,
    /// All kernel memory, slab included. Null before 5.18 on cgroup v2.
    pub kernel_bytes: Option<u64>,
    /// Slab of both sorts. Null on cgroup v1.
    pub slab_bytes: Option<u64>,
    /// Socket buffers.
    pub sock_bytes: Option<u64>,
    /// Swap used.
    pub swap_bytes: Option<u64>,
    /// Its own hard limit. Null: none.
    pub limit_bytes: Option<u64>,
    /// Usage by its own limit.
    pub limit_ratio: Option<f64>,
    /// The tightest hard limit of itself and all above it. Null: none.
    pub effective_limit_bytes: Option<u64>,
    /// Its throttling limit (`memory.high`). Null: none.
    pub high_bytes: Option<u64>,
    /// Its best-effort protection (`memory.low`).
    pub low_bytes: Option<u64>,
    /// Its protection (`memory.min`).
    pub min_bytes: Option<u64>,
    /// Share of the time in which some task of it waited for memory. Null on cgroup v1.
    pub memory_some_ratio: Option<f64>,
    /// Share of the time in which no task of it got on for want of memory. Null on cgroup v1.
    pub memory_full_ratio: Option<f64>,
    /// Hits of the hard limit during the look.
    pub max_hits: Option<u64>,
    /// Hits of `memory.high` during the look.
    pub high_hits: Option<u64>,
    /// Pages thrown out and needed again, per second.
    pub refaults_per_s: Option<f64>,
    /// Processes of it that an OOM killer killed since it was made.
    pub oom_kills: Option<u64>,
}

/// Something that could not be read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NotRead {
    /// What.
    pub what: String,
    /// Why, and if it is known, how it can be.
    pub why: String,
}

impl NotRead {
    /// `refused` processes may not be asked about `what`.
    pub fn refused(what: &str, refused: u64) -> Self {
        Self {
            what: what.to_owned(),
            why: permission_denied(refused),
        }
    }
}

/// That this many processes may not be asked, and the remedy.
pub fn permission_denied(refused: u64) -> String {
    let processes = if refused == 1 { "process" } else { "processes" };
    format!("permission denied for {refused} {processes}: needs CAP_SYS_PTRACE")
}
