//! Reclaim of a memory cgroup: how long tasks wait at a limit, and whose limit it is.
//!
//! match-proto: `unsigned long try_to_free_mem_cgroup_pages(struct mem_cgroup *memcg, …)`
//! (mm/vmscan.c) and the tracepoints inside it: `mm_vmscan_memcg_reclaim_begin(gfp_t gfp_flags,
//! int order, struct mem_cgroup *memcg)`, older kernels `(int order, gfp_t gfp_flags)`;
//! `mm_vmscan_memcg_reclaim_end(unsigned long nr_reclaimed, …)` (include/trace/events/vmscan.h).
//!
//! The kernel counts a hit just before it reclaims for it. Where nothing else reports hits, the
//! counters are looked at here. A reclaim that userspace asked for (`memory.reclaim`, a lowered
//! limit) moves none; only if it is the first of a cgroup that hit its limit before oomprobe came,
//! the last of these hits is taken for a new one.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::{
    helpers::generated::bpf_ktime_get_boot_ns,
    macros::{fentry, kprobe, raw_tracepoint},
    programs::{FEntryContext, ProbeContext, RawTracePointContext},
};
use probe_common::{
    limits::MAX_LIMIT_LEVELS,
    wire::{source, stall::MEMCG_RECLAIM},
};

use crate::{
    kernel::{Memcg, Probed, Task},
    limit_hit::{Counters, Hit, count, is_hooked, report},
    maps::{SCRATCH, Slot},
    stall,
};

#[raw_tracepoint(tracepoint = "mm_vmscan_memcg_reclaim_begin")]
fn mreclaim_rt(ctx: RawTracePointContext) -> i32 {
    begin(ctx.arg(2), source::RAW_TP);
    0
}

#[fentry(function = "try_to_free_mem_cgroup_pages")]
fn mreclaim_fe(ctx: FEntryContext) -> i32 {
    begin(ctx.arg(0), source::FENTRY);
    0
}

#[kprobe(function = "try_to_free_mem_cgroup_pages")]
fn mreclaim_kp(ctx: ProbeContext) -> u32 {
    if let Some(memcg) = ctx.arg(0) {
        begin(memcg, source::KPROBE);
    }
    0
}

#[raw_tracepoint(tracepoint = "mm_vmscan_memcg_reclaim_begin")]
fn mreclaim_any_rt(_: RawTracePointContext) -> i32 {
    begin_somewhere(source::RAW_TP);
    0
}

#[raw_tracepoint(tracepoint = "mm_vmscan_memcg_reclaim_end")]
fn mreclaim_end_rt(ctx: RawTracePointContext) -> i32 {
    stall::end(MEMCG_RECLAIM, ctx.arg(0));
    0
}

#[inline(always)]
fn begin(memcg: *const u8, source: u32) {
    let Some(memcg) = Memcg::<Probed>::new(memcg) else {
        return;
    };
    let Some(id) = memcg.id() else { return };
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    if !is_hooked() {
        let counters = Counters::read(memcg);
        if count(id, counters, || counters.before_reclaim(memcg), now) == Hit::Due {
            report(memcg, id, source);
        }
    }
    begin_stall(id, now);
}

/// Nobody waits for khugepaged, which collapses pages for a memory cgroup and reclaims for it, nor for
/// the worker that `memory.high` leaves work to.
#[inline(always)]
fn begin_stall(memcg_id: u64, now: u64) {
    if !stall::is_kernel_thread() {
        stall::begin(MEMCG_RECLAIM, memcg_id, now);
    }
}

/// What [`begin_somewhere`] finds on its way up: kernfs ids, and a `struct mem_cgroup` whose record
/// is due; 0 for none.
struct Found {
    moved: u64,
    likely: u64,
    due: u64,
}

/// Without being told whose limit it is: the task's own memory cgroup or one above, that whose
/// counters have moved. If another task was faster and has counted this hit with its own, the
/// lowest that ever hit its limit.
#[inline(always)]
fn begin_somewhere(source: u32) {
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    // In the buffer, from where it is any number to the verifier: else all that may have been found
    // further down is walked again at each level (see `Record`).
    let Some(found) = SCRATCH.get_ptr_mut(Slot::Reclaim as u32) else {
        return;
    };
    let found = found.cast::<Found>();
    let mut memcg = Task::<Probed>::current()
        .and_then(Task::memory_css)
        .and_then(|css| css.memcg());
    if is_hooked() {
        memcg = None;
    }
    // SAFETY: the buffer is larger, aligned, and this CPU's own while the program runs.
    let (memcg_id, due) = unsafe {
        write_volatile(
            found,
            Found {
                moved: 0,
                likely: 0,
                due: 0,
            },
        );
        for _ in 0..MAX_LIMIT_LEVELS {
            let Some(this) = memcg else { break };
            look_at(this, now, found);
            memcg = this.parent();
        }
        let found = read_volatile(found);
        let memcg_id = if found.moved != 0 {
            found.moved
        } else {
            found.likely
        };
        (memcg_id, Memcg::<Probed>::new(found.due as *const u8))
    };
    begin_stall(memcg_id, now);
    if let Some(memcg) = due {
        report(memcg, memcg.id().unwrap_or(0), source);
    }
}

/// # Safety
/// `found` is valid.
#[inline(always)]
unsafe fn look_at(memcg: Memcg<Probed>, now: u64, found: *mut Found) {
    let counters = Counters::read(memcg);
    // Most never hit a limit.
    if !counters.any() {
        return;
    }
    let id = memcg.id().unwrap_or(0);
    let hit = count(id, counters, || counters.before_any_reclaim(memcg), now);
    // SAFETY: the caller's.
    unsafe {
        if read_volatile(&raw const (*found).likely) == 0 {
            write_volatile(&raw mut (*found).likely, id);
        }
        if hit != Hit::None && read_volatile(&raw const (*found).moved) == 0 {
            write_volatile(&raw mut (*found).moved, id);
        }
        if hit == Hit::Due {
            write_volatile(&raw mut (*found).due, memcg.address() as u64);
        }
    }
}
