//! Iterator over all tasks: what the OOM killer could have chosen from.
//!
//! match-proto: `struct bpf_iter__task { struct bpf_iter_meta *meta; struct task_struct *task; }`
//! (kernel/bpf/task_iter.c). One [`wire::Task`] per process, more if its leader
//! has exited, is written to the iterator's file.

use core::{ffi::c_void, mem::zeroed, ptr::write};

use aya_ebpf::{bindings::seq_file, helpers::generated::bpf_seq_write};
use probe_common::wire;

use crate::{
    kernel::{Task, Typed},
    maps::{SCRATCH, Slot},
    record::describe,
};

/// `struct bpf_iter_meta` (include/linux/bpf.h): a stable context, not a kernel structure.
#[repr(C)]
pub struct IterMeta {
    pub seq: *mut seq_file,
    session_id: u64,
    seq_num: u64,
}

/// `struct bpf_iter__task`.
#[repr(C)]
struct IterTask {
    meta: *const IterMeta,
    task: *const u8,
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
extern "C" fn candidates(ctx: *mut c_void) -> i32 {
    // SAFETY: the verifier knows this context.
    let (seq, task) = unsafe {
        let ctx = ctx.cast::<IterTask>();
        ((*(*ctx).meta).seq, (*ctx).task)
    };
    let Some(task) = Task::<Typed>::new(task) else {
        return 0;
    };
    // Threads share the mm: the leader stands for the process, unless it has exited before the
    // others. Kernel threads have none and cannot be chosen.
    if task.mm().is_none() {
        return 0;
    }
    if task.pid() != task.tgid() && task.group_leader().and_then(Task::mm).is_some() {
        return 0;
    }
    let Some(out) = SCRATCH.get_ptr_mut(Slot::Iterator as u32) else {
        return 0;
    };
    // SAFETY: the buffer is larger than a task, aligned, and this CPU's own while the program runs;
    // all-zero is a valid task (integers only). Not on the stack, which the verifier would track
    // byte by byte through every way to fill it.
    let out = unsafe {
        let out = out.cast::<wire::Task>();
        write(out, zeroed());
        &mut *out
    };
    describe(task, out);
    // SAFETY: the buffer is of that size.
    unsafe {
        bpf_seq_write(
            seq,
            core::ptr::from_mut(out).cast(),
            size_of::<wire::Task>() as u32,
        );
    }
    0
}
