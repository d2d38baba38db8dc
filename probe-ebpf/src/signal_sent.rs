//! `signal:signal_generate`: SIGKILL that the kernel itself sends, and who sends what may end a
//! process whose death is of interest.
//!
//! match-proto: tracepoint `signal_generate(int sig, struct kernel_siginfo *info,
//! struct task_struct *task, int group, int result)` (include/trace/events/signal.h).
//! The OOM killer sends SIGKILL to a victim just before it marks it, and to every process that
//! shares the victim's mm, which it does not mark (`__oom_kill_process()`, mm/oom_kill.c).
//!
//! It fires with interrupts off, under the target's `siglock`: never within itself on one CPU.

use core::{mem::zeroed, ptr::write};

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, generated::bpf_ktime_get_boot_ns},
    macros::{btf_tracepoint, raw_tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext},
};
use probe_common::wire::{Kill, Loss, STOP_SIGNALS, Sent, info, kind, section, sent_key, source};

use crate::{
    death::{self, SIGKILL},
    kernel::{Access, Probed, Siginfo, Task, Typed},
    maps::{CRITICAL, SCRATCH, SENT, Slot, lost},
    record::{Record, describe, describe_ids, memory_kernfs},
    victims,
};

/// Not pointers but markers (include/linux/sched/signal.h): sent on behalf of current, and by the
/// kernel.
const SEND_SIG_NOINFO: u64 = 0;
const SEND_SIG_PRIV: u64 = 1;

/// `TRACE_SIGNAL_*`: queued, with and without its `kernel_siginfo`; ignored. One that is already
/// pending or does not fit changes nothing.
const DELIVERED: i32 = 0;
const IGNORED: i32 = 1;
const LOSE_INFO: i32 = 4;

/// SIGCHLD, SIGCONT, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU, SIGURG: none ends a process.
const HARMLESS: u64 = 0b111_1111 << 17;

const SIGILL: i32 = 4;
const SIGTRAP: i32 = 5;
const SIGBUS: i32 = 7;
const SIGFPE: i32 = 8;
const SIGSEGV: i32 = 11;
const SIGSYS: i32 = 31;

#[btf_tracepoint(function = "signal_generate")]
fn signal_tb(ctx: BtfTracePointContext) -> i32 {
    let how = How {
        signal: ctx.arg(0),
        info: ctx.arg(1),
        result: ctx.arg(4),
    };
    body::<Typed>(how, ctx.arg(2), source::TP_BTF);
    0
}

#[raw_tracepoint(tracepoint = "signal_generate")]
fn signal_rt(ctx: RawTracePointContext) -> i32 {
    let how = How {
        signal: ctx.arg(0),
        info: ctx.arg(1),
        result: ctx.arg(4),
    };
    body::<Probed>(how, ctx.arg(2), source::RAW_TP);
    0
}

/// What the tracepoint says beside the target.
#[derive(Clone, Copy)]
struct How {
    signal: i32,
    info: u64,
    result: i32,
}

#[inline(always)]
fn body<A: Access>(how: How, task: *const u8, source: u32) {
    if !(1..=64).contains(&how.signal) || HARMLESS & (1 << how.signal) != 0 {
        return;
    }
    let Some(target) = Task::<A>::new(task) else {
        return;
    };
    if how.signal == SIGKILL && how.info == SEND_SIG_PRIV && !death::is_exiting_init() {
        kernel_kill(target, how.result, source);
    }
    let matters = match how.result {
        DELIVERED | LOSE_INFO => true,
        IGNORED => STOP_SIGNALS.contains(&how.signal),
        _ => false,
    };
    if matters && death::is_followed(target) {
        remember(how, target);
    }
}

#[inline(always)]
fn kernel_kill<A: Access>(target: Task<A>, result: i32, source: u32) {
    let Some((record, out)) = Record::new::<Kill>(Slot::Signal, kind::KERNEL_KILL, source) else {
        return;
    };
    describe(target, &mut out.target);
    out.sender_tid = bpf_get_current_pid_tgid() as u32;
    out.result = result as u32;
    victims::follow(out.target.pid, out.target.start_boot_ns);
    record.path(section::VICTIM_PATH, memory_kernfs(target));
    record.send(&CRITICAL, Loss::CriticalRingFull);
}

/// Keeps who sent it until the target ends.
#[inline(always)]
fn remember<A: Access>(how: How, target: Task<A>) {
    let Some(buffer) = SCRATCH.get_ptr_mut(Slot::Signal as u32) else {
        return;
    };
    // SAFETY: the buffer is far larger, 8-byte aligned, and this CPU's own while the program runs;
    // its last record was sent; all-zero is a valid value (integers only).
    let sent = unsafe {
        let sent = buffer.cast::<Sent>();
        write(sent, zeroed());
        &mut *sent
    };
    sent.target_start_boot_ns = target
        .group_leader()
        .and_then(Task::start_boottime)
        .unwrap_or(0);
    sent.signal = how.signal;
    sent.result = how.result as u32;
    cause(how, sent);
    let key = sent_key(target.tgid().unwrap_or(0) as u32, how.signal);
    if is_outdone(key, sent) {
        return;
    }
    // SAFETY: the helper has no preconditions.
    sent.time_boot_ns = unsafe { bpf_ktime_get_boot_ns() };
    sent.sender_syscall = Task::current_syscall().unwrap_or(-1);
    if let Some(sender) = Task::<Probed>::current() {
        describe_ids(sender, &mut sent.sender);
    }
    #[expect(
        clippy::needless_borrows_for_generic_args,
        reason = "moved, it would be copied to the stack, which is too small"
    )]
    let inserted = SENT.insert(key, &*sent, 0);
    if inserted.is_err() {
        lost(Loss::SentMapFull);
    }
}

/// What the kernel tells of the signal.
#[inline(always)]
fn cause(how: How, sent: &mut Sent) {
    sent.syscall = -1;
    sent.info = match how.info {
        SEND_SIG_NOINFO => info::NONE,
        SEND_SIG_PRIV => info::KERNEL,
        _ => info::GIVEN,
    };
    if sent.info != info::GIVEN {
        return;
    }
    let Some(info) = Siginfo::<Probed>::new(how.info as *const u8) else {
        return;
    };
    sent.si_code = info.si_code().unwrap_or(0);
    // Above 0, the kernel found the cause itself.
    if sent.si_code > 0 {
        match how.signal {
            SIGSEGV | SIGBUS | SIGILL | SIGFPE | SIGTRAP => {
                sent.address = info.si_addr().unwrap_or(0);
            }
            SIGSYS => {
                sent.address = info.si_call_addr().unwrap_or(0);
                sent.syscall = info.si_syscall().unwrap_or(-1);
            }
            _ => {}
        }
    }
}

/// Whether what is known of the same signal says more. Else the later one takes its place, as the
/// target outlived the first.
///
/// Nothing outlives SIGKILL; a process that is dying ignores all; and a handler of a fault that has
/// written its report sends the signal once more, to die of it.
#[inline(always)]
fn is_outdone(key: u64, sent: &Sent) -> bool {
    // SAFETY: read at once, under the target's `siglock`.
    let Some(first) = (unsafe { SENT.get(key) }) else {
        return false;
    };
    // Pids are reused.
    if first.target_start_boot_ns != sent.target_start_boot_ns {
        return false;
    }
    let is_again = first.si_code > 0
        && sent.si_code <= 0
        && sent.info != info::KERNEL
        && u64::from(first.sender.pid) == key >> 32
        && first.sender.tid == bpf_get_current_pid_tgid() as u32;
    sent.signal == SIGKILL || sent.result == IGNORED as u32 || is_again
}
