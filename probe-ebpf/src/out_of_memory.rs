//! `out_of_memory(oc)` returned: ends an incident, also one that killed nobody.
//!
//! match-proto: `bool out_of_memory(struct oom_control *oc)` (mm/oom_kill.c).

use aya_ebpf::{
    EbpfContext,
    helpers::bpf_get_current_pid_tgid,
    macros::{fexit, kprobe, kretprobe},
    programs::{FExitContext, ProbeContext, RetProbeContext},
};
use probe_common::wire::{Loss, OomEnd, kind, section, source};

use crate::{
    kernel::{Access, Cgroup, Kernfs, OomControl, Probed, Task, Typed},
    maps::{BULK, CRITICAL, OOM_CONTROL, Slot},
    oom_kill_process::stack,
    record::{Record, describe_ids, memory_kernfs},
};

#[fexit(function = "out_of_memory")]
fn end_fx(ctx: FExitContext) -> i32 {
    body::<Typed>(&ctx, ctx.arg(0), ctx.arg::<u8>(1), source::FENTRY);
    0
}

#[kprobe(function = "out_of_memory")]
fn end_kp(ctx: ProbeContext) -> u32 {
    if let Some(oc) = ctx.arg::<u64>(0) {
        let _ = OOM_CONTROL.set(0, [bpf_get_current_pid_tgid(), oc], 0);
    }
    0
}

#[kretprobe(function = "out_of_memory")]
fn end_kr(ctx: RetProbeContext) -> u32 {
    if let Some([thread, oc]) = OOM_CONTROL.get(0)
        && *thread == bpf_get_current_pid_tgid()
    {
        body::<Probed>(&ctx, *oc as *const u8, ctx.ret::<u8>(), source::KPROBE);
    }
    0
}

#[inline(always)]
fn body<A: Access>(ctx: &impl EbpfContext, oc: *const u8, returned: u8, source: u32) {
    let Some(oc) = OomControl::<A>::new(oc) else {
        return;
    };
    let Some((record, out)) = Record::new::<OomEnd>(Slot::Oom, kind::OOM_END, source) else {
        return;
    };
    out.trigger_tid = bpf_get_current_pid_tgid() as u32;
    out.returned = u32::from(returned & 1);
    out.chosen = match oc.chosen().map(|chosen| chosen as u64) {
        None | Some(0) => 0,
        Some(u64::MAX) => 2,
        Some(_) => 1,
    };
    out.constraint = oc.constraint().unwrap_or(u32::MAX);
    out.order = oc.order().unwrap_or(0);
    let limit = oc.memcg();
    let limit_cgroup = limit.and_then(|memcg| memcg.cgroup());
    if let Some(cgroup) = limit_cgroup {
        out.limit_cgroup_id = cgroup.kn().and_then(Kernfs::id).unwrap_or(0);
    }
    if out.chosen == 0 && out.returned == 0 {
        // No other record tells of this invocation.
        let trigger = Task::<Probed>::current();
        if let Some(trigger) = trigger {
            describe_ids(trigger, &mut out.trigger);
        }
        record.limit_levels(limit);
        record.path(section::LIMIT_PATH, limit_cgroup.and_then(Cgroup::kn));
        stack(record, ctx);
        record.path(section::TRIGGER_PATH, trigger.and_then(memory_kernfs));
    }
    // Calls that chose nobody may come in thousands while a victim is dying: not into the ring of
    // kills.
    if out.chosen == 1 {
        record.send(&CRITICAL, Loss::CriticalRingFull);
    } else {
        record.send(&BULK, Loss::BulkRingFull);
    }
}
