//! `memcg_limit`, `reclaim_stall`, `pressure`, `leak_suspect`: memory pressure as it builds.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Cgroup, Confidence, Process, Severity};

/// A memory cgroup hit its own limit, once or many times.
///
/// The first hit is written at once; a cgroup that goes on hitting its limit is written at a
/// bounded rate, and `count` says what the kernel counted in between.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MemcgLimit {
    /// The cgroup whose limit was hit. Often an ancestor of the one that was charged.
    pub cgroup: Cgroup,
    /// Which of its limits.
    pub event: LimitEvent,
    /// Hits since oomprobe started, or since the cgroup was made if that is later.
    pub count: u64,
    /// Hits since the last event of this cgroup and limit.
    pub new: u64,
    /// Hits since the cgroup was made, as the kernel counts them: what `memory.events.local` shows,
    /// and v1 keeps without showing it. Null where no hook reads it.
    pub kernel_count: Option<u64>,
    /// Time tasks spent in reclaim for this cgroup since oomprobe started, ns. Null where no hook
    /// tells whose reclaim it is.
    pub reclaim_ns: Option<u64>,
    /// Bytes charged when this was written (`memory.current`).
    pub usage_bytes: Option<u64>,
    /// The limit: `memory.max` or `memory.high`.
    pub limit_bytes: Option<u64>,
    /// Who hit it last. Null if it was a kernel thread, or is not known.
    pub last_trigger: Option<Process>,
    /// The hook that counted the hits.
    pub source: String,
}

/// Which limit was hit.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum LimitEvent {
    /// The hard limit (`memory.max`, `memory.limit_in_bytes`): the task reclaims, or is killed.
    #[default]
    Max,
    /// The throttling limit (`memory.high`): the task reclaims and is put to sleep, never killed.
    High,
}

/// Tasks waited because memory had to be found first. Written at a bounded rate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReclaimStall {
    /// The cgroup of the tasks that waited. Null for the whole node.
    pub cgroup: Option<Cgroup>,
    /// What they waited for.
    pub stall: StallKind,
    /// Stalls since the last event of this cgroup and kind.
    pub new: u64,
    /// Time they took together since the last event, ns.
    pub new_ns: u64,
    /// Stalls since oomprobe started.
    pub count: u64,
    /// Time they took together since oomprobe started, ns.
    pub total_ns: u64,
    /// The longest one since oomprobe started, ns.
    pub longest_ns: u64,
    /// Stalls since oomprobe started by duration: element `i` counts those of 2^i µs to
    /// 2^(i+1) µs, the first also shorter ones, the last also longer ones.
    pub histogram_us_log2: Vec<u64>,
    /// Pages that reclaim gave back since the last event. Null where it is not told.
    pub reclaimed_pages: Option<u64>,
    /// The hook that gave it.
    pub source: String,
}

/// What a task waited for.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum StallKind {
    /// The node was short: the task looked for free pages itself (direct reclaim).
    #[default]
    DirectReclaim,
    /// A cgroup was at its limit: the task reclaimed its memory.
    MemcgReclaim,
    /// A cgroup was over `memory.high`: the task was put to sleep. Time that it reclaimed before is
    /// `memcg_reclaim`.
    HighThrottle,
    /// Memory had to be moved to make a large page.
    Compaction,
    /// A page that had been reclaimed too early was read back: from swap, or from a file.
    RefaultWait,
}

/// Tasks of a cgroup, or of the node, are being held up for want of a resource (PSI).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Pressure {
    /// The cgroup. Null for the whole node.
    pub cgroup: Option<Cgroup>,
    /// The resource: `cpu`, `memory` or `io`.
    pub resource: String,
    /// Share of time in which at least one task waited, 0 to 1.
    pub some_ratio: Option<f64>,
    /// Share of time in which no task got on, 0 to 1.
    pub full_ratio: Option<f64>,
    /// Over how long, ms.
    pub window_ms: u64,
    /// What the pressure comes from, most serious first. Empty if the evidence does not tell.
    pub findings: Vec<Finding>,
}

/// Something that is wrong, with what says so and what to do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Finding {
    /// What is wrong. The catalogue is in docs/verdicts.md.
    pub id: FindingId,
    /// How bad it is.
    pub severity: Severity,
    /// How sure that is.
    pub confidence: Confidence,
    /// The cgroup it is about. Null for the node.
    pub cgroup: Option<Cgroup>,
    /// One sentence for a person.
    pub summary: String,
    /// What it rests on, with numbers; most telling first.
    pub evidence: Vec<String>,
    /// Commands to run next, most useful first; each can be pasted into a shell.
    pub next_steps: Vec<String>,
}

