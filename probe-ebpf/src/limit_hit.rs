//! A memory cgroup hit its own `memory.max` or `memory.high`.
//!
//! match-proto: `void __memcg_memory_event(struct mem_cgroup *memcg, enum memcg_memory_event event,
//! bool allow_spinning)` (mm/memcontrol.c). Where the kernel inlines it, the start of the reclaim
//! that follows a hit stands in for it ([`crate::memcg_reclaim`]).
//!
//! Counted is what the kernel counts: `memory_events_local[]`, which `memory.events.local` prints, is
//! read at each hit. However many hits a hook does not see, the next one has them in its count.

use core::mem::zeroed;

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid, generated::bpf_ktime_get_boot_ns},
    macros::{fexit, kprobe},
    programs::{FExitContext, ProbeContext},
};
use probe_common::{
    limits::LIMIT_RECORD_NS,
    wire::{self, LimitTotals, Loss, kind, section, source},
};

use crate::{
    kernel::{Cgroup, Memcg, Probed, Task, layout},
    maps::{BULK, LIMITS, SETTINGS, Slot, lost},
    record::{Record, describe_ids},
};

/// Pages a limit may be away for a charge to have failed for it: a huge page and a batch
/// (`MEMCG_CHARGE_BATCH`).
const CHARGE_PAGES: u64 = 512 + 64;

// At the exit, where the event is in the counter.
#[fexit(function = "__memcg_memory_event")]
fn limit_fx(ctx: FExitContext) -> i32 {
    body(ctx.arg(0), ctx.arg(1), 0, source::FENTRY);
    0
}

#[kprobe(function = "__memcg_memory_event")]
fn limit_kp(ctx: ProbeContext) -> u32 {
    if let (Some(memcg), Some(event)) = (ctx.arg(0), ctx.arg(1)) {
        body(memcg, event, 1, source::KPROBE);
    }
    0
}

/// `pending` is 1 if the event is not in the counter yet.
#[inline(always)]
fn body(memcg: *const u8, event: u32, pending: u64, source: u32) {
    let max = u64::from(event == layout!(MEMCG_MAX));
    let high = u64::from(event == layout!(MEMCG_HIGH));
    if max + high == 0 {
        return;
    }
    let Some(memcg) = Memcg::<Probed>::new(memcg) else {
        return;
    };
    let Some(id) = memcg.id() else { return };
    let read = Counters::read(memcg);
    let counters = Counters {
        max: read.max + max * pending,
        high: read.high + high * pending,
    };
    let before = || Counters {
        max: counters.max.saturating_sub(max),
        high: counters.high.saturating_sub(high),
    };
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    if count(id, counters, before, now) == Hit::Due {
        report(memcg, id, source);
    }
}

/// Whether a program of this signal is attached; else the start of a reclaim is to look for hits.
#[inline(always)]
pub fn is_hooked() -> bool {
    SETTINGS
        .get(0)
        .is_some_and(|settings| settings.has_limit_hit != 0)
}

/// The kernel's counts of a memory cgroup.
#[derive(Clone, Copy)]
pub struct Counters {
    max: u64,
    high: u64,
}

impl Counters {
    #[inline(always)]
    pub fn read(memcg: Memcg<Probed>) -> Self {
        let offset = layout!(mem_cgroup__local_high);
        if layout!(mem_cgroup__local_max) == offset.wrapping_add(8) {
            // Neighbours on all kernels so far: one read, as each costs.
            let [high, max] = memcg.field(offset).unwrap_or([0u64; 2]);
            return Self { max, high };
        }
        Self {
            max: memcg.local_max().unwrap_or(0),
            high: memcg.local_high().unwrap_or(0),
        }
    }

    /// Whether any hit was ever counted.
    #[inline(always)]
    pub fn any(self) -> bool {
        self.max | self.high != 0
    }

    /// What they were before the hit that a reclaim of `memcg` starts for.
    #[inline(always)]
    pub fn before_reclaim(self, memcg: Memcg<Probed>) -> Self {
        let of_high = self.max == 0 || (self.high != 0 && !is_at(memcg, memcg.max()));
        Self {
            max: self.max - u64::from(!of_high),
            high: self.high - u64::from(of_high),
        }
    }

