//! A loop of fork, exit and wait.

use std::{
    fs, io,
    mem::MaybeUninit,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::bench::worker::{self, Worker};

/// Forks children that exit at once, one after the other: for each number of them read from stdin,
/// a line with the wall clock and CPU time they took, ns.
#[derive(Debug, Args)]
pub(crate) struct ForksArgs {
    /// Cgroup to work in
    cgroup: PathBuf,
    /// What the children exit with
    code: i32,
    /// CPU to stay on; without, anywhere at the lowest priority
    #[arg(long)]
    cpu: Option<usize>,
}

/// Is the workload.
pub(crate) fn work(args: &ForksArgs) -> Result<()> {
    worker::settle(args.cpu)?;
    fs::write(args.cgroup.join("cgroup.procs"), "0")
        .with_context(|| format!("join {}", args.cgroup.display()))?;
    worker::serve(cpu_ns, |forks| {
        for _ in 0..forks {
            fork_exit_wait(args.code)?;
        }
        Ok(())
    })
}

fn fork_exit_wait(code: i32) -> Result<()> {
    // SAFETY: the child does nothing but end.
    let child = unsafe {
        match libc::fork() {
            0 => libc::_exit(code),
            child => child,
        }
    };
    if child < 0 {
        return Err(io::Error::last_os_error()).context("fork");
    }
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    if unsafe { libc::waitpid(child, &raw mut status, 0) } != child {
        return Err(io::Error::last_os_error()).context("wait");
    }
    if status != code << 8 {
        bail!("a child ended with status {status:#x}");
    }
    Ok(())
}

/// CPU time of this process and of its children that are gone: programs at their exit run in their
/// time.
fn cpu_ns() -> Result<u64> {
    let mut sum_us = 0;
    for who in [libc::RUSAGE_SELF, libc::RUSAGE_CHILDREN] {
        let mut usage = MaybeUninit::<libc::rusage>::uninit();
        // SAFETY: `usage` is valid for a write, and written where the call returns 0.
        let usage = unsafe {
            if libc::getrusage(who, usage.as_mut_ptr()) != 0 {
                return Err(io::Error::last_os_error()).context("getrusage");
            }
            usage.assume_init()
        };
        for time in [usage.ru_utime, usage.ru_stime] {
            sum_us += time.tv_sec.unsigned_abs() * 1_000_000 + time.tv_usec.unsigned_abs();
        }
    }
    Ok(sum_us * 1000)
}

/// Starts the workload.
pub(super) fn start(cgroup: &Path, code: i32, cpu: Option<usize>) -> Result<Worker> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("bench-forks");
    if let Some(cpu) = cpu {
        command.args(["--cpu", &cpu.to_string()]);
    }
    command.arg(cgroup).arg(code.to_string());
    Worker::start(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_children_counts() {
        let before = cpu_ns().unwrap();
        for code in [0, 1] {
            for _ in 0..50 {
                fork_exit_wait(code).unwrap();
            }
        }
        assert!(cpu_ns().unwrap() > before);
    }
}
