//! Ends that take two: parents and children, threads, senders and those they send to.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Subcommand, ValueEnum};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, raise, sigaction};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{ForkResult, Pid, fork, pause};

use super::processes::spawn;
use super::{join, report_end, wait_for_go, wait_to_be_killed};

/// A way to end.
#[derive(Subcommand)]
pub(super) enum End {
    /// Exits
    Exit { code: u8 },
    /// Waits to be killed
    Idle,
    /// On SIGTERM, exits with this code; without one, goes on
    OnTerm { code: Option<i32> },
    /// Sends itself a signal
    Raise { signal: i32 },
    /// Has another name, then executes this program again, which exits
    Exec { comm: String, code: u8 },
    /// Starts children that wait, and once told to, exits before them
    Family { children: u32, code: u8 },
    /// A child that is to die with its parent, of this signal, and a parent that exits
    Orphan { signal: i32 },
    /// The leader exits first, with 7, and a thread ends the process
    ThreadLast { how: ThreadEnd },
    /// A child of vfork exits while it runs on its parent's memory; the parent stays
    Vfork { code: i32 },
    /// Starts a child, moves it to another cgroup, and once told to, kills it
    KillChild { signal: i32, cgroup: PathBuf },
    /// A child that ends on SIGTERM with 0; then, once told to, another with the same pid, which
    /// waits to be told to exit with 143
    PidTwice,
    /// Children that wait, for others to kill; each end is told
    Children { count: u32 },
}

/// How the last thread ends.
#[derive(Clone, Copy, ValueEnum)]
pub(super) enum ThreadEnd {
    /// exit(2) with 9: of the thread, which is the last one
    Exit,
    /// `exit_group(2)` with 9: of the process
    ExitGroup,
    /// Waits to be killed
    Idle,
}

impl End {
    pub(super) fn run(self) -> Result<ExitCode> {
        match self {
            Self::Exit { code } => return Ok(ExitCode::from(code)),
            Self::Idle => {}
            Self::OnTerm { code } => on_term(code)?,
            Self::Raise { signal } => {
                // As kill(2), not tgkill(2), has it.
                kill(Pid::this(), Signal::try_from(signal)?)?;
                bail!("it survived")
            }
            Self::Exec { comm, code } => return exec(&comm, code),
            Self::Family { children, code } => {
                for _ in 0..children {
                    spawn_idle()?;
                }
                println!("ready");
                wait_for_go()?;
                return Ok(ExitCode::from(code));
            }
            Self::Orphan { signal } => return orphan(Signal::try_from(signal)?),
            Self::ThreadLast { how } => thread_last(how)?,
            Self::Vfork { code } => vfork_exits(code)?,
            Self::KillChild { signal, cgroup } => {
                return kill_child(Signal::try_from(signal)?, cgroup);
            }
            Self::PidTwice => return pid_twice(),
            Self::Children { count } => {
                for _ in 0..count {
                    println!("child {}", spawn_idle()?);
                }
                println!("ready");
                for _ in 0..count {
                    report_end(waitpid(None, None)?);
                }
                return Ok(ExitCode::SUCCESS);
            }
        }
        Ok(wait_to_be_killed())
    }
}

fn spawn_idle() -> Result<Pid> {
    spawn(|| Ok(()))
}

/// What SIGTERM makes this process exit with; -1 for nothing.
static CODE: AtomicI32 = AtomicI32::new(-1);

extern "C" fn end_on_term(_: libc::c_int) {
    let code = CODE.load(Ordering::Relaxed);
    if code >= 0 {
        // SAFETY: async-signal-safe.
        unsafe { libc::_exit(code) };
    }
}

fn on_term(code: Option<i32>) -> Result<()> {
    CODE.store(code.unwrap_or(-1), Ordering::Relaxed);
    let action = SigAction::new(
        SigHandler::Handler(end_on_term),
        SaFlags::empty(),
        SigSet::empty(),
    );
    // SAFETY: the handler does what a handler may.
    unsafe { sigaction(Signal::SIGTERM, &action) }.context("SIGTERM")?;
    Ok(())
}

fn exec(comm: &str, code: u8) -> Result<ExitCode> {
    let own = std::fs::read_link("/proc/self/exe").context("own path")?;
    prctl::set_name(&std::ffi::CString::new(comm)?).context("comm")?;
    let mut command = std::process::Command::new(own);
    command.args(["end", "exit", &code.to_string()]);
    Err(std::os::unix::process::CommandExt::exec(&mut command)).context("exec")
}

