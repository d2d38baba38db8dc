//! Workloads that press memory, most until the kernel kills them, or end otherwise: one program, so that it can be
//! the only file besides the tracer in a container or an initramfs.
//!
//! It joins its cgroups before it allocates anything, then speaks one line per fact on stdout:
//! `started PID` · `child PID` · `ready` (has all it wanted, now waits) · `ended PID signal N` or
//! `ended PID code N` · `refused ERRNO` · `fault ADDRESS`. Pids are those of the caller's namespace.
//! Exit codes: 0 done, 2 usage, 3 the kernel refused memory (`refused`), 4 out of descriptors,
//! 5 set-up failed, 128 + N when the process inside `--pid-namespace` died of signal N.

mod crashes;
mod deaths;
mod kernel_memory;
mod memory;
mod pressure;
mod processes;
mod traffic;
mod unread;

use std::ffi::{CString, OsString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use nix::errno::Errno;
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, pause};

use crashes::Crash;
use deaths::End;
use kernel_memory::{pipes, sockets, vfork};
use memory::{grow, lazyfree, shmem, write_file};
use pressure::Reader;
use processes::{leader_exits, shared_mm, spawn, storm};
use unread::{Tap, Unread};

const MIB: usize = 1 << 20;
const PAGE: usize = 4096;

#[derive(Parser)]
#[command(about = "Presses memory, as a rule until the kernel kills it")]
struct Args {
    /// Directory of a cgroup to join first; repeat it for several hierarchies
    #[arg(long)]
    cgroup: Vec<PathBuf>,
    /// Run the workload as the first process of a new pid namespace, as in a container
    #[arg(long)]
    pid_namespace: bool,
    /// Set to this, also where the caller has another
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    oom_score_adj: i16,
    /// Any bytes but NUL; the kernel keeps the first 15
    #[arg(long)]
    comm: Option<OsString>,
    /// Take memory from this NUMA node only
    #[arg(long)]
    bind_node: Option<u32>,
    /// Stay on this processor
    #[arg(long)]
    cpu: Option<usize>,
    /// Wait for one byte on stdin before memory is taken
    #[arg(long)]
    go: bool,
    #[command(subcommand)]
    workload: Workload,
}

#[derive(Subcommand)]
enum Workload {
    /// Anonymous memory
    Anon {
        mib: usize,
        /// At most this fast
        #[arg(long)]
        mib_per_s: Option<u32>,
    },
    /// Anonymous memory given back lazily: hits limits, can always be reclaimed
    Lazyfree { mib: usize },
    /// Shared anonymous memory
    Shmem { mib: usize },
    /// One file written with write(2): page cache, tmpfs or ramfs, as the path has it
    File { path: PathBuf, mib: usize },
    /// Empty files: inodes and dentries
    Files { directory: PathBuf, count: u32 },
    /// A file or device read again and again: page cache
    Read(Reader),
    /// Anonymous memory, touched in random order for ever
    Touch { mib: usize },
    /// Anonymous memory that grows and is given back, for ever
    Sawtooth {
        mib: usize,
        #[arg(long)]
        mib_per_s: u32,
    },
    /// Unix sockets whose peer never reads
    Sockets { pairs: u32 },
    /// Captures that frames wait in
    Tap(Tap),
    /// Packets that wait in queues and that nobody reads
    Unread {
        #[command(subcommand)]
        unread: Unread,
    },
    /// Packets of all sorts, each read at once, so often; then all is closed
    Traffic { rounds: u32 },
    /// Pipes filled and never read
    Pipes { count: u32 },
    /// A child that still runs on its parent's memory, which the OOM killer leaves alone, fills
    /// pipes in another cgroup
    Vfork {
        /// The `cgroup.procs` it joins
        procs: PathBuf,
    },
    /// A thread takes the memory after the leader has exited
    LeaderExits { mib: usize },
    /// Two processes that share one address space
    SharedMm { mib: usize },
    /// A child takes the memory; the parent stays
    Child { mib: usize },
    /// Children that take memory, replaced until so many were killed
    Storm {
        kills: u32,
        mib: usize,
        #[arg(long, default_value_t = 2)]
        parallel: usize,
    },
    /// Ends, as told
    End {
        #[command(subcommand)]
        end: End,
    },
    /// Dies of what it does
    Crash {
        /// Where a core dump may be written; without it, none is
        #[arg(long)]
        core: Option<PathBuf>,
        #[command(subcommand)]
        crash: Crash,
    },
    /// Sends a signal and exits
    Send {
        pid: i32,
        signal: i32,
        #[arg(long, value_enum, default_value = "kill")]
        how: deaths::How,
    },
    /// Many processes that end at once
    Flood { deaths: usize, workers: usize },
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("oomprobe-hog: {error:#}");
            ExitCode::from(5)
        }
    }
}

