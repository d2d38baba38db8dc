//! Waits for a page that had been reclaimed too early: swap-in, and files read back.
//!
//! match-proto: `void psi_memstall_enter(unsigned long *flags)`, `void
//! psi_memstall_leave(unsigned long *flags)` (kernel/sched/psi.c), called by a task for itself
//! around everything that the kernel takes for waiting for memory. What is left when the other
//! kinds of stall are taken away is this one, throttling of the I/O that swaps included.
//!
//! Sections nest. `*flags` tells the outermost one, but only once `psi_memstall_enter` has run, and
//! never where PSI is switched off at run time; its address is the section's own as long as it
//! lasts.

use aya_ebpf::{
    macros::{fentry, kprobe},
    programs::{FEntryContext, ProbeContext},
};
use probe_common::wire::{
    Loss, Waiting,
    stall::{HIGH_THROTTLE, MEMCG_RECLAIM, REFAULT_WAIT},
};

use crate::{
    kernel::{Access as _, Probed},
    maps::{WAITING, lost},
    stall::{add_up, is_kernel_thread, key, now},
};

#[fentry(function = "psi_memstall_enter")]
fn memstall_fe(ctx: FEntryContext) -> i32 {
    enter(ctx.arg(0));
    0
}

#[fentry(function = "psi_memstall_leave")]
fn memstall_end_fe(ctx: FEntryContext) -> i32 {
    leave(ctx.arg(0));
    0
}

#[kprobe(function = "psi_memstall_enter")]
fn memstall_kp(ctx: ProbeContext) -> u32 {
    if let Some(flags) = ctx.arg(0) {
        enter(flags);
    }
    0
}

#[kprobe(function = "psi_memstall_leave")]
fn memstall_end_kp(ctx: ProbeContext) -> u32 {
    if let Some(flags) = ctx.arg(0) {
        leave(flags);
    }
    0
}

#[inline(always)]
fn enter(flags: *const u8) {
    // Nobody waits for kswapd, kcompactd and the like.
    if is_kernel_thread() {
        return;
    }
    let section = flags as u64;
    let key = key(REFAULT_WAIT);
    // SAFETY: the value is only looked at; only this thread removes it.
    let begun = unsafe { WAITING.get(key) };
    // Inside another section; or the end of that was missed, then the next end finds it out. The
    // same section cannot begin twice: its end was missed for sure.
    if begun.is_some_and(|begun| begun.memcg_id != section) {
        return;
    }
    let waiting = Waiting {
        since_boot_ns: now(),
        memcg_id: section,
    };
    if WAITING.insert(key, waiting, 0).is_err() {
        lost(Loss::StallMapFull);
    }
}

#[inline(always)]
fn leave(flags: *const u8) {
    // SAFETY: any address may be probed.
    let is_nested = unsafe { Probed::load::<u64>(flags) } != 0;
    if is_nested {
        return;
    }
    let own = key(REFAULT_WAIT);
    // SAFETY: the value is only copied; only this thread removes it. Gone if another kind of stall
    // began inside the section.
    let Some(&begun) = (unsafe { WAITING.get(own) }) else {
        return;
    };
    let _ = WAITING.remove(own);
    let is_around = |kind| WAITING.get_ptr(key(kind)).is_some();
    if begun.memcg_id == flags as u64 && !is_around(HIGH_THROTTLE) && !is_around(MEMCG_RECLAIM) {
        let ns = now().saturating_sub(begun.since_boot_ns);
        add_up(REFAULT_WAIT, 0, ns, 0);
    }
}