fn orphan(signal: Signal) -> Result<ExitCode> {
    // The child of the child that exits comes to this process.
    prctl::set_child_subreaper(true).context("subreaper")?;
    // SAFETY: this process has one thread, so the child may use the heap and stdio.
    if let ForkResult::Child = unsafe { fork() }.context("fork")? {
        // SAFETY: as above.
        if let ForkResult::Child = unsafe { fork() }.context("fork")? {
            prctl::set_pdeathsig(signal).context("parent-death signal")?;
            println!("child {}", std::process::id());
            return Ok(wait_to_be_killed());
        }
        wait_for_go()?;
        return Ok(ExitCode::SUCCESS);
    }
    for _ in 0..2 {
        report_end(waitpid(None, None)?);
    }
    Ok(ExitCode::SUCCESS)
}

fn thread_last(how: ThreadEnd) -> Result<()> {
    let leader = format!("/proc/self/task/{}/stat", std::process::id());
    std::thread::Builder::new()
        .name("hog-thread".into())
        .spawn(move || {
            // State follows the comm's closing parenthesis; Z once the leader is gone.
            while !std::fs::read_to_string(&leader).is_ok_and(|stat| stat.contains(") Z ")) {
                std::thread::sleep(Duration::from_millis(5));
            }
            // SAFETY: gettid(2) takes nothing and cannot fail.
            println!("child {}", unsafe { libc::gettid() });
            match how {
                // SAFETY: ends this thread, which holds no lock.
                ThreadEnd::Exit => drop(unsafe { libc::syscall(libc::SYS_exit, 9) }),
                // SAFETY: ends the process.
                ThreadEnd::ExitGroup => drop(unsafe { libc::syscall(libc::SYS_exit_group, 9) }),
                ThreadEnd::Idle => {}
            }
            wait_to_be_killed()
        })
        .context("thread")?;
    // SAFETY: exit(2), not exit_group(2): ends this thread only. It holds no lock, and what it
    // owns is never freed.
    unsafe { libc::syscall(libc::SYS_exit, 7) };
    bail!("exit(2) returned")
}

fn vfork_exits(code: i32) -> Result<()> {
    extern "C" fn exit(code: *mut libc::c_void) -> libc::c_int {
        // SAFETY: the parent's, which waits for as long as this runs.
        unsafe { *code.cast::<libc::c_int>() }
    }
    let mut code = code;
    let mut stack = vec![0_u128; 4096];
    // SAFETY: the stack is aligned, grows down from its end, and outlives the child, as does what
    // it is given: CLONE_VFORK has this process wait for its exit.
    let child = Errno::result(unsafe {
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        let end = stack.as_mut_ptr_range().end;
        libc::clone(exit, end.cast(), flags, (&raw mut code).cast())
    })
    .context("clone")?;
    println!("child {child}");
    report_end(waitpid(Pid::from_raw(child), None)?);
    Ok(())
}

fn kill_child(signal: Signal, cgroup: PathBuf) -> Result<ExitCode> {
    let child = spawn(|| {
        join(&[cgroup])?;
        // Tells the parent that it is where it belongs.
        raise(Signal::SIGSTOP).context("stop")
    })?;
    waitpid(child, Some(WaitPidFlag::WUNTRACED)).context("wait for the child's stop")?;
    println!("child {child}");
    wait_for_go()?;
    kill(child, signal).context("kill the child")?;
    kill(child, Signal::SIGCONT).context("wake the child")?;
    report_end(waitpid(child, None)?);
    Ok(ExitCode::SUCCESS)
}

fn pid_twice() -> Result<ExitCode> {
    let first = spawn(|| {
        on_term(Some(0))?;
        // Only now may it be sent SIGTERM.
        println!("child {}", std::process::id());
        Ok(())
    })?;
    report_end(waitpid(first, None)?);
    let again = fork_with_pid(first)?;
    if again.as_raw() == 0 {
        println!("child {}", std::process::id());
        wait_for_go()?;
        return Ok(ExitCode::from(143));
    }
    report_end(waitpid(again, None)?);
    Ok(ExitCode::SUCCESS)
}

/// Forks a child that gets this pid; 0 in the child.
fn fork_with_pid(pid: Pid) -> Result<Pid> {
    let wanted = [pid.as_raw()];
    // SAFETY: all-zero is what the kernel takes for "not given".
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    arguments.set_tid = wanted.as_ptr().addr() as u64;
    arguments.set_tid_size = 1;
    // SAFETY: without CLONE_VM this is a fork of a process with one thread: the child may use the
    // heap and stdio. The arguments outlive the call.
    let child = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut arguments,
            size_of_val(&arguments),
        )
    };
    let child = Errno::result(child).context("clone3 with a pid of our choice")?;
    Ok(Pid::from_raw(i32::try_from(child)?))
}

