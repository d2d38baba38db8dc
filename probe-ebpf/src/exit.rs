//! `sched:sched_process_exit`: a watched process is gone when its last thread exits.
//!
//! match-proto: tracepoint `sched_process_exit(struct task_struct *p)`, newer kernels add
//! `bool group_dead` (include/trace/events/sched.h). Up to 6.12 it fires after the memory was
//! given back (`exit_mm()`), from 6.16 on before.

use aya_ebpf::{
    helpers::bpf_get_current_pid_tgid,
    macros::{btf_tracepoint, raw_tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext},
};
use probe_common::wire::{Exit, Loss, kind, source};

use crate::{
    kernel::{Access, Probed, Task, Typed, layout},
    maps::{CRITICAL, Slot, VICTIMS},
    record::Record,
};

#[btf_tracepoint(function = "sched_process_exit")]
fn exit_tb(ctx: BtfTracePointContext) -> i32 {
    let group_dead = if layout!(sched_process_exit__has_group_dead) == 1 {
        Some(ctx.arg::<u8>(1) & 1 == 1)
    } else {
        None
    };
    body::<Typed>(ctx.arg(0), group_dead, source::TP_BTF);
    0
}

#[raw_tracepoint(tracepoint = "sched_process_exit")]
fn exit_rt(ctx: RawTracePointContext) -> i32 {
    body::<Probed>(ctx.arg(0), None, source::RAW_TP);
    0
}

#[inline(always)]
fn body<A: Access>(task: *const u8, group_dead: Option<bool>, source: u32) {
    let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    // SAFETY: the value is only copied.
    let Some(&start_boot_ns) = (unsafe { VICTIMS.get(pid) }) else {
        return;
    };
    let Some(task) = Task::<A>::new(task) else {
        return;
    };
    let signal = task.signal();
    // `live` was decremented before the tracepoint (do_exit(), kernel/exit.c).
    if !group_dead.unwrap_or_else(|| signal.and_then(|s| s.live()) == Some(0)) {
        return;
    }
    let _ = VICTIMS.remove(pid);
    let Some((record, out)) = Record::new::<Exit>(Slot::Other, kind::EXIT, source) else {
        return;
    };
    out.pid = pid;
    out.tid = bpf_get_current_pid_tgid() as u32;
    out.start_boot_ns = start_boot_ns;
    // A fatal signal sets the group's code before any thread exits.
    out.exit_code = match signal.and_then(|s| s.group_exit_code()) {
        Some(code) if code != 0 => code,
        _ => task.exit_code().unwrap_or(0),
    };
    record.send(&CRITICAL, Loss::CriticalRingFull);
}
