//! One look at a memory cgroup or at the node.

use crate::node::{
    ParseError,
    memcg::{MemoryStat, ReclaimCounters, Version},
};

/// A memory cgroup at one moment. Bytes; counters are since it was made. `None` is what this
/// kernel does not tell, or what a cheap look leaves out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CgroupSample {
    /// `CLOCK_BOOTTIME`, ns.
    pub boot_ns: u64,
    /// `memory.current`, `memory.usage_in_bytes`. With descendants, as all bytes here.
    pub usage_bytes: u64,
    /// What a full look adds.
    pub detail: Option<Detail>,
}

/// What `memory.stat`, `memory.events` and `memory.pressure` add.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Detail {
    /// `anon`.
    pub anon_bytes: u64,
    /// `file` without `shmem`.
    pub file_bytes: u64,
    /// `shmem`.
    pub shmem_bytes: u64,
    /// `file_dirty` and `file_writeback` together.
    pub file_dirty_bytes: Option<u64>,
    /// `inactive_file`: page cache that is given up first; usage less this is the working set.
    pub inactive_file_bytes: Option<u64>,
    /// `slab_reclaimable`.
    pub slab_reclaimable_bytes: Option<u64>,
    /// `slab_unreclaimable`.
    pub slab_unreclaimable_bytes: Option<u64>,
    /// All kernel memory, slab included.
    pub kernel_bytes: Option<u64>,
    /// `sock`.
    pub sock_bytes: Option<u64>,
    /// `memory.swap.current`, v1 `total_swap`.
    pub swap_bytes: Option<u64>,
    /// `max` of `memory.events.local`; on v1 hits since oomprobe was attached where a hook counts
    /// them, else `memory.failcnt`.
    pub max_events: Option<u64>,
    /// `high` of `memory.events.local`.
    pub high_events: Option<u64>,
    /// `low` of `memory.events.local`.
    pub low_events: Option<u64>,
    /// `oom_kill` of `memory.events`.
    pub oom_kill_events: Option<u64>,
    /// `workingset_refault_anon`, pages (5.9).
    pub refault_anon: Option<u64>,
    /// `workingset_refault_file`, pages (5.9; before, of both sorts).
    pub refault_file: Option<u64>,
    /// `pgscan`, pages.
    pub pgscan: Option<u64>,
    /// `pgsteal`, pages.
    pub pgsteal: Option<u64>,
    /// `pgmajfault`.
    pub pgmajfault: Option<u64>,
    /// `total` of `some` in `memory.pressure`, µs.
    pub psi_some_us: Option<u64>,
    /// `total` of `full` in `memory.pressure`, µs.
    pub psi_full_us: Option<u64>,
    /// `total` of `full` in `io.pressure`, µs.
    pub io_psi_full_us: Option<u64>,
}

impl Detail {
    /// What `memory.stat` tells of it.
    pub fn of_stat(version: Version, content: &[u8]) -> Result<Self, ParseError> {
        let stat = MemoryStat::parse(version, content)?;
        let reclaim = ReclaimCounters::parse(version, content)?;
        let shmem_bytes = stat.shmem_bytes.unwrap_or(0);
        Ok(Self {
            anon_bytes: stat.anon_bytes.unwrap_or(0),
            file_bytes: stat.file_bytes.unwrap_or(0).saturating_sub(shmem_bytes),
            shmem_bytes,
            file_dirty_bytes: stat
                .file_dirty_bytes
                .zip(stat.file_writeback_bytes)
                .map(|(dirty, writeback)| dirty.saturating_add(writeback)),
            inactive_file_bytes: stat.inactive_file_bytes,
            slab_reclaimable_bytes: stat.slab_reclaimable_bytes,
            slab_unreclaimable_bytes: stat.slab_unreclaimable_bytes,
            kernel_bytes: stat.kernel_bytes,
            sock_bytes: stat.sock_bytes,
            swap_bytes: stat.swap_bytes,
            refault_anon: reclaim.refault_anon,
            refault_file: reclaim.refault_file,
            pgscan: reclaim.pgscan,
            pgsteal: reclaim.pgsteal,
            pgmajfault: reclaim.pgmajfault,
            ..Self::default()
        })
    }
}

/// What holds for a memory cgroup between two looks: it changes only when somebody writes to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The tightest hard limit on the way to the root, its own included.
    pub max_bytes: Option<u64>,
    /// Its own `memory.max`.
    pub own_max_bytes: Option<u64>,
    /// Its own `memory.high`.
    pub high_bytes: Option<u64>,
    /// Its own `memory.low`.
    pub low_bytes: Option<u64>,
    /// Its own `memory.min`.
    pub min_bytes: Option<u64>,
}

/// The node at one moment. Bytes from `/proc/meminfo`, counters since boot from `/proc/vmstat`,
/// stalls from `/proc/pressure`. `None` is what this kernel does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeSample {
    /// `CLOCK_BOOTTIME`, ns.
    pub boot_ns: u64,
    /// `MemTotal`.
    pub total_bytes: u64,
    /// `MemAvailable`.
    pub available_bytes: Option<u64>,
    /// `MemFree`.
    pub free_bytes: Option<u64>,
    /// `AnonPages`.
    pub anon_bytes: Option<u64>,
    /// `Cached` and `Buffers` without `Shmem`.
    pub file_bytes: Option<u64>,
    /// `Shmem`.
    pub shmem_bytes: Option<u64>,
    /// `Dirty` and `Writeback` together.
    pub dirty_bytes: Option<u64>,
    /// `SReclaimable`.
    pub slab_reclaimable_bytes: Option<u64>,
    /// `SUnreclaim`.
    pub slab_unreclaimable_bytes: Option<u64>,
    /// `SwapTotal`.
    pub swap_total_bytes: Option<u64>,
    /// `SwapFree`.
    pub swap_free_bytes: Option<u64>,
    /// `Committed_AS`.
    pub committed_bytes: Option<u64>,
    /// `CommitLimit`: binding only with `vm.overcommit_memory=2`.
    pub commit_limit_bytes: Option<u64>,
    /// `pgscan_kswapd`, pages.
    pub pgscan_kswapd: Option<u64>,
    /// `pgscan_direct`, pages.
    pub pgscan_direct: Option<u64>,
    /// `pgsteal_kswapd` and `pgsteal_direct` together, pages.
    pub pgsteal: Option<u64>,
    /// `allocstall_*` together: entries into direct reclaim.
    pub allocstall: Option<u64>,
    /// `workingset_refault_anon`, pages.
    pub refault_anon: Option<u64>,
    /// `workingset_refault_file`, pages.
    pub refault_file: Option<u64>,
    /// `pswpin`, pages.
    pub pswpin: Option<u64>,
    /// `pswpout`, pages.
    pub pswpout: Option<u64>,
    /// `compact_stall`.
    pub compact_stall: Option<u64>,
    /// `pgmajfault`.
    pub pgmajfault: Option<u64>,
    /// `oom_kill`.
    pub oom_kill: Option<u64>,
    /// `total` of `some`, µs: cpu, memory, io. `None` if PSI is disabled.
    pub psi_some_us: [Option<u64>; 3],
    /// `total` of `full`, µs: cpu, memory, io.
    pub psi_full_us: [Option<u64>; 3],
}
