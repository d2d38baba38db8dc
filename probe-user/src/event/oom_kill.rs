//! `oom_kill`: one invocation of the OOM killer.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    AllocPath, Before, Cgroup, Container, Gfp, K8s, KernelBalance, Process, SlabCache, Time,
    Verdict,
};

/// The OOM killer ran. One event per invocation, with all its victims.
///
/// It is written while the victims are still dying; an `oom_outcome` with the same `incident`
/// follows when they are gone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OomKill {
    /// Id of the incident; joins `oom_kill` and `oom_outcome`. Unique over boots.
    pub incident: String,
    /// Whose limit was hit.
    pub scope: Scope,
    /// The kernel's own word for what restricted the allocation (`oc->constraint`).
    pub constraint: Option<Constraint>,
    /// What the kernel printed before "Killed process", as "Memory cgroup out of memory".
    pub message: Option<String>,
    /// How the invocation ended.
    pub outcome: Outcome,
    /// The cgroup whose limit was hit. Null for `node`, `cpuset`, `mempolicy` and `sysrq`.
    pub limit: Option<Limit>,
    /// What the memory charged to the limit owner was made of. All null where the limit owner is
    /// no cgroup: see `node`.
    pub memory: Memory,
    /// Earlier invocations for the same limit that killed nobody and got no event of their own:
    /// of those, one in ten seconds is written.
    pub folded: u64,
    /// Everyone who was killed, in the order of the kills; the chosen victim first.
    pub victims: Vec<Victim>,
    /// Whose allocation failed. Often not the victim.
    pub trigger: Option<Trigger>,
    /// The processes the kernel had to choose from, worst first, at most ten. Read once, after
    /// the decision.
    pub candidates: Vec<Candidate>,
    /// What led up to it. Null if the memory that ran out was not sampled before.
    pub before: Option<Before>,
    /// The node's memory.
    pub node: Node,
    /// What it means and what to do.
    pub verdict: Verdict,
    /// Which hook gave which part of this event, as `"limit": "fentry:oom_kill_process"`.
    pub hooks: BTreeMap<String, String>,
}

impl OomKill {
    /// The victim the kernel chose, or the first one known.
    pub fn chosen(&self) -> Option<&Victim> {
        self.victims
            .iter()
            .find(|victim| victim.role == Role::Chosen)
            .or(self.victims.first())
    }

    /// Victims that were killed and not merely marked.
    pub fn killed(&self) -> impl Iterator<Item = &Victim> {
        self.victims
            .iter()
            .filter(|victim| victim.role != Role::AlreadyExiting)
    }
}

/// Whose limit was hit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// The victim's container, or a cgroup that the workload made inside it.
    Container,
    /// The victim's pod: the sum over its containers, its sandbox and its memory-backed volumes.
    Pod,
    /// The slice of a QoS class (`kubepods-burstable`, `kubepods-besteffort`): many pods together.
    QosSlice,
    /// `kubepods`, the ancestor of every pod: the node's allocatable memory.
    Kubepods,
    /// Any other cgroup: a systemd slice, service or scope, or one made by hand.
    Slice,
    /// The node: no free page was left in the whole machine.
    Node,
    /// The NUMA nodes that the trigger's cpuset allows; others may still have free memory.
    Cpuset,
    /// The NUMA nodes that the trigger's memory policy (mbind, set_mempolicy) allows.
    Mempolicy,
    /// Nobody's: a person or a program asked for a kill (sysrq-f).
    Sysrq,
    /// The kernel did not let us see it.
    #[default]
    Unknown,
}

/// What restricted the allocation that failed (`enum oom_constraint`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Constraint {
    /// Nothing: the whole node.
    None,
    /// A cpuset.
    Cpuset,
    /// A NUMA memory policy.
    MemoryPolicy,
    /// A memory cgroup.
    Memcg,
}

/// How one invocation of the OOM killer ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// SIGKILL was sent.
    #[default]
    Killed,
    /// No process could be killed: all are protected (oom_score_adj -1000) or have no memory. The
    /// allocation fails, or is tried again for ever.
    NothingKillable,
    /// Nobody was chosen: an earlier victim is still dying.
    AbortedVictimDying,
    /// No SIGKILL: the process was dying already and was only marked, to let it use reserves.
    MarkedExiting,
}

/// The cgroup whose limit was hit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Limit {
    /// Its counters at the decision.
    #[serde(flatten)]
    pub level: LimitLevel,
    /// The pod it belongs to. Null above pods and outside Kubernetes.
    pub k8s: Option<K8s>,
    /// The container it belongs to. Null above containers.
    pub container: Option<Container>,
    /// The cgroup that was charged and all its ancestors, leaf first, the limit owner included.
    pub levels: Vec<LimitLevel>,
    /// How the limit owner was found: `oom_control` (the kernel named it to a hook), `oom_lock` (the
    /// kernel had it locked for the kill), `counter_at_max` (inferred: its counter stands at its
    /// limit), `kmsg` (the kernel log names it).
    pub found_by: Option<String>,
}

