//! `oom:finish_task_reaping` and `oom:skip_task_reaping`: the OOM reaper's word on a victim.
//!
//! match-proto: both `(int pid)`, a thread id of the initial pid namespace
//! (include/trace/events/oom.h).

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use probe_common::wire::{Loss, Reap, kind, source};

use crate::{
    maps::{CRITICAL, Slot},
    record::Record,
};

#[raw_tracepoint(tracepoint = "finish_task_reaping")]
fn reap_finish_rt(ctx: RawTracePointContext) -> i32 {
    body(ctx.arg(0), 1);
    0
}

#[raw_tracepoint(tracepoint = "skip_task_reaping")]
fn reap_skip_rt(ctx: RawTracePointContext) -> i32 {
    body(ctx.arg(0), 2);
    0
}

#[inline(always)]
fn body(tid: i32, stage: u32) {
    let Some((record, out)) = Record::new::<Reap>(Slot::Reap, kind::REAP, source::RAW_TP) else {
        return;
    };
    out.tid = tid as u32;
    out.stage = stage;
    record.send(&CRITICAL, Loss::CriticalRingFull);
}
