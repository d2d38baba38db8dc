//! Processes whose exit is told because the OOM killer, or a SIGKILL of the kernel's, is to end them.

use core::ptr::NonNull;

use aya_ebpf::{
    helpers::bpf_get_current_pid_tgid,
    macros::map,
    maps::{Array, LruHashMap},
};
use probe_common::{limits::MAX_VICTIMS, wire::Loss};

use crate::{atomic, maps::lost};

/// Start times by process id; least recently used are given up first.
#[map]
static VICTIMS: LruHashMap<u32, u64> = LruHashMap::with_max_entries(MAX_VICTIMS, 0);

/// How many [`VICTIMS`] there are, or some more: every process of the node exits, and most often there
/// are none, which this tells for much less than a look into the map costs.
#[map]
static VICTIM_COUNT: Array<u64> = Array::with_max_entries(1, 0);

/// Follows a process.
#[inline(always)]
pub fn follow(pid: u32, start_boot_ns: u64) {
    if VICTIMS.get_ptr(pid).is_none() {
        count(1);
    }
    if VICTIMS.insert(pid, start_boot_ns, 0).is_err() {
        lost(Loss::VictimMapFull);
    }
}

/// The start time of the current process, if it is followed.
///
/// A pointer that is never null, so that none of it is a null pointer: of any other `Option` the value
/// of none is undefined, which verifiers up to 6.1 do not let be spilled.
#[inline(always)]
pub fn current_start_boot_ns() -> Option<NonNull<u64>> {
    // SAFETY: a value of the map.
    let some = VICTIM_COUNT
        .get_ptr(0)
        .is_some_and(|count| unsafe { *count } != 0);
    if some {
        let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
        VICTIMS
            .get_ptr(pid)
            .and_then(|start| NonNull::new(start.cast_mut()))
    } else {
        None
    }
}

/// Forgets a process.
#[inline(always)]
pub fn forget(pid: u32) {
    if VICTIMS.remove(pid).is_ok() {
        count(u64::MAX);
    }
}

/// Adds to the count; modulo 2^64, as the kernel's addition is.
#[inline(always)]
fn count(change: u64) {
    if let Some(count) = VICTIM_COUNT.get_ptr_mut(0) {
        // SAFETY: a value of the map.
        unsafe { atomic::add(count, change) }
    }
}