/// The counters of one memory cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LimitLevel {
    /// The cgroup.
    pub cgroup: Cgroup,
    /// Bytes charged to it and its descendants (`memory.current`).
    pub usage_bytes: Option<u64>,
    /// Its limit (`memory.max`). Null if it has none or it could not be read.
    pub limit_bytes: Option<u64>,
    /// Highest usage so far (`memory.peak`).
    pub watermark_bytes: Option<u64>,
    /// Bytes of swap charged (`memory.swap.current`; on cgroup v1 what `memsw` has beyond memory).
    pub swap_usage_bytes: Option<u64>,
    /// Limit of that (`memory.swap.max`). Null on cgroup v1, which limits no swap by itself.
    pub swap_limit_bytes: Option<u64>,
    /// cgroup v1: memory and swap together (`memory.memsw.usage_in_bytes`).
    pub memsw_usage_bytes: Option<u64>,
    /// cgroup v1: limit of memory and swap together (`memory.memsw.limit_in_bytes`).
    pub memsw_limit_bytes: Option<u64>,
    /// `memory.oom.group`: if true, a kill takes the whole cgroup.
    pub oom_group: Option<bool>,
    /// How often this very cgroup hit its limit, since it was made (`max` of
    /// `memory.events.local`).
    pub max_events: Option<u64>,
    /// How often this very cgroup ran out of memory, since it was made (`oom` of
    /// `memory.events.local`).
    pub oom_events: Option<u64>,
    /// How many of this very cgroup's own processes the OOM killer took (`oom_kill` of
    /// `memory.events.local`).
    pub oom_kill_events: Option<u64>,
}

/// What memory charged to a cgroup is made of, descendants included.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Memory {
    /// Anonymous memory: heap, stacks (`anon`).
    pub anon_bytes: Option<u64>,
    /// Page cache of files on disk: read and written data (`file` without `shmem`).
    pub file_bytes: Option<u64>,
    /// tmpfs (memory-backed emptyDir, /dev/shm), System V and shared anonymous memory (`shmem`).
    /// Not reclaimable without swap.
    pub shmem_bytes: Option<u64>,
    /// Kernel objects that can be given back, as dentries and inodes (`slab_reclaimable`).
    pub slab_reclaimable_bytes: Option<u64>,
    /// Kernel objects that cannot (`slab_unreclaimable`).
    pub slab_unreclaimable_bytes: Option<u64>,
    /// Kernel stacks: 16 KiB a thread on most machines (`kernel_stack`).
    pub kernel_stack_bytes: Option<u64>,
    /// Page tables (`pagetables`, and `sec_pagetables` where the kernel has it).
    pub page_tables_bytes: Option<u64>,
    /// Socket buffers charged to the cgroup (`sock`).
    pub sock_bytes: Option<u64>,
    /// Per-CPU memory (`percpu`).
    pub percpu_bytes: Option<u64>,
    /// vmalloc (`vmalloc`).
    pub vmalloc_bytes: Option<u64>,
    /// Other kernel memory: pipes, BPF, pages of drivers (`kernel` without the parts above). On
    /// cgroup v1, which does not tell the parts, all kernel memory. Null before Linux 5.18.
    pub kernel_other_bytes: Option<u64>,
    /// Bytes in swap: not part of `total_bytes` (v2 `memory.swap.current`).
    pub swap_bytes: Option<u64>,
    /// Bytes charged, which is what the parts are compared with.
    pub total_bytes: Option<u64>,
    /// `total_bytes` less all known parts. Negative if a part grew between the two reads.
    pub unexplained_bytes: Option<i64>,
    /// The chosen victim's anonymous and shared resident memory over `total_bytes`: "the victim
    /// explains N % of it". May exceed 1 where pages are charged elsewhere.
    pub victim_rss_ratio: Option<f64>,
    /// What the parts were read from.
    pub source: Option<MemorySource>,
    /// Time from the decision to the read, µs. The victim may have freed memory within it. 0 if
    /// the kernel program read them itself.
    pub read_delay_us: Option<u64>,
    /// Bytes that were charged when the parts were read: where this is less than `total_bytes`,
    /// victims had given memory back by then, and the parts do not show it.
    pub read_usage_bytes: Option<u64>,
}

/// What the parts of the memory were read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MemorySource {
    /// In the kernel, at the decision.
    Kernel,
    /// `memory.stat` of the limit owner, after the decision: see `read_delay_us`.
    MemoryStat,
    /// The kernel log's report.
    Kmsg,
}