fn run(args: Args) -> Result<ExitCode> {
    prctl::set_pdeathsig(Signal::SIGKILL).context("parent-death signal")?;
    if args.pid_namespace {
        nix::sched::unshare(CloneFlags::CLONE_NEWPID).context("new pid namespace")?;
        // SAFETY: this process has one thread, so the child may use the heap and stdio.
        match unsafe { fork() }.context("fork")? {
            ForkResult::Parent { child } => return report_first_process(child),
            ForkResult::Child => {
                prctl::set_pdeathsig(Signal::SIGKILL).context("parent-death signal")?;
            }
        }
    }
    // Before it joins: what it does on another processor, PSI weighs against what it waits on this.
    if let Some(cpu) = args.cpu {
        let mut set = CpuSet::new();
        set.set(cpu).context("processor")?;
        sched_setaffinity(Pid::from_raw(0), &set).context("sched_setaffinity")?;
    }
    // Were the parent of a storm inside, it would be all that is left to kill while its children
    // are dying.
    if !matches!(
        args.workload,
        Workload::Storm { .. } | Workload::Flood { .. }
    ) {
        join(&args.cgroup)?;
    }
    fs::write("/proc/self/oom_score_adj", args.oom_score_adj.to_string())
        .with_context(|| format!("oom_score_adj {}", args.oom_score_adj))?;
    if let Some(comm) = args.comm {
        let comm = CString::new(comm.into_vec()).context("comm")?;
        prctl::set_name(&comm).context("comm")?;
    }
    if let Some(node) = args.bind_node {
        bind_to_node(node)?;
    }
    if !args.pid_namespace {
        println!("started {}", std::process::id());
    }
    // The child of `child` waits itself, so that its pid can be looked up while it does.
    let child_waits = args.go && matches!(args.workload, Workload::Child { .. });
    if args.go && !child_waits {
        wait_for_go()?;
    }
    work(args.workload, &args.cgroup, child_waits)
}

fn join(cgroups: &[PathBuf]) -> Result<()> {
    for directory in cgroups {
        let procs = directory.join("cgroup.procs");
        fs::write(&procs, "0").with_context(|| format!("join {}", procs.display()))?;
    }
    Ok(())
}

fn wait_for_go() -> Result<()> {
    io::stdin()
        .read_exact(&mut [0])
        .context("waiting for the go byte")
}

fn work(workload: Workload, cgroups: &[PathBuf], child_waits: bool) -> Result<ExitCode> {
    match workload {
        Workload::Anon { mib, mib_per_s } => grow(mib, mib_per_s),
        Workload::Lazyfree { mib } => return lazyfree(mib),
        Workload::Shmem { mib } => shmem(mib)?,
        Workload::File { path, mib } => {
            if let Err(error) = write_file(&path, mib) {
                return Ok(refused(&error));
            }
        }
        Workload::Files { directory, count } => {
            for number in 0..count {
                if let Err(error) = File::create(directory.join(number.to_string())) {
                    return Ok(refused(&error));
                }
            }
        }
        Workload::Read(reader) => return reader.run(),
        Workload::Touch { mib } => pressure::touch(mib)?,
        Workload::Sawtooth { mib, mib_per_s } => pressure::sawtooth(mib, mib_per_s)?,
        Workload::Sockets { pairs } => return sockets(pairs),
        Workload::Unread { unread } => return unread.run(),
        Workload::Pipes { count } => return pipes(count),
        Workload::Traffic { rounds } => return traffic::traffic(rounds),
        Workload::Tap(tap) => return tap.run(),
        Workload::Vfork { procs } => return vfork(&procs),
        Workload::LeaderExits { mib } => leader_exits(mib)?,
        Workload::SharedMm { mib } => shared_mm(mib)?,
        Workload::Child { mib } => {
            let child = spawn(|| {
                if child_waits {
                    wait_for_go()?;
                }
                grow(mib, None);
                Ok(())
            })?;
            println!("child {child}");
            report_end(waitpid(child, None)?);
        }
        Workload::Storm {
            kills,
            mib,
            parallel,
        } => return storm(cgroups, kills, mib, parallel),
        Workload::End { end } => return end.run(),
        Workload::Crash { core, crash } => return crash.run(core.as_deref()),
        Workload::Send { pid, signal, how } => return deaths::send(pid, signal, how),
        Workload::Flood { deaths, workers } => return deaths::flood(cgroups, deaths, workers),
    }
    Ok(wait_to_be_killed())
}

/// Says that the workload has what it wanted and keeps it.
fn wait_to_be_killed() -> ExitCode {
    println!("ready");
    loop {
        pause();
    }
}

fn refused(error: &io::Error) -> ExitCode {
    println!("refused {}", error.raw_os_error().unwrap_or(0));
    ExitCode::from(3)
}

/// The caller of a pid namespace stays outside the cgroup, as a container's shim does.
fn report_first_process(child: Pid) -> Result<ExitCode> {
    println!("started {child}");
    let status = waitpid(child, None).context("wait for the first process")?;
    report_end(status);
    Ok(match status {
        WaitStatus::Exited(_, code) => ExitCode::from(u8::try_from(code).unwrap_or(5)),
        WaitStatus::Signaled(_, signal, _) => {
            ExitCode::from(u8::try_from(128 + signal as i32).unwrap_or(5))
        }
        _ => ExitCode::from(5),
    })
}

fn report_end(status: WaitStatus) {
    match status {
        WaitStatus::Exited(pid, code) => println!("ended {pid} code {code}"),
        WaitStatus::Signaled(pid, signal, _) => println!("ended {pid} signal {}", signal as i32),
        _ => {}
    }
}

/// Restricts this process' memory to one NUMA node (`MPOL_BIND`, include/uapi/linux/mempolicy.h).
fn bind_to_node(node: u32) -> Result<()> {
    let mask = 1_u64.checked_shl(node).context("node number")?;
    // SAFETY: the mask is one word long and outlives the call, which only reads it; the kernel
    // reads one bit less than it is told.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_set_mempolicy,
            libc::MPOL_BIND,
            &raw const mask,
            u64::BITS + 1,
        )
    };
    Errno::result(answer).context("set_mempolicy").map(drop)
}
