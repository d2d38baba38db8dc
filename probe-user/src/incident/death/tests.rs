use bytemuck::Zeroable as _;
use probe_common::wire::{self, Sent, info};

use super::{Death, Held, via};
use crate::event::Via;

const PF_EXITING: u32 = 4;

fn task(pid: u32, ns_pid: u32) -> wire::Task {
    wire::Task {
        has: wire::has::TASK | wire::has::NS_PID,
        pid,
        tid: pid,
        ns_pid,
        ns_level: 1,
        start_boot_ns: 1,
        ..wire::Task::zeroed()
    }
}

fn sent(signal: i32, info: u32, si_code: i32, sender: wire::Task) -> Sent {
    Sent {
        signal,
        si_code,
        info,
        sender_syscall: -1,
        time_boot_ns: 5,
        sender,
        ..Sent::zeroed()
    }
}

fn in_syscall(number: i64, sent: Sent) -> Sent {
    Sent {
        sender_syscall: number.try_into().unwrap(),
        ..sent
    }
}

fn exiting(task: wire::Task) -> wire::Task {
    wire::Task {
        flags: PF_EXITING,
        ..task
    }
}

#[test]
fn how_a_signal_came_about() {
    let target = task(100, 7);
    let other = task(50, 3);
    let rows = [
        (sent(libc::SIGKILL, info::GIVEN, 0, other), Via::Kill),
        (sent(libc::SIGABRT, info::GIVEN, -6, target), Via::Tkill),
        (sent(libc::SIGTERM, info::GIVEN, -1, other), Via::Sigqueue),
        (sent(libc::SIGALRM, info::GIVEN, 0x80, other), Via::Kernel),
        (sent(libc::SIGALRM, info::GIVEN, -2, other), Via::Kernel),
        (sent(libc::SIGSEGV, info::GIVEN, 1, target), Via::Fault),
        (sent(libc::SIGSEGV, info::GIVEN, 0x80, target), Via::Fault),
        (sent(libc::SIGSEGV, info::GIVEN, 0, other), Via::Kill),
        (sent(libc::SIGSYS, info::GIVEN, 1, target), Via::Seccomp),
        (sent(libc::SIGKILL, info::NONE, 0, other), Via::CgroupKill),
        // A process inside the cgroup may write to its `cgroup.kill` too.
        (sent(libc::SIGKILL, info::NONE, 0, target), Via::CgroupKill),
        (
            sent(libc::SIGTERM, info::NONE, 0, exiting(other)),
            Via::ParentDeath,
        ),
        (sent(libc::SIGPIPE, info::NONE, 0, target), Via::Kernel),
        (
            sent(libc::SIGXFSZ, info::NONE, 0, target),
            Via::ResourceLimit,
        ),
        (
            sent(libc::SIGKILL, info::KERNEL, 0, target),
            Via::ResourceLimit,
        ),
        (sent(libc::SIGKILL, info::KERNEL, 0, other), Via::Kernel),
        (
            sent(libc::SIGKILL, info::KERNEL, 0, exiting(task(50, 1))),
            Via::PidNamespace,
        ),
        // A dying tracer (PTRACE_O_EXITKILL) is no first process.
        (
            sent(libc::SIGKILL, info::KERNEL, 0, exiting(other)),
            Via::Kernel,
        ),
    ];
    for (sent, expected) in rows {
        assert_eq!(via::of_sent(&sent, &target), expected, "{sent:?}");
    }
}

#[test]
fn the_system_call_tells_where_no_siginfo_does() {
    let target = task(100, 7);
    let other = task(50, 3);
    let without = |signal, sender| sent(signal, info::NONE, 0, sender);
    let rows = [
        (libc::SYS_kill, without(libc::SIGKILL, other), Via::Kill),
        (libc::SYS_kill, without(libc::SIGTERM, other), Via::Kill),
        (libc::SYS_kill, without(libc::SIGXFSZ, target), Via::Kill),
        (37, without(libc::SIGKILL, other), Via::Kill),
        (
            libc::SYS_pidfd_send_signal,
            without(libc::SIGKILL, other),
            Via::Kill,
        ),
        (libc::SYS_tkill, without(libc::SIGABRT, target), Via::Tkill),
        (libc::SYS_tgkill, without(libc::SIGKILL, other), Via::Tkill),
        (
            libc::SYS_rt_sigqueueinfo,
            without(libc::SIGKILL, other),
            Via::Sigqueue,
        ),
        (
            libc::SYS_write,
            without(libc::SIGKILL, other),
            Via::CgroupKill,
        ),
        (
            libc::SYS_io_uring_enter,
            without(libc::SIGKILL, other),
            Via::CgroupKill,
        ),
        (libc::SYS_write, without(libc::SIGPIPE, target), Via::Kernel),
        (
            libc::SYS_write,
            without(libc::SIGXFSZ, target),
            Via::ResourceLimit,
        ),
        // It was killed by another while it was about to send a signal itself.
        (
            libc::SYS_kill,
            without(libc::SIGTERM, exiting(other)),
            Via::ParentDeath,
        ),
        // Where there is one, it is the better witness: a fault on the way out of a system call.
        (
            libc::SYS_kill,
            sent(libc::SIGSEGV, info::GIVEN, 1, target),
            Via::Fault,
        ),
        (
            libc::SYS_kill,
            sent(libc::SIGKILL, info::KERNEL, 0, other),
            Via::Kernel,
        ),
    ];
    for (number, sent, expected) in rows {
        let sent = in_syscall(number, sent);
        assert_eq!(via::of_sent(&sent, &target), expected, "{sent:?}");
    }
}

