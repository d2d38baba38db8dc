//! Maps and globals, and the counting of what was lost.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
};
use probe_common::{
    layout::{KernelLayout, Settings, deaths},
    limits::{
        BULK_RING_BYTES, CRITICAL_RING_BYTES, DEATH_RING_BYTES, MAX_DULL, MAX_LIMITED, MAX_SENT,
        MAX_STALLING, MAX_WAITING, SCRATCH_LEN,
    },
    wire::{LimitTotals, Loss, Sent, StallKey, StallTotals, Waiting, stall},
};

/// Facts about the running kernel; set and frozen before the programs are loaded.
#[unsafe(no_mangle)]
pub static LAYOUT: KernelLayout = KernelLayout::UNKNOWN;

/// Possible CPUs if per-CPU parts are to be added, else 0. Frozen, so that the verifier walks a loop
/// over them once and not for every number of them.
#[unsafe(no_mangle)]
pub static CPUS: u32 = 0;

/// Which deaths are told: one of [`deaths`]. Frozen, as every process of the node exits, and memory
/// that was not used for a while takes longer to read than all else there is to do.
#[unsafe(no_mangle)]
pub static TOLD_DEATHS: u32 = deaths::OFF;

/// OOM kills and the exits of their victims only, so that no flood can evict them.
#[map]
pub static CRITICAL: RingBuf = RingBuf::with_byte_size(CRITICAL_RING_BYTES, 0);

/// Rates and life cycle.
#[map]
pub static BULK: RingBuf = RingBuf::with_byte_size(BULK_RING_BYTES, 0);

/// Deaths of processes: many at once where a node is drained.
#[map]
pub static DEATHS: RingBuf = RingBuf::with_byte_size(DEATH_RING_BYTES, 0);

/// When the reader of [`DEATHS`] was last woken, ns since boot.
#[map]
pub static LAST_WAKEUP: Array<u64> = Array::with_max_entries(1, 0);

/// Counts by reason of loss.
#[map]
pub static LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(Loss::ALL.len() as u32, 0);

/// Where a record is put together. One slot per [`Slot`], as programs of different slots may
/// interrupt each other on one CPU; a program never interrupts itself.
#[map]
pub static SCRATCH: PerCpuArray<[u8; SCRATCH_LEN]> = PerCpuArray::with_max_entries(8, 0);

/// Slots of [`SCRATCH`].
#[derive(Clone, Copy)]
pub enum Slot {
    /// Programs that run under the kernel's `oom_lock`.
    Oom = 0,
    /// Signals.
    Signal = 1,
    /// Cgroup life cycle, under the kernel's `cgroup_mutex`.
    Cgroup = 2,
    /// Iterators, which run one at a time.
    Iterator = 3,
    /// Limit hits.
    Limit = 4,
    /// Exits.
    Exit = 5,
    /// The OOM reaper.
    Reap = 6,
    /// Reclaim of a memory cgroup.
    Reclaim = 7,
}

/// `oc` of the `out_of_memory()` call in progress, for a return probe that cannot see arguments:
/// `[thread, oc]`. One is enough, as the kernel serialises these calls (`oom_lock`).
#[map]
pub static OOM_CONTROL: Array<[u64; 2]> = Array::with_max_entries(1, 0);

/// Limit hits by kernfs id of the memory cgroup whose limit it is. What oomprobe no longer needs, the
/// daemon removes: evicting what was used least would lose counts without a trace.
#[map]
pub static LIMITS: HashMap<u64, LimitTotals> = HashMap::with_max_entries(MAX_LIMITED, 0);

/// Stalls by memory cgroup and kind; the daemon removes them likewise.
#[map]
pub static STALLS: HashMap<StallKey, StallTotals> = HashMap::with_max_entries(MAX_STALLING, 0);

/// Stalls of the whole node, by kind.
#[map]
pub static NODE_STALLS: PerCpuArray<StallTotals> = PerCpuArray::with_max_entries(stall::COUNT, 0);

/// Stalls that have begun, by thread (upper half of the key) and kind. An end takes its entry out;
/// one whose end was not seen, as the kernel skips a program that would interrupt itself, goes when
/// there is no room.
#[map]
pub static WAITING: LruHashMap<u64, Waiting> = LruHashMap::with_max_entries(MAX_WAITING, 0);

/// Deadly signals and requests to stop that were sent, by process id (upper half of the key) and
/// signal. The exit of the process takes its entries out; those of one whose death is of no interest
/// go when there is no room.
#[map]
pub static SENT: LruHashMap<u64, Sent> = LruHashMap::with_max_entries(MAX_SENT, 0);

/// Memory cgroups whose deaths nobody asked for, by kernfs id. One that is given up for others is
/// reported again, and the daemon puts it back.
#[map]
pub static DULL: LruHashMap<u64, u8> = LruHashMap::with_max_entries(MAX_DULL, 0);

/// What the daemon found out after loading.
#[map]
pub static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);

/// Counts one loss.
#[inline(always)]
pub fn lost(reason: Loss) {
    if let Some(count) = LOST.get_ptr_mut(reason as u32) {
        // SAFETY: the slot is this CPU's own and 8 bytes long.
        unsafe { *count += 1 }
    }
}
