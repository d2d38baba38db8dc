//! `oom_kill_process(oc, message)`: the OOM killer has decided; everything about why is in `oc`.
//!
//! match-proto: `void oom_kill_process(struct oom_control *oc, const char *message)`
//! (mm/oom_kill.c). Runs under `oom_lock`, in the context of the task whose allocation failed.

use aya_ebpf::{
    EbpfContext,
    bindings::task_struct,
    helpers::generated::bpf_get_stack,
    macros::{fentry, kprobe},
    programs::{FEntryContext, ProbeContext},
};
use probe_common::{
    limits::MAX_STACK_FRAMES,
    wire::{Loss, OomDecision, kind, section, source},
};

use crate::{
    kernel::{Access, Cgroup, Kernfs, OomControl, Probed, Task, Typed},
    maps::{CRITICAL, Slot},
    record::{Record, describe, describe_ids, memory_kernfs, other_dfl_kernfs},
};

#[fentry(function = "oom_kill_process")]
fn decision_fe(ctx: FEntryContext) -> i32 {
    body::<Typed>(&ctx, ctx.arg(0), ctx.arg(1), source::FENTRY);
    0
}

#[kprobe(function = "oom_kill_process")]
fn decision_kp(ctx: ProbeContext) -> u32 {
    if let (Some(oc), Some(message)) = (ctx.arg(0), ctx.arg(1)) {
        body::<Probed>(&ctx, oc, message, source::KPROBE);
    }
    0
}

#[inline(always)]
fn body<A: Access>(ctx: &impl EbpfContext, oc: *const u8, message: *const u8, source: u32) {
    let Some(oc) = OomControl::<A>::new(oc) else {
        return;
    };
    let Some((record, out)) = Record::new::<OomDecision>(Slot::Oom, kind::OOM_DECISION, source)
    else {
        return;
    };
    out.gfp_mask = oc.gfp_mask().unwrap_or(0);
    out.order = oc.order().unwrap_or(0);
    out.constraint = oc.constraint().unwrap_or(u32::MAX);
    out.total_pages = oc.totalpages().unwrap_or(0);
    out.chosen_points = oc.chosen_points().unwrap_or(0);
    let victim = oc
        .chosen()
        .and_then(|task| Task::<A>::from_arg(task.cast::<task_struct>()));
    if let Some(victim) = victim {
        describe(victim, &mut out.victim);
    }
    let trigger = Task::<Probed>::current();
    if let Some(trigger) = trigger {
        describe_ids(trigger, &mut out.trigger);
    }
    let limit = oc.memcg();
    let limit_cgroup = limit.and_then(|memcg| memcg.cgroup());
    if let Some(cgroup) = limit_cgroup {
        out.limit_cgroup_id = cgroup.kn().and_then(Kernfs::id).unwrap_or(0);
        out.limit_hierarchy = cgroup.hierarchy_id().unwrap_or(-1) as u32;
    }
    record.message(message);
    record.limit_levels(limit);
    record.path(section::VICTIM_PATH, victim.and_then(memory_kernfs));
    record.path(section::LIMIT_PATH, limit_cgroup.and_then(Cgroup::kn));
    stack(record, ctx);
    record.path(section::TRIGGER_PATH, trigger.and_then(memory_kernfs));
    record.path(section::VICTIM_DFL_PATH, victim.and_then(other_dfl_kernfs));
    record.arguments(victim, trigger);
    record.send(&CRITICAL, Loss::CriticalRingFull);
}

/// The kernel stack of current.
#[inline(always)]
pub fn stack(record: Record, ctx: &impl EbpfContext) {
    record.filled(section::STACK, MAX_STACK_FRAMES * 8, |room, size| {
        // SAFETY: `room` is `size` bytes; the context is the program's own.
        unsafe { bpf_get_stack(ctx.as_ptr(), room.cast(), size, 0) as i64 }
    });
}