/// How a signal is sent.
#[derive(Clone, Copy, ValueEnum)]
pub(super) enum How {
    /// kill(2)
    Kill,
    /// tgkill(2), to the first thread
    Tgkill,
    /// `rt_sigqueueinfo(2)`
    Sigqueue,
    /// `pidfd_send_signal(2)`
    Pidfd,
}

/// Sends a signal and is gone.
pub(super) fn send(pid: i32, signal: i32, how: How) -> Result<ExitCode> {
    // SAFETY: no call but one takes a pointer, which is to a siginfo that outlives it; what is not
    // set of it is zero.
    let sent = unsafe {
        match how {
            How::Kill => libc::syscall(libc::SYS_kill, pid, signal),
            How::Tgkill => libc::syscall(libc::SYS_tgkill, pid, pid, signal),
            How::Sigqueue => {
                let mut info: libc::siginfo_t = std::mem::zeroed();
                info.si_signo = signal;
                info.si_code = libc::SI_QUEUE;
                libc::syscall(libc::SYS_rt_sigqueueinfo, pid, signal, &raw mut info)
            }
            How::Pidfd => {
                let fd = Errno::result(libc::syscall(libc::SYS_pidfd_open, pid, 0))
                    .context("pidfd_open")?;
                libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, 0, 0)
            }
        }
    };
    Errno::result(sent).with_context(|| format!("signal {signal} to {pid}"))?;
    Ok(ExitCode::SUCCESS)
}

/// Codes and signals that the children of a flood end with, in turn. 0 is one: nobody is told.
const ENDS: [i32; 8] = [
    1,
    -libc::SIGKILL,
    42,
    0,
    -libc::SIGUSR1,
    255,
    -libc::SIGTERM,
    3,
];

/// Children that end at once, by themselves or by the hand of the one of `workers` that made them.
/// Says `flooded CHILD END WORKER` of each, END as in [`ENDS`], once all are gone.
pub(super) fn flood(cgroups: &[PathBuf], deaths: usize, workers: usize) -> Result<ExitCode> {
    let mut workers_left = Vec::new();
    for number in 0..workers {
        let share = deaths / workers;
        // SAFETY: this process has one thread, so the child may use the heap and stdio.
        match unsafe { fork() }.context("fork")? {
            ForkResult::Parent { child } => workers_left.push(child),
            ForkResult::Child => {
                prctl::set_pdeathsig(Signal::SIGKILL).context("parent-death signal")?;
                prctl::set_name(&std::ffi::CString::new(format!("flood-{number}"))?)?;
                join(cgroups)?;
                return flood_one(share, number);
            }
        }
    }
    for worker in workers_left {
        let status = waitpid(worker, None)?;
        if !matches!(status, nix::sys::wait::WaitStatus::Exited(_, 0)) {
            bail!("a worker of the flood: {status:?}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn flood_one(deaths: usize, first: usize) -> Result<ExitCode> {
    let mut told = Vec::with_capacity(deaths);
    let start = std::time::Instant::now();
    for number in first..first + deaths {
        let end = ENDS[number % ENDS.len()];
        // SAFETY: the child does nothing but system calls.
        let child = match unsafe { fork() }.context("fork")? {
            ForkResult::Parent { child } => child,
            ForkResult::Child if end < 0 => loop {
                pause();
            },
            // SAFETY: ends the child.
            ForkResult::Child => unsafe { libc::_exit(end) },
        };
        if end < 0 {
            kill(child, Signal::try_from(-end)?)?;
        }
        let mut status = 0;
        // SAFETY: `status` outlives the call.
        Errno::result(unsafe { libc::waitpid(child.as_raw(), &raw mut status, 0) })?;
        let ended = if libc::WIFSIGNALED(status) {
            -libc::WTERMSIG(status)
        } else {
            libc::WEXITSTATUS(status)
        };
        told.push((child, ended));
    }
    let per_second = deaths as u128 * 1_000_000 / start.elapsed().as_micros().max(1);
    // Line by line: a pipe takes each whole, though others write to it too.
    for (child, ended) in told {
        println!("flooded {child} {ended} {}", std::process::id());
    }
    println!("rate {per_second}");
    Ok(ExitCode::SUCCESS)
}