    /// Likewise if the reclaim may be for another cgroup: then only if `memcg` is at a limit.
    #[inline(always)]
    pub fn before_any_reclaim(self, memcg: Memcg<Probed>) -> Self {
        if is_at(memcg, memcg.max()) || is_at(memcg, memcg.high()) {
            self.before_reclaim(memcg)
        } else {
            self
        }
    }
}

#[inline(always)]
fn is_at(memcg: Memcg<Probed>, limit_pages: Option<u64>) -> bool {
    memcg.usage().unwrap_or(0) + CHARGE_PAGES > limit_pages.unwrap_or(u64::MAX)
}

/// What [`count`] made of the counters.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Hit {
    /// No hit since they were last looked at.
    None,
    /// A hit.
    Counted,
    /// A hit, and it is time for a record.
    Due,
}

/// Takes in the counters of the memory cgroup `id`. `before` gives what they were before the hit, if
/// this cgroup is seen for the first time; it is asked only if any of them is above 0.
#[inline(always)]
pub fn count(id: u64, counters: Counters, before: impl FnOnce() -> Counters, now: u64) -> Hit {
    if !counters.any() {
        return Hit::None;
    }
    let totals = match LIMITS.get_ptr_mut(id) {
        Some(totals) => totals,
        None => {
            let before = before();
            // SAFETY: all-zero is a valid value (integers only).
            let mut first: LimitTotals = unsafe { zeroed() };
            (first.max, first.max_before) = (before.max, before.max);
            (first.high, first.high_before) = (before.high, before.high);
            // Refused if another CPU was faster: its entry is as good.
            let _ = LIMITS.insert(id, first, u64::from(BPF_NOEXIST));
            let Some(totals) = LIMITS.get_ptr_mut(id) else {
                lost(Loss::MemcgMapFull);
                return Hit::None;
            };
            totals
        }
    };
    let thread = bpf_get_current_pid_tgid();
    // SAFETY: a value of the map. Other CPUs may write it too: the counters only grow, and of two
    // last triggers either will do.
    unsafe {
        if counters.max <= (*totals).max && counters.high <= (*totals).high {
            return Hit::None;
        }
        // Another CPU may have read either later and been faster.
        (*totals).max = counters.max.max((*totals).max);
        (*totals).high = counters.high.max((*totals).high);
        (*totals).last_boot_ns = now;
        if (*totals).last_tid != thread as u32 {
            (*totals).last_tid = thread as u32;
            (*totals).last_pid = (thread >> 32) as u32;
            (*totals).last_comm = bpf_get_current_comm().unwrap_or_default();
        }
        if (*totals).first_boot_ns == 0 {
            (*totals).first_boot_ns = now;
        } else if now < (*totals).record_boot_ns + LIMIT_RECORD_NS {
            return Hit::Counted;
        }
        (*totals).record_boot_ns = now;
    }
    Hit::Due
}

/// Writes a record of the hit that was just counted.
#[inline(always)]
pub fn report(memcg: Memcg<Probed>, id: u64, source: u32) {
    let Some((record, out)) = Record::new::<wire::LimitHit>(Slot::Limit, kind::LIMIT_HIT, source)
    else {
        return;
    };
    let cgroup = memcg.cgroup();
    out.memcg_id = id;
    out.hierarchy = cgroup.and_then(Cgroup::hierarchy_id).unwrap_or(-1) as u32;
    out.usage_pages = memcg.usage().unwrap_or(0);
    out.max_pages = memcg.max().unwrap_or(u64::MAX);
    out.high_pages = memcg.high().unwrap_or(u64::MAX);
    // SAFETY: the value is only copied.
    if let Some(totals) = unsafe { LIMITS.get(id) } {
        out.totals = *totals;
    }
    if let Some(trigger) = Task::<Probed>::current() {
        describe_ids(trigger, &mut out.trigger);
    }
    record.path(section::LIMIT_PATH, cgroup.and_then(Cgroup::kn));
    record.send(&BULK, Loss::BulkRingFull);
}
