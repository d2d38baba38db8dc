//! `cgroup:cgroup_mkdir` and `cgroup_rmdir`: keeps the daemon's cgroup tree up to date.
//!
//! match-proto: both `(struct cgroup *cgrp, const char *path)`
//! (include/trace/events/cgroup.h).

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use probe_common::{
    limits::CGROUP_PATH_LEN,
    wire::{CgroupChange, Loss, kind, section, source},
};

use crate::{
    kernel::{Cgroup, Kernfs, Probed},
    maps::{BULK, Slot},
    record::Record,
};

#[raw_tracepoint(tracepoint = "cgroup_mkdir")]
fn cgroup_mkdir_rt(ctx: RawTracePointContext) -> i32 {
    body(ctx.arg(0), ctx.arg(1), 1);
    0
}

#[raw_tracepoint(tracepoint = "cgroup_rmdir")]
fn cgroup_rmdir_rt(ctx: RawTracePointContext) -> i32 {
    body(ctx.arg(0), ctx.arg(1), 2);
    0
}

#[inline(always)]
fn body(cgroup: *const u8, path: *const u8, change: u32) {
    let Some(cgroup) = Cgroup::<Probed>::new(cgroup) else {
        return;
    };
    let Some((record, out)) =
        Record::new::<CgroupChange>(Slot::Cgroup, kind::CGROUP, source::RAW_TP)
    else {
        return;
    };
    out.id = cgroup.kn().and_then(Kernfs::id).unwrap_or(0);
    out.hierarchy = cgroup.hierarchy_id().unwrap_or(-1) as u32;
    out.change = change;
    record.string(section::FULL_PATH, CGROUP_PATH_LEN, path);
    record.send(&BULK, Loss::BulkRingFull);
}
