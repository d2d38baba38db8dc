//! `out_of_memory(oc)` returned: ends an incident, also one that killed nobody.
//!
//! match-proto: `bool out_of_memory(struct oom_control *oc)` (mm/oom_kill.c).

use aya_ebpf::{
    helpers::bpf_get_current_pid_tgid,
    macros::{fexit, kprobe, kretprobe},
    programs::{FExitContext, ProbeContext, RetProbeContext},
};
use probe_common::wire::{Loss, OomEnd, kind, source};

use crate::{
    kernel::{Access, Kernfs, OomControl, Probed, Typed},
    maps::{BULK, CRITICAL, OOM_CONTROL, Slot},
    record::Record,
};

#[fexit(function = "out_of_memory")]
fn end_fx(ctx: FExitContext) -> i32 {
    body::<Typed>(ctx.arg(0), ctx.arg::<u8>(1), source::FENTRY);
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
    if let Some([thread, oc]) = OOM_CONTROL.get(0) {
        if *thread == bpf_get_current_pid_tgid() {
            body::<Probed>(*oc as *const u8, ctx.ret::<u8>(), source::KPROBE);
        }
    }
    0
}

#[inline(always)]
fn body<A: Access>(oc: *const u8, returned: u8, source: u32) {
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
    out.limit_cgroup_id = oc
        .memcg()
        .and_then(|memcg| memcg.cgroup())
        .and_then(|cgroup| cgroup.kn())
        .and_then(Kernfs::id)
        .unwrap_or(0);
    // Calls that chose nobody may come in thousands while a victim is dying: not into the ring of
    // kills.
    if out.chosen == 1 {
        record.send(&CRITICAL, Loss::CriticalRingFull);
    } else {
        record.send(&BULK, Loss::BulkRingFull);
    }
}