/// What is wrong.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum FindingId {
    /// Pages are thrown out and read back again and again: everything waits, nothing is killed.
    Thrashing,
    /// Swapping in and out takes up the time.
    SwapThrash,
    /// The node reclaims because of one cgroup's growth or I/O, and others wait for it.
    NoisyNeighbour,
    /// Tasks sleep because their cgroup is over `memory.high`; it looks like a hang.
    HighThrottling,
    /// The limit is too near what the cgroup really uses.
    LimitTooTight,
    /// Page cache of file reads or writes presses against the limit.
    PageCachePressure,
    /// tmpfs or other shared memory fills the limit.
    TmpfsGrowth,
    /// Kernel memory charged to the cgroup fills the limit.
    KernelMemory,
    /// Socket buffers charged to the cgroup fill the limit.
    SocketMemory,
    /// Anonymous memory grew to the limit within a moment.
    Spike,
    /// Memory grows steadily.
    LeakSuspect,
    /// The node has promised or used more memory than it has.
    Overcommit,
    /// `memory.min` or `memory.low` keeps memory from those who need it.
    Protection,
    /// Kernel objects that cannot be given back fill the node.
    SlabUnreclaimable,
    /// The kernel took memory page by page that no counter names: no slab view shows it.
    KernelUnaccounted,
    /// The OOM killer ran lately.
    OomRecent,
    /// Tasks wait for a processor because of their CPU limit.
    CpuThrottling,
    /// More tasks are ready to run than there are processors.
    CpuPressure,
    /// Tasks wait for disks.
    IoPressure,
    /// A file system of the kubelet is nearly full.
    DiskPressure,
    /// The connection tracking table is nearly full.
    ConntrackFull,
    /// The kubelet evicted pods lately.
    Evicted,
    /// A process gives no verdict on the packets of its nfqueue.
    NfqueueNoVerdict,
    /// Packets pile up in the queueing discipline of a device.
    QdiscBacklog,
    /// A process does not read from its tun device.
    TunQueue,
    /// What sockets receive is not read.
    SocketNotRead,
    /// What connections receive is no longer read, or sockets are read more slowly than they fill.
    ReaderStalled,
    /// Messages of the kernel are not read, and got lost.
    NetlinkOverrun,
    /// What unix sockets were sent is not read.
    UnixBacklog,
    /// The peers of TCP connections do not answer, and what they were sent is kept.
    DeadPeer,
    /// A socket that no process has open holds what it received.
    SocketNotOpen,
    /// Packets keep a network namespace alive that nobody can enter any more.
    NetnsAbandoned,
    /// Socket buffers that no socket, device or known queue holds.
    Unreferenced,
    /// Something is wrong that the evidence does not name.
    #[default]
    Unknown,
}

/// Something grows steadily and does not come back.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LeakSuspect {
    /// What grows.
    pub what: Grower,
    /// The cgroup that grows. Null for the node's own counters.
    pub cgroup: Option<Cgroup>,
    /// The slab cache that grows. Null for all others.
    pub slab_cache: Option<String>,
    /// How much it is now, bytes.
    pub bytes: u64,
    /// How fast it grows: the median slope over all pairs of samples, bytes per second.
    pub growth_bytes_per_s: f64,
    /// The slope lies between these two with 95 % confidence, bytes per second.
    pub growth_low_bytes_per_s: f64,
    /// The upper bound of it.
    pub growth_high_bytes_per_s: f64,
    /// Over how long this was seen, s.
    pub window_s: f64,
    /// How sure it is.
    pub confidence: Confidence,
    /// The limit it grows towards. Null if there is none.
    pub limit_bytes: Option<u64>,
    /// At this rate the limit is reached in this time, s.
    pub time_to_limit_s: Option<f64>,
    /// One sentence for a person.
    pub summary: String,
}

/// What grows.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Grower {
    /// Anonymous memory of a cgroup.
    #[default]
    Anon,
    /// tmpfs and shared memory of a cgroup.
    Shmem,
    /// Kernel memory charged to a cgroup.
    Kernel,
    /// Unreclaimable slab of the node (`SUnreclaim`).
    SlabUnreclaimable,
    /// One slab cache of the node.
    SlabCache,
}