/// One process that was killed or marked.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Victim {
    /// The process.
    pub process: Process,
    /// Its memory cgroup.
    pub cgroup: Option<Cgroup>,
    /// Its pod. Null outside Kubernetes.
    pub k8s: Option<K8s>,
    /// Its container. Null outside containers.
    pub container: Option<Container>,
    /// Why it is a victim.
    pub role: Role,
    /// True if it is the first process of its container: with it the container ends. Null if it
    /// is not known.
    pub container_init: Option<bool>,
    /// When SIGKILL was sent. Null if it was not, or not yet seen.
    pub killed_at: Option<Time>,
    /// When its last thread exited. Null in most `oom_kill` events: see `oom_outcome`.
    pub exited_at: Option<Time>,
    /// When the OOM reaper had freed its memory. Null if it has not, or needed not.
    pub reaped_at: Option<Time>,
}

/// Why a process is a victim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The OOM killer chose it.
    #[default]
    Chosen,
    /// It shares a cgroup with `memory.oom.group` with the chosen one.
    Group,
    /// It shares its address space with the chosen one.
    SharesMm,
    /// It was dying already and was only marked: nobody killed it.
    AlreadyExiting,
}

/// Whose allocation failed, and what it was for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Trigger {
    /// The process.
    pub process: Process,
    /// Its memory cgroup.
    pub cgroup: Option<Cgroup>,
    /// Its pod. Null outside Kubernetes.
    pub k8s: Option<K8s>,
    /// Its container. Null outside containers.
    pub container: Option<Container>,
    /// The allocation was of 2^order pages. -1 for sysrq-f.
    pub order: Option<i32>,
    /// Its allocation flags.
    pub gfp: Option<Gfp>,
    /// What the memory was for, from the kernel stack.
    pub path: AllocPath,
    /// Kernel stack, innermost first. Empty if it was not taken or has no symbols.
    pub stack: Vec<String>,
}

/// One process the kernel had to choose from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Candidate {
    /// The process.
    pub process: Process,
    /// Its memory cgroup.
    pub cgroup: Option<Cgroup>,
    /// Its pod. Null outside Kubernetes.
    pub k8s: Option<K8s>,
    /// Its container. Null outside containers.
    pub container: Option<Container>,
    /// What the kernel compares, in pages: rss, swap and page tables, plus oom_score_adj
    /// thousandths of the memory in scope. Null if the process may not be killed.
    pub points: Option<i64>,
}

/// The node's memory, from `/proc/meminfo` unless said otherwise.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Node {
    /// Usable memory (`MemTotal`).
    pub mem_total_bytes: Option<u64>,
    /// Free pages (`MemFree`).
    pub mem_free_bytes: Option<u64>,
    /// The kernel's estimate of what can be used without swapping (`MemAvailable`).
    pub mem_available_bytes: Option<u64>,
    /// Sum of the zones' `min` watermarks (`/proc/zoneinfo`): below it only the kernel itself and
    /// victims may allocate.
    pub watermark_min_bytes: Option<u64>,
    /// Size of swap (`SwapTotal`); 0 means that there is none.
    pub swap_total_bytes: Option<u64>,
    /// Free swap (`SwapFree`).
    pub swap_free_bytes: Option<u64>,
    /// Anonymous memory of processes (`AnonPages`).
    pub anon_bytes: Option<u64>,
    /// Page cache of files on disk (`Cached` and `Buffers` without `Shmem`).
    pub file_bytes: Option<u64>,
    /// tmpfs and shared memory (`Shmem`).
    pub shmem_bytes: Option<u64>,
    /// Kernel objects that can be given back (`SReclaimable`).
    pub slab_reclaimable_bytes: Option<u64>,
    /// Kernel objects that cannot (`SUnreclaim`).
    pub slab_unreclaimable_bytes: Option<u64>,
    /// Kernel stacks (`KernelStack`).
    pub kernel_stack_bytes: Option<u64>,
    /// Page tables (`PageTables`).
    pub page_tables_bytes: Option<u64>,
    /// Where all of it is, the kernel's own memory by kind and what no counter names. Null unless the
    /// node's memory ran out.
    pub kernel: Option<KernelBalance>,
    /// The biggest slab caches, biggest first. Empty unless the node's memory ran out.
    pub slab_caches: Vec<SlabCache>,
    /// Pressure stall information. Null if the kernel has it off.
    pub psi: Option<Psi>,
    /// Time from the decision to the read, µs: the victim may have freed memory within it.
    pub read_delay_us: Option<u64>,
}

/// Pressure stall information (`/proc/pressure`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Psi {
    /// CPU.
    pub cpu: Option<PsiResource>,
    /// Memory.
    pub memory: Option<PsiResource>,
    /// Block I/O.
    pub io: Option<PsiResource>,
}

/// Pressure on one resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PsiResource {
    /// At least one task was stalled.
    pub some: PsiWindow,
    /// All tasks were stalled at once. Null where the kernel does not give it.
    pub full: Option<PsiWindow>,
}

/// Share of time stalled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PsiWindow {
    /// Over the last 10 s, 0 to 100.
    pub avg10_percent: f64,
    /// Over the last 60 s, 0 to 100.
    pub avg60_percent: f64,
    /// Over the last 300 s, 0 to 100.
    pub avg300_percent: f64,
    /// Since boot, µs.
    pub total_us: u64,
}
