//! Which deaths are recorded, and the record of one.

use core::ptr::{from_ref, read_volatile};

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::generated::{bpf_ktime_get_boot_ns, bpf_ringbuf_query},
};
use probe_common::{
    layout::deaths,
    limits::{DEATH_RING_BYTES, DEATH_WAKEUP_NS, MAX_SIGNALS},
    wire::{self, Loss, STOP_SIGNALS, kind, section, sent_key},
};

use crate::{
    kernel::{Access, Kernfs, Probed, Task},
    maps::{DEATHS, DULL, LAST_WAKEUP, SENT, Slot, TOLD_DEATHS},
    record::{Record, Writer, describe_ids, memory_kernfs, other_dfl_kernfs},
};

pub const SIGKILL: i32 = 9;

/// `task_struct.flags` (include/linux/sched.h): in `do_exit()`.
const PF_EXITING: u32 = 4;

/// `signal_struct.flags` (include/linux/sched/signal.h): `group_exit_code` is what the parent gets.
const SIGNAL_GROUP_EXIT: u32 = 4;

/// One of [`deaths`].
#[inline(always)]
pub fn mode() -> u32 {
    // SAFETY: a static; the frozen map behind it is as large.
    unsafe { read_volatile(&raw const TOLD_DEATHS) }
}

/// Whether the death of this process may be recorded.
#[inline(always)]
pub fn is_followed<A: Access>(task: Task<A>) -> bool {
    match mode() {
        deaths::OFF => false,
        deaths::ALL => true,
        _ => !is_dull(task),
    }
}

/// A cgroup nobody told about is not.
#[inline(always)]
fn is_dull<A: Access>(task: Task<A>) -> bool {
    memory_kernfs(task)
        .and_then(Kernfs::id)
        .is_some_and(|id| DULL.get_ptr(id).is_some())
}

/// Whether this death is to be recorded. What most processes of a node that forks much have, exit
/// code 0 outside of a pid namespace, takes the least time.
#[inline(always)]
pub fn is_of_interest<A: Access>(mode: u32, task: Task<A>, leader: Task<A>, status: i32) -> bool {
    match mode {
        deaths::OFF => false,
        deaths::ALL => true,
        _ => (status != 0 || is_container_init(leader)) && !is_dull(task),
    }
}

/// Whether it is the first process of a pid namespace that is not the node's.
#[inline(always)]
fn is_container_init<A: Access>(leader: Task<A>) -> bool {
    let level = leader.pid_level().unwrap_or(0);
    level > 0 && leader.thread_pid().and_then(|pid| pid.number(level)) == Some(1)
}

/// Whether current is the first process of a pid namespace and takes all others of it along
/// (`zap_pid_ns_processes()`, kernel/pid_namespace.c): what it sends are no kills for memory.
#[inline(always)]
pub fn is_exiting_init() -> bool {
    let Some(task) = Task::<Probed>::current() else {
        return false;
    };
    task.flags().is_some_and(|flags| flags & PF_EXITING != 0) && is_container_init(task)
}

/// The wait status that the parent gets, once the last thread exits: the code of a group exit or a
/// fatal signal, else the leader's own, whichever thread was last (`wait_task_zombie()`,
/// kernel/exit.c).
#[inline(always)]
pub fn wait_status<A: Access>(task: Task<A>, leader: Task<A>) -> i32 {
    let Some(signal) = task.signal() else {
        return 0;
    };
    let is_group_exit = signal
        .flags()
        .is_some_and(|flags| flags & SIGNAL_GROUP_EXIT != 0);
    let code = if is_group_exit {
        signal.group_exit_code()
    } else {
        leader.exit_code()
    };
    code.unwrap_or(0)
}

/// Writes the record.
#[inline(always)]
pub fn report<A: Access>(task: Task<A>, leader: Task<A>, status: i32, source: u32) {
    let Some((record, out)) = Record::new::<wire::Death>(Slot::Exit, kind::DEATH, source) else {
        return;
    };
    describe_ids(task, &mut out.task);
    // The name of the process, not of the thread that happened to be last.
    leader.comm(&mut out.task.comm);
    out.exit_code = status;
    out.seccomp_mode = task.seccomp_mode().unwrap_or(u32::MAX);
    out.max_rss_pages = task
        .signal()
        .and_then(|signal| signal.maxrss())
        .unwrap_or(u64::MAX);
    let (pid, start_boot_ns) = (out.task.pid, out.task.start_boot_ns);
    record.path(section::VICTIM_PATH, memory_kernfs(task));
    record.path(section::VICTIM_DFL_PATH, other_dfl_kernfs(task));
    let deadly = deadly_signal(status);
    signals(record, pid, start_boot_ns, deadly);
    // A sender is often gone soon.
    let wakeup = if deadly == 0 { seldom() } else { 0 };
    record.send_waking(&DEATHS, Loss::DeathRingFull, wakeup);
}

/// Whether the reader is to be woken, which costs more than all the rest: now and then, or if the
/// ring fills up. Once woken, it looks again a little later by itself.
#[inline(always)]
fn seldom() -> u64 {
    let Some(last) = LAST_WAKEUP.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: a value of the map; a `RingBuf` is its map definition. Two CPUs that race wake twice.
    unsafe {
        let now = bpf_ktime_get_boot_ns();
        let ring = from_ref(&DEATHS).cast_mut().cast();
        if now.wrapping_sub(*last) < DEATH_WAKEUP_NS
            && bpf_ringbuf_query(ring, BPF_RB_AVAIL_DATA.into()) < u64::from(DEATH_RING_BYTES / 2)
        {
            return BPF_RB_NO_WAKEUP.into();
        }
        *last = now;
    }
    BPF_RB_FORCE_WAKEUP.into()
}

/// The signal that ended a process by its wait status, 0 for none.
#[inline(always)]
fn deadly_signal(status: i32) -> i32 {
    match (status & 0x7f, status >> 8 & 0xff) {
        // As shells and runtimes tell of a signal: 128 and its number.
        (0, code @ 129..=192) => code - 128,
        (signal, _) => signal,
    }
}

/// The signal that ended the process, if any, then what asked it to stop.
#[inline(always)]
fn signals(record: Record, pid: u32, start_boot_ns: u64, deadly: i32) {
    let Some(section) = record.begin(section::SIGNALS) else {
        return;
    };
    if deadly != 0 {
        take_out(pid, deadly, start_boot_ns, section);
    }
    for signal in STOP_SIGNALS {
        if signal != deadly {
            take_out(pid, signal, start_boot_ns, section);
        }
    }
    record.end(section);
}

/// Moves what is known of a signal to the record, if it was sent to this very process.
#[inline(always)]
fn take_out(pid: u32, signal: i32, start_boot_ns: u64, section: Writer) {
    let key = sent_key(pid, signal);
    let Some(sent) = SENT.get_ptr(key) else {
        return;
    };
    // SAFETY: a value of the map.
    unsafe {
        if (*sent).target_start_boot_ns == start_boot_ns {
            section.push(MAX_SIGNALS, sent);
        }
    }
    let _ = SENT.remove(key);
}
