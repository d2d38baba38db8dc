//! `signal:signal_generate`: SIGKILL that the kernel itself sends.
//!
//! match-proto: tracepoint `signal_generate(int sig, struct kernel_siginfo *info,
//! struct task_struct *task, int group, int result)` (include/trace/events/signal.h).
//! The OOM killer sends it to a victim just before it marks it, and to every process that shares
//! the victim's mm, which it does not mark (`__oom_kill_process()`, mm/oom_kill.c).

use aya_ebpf::{
    helpers::bpf_get_current_pid_tgid,
    macros::{btf_tracepoint, raw_tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext},
};
use probe_common::wire::{Kill, Loss, kind, section, source};

use crate::{
    kernel::{Access, Probed, Task, Typed},
    maps::{CRITICAL, Slot, VICTIMS, lost},
    record::{Record, describe, memory_kernfs},
};

const SIGKILL: i32 = 9;
/// Not a pointer but a marker: sent by the kernel (include/linux/sched/signal.h).
const SEND_SIG_PRIV: u64 = 1;

#[btf_tracepoint(function = "signal_generate")]
fn kill_tb(ctx: BtfTracePointContext) -> i32 {
    if ctx.arg::<i32>(0) == SIGKILL && ctx.arg::<u64>(1) == SEND_SIG_PRIV {
        body::<Typed>(ctx.arg(2), ctx.arg(4), source::TP_BTF);
    }
    0
}

#[raw_tracepoint(tracepoint = "signal_generate")]
fn kill_rt(ctx: RawTracePointContext) -> i32 {
    if ctx.arg::<i32>(0) == SIGKILL && ctx.arg::<u64>(1) == SEND_SIG_PRIV {
        body::<Probed>(ctx.arg(2), ctx.arg(4), source::RAW_TP);
    }
    0
}

#[inline(always)]
fn body<A: Access>(task: *const u8, result: i32, source: u32) {
    let Some(target) = Task::<A>::new(task) else {
        return;
    };
    let Some((record, out)) = Record::new::<Kill>(Slot::Kill, kind::KERNEL_KILL, source) else {
        return;
    };
    describe(target, &mut out.target);
    out.sender_tid = bpf_get_current_pid_tgid() as u32;
    out.result = result as u32;
    if VICTIMS
        .insert(out.target.pid, out.target.start_boot_ns, 0)
        .is_err()
    {
        lost(Loss::VictimMapFull);
    }
    record.path(section::VICTIM_PATH, memory_kernfs(target));
    record.send(&CRITICAL, Loss::CriticalRingFull);
}
