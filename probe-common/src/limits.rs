//! Bounds that both sides rely on: buffer sizes, depths, map sizes.

/// Bytes of `task_struct::comm` (`TASK_COMM_LEN`, include/linux/sched.h).
pub const COMM_LEN: usize = 16;

/// Cgroup levels recorded from a leaf towards the root; deeper paths are flagged as truncated.
pub const MAX_CGROUP_DEPTH: usize = 16;

/// Longest cgroup directory name (`NAME_MAX`) plus its terminating NUL.
pub const CGROUP_NAME_LEN: usize = 256;

/// Bytes of cgroup names in one path section; a path that reaches it is flagged as truncated.
pub const CGROUP_PATH_LEN: usize = 1024;

/// Ancestors of the charged memcg whose page counters are recorded at a kill.
pub const MAX_LIMIT_LEVELS: usize = 12;

/// Frames of the trigger's kernel stack.
pub const MAX_STACK_FRAMES: usize = 48;

/// Bytes of the message the kernel prints with a kill ("Memory cgroup out of memory", …).
pub const MESSAGE_LEN: usize = 64;

/// Most bytes of a victim's arguments. A power of two: it bounds a length by a mask.
pub const ARGUMENTS_LEN: usize = 1024;

/// Most possible CPUs for which the per-CPU parts are added to an rss counter inside BPF.
pub const MAX_RSS_CPUS: u32 = 128;

/// Bytes of one per-CPU scratch buffer in which a record is put together.
///
/// A section may start in the first half only and is shorter than the second half: one mask then
/// proves every write in bounds.
pub const SCRATCH_LEN: usize = 8192;

/// At least so many entries of an LRU map for each possible CPU: twice what a CPU may keep for itself
/// (`LOCAL_FREE_TARGET`, kernel/bpf/bpf_lru_list.c).
pub const LRU_ENTRIES_PER_CPU: u32 = 256;

/// Processes whose death is being watched because the OOM killer chose them.
pub const MAX_VICTIMS: u32 = 4096;

/// Bytes of the ring that carries kills; nothing that can flood is written to it.
pub const CRITICAL_RING_BYTES: u32 = 1 << 19;

/// Bytes of the ring that carries rates and cgroup life cycle.
pub const BULK_RING_BYTES: u32 = 1 << 18;

/// Bytes of the ring that carries deaths.
pub const DEATH_RING_BYTES: u32 = 1 << 19;

/// Shortest time between two wake-ups of the reader of deaths for plain exits, ns, unless their ring
/// fills up. The reader has to look again by itself later than that.
pub const DEATH_WAKEUP_NS: u64 = 50_000_000;

/// Signals remembered until the process that got them ends.
pub const MAX_SENT: u32 = 4096;

/// Cgroups known to be of no interest to those who follow deaths.
pub const MAX_DULL: u32 = 8192;

/// Signals recorded with a death.
pub const MAX_SIGNALS: usize = 3;

/// Memory cgroups whose limit hits are counted.
pub const MAX_LIMITED: u32 = 4096;

/// Pairs of memory cgroup and [`crate::wire::stall`] whose durations are counted.
pub const MAX_STALLING: u32 = 8192;

/// Tasks that may wait at the same time.
pub const MAX_WAITING: u32 = 8192;

/// Counters of [`crate::wire::StallTotals::histogram`]: up to a second, and longer.
pub const STALL_BUCKETS: usize = 20;

/// Shortest time between two `LIMIT_HIT` records of one memory cgroup, ns.
pub const LIMIT_RECORD_NS: u64 = 1_000_000_000;
