//! How long tasks wait for memory: direct reclaim, compaction, `memory.high`; and kswapd.
//!
//! match-proto: tracepoints `mm_vmscan_direct_reclaim_begin(…)`,
//! `mm_vmscan_direct_reclaim_end(unsigned long nr_reclaimed, …)`, `mm_vmscan_kswapd_wake(int nid,
//! …)`, `mm_vmscan_kswapd_sleep(int nid)` (include/trace/events/vmscan.h), `mm_compaction_begin(…)`,
//! `mm_compaction_end(…)` (include/trace/events/compaction.h), all in the task that waits;
//! `void __mem_cgroup_handle_over_high(gfp_t gfp_mask)`, before 6.18
//! `mem_cgroup_handle_over_high` (mm/memcontrol.c).

use core::mem::zeroed;

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::{bpf_get_current_pid_tgid, generated::bpf_ktime_get_boot_ns},
    macros::{fentry, fexit, kprobe, kretprobe, raw_tracepoint},
    programs::{FEntryContext, FExitContext, ProbeContext, RawTracePointContext, RetProbeContext},
};
use probe_common::{
    limits::STALL_BUCKETS,
    wire::{
        Loss, StallKey, StallTotals, Waiting,
        stall::{COMPACTION, DIRECT_RECLAIM, HIGH_THROTTLE, KSWAPD, MEMCG_RECLAIM, REFAULT_WAIT},
    },
};

use crate::{
    atomic,
    kernel::{Probed, Task},
    maps::{NODE_STALLS, SETTINGS, STALLS, WAITING, lost},
};

/// `task_struct.flags` of a kernel thread (include/linux/sched.h).
const PF_KTHREAD: u32 = 0x0020_0000;

#[raw_tracepoint(tracepoint = "mm_vmscan_direct_reclaim_begin")]
fn direct_rt(_: RawTracePointContext) -> i32 {
    begin(DIRECT_RECLAIM, 0, now());
    0
}

#[raw_tracepoint(tracepoint = "mm_vmscan_direct_reclaim_end")]
fn direct_end_rt(ctx: RawTracePointContext) -> i32 {
    end(DIRECT_RECLAIM, ctx.arg(0));
    0
}

#[raw_tracepoint(tracepoint = "mm_compaction_begin")]
fn compact_rt(_: RawTracePointContext) -> i32 {
    // Nobody waits for kcompactd.
    if !is_kernel_thread() {
        begin(COMPACTION, 0, now());
    }
    0
}

#[raw_tracepoint(tracepoint = "mm_compaction_end")]
fn compact_end_rt(_: RawTracePointContext) -> i32 {
    end(COMPACTION, 0);
    0
}

#[raw_tracepoint(tracepoint = "mm_vmscan_kswapd_wake")]
fn kswapd_rt(_: RawTracePointContext) -> i32 {
    // It fires for each round until kswapd sleeps, which may be hours: each round counts.
    end(KSWAPD, 0);
    begin(KSWAPD, 0, now());
    0
}

#[raw_tracepoint(tracepoint = "mm_vmscan_kswapd_sleep")]
fn kswapd_end_rt(_: RawTracePointContext) -> i32 {
    end(KSWAPD, 0);
    0
}

#[fentry(function = "__mem_cgroup_handle_over_high")]
fn high_fe(_: FEntryContext) -> i32 {
    begin_high();
    0
}

#[fexit(function = "__mem_cgroup_handle_over_high")]
fn high_fx(_: FExitContext) -> i32 {
    end(HIGH_THROTTLE, 0);
    0
}

#[kprobe(function = "__mem_cgroup_handle_over_high")]
fn high_kp(_: ProbeContext) -> u32 {
    begin_high();
    0
}

#[kretprobe(function = "__mem_cgroup_handle_over_high")]
fn high_kr(_: RetProbeContext) -> u32 {
    end(HIGH_THROTTLE, 0);
    0
}

/// Older kernels enter it at many a return to user mode, mostly for nothing.
#[inline(always)]
fn begin_high() {
    let over = Task::<Probed>::current().and_then(Task::memcg_nr_pages_over_high);
    if over.is_some_and(|pages| pages > 0) {
        begin(HIGH_THROTTLE, 0, now());
    }
}