#[test]
fn seccomp_is_known_without_a_signal() {
    let death = |seccomp_mode| wire::Death {
        seccomp_mode,
        ..wire::Death::zeroed()
    };
    let rows = [
        (libc::SIGSYS, 2, Via::Seccomp),
        (libc::SIGSYS, 3, Via::Seccomp),
        (libc::SIGKILL, 1, Via::Seccomp),
        // A filter allows SIGKILL from elsewhere, which was not seen.
        (libc::SIGKILL, 2, Via::Unknown),
        (libc::SIGSYS, u32::MAX, Via::Unknown),
        (0, 2, Via::Unknown),
    ];
    for (signal, mode, expected) in rows {
        assert_eq!(via::of(None, signal, &death(mode)), expected);
    }
}

fn death(pid: u32, ns_pid: u32, boot_ns: u64, sent: Option<Sent>) -> Death {
    let task = task(pid, ns_pid);
    Death {
        task,
        boot_ns,
        status: sent.map_or(0, |sent| sent.signal),
        max_rss_pages: None,
        path: Vec::new(),
        has_path: true,
        dfl_path: None,
        request: None,
        via: sent.map_or(Via::Unknown, |sent| via::of_sent(&sent, &task)),
        sent,
    }
}

fn all(held: &mut Held<()>) -> Vec<(u32, u64)> {
    std::iter::from_fn(|| held.pop(None))
        .map(|released| (released.death.task.pid, released.others))
        .collect()
}

#[test]
fn what_the_first_process_takes_along_is_told_with_it() {
    let mut held = Held::default();
    let by_init = sent(libc::SIGKILL, info::KERNEL, 0, exiting(task(10, 1)));
    let kill = sent(libc::SIGKILL, info::GIVEN, 0, task(5, 5));
    for (container, death) in [
        ("a", death(11, 2, 1, Some(by_init))),
        ("a", death(12, 3, 2, Some(kill))),
        ("a", death(10, 1, 3, None)),
        ("a", death(13, 4, 4, Some(by_init))),
        ("b", death(14, 4, 5, Some(by_init))),
        ("", death(15, 4, 6, Some(by_init))),
        ("", death(16, 4, 7, Some(by_init))),
    ] {
        held.push(container.to_owned(), death, ()).unwrap();
    }
    assert_eq!(
        all(&mut held),
        [(12, 0), (10, 2), (14, 0), (15, 0), (16, 0)]
    );
}

#[test]
fn one_write_to_cgroup_kill_is_told_once() {
    let mut held = Held::default();
    let by = |pid| sent(libc::SIGKILL, info::NONE, 0, task(pid, pid));
    for (pid, ns_pid, writer) in [(11, 2, 5), (12, 3, 5), (10, 1, 5), (13, 4, 5), (14, 5, 6)] {
        let death = death(pid, ns_pid, 1, Some(by(writer)));
        held.push("a".to_owned(), death, ()).unwrap();
    }
    assert_eq!(all(&mut held), [(10, 3), (14, 0)]);
}

#[test]
fn deaths_wait_their_time_and_not_without_bound() {
    let mut held = Held::default();
    held.push("a".to_owned(), death(1, 2, 1_000, None), ())
        .unwrap();
    assert!(held.pop(Some(1_000)).is_none());
    assert!(held.pop(Some(1_000 + super::HOLD_NS)).is_some());
    let kept = (0..100_000)
        .filter(|&pid| {
            held.push("a".to_owned(), death(pid, 2, 1, None), ())
                .is_ok()
        })
        .count();
    assert_eq!(all(&mut held).len(), kept);
    assert!(kept < 100_000);
}
