//! Processes and threads that share memory, or take it in turn.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, pause};

use super::memory::grow;
use super::{join, report_end, wait_to_be_killed};

pub(super) fn leader_exits(mib: usize) -> Result<()> {
    let leader = PathBuf::from(format!("/proc/self/task/{}/stat", std::process::id()));
    std::thread::Builder::new()
        .name("hog-thread".into())
        .spawn(move || {
            // State follows the comm's closing parenthesis; Z once the leader is gone.
            while !fs::read_to_string(&leader).is_ok_and(|stat| stat.contains(") Z ")) {
                std::thread::sleep(Duration::from_millis(5));
            }
            // SAFETY: gettid(2) takes nothing and cannot fail.
            println!("child {}", unsafe { libc::gettid() });
            grow(mib, None);
            wait_to_be_killed()
        })
        .context("thread")?;
    // SAFETY: exit(2), not exit_group(2): ends this thread only. It holds no lock, and what it
    // owns is never freed.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
    bail!("exit(2) returned")
}

pub(super) fn shared_mm(mib: usize) -> Result<()> {
    /// All that the twin does. It shares memory and thread pointer with the one that made it, so
    /// it must do nothing but system calls.
    extern "C" fn twin(_: *mut libc::c_void) -> libc::c_int {
        loop {
            // SAFETY: pause(2) takes nothing.
            unsafe { libc::syscall(libc::SYS_pause) };
        }
    }
    let stack = Box::leak(vec![0_u128; 4096].into_boxed_slice()).as_mut_ptr_range();
    // SAFETY: the stack is aligned, leaked so that it outlives the twin, and grows down from its
    // end; the twin takes no argument.
    let child = Errno::result(unsafe {
        let flags = libc::CLONE_VM | libc::SIGCHLD;
        libc::clone(twin, stack.end.cast(), flags, std::ptr::null_mut())
    })
    .context("clone")?;
    println!("child {child}");
    grow(mib, None);
    Ok(())
}

/// Forks a child that does `body` and then waits to be killed.
pub(super) fn spawn(body: impl FnOnce() -> Result<()>) -> Result<Pid> {
    // SAFETY: this process has one thread, so the child may use the heap and stdio.
    if let ForkResult::Parent { child } = unsafe { fork() }.context("fork")? {
        return Ok(child);
    }
    if let Err(error) = prctl::set_pdeathsig(Signal::SIGKILL)
        .map_err(Into::into)
        .and_then(|()| body())
    {
        eprintln!("oomprobe-hog: child: {error:#}");
        std::process::exit(5);
    }
    loop {
        pause();
    }
}

pub(super) fn storm(
    cgroups: &[PathBuf],
    kills: u32,
    mib: usize,
    parallel: usize,
) -> Result<ExitCode> {
    let mut living = Vec::new();
    let mut killed = 0;
    while killed < kills {
        while living.len() < parallel.max(1) {
            living.push(spawn(|| {
                join(cgroups)?;
                grow(mib, None);
                Ok(())
            })?);
        }
        let status = waitpid(None, None).context("wait for children")?;
        living.retain(|pid| Some(*pid) != status.pid());
        report_end(status);
        if matches!(status, WaitStatus::Signaled(_, Signal::SIGKILL, _)) {
            killed += 1;
        }
    }
    // One of them may be on its way out already, by the kernel's hand; the caller asks the
    // kernel's log which.
    for pid in living {
        kill(pid, Signal::SIGKILL).context("stop a child")?;
        report_end(waitpid(pid, None)?);
    }
    Ok(ExitCode::SUCCESS)
}