/// The current task starts to wait. `memcg_id` is 0 if its own memory cgroup is meant.
#[inline(always)]
pub fn begin(kind: u32, memcg_id: u64, since_boot_ns: u64) {
    if stalls_nest() {
        // Whatever the task is in, it does not wait for a page to be read back.
        let _ = WAITING.remove(key(REFAULT_WAIT));
    }
    let waiting = Waiting {
        since_boot_ns,
        memcg_id,
    };
    if WAITING.insert(key(kind), waiting, 0).is_err() {
        lost(Loss::StallMapFull);
    }
}

/// The current task goes on. If it was waiting before the programs were attached, that is not
/// counted.
#[inline(always)]
pub fn end(kind: u32, reclaimed_pages: u64) {
    let own = key(kind);
    // SAFETY: the value is only copied; only this thread removes it.
    let Some(&Waiting {
        since_boot_ns,
        memcg_id,
    }) = (unsafe { WAITING.get(own) })
    else {
        return;
    };
    let _ = WAITING.remove(own);
    let ns = now().saturating_sub(since_boot_ns);
    if kind == MEMCG_RECLAIM
        && stalls_nest()
        && let Some(around) = WAITING.get_ptr_mut(key(HIGH_THROTTLE))
    {
        // Over `memory.high` a task reclaims before it sleeps: no time is counted twice.
        // SAFETY: a value of the map, of this thread.
        unsafe { (*around).since_boot_ns += ns }
    }
    add_up(kind, memcg_id, ns, reclaimed_pages);
}

/// Counts a stall of the current task. `memcg_id` is 0 if its own memory cgroup is meant.
#[inline(always)]
pub fn add_up(kind: u32, memcg_id: u64, ns: u64, reclaimed_pages: u64) {
    if let Some(totals) = NODE_STALLS.get_ptr_mut(kind) {
        add(totals, ns, reclaimed_pages);
    }
    if kind == KSWAPD {
        return;
    }
    let own = || Task::<Probed>::current()?.memory_css()?.memcg()?.id();
    let Some(memcg_id) = (if memcg_id == 0 { own() } else { Some(memcg_id) }) else {
        return;
    };
    let key = StallKey {
        memcg_id,
        kind,
        pad: 0,
    };
    if let Some(totals) = totals(key) {
        add(totals, ns, reclaimed_pages);
    } else {
        lost(Loss::MemcgMapFull);
    }
}

#[inline(always)]
fn totals(key: StallKey) -> Option<*mut StallTotals> {
    if let Some(totals) = STALLS.get_ptr_mut(key) {
        return Some(totals);
    }
    // SAFETY: all-zero is a valid value (integers only).
    let first: StallTotals = unsafe { zeroed() };
    // Refused if another CPU was faster: its entry is as good.
    let _ = STALLS.insert(key, first, u64::from(BPF_NOEXIST));
    STALLS.get_ptr_mut(key)
}

#[inline(always)]
fn add(totals: *mut StallTotals, ns: u64, reclaimed_pages: u64) {
    let us = ns / 1000;
    let bucket = (63 - (us | 1).leading_zeros() as usize).min(STALL_BUCKETS - 1);
    // SAFETY: a value of a map. Other CPUs may write it at the same time: counts are added
    // atomically, and the longest may lose to another that was nearly as long.
    unsafe {
        atomic::add(&raw mut (*totals).total_ns, ns);
        atomic::add((&raw mut (*totals).histogram).cast::<u64>().add(bucket), 1);
        if reclaimed_pages != 0 {
            atomic::add(&raw mut (*totals).reclaimed_pages, reclaimed_pages);
        }
        if ns > (*totals).longest_ns {
            (*totals).longest_ns = ns;
        }
    }
}

/// Whether a hook is attached whose stalls may lie in others, or have others inside.
#[inline(always)]
fn stalls_nest() -> bool {
    SETTINGS
        .get(0)
        .is_some_and(|settings| settings.stalls_nest != 0)
}

#[inline(always)]
pub fn is_kernel_thread() -> bool {
    let flags = Task::<Probed>::current().and_then(Task::flags);
    flags.is_none_or(|flags| flags & PF_KTHREAD != 0)
}

/// The current thread's key in [`WAITING`].
#[inline(always)]
pub fn key(kind: u32) -> u64 {
    bpf_get_current_pid_tgid() << 32 | u64::from(kind)
}

#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_boot_ns() }
}
