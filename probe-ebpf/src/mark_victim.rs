//! `oom:mark_victim` and `mark_oom_victim()`: each victim, those of a group kill included.
//!
//! match-proto: tracepoint `mark_victim(struct task_struct *task, uid_t uid)`; older kernels pass
//! `int pid`, where only the function will do: `void mark_oom_victim(struct task_struct *tsk)`
//! (mm/oom_kill.c). A mark is not a kill: a task that is exiting anyway is marked too.

use aya_ebpf::{
    EbpfContext,
    macros::{btf_tracepoint, fentry, kprobe, raw_tracepoint},
    programs::{BtfTracePointContext, FEntryContext, ProbeContext, RawTracePointContext},
};
use probe_common::{
    limits::MAX_LIMIT_LEVELS,
    wire::{Loss, MarkVictim, kind, section, source},
};

use crate::{
    kernel::{Access, Probed, Task, Typed, layout},
    maps::{CRITICAL, SETTINGS, Slot},
    oom_kill_process::stack,
    record::{Record, describe, describe_ids, memory_kernfs, other_dfl_kernfs},
    victims,
};

#[btf_tracepoint(function = "mark_victim")]
fn mark_tb(ctx: BtfTracePointContext) -> i32 {
    body::<Typed>(&ctx, ctx.arg(0), source::TP_BTF);
    0
}

#[raw_tracepoint(tracepoint = "mark_victim")]
fn mark_rt(ctx: RawTracePointContext) -> i32 {
    body::<Probed>(&ctx, ctx.arg(0), source::RAW_TP);
    0
}

#[fentry(function = "mark_oom_victim")]
fn mark_fe(ctx: FEntryContext) -> i32 {
    body::<Typed>(&ctx, ctx.arg(0), source::FENTRY);
    0
}

#[kprobe(function = "mark_oom_victim")]
fn mark_kp(ctx: ProbeContext) -> u32 {
    if let Some(task) = ctx.arg(0) {
        body::<Probed>(&ctx, task, source::KPROBE);
    }
    0
}

#[inline(always)]
fn body<A: Access>(ctx: &impl EbpfContext, task: *const u8, source: u32) {
    let Some(victim) = Task::<A>::new(task) else {
        return;
    };
    let Some((record, out)) = Record::new::<MarkVictim>(Slot::Oom, kind::MARK_VICTIM, source)
    else {
        return;
    };
    describe(victim, &mut out.victim);
    victims::follow(out.victim.pid, out.victim.start_boot_ns);
    out.in_oom_group = in_oom_group(victim);
    out.mm_users = victim.mm().and_then(|mm| mm.mm_users()).unwrap_or(0) as u32;
    let trigger = Task::<Probed>::current();
    if let Some(trigger) = trigger {
        describe_ids(trigger, &mut out.trigger);
    }
    let alone = SETTINGS
        .get(0)
        .is_none_or(|settings| settings.has_decision == 0);
    if alone {
        let memcg = trigger.and_then(|task| task.memory_css()?.memcg());
        record.limit_levels(memcg);
    }
    record.path(section::VICTIM_PATH, memory_kernfs(victim));
    if alone {
        stack(record, ctx);
        record.path(section::TRIGGER_PATH, trigger.and_then(memory_kernfs));
        record.arguments(Some(victim), trigger);
    }
    record.path(section::VICTIM_DFL_PATH, other_dfl_kernfs(victim));
    record.send(&CRITICAL, Loss::CriticalRingFull);
}

/// Whether the memcg of `task` or one above has `memory.oom.group`, 0 or 1.
#[inline(always)]
fn in_oom_group<A: Access>(task: Task<A>) -> u32 {
    let mut memcg = task.memory_css().and_then(|css| css.memcg());
    let mut any = 0u32;
    for _ in 0..MAX_LIMIT_LEVELS {
        let Some(this) = memcg else { break };
        any |= u32::from(
            this.field::<u8>(layout!(mem_cgroup__oom_group))
                .unwrap_or(0),
        );
        memcg = this.parent();
    }
    u32::from(any != 0)
}
