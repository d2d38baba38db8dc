//! `sched:sched_process_exit`: a process is gone when its last thread exits.
//!
//! match-proto: tracepoint `sched_process_exit(struct task_struct *p)`, newer kernels add
//! `bool group_dead` (include/trace/events/sched.h). Up to 6.12 it fires after the memory was
//! given back (`exit_mm()`), from 6.16 on before.
//!
//! `void taskstats_exit(struct task_struct *tsk, int group_dead)` (kernel/taskstats.c), which
//! `do_exit()` calls just before, serves where tracepoints can be preempted: of a group that dies
//! together, one that is stopped in the middle of a program would have the kernel skip the program
//! for all others on its CPU. A kprobe is not preempted.

use aya_ebpf::{
    helpers::bpf_get_current_pid_tgid,
    macros::{btf_tracepoint, kprobe, raw_tracepoint},
    programs::{BtfTracePointContext, ProbeContext, RawTracePointContext},
};
use probe_common::{
    layout::deaths,
    wire::{Exit, Loss, kind, source},
};

use crate::{
    death::{self, wait_status},
    kernel::{Access, Probed, Task, Typed, layout},
    maps::{CRITICAL, Slot},
    record::Record,
    victims,
};

#[btf_tracepoint(function = "sched_process_exit")]
fn exit_tb(ctx: BtfTracePointContext) -> i32 {
    let group_dead = if layout!(sched_process_exit__has_group_dead) == 1 {
        Some(ctx.arg::<u8>(1) & 1 == 1)
    } else {
        None
    };
    body::<Typed>(ctx.arg(0), group_dead, Task::group_leader, source::TP_BTF);
    0
}

#[raw_tracepoint(tracepoint = "sched_process_exit")]
fn exit_rt(ctx: RawTracePointContext) -> i32 {
    let group_dead = if layout!(sched_process_exit__has_group_dead) == 1 {
        Some(ctx.arg::<u8>(1) & 1 == 1)
    } else {
        None
    };
    body::<Probed>(ctx.arg(0), group_dead, leader, source::RAW_TP);
    0
}

#[kprobe(function = "taskstats_exit")]
fn exit_kp(ctx: ProbeContext) -> u32 {
    if let (Some(task), Some(group_dead)) = (ctx.arg(0), ctx.arg::<i32>(1)) {
        body::<Probed>(task, Some(group_dead != 0), leader, source::KPROBE);
    }
    0
}

/// Most often the last thread is the first one: a read less. The verifier of 5.10 wants no typed
/// pointer that may be either.
#[inline(always)]
fn leader(task: Task<Probed>) -> Option<Task<Probed>> {
    let thread = bpf_get_current_pid_tgid();
    if thread >> 32 == thread & 0xffff_ffff {
        Some(task)
    } else {
        task.group_leader()
    }
}

#[inline(always)]
fn body<A: Access>(
    task: *const u8,
    group_dead: Option<bool>,
    leader: impl FnOnce(Task<A>) -> Option<Task<A>>,
    source: u32,
) {
    let Some(task) = Task::<A>::new(task) else {
        return;
    };
    // `live` was decremented before the tracepoint (do_exit(), kernel/exit.c).
    if !group_dead.unwrap_or_else(|| task.signal().and_then(|s| s.live()) == Some(0)) {
        return;
    }
    let mode = death::mode();
    let victim = victims::current_start_boot_ns();
    if mode == deaths::OFF && victim.is_none() {
        return;
    }
    let Some(leader) = leader(task) else { return };
    let status = wait_status(task, leader);
    if let Some(start_boot_ns) = victim {
        // SAFETY: a value of the map.
        victim_exit(unsafe { start_boot_ns.read() }, status, source);
    }
    if death::is_of_interest(mode, task, leader, status) {
        // For each further load through a typed pointer the verifier would search the kernel's types.
        if let (Some(task), Some(leader)) = (task.probed(), leader.probed()) {
            death::report(task, leader, status, source);
        }
    }
}

#[inline(always)]
fn victim_exit(start_boot_ns: u64, status: i32, source: u32) {
    let thread = bpf_get_current_pid_tgid();
    let pid = (thread >> 32) as u32;
    victims::forget(pid);
    let Some((record, out)) = Record::new::<Exit>(Slot::Exit, kind::EXIT, source) else {
        return;
    };
    out.pid = pid;
    out.tid = thread as u32;
    out.start_boot_ns = start_boot_ns;
    out.exit_code = status;
    record.send(&CRITICAL, Loss::CriticalRingFull);
}
