//! How a signal came about, from what the kernel told of it.

use probe_common::wire::{Death, Sent, Task, info};

use crate::event::Via;

/// `task_struct.flags`: on its way out (include/linux/sched.h).
const PF_EXITING: u32 = 0x4;

/// `si_code` of signals that are sent by processes or the kernel as such
/// (include/uapi/asm-generic/siginfo.h).
const SI_USER: i32 = 0;
const SI_QUEUE: i32 = -1;
const SI_TKILL: i32 = -6;
/// `kill()` of 32-bit programs, on x86 as on ARM. What 64-bit programs call by this number (`alarm()`,
/// `linkat()`) sends no signal at once.
const SYS_KILL_32: i64 = 37;
/// `si_code` of SIGSYS from a filter.
const SYS_SECCOMP: i32 = 1;

/// Signals that the processor's complaints become.
const FAULTS: [i32; 5] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGTRAP,
];

/// `task_struct.seccomp.mode` (include/uapi/linux/seccomp.h; 3 is the kernel's own, for a task that
/// is dying of it).
const SECCOMP_STRICT: u32 = 1;
const SECCOMP_FILTER: u32 = 2;
const SECCOMP_DEAD: u32 = 3;

/// How the signal that ended `death` came about. `signal` is 0 if none did. Without a record of its
/// sending only seccomp is left, which older kernels let exit without one.
pub(super) fn of(sent: Option<&Sent>, signal: i32, death: &Death) -> Via {
    match (sent, signal, death.seccomp_mode) {
        (Some(sent), ..) => of_sent(sent, &death.task),
        (None, libc::SIGSYS, SECCOMP_FILTER | SECCOMP_DEAD)
        | (None, libc::SIGKILL, SECCOMP_STRICT | SECCOMP_DEAD) => Via::Seccomp,
        _ => Via::Unknown,
    }
}

/// How a signal to `target` came about. The OOM killer's is [`Via::Kernel`] here: who was its victim
/// is known by other records.
pub(super) fn of_sent(sent: &Sent, target: &Task) -> Via {
    let sender = &sent.sender;
    let is_own = sender.pid == target.pid;
    let is_exiting = sender.flags & PF_EXITING != 0;
    if sent.info == info::NONE
        && !is_exiting
        && let Some(via) = by_syscall(sent.sender_syscall)
    {
        return via;
    }
    // Who sends by rt_sigqueueinfo(2) chooses `si_code`: a timer's, for one.
    if sent.info == info::GIVEN
        && sent.si_code < 0
        && by_syscall(sent.sender_syscall) == Some(Via::Sigqueue)
    {
        return Via::Sigqueue;
    }
    match (sent.info, sent.signal) {
        // `check_process_timers()` and `inode_newsize_ok()`: it exceeded a limit of its own.
        (info::KERNEL, libc::SIGKILL | libc::SIGXCPU) | (info::NONE, libc::SIGXFSZ) if is_own => {
            Via::ResourceLimit
        }
        // `zap_pid_ns_processes()`: the dying first process takes all others along.
        (info::KERNEL, libc::SIGKILL)
            if is_exiting && sender.ns_pid == 1 && sender.ns_level > 0 =>
        {
            Via::PidNamespace
        }
        // `reparent_leader()` and `forget_original_parent()`.
        (info::NONE, _) if is_exiting => Via::ParentDeath,
        // `__cgroup_kill()`: whatever the system call, it writes to the file.
        (info::NONE, libc::SIGKILL) => Via::CgroupKill,
        (info::KERNEL | info::NONE, _) => Via::Kernel,
        (_, libc::SIGSYS) if sent.si_code == SYS_SECCOMP => Via::Seccomp,
        (_, signal) => match sent.si_code {
            SI_USER => Via::Kill,
            SI_TKILL => Via::Tkill,
            SI_QUEUE => Via::Sigqueue,
            // `SI_KERNEL` too: a general protection fault has no address.
            1.. if FAULTS.contains(&signal) => Via::Fault,
            _ => Via::Kernel,
        },
    }
}

/// How a signal without a `kernel_siginfo` came about, if the system call is there to send signals.
fn by_syscall(number: i32) -> Option<Via> {
    match i64::from(number) {
        libc::SYS_kill | libc::SYS_pidfd_send_signal | SYS_KILL_32 => Some(Via::Kill),
        libc::SYS_tkill | libc::SYS_tgkill => Some(Via::Tkill),
        libc::SYS_rt_sigqueueinfo | libc::SYS_rt_tgsigqueueinfo => Some(Via::Sigqueue),
        _ => None,
    }
}
