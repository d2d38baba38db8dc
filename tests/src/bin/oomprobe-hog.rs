//! Workloads that use memory until the kernel kills them: one program, so that it can be the
//! only file besides the tracer in a container or an initramfs.
//!
//! It joins its cgroups before it allocates anything, then speaks one line per fact on stdout:
//! `started PID` · `child PID` · `ready` (has all it wanted, now waits) · `ended PID signal N` or
//! `ended PID code N` · `refused ERRNO`. Pids are those of the caller's namespace.
//! Exit codes: 0 done, 2 usage, 3 the kernel refused memory (`refused`), 4 out of descriptors,
//! 5 set-up failed, 128 + N when the process inside `--pid-namespace` died of signal N.

use std::ffi::{CString, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::CloneFlags;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socketpair};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, pause, pipe2, write};

const MIB: usize = 1 << 20;
const PAGE: usize = 4096;

#[derive(Parser)]
#[command(about = "Uses memory until the kernel kills it")]
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
    /// Unix sockets whose peer never reads
    Sockets { pairs: u32 },
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
    // Were the parent of a storm inside, it would be all that is left to kill while its children
    // are dying.
    if !matches!(args.workload, Workload::Storm { .. }) {
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
        Workload::Sockets { pairs } => return sockets(pairs),
        Workload::Pipes { count } => return pipes(count),
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

fn grow(mib: usize, mib_per_s: Option<u32>) {
    let start = Instant::now();
    for taken in 0..mib {
        Box::leak(vec![1_u8; MIB].into_boxed_slice());
        if let (Some(rate), Ok(taken)) = (mib_per_s, u32::try_from(taken + 1)) {
            let due = Duration::from_secs(1) * taken / rate.max(1);
            std::thread::sleep(due.saturating_sub(start.elapsed()));
        }
    }
}

fn map(mib: usize, flags: MapFlags) -> Result<&'static mut [u8]> {
    let length = NonZeroUsize::new(mib * MIB).context("nothing to map")?;
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new anonymous mapping, never unmapped, referenced only by the returned slice.
    unsafe {
        let start = nix::sys::mman::mmap_anonymous(None, length, protection, flags)?;
        Ok(std::slice::from_raw_parts_mut(
            start.cast().as_ptr(),
            length.get(),
        ))
    }
}

fn shmem(mib: usize) -> Result<()> {
    for page in map(mib, MapFlags::MAP_SHARED)?.chunks_mut(PAGE) {
        page[0] = 1;
    }
    Ok(())
}

fn lazyfree(mib: usize) -> Result<ExitCode> {
    for piece in map(mib, MapFlags::MAP_PRIVATE)?.chunks_mut(MIB) {
        piece.fill(1);
        let start = std::ptr::NonNull::from(&mut *piece).cast();
        // SAFETY: the range is this mapping's own; nothing relies on its content afterwards.
        unsafe { nix::sys::mman::madvise(start, piece.len(), MmapAdvise::MADV_FREE)? };
    }
    Ok(ExitCode::SUCCESS)
}

fn write_file(path: &Path, mib: usize) -> io::Result<()> {
    let mut file = File::create(path)?;
    let piece = [1_u8; 16 << 10];
    for _ in 0..mib * MIB / piece.len() {
        file.write_all(&piece)?;
    }
    Ok(())
}

fn raise_descriptor_limit() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("descriptor limit")
}

/// Exit code of a workload that could not open or fill another descriptor.
fn no_more(error: Errno) -> Result<ExitCode> {
    match error {
        Errno::ENOMEM | Errno::ENOBUFS => Ok(refused(&error.into())),
        Errno::EMFILE | Errno::ENFILE => Ok(ExitCode::from(4)),
        other => bail!("descriptor: {other}"),
    }
}

fn sockets(pairs: u32) -> Result<ExitCode> {
    raise_descriptor_limit()?;
    let mut held: Vec<(OwnedFd, OwnedFd)> = Vec::new();
    for _ in 0..pairs {
        let pair = match socketpair(
            AddressFamily::Unix,
            SockType::Datagram,
            None,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        ) {
            Ok(pair) => pair,
            Err(error) => return no_more(error),
        };
        let message = [1_u8; 2048];
        loop {
            match send(
                std::os::fd::AsRawFd::as_raw_fd(&pair.0),
                &message,
                MsgFlags::empty(),
            ) {
                Ok(_) => {}
                Err(Errno::EAGAIN) => break,
                Err(error) => return no_more(error),
            }
        }
        held.push(pair);
    }
    Ok(wait_to_be_killed())
}

fn pipes(count: u32) -> Result<ExitCode> {
    raise_descriptor_limit()?;
    let mut held: Vec<(OwnedFd, OwnedFd)> = Vec::new();
    for _ in 0..count {
        let ends = match pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK) {
            Ok(ends) => ends,
            Err(error) => return no_more(error),
        };
        loop {
            match write(&ends.1, &[1_u8; PAGE]) {
                Ok(_) => {}
                Err(Errno::EAGAIN) => break,
                Err(error) => return no_more(error),
            }
        }
        held.push(ends);
    }
    Ok(wait_to_be_killed())
}

fn vfork(procs: &Path) -> Result<ExitCode> {
    /// Shared with the child.
    struct Child {
        procs: RawFd,
        tid: libc::pid_t,
        errno: Errno,
    }
    /// All that the child does: system calls, as it shares the parent's memory.
    extern "C" fn fill(child: *mut libc::c_void) -> libc::c_int {
        // SAFETY: the parent's, which waits for as long as the child runs.
        let child = unsafe { &mut *child.cast::<Child>() };
        let page = [1_u8; PAGE];
        // SAFETY: valid descriptors and buffers of the sizes told; the rest takes nothing.
        unsafe {
            child.tid = libc::gettid();
            if libc::write(child.procs, b"0".as_ptr().cast(), 1) < 0 {
                child.errno = Errno::last();
                return 1;
            }
            loop {
                let mut ends = [0; 2];
                if libc::pipe2(ends.as_mut_ptr(), libc::O_NONBLOCK) < 0 {
                    child.errno = Errno::last();
                    return 0;
                }
                while libc::write(ends[1], page.as_ptr().cast(), page.len()) > 0 {}
                if Errno::last() != Errno::EAGAIN {
                    child.errno = Errno::last();
                    return 0;
                }
            }
        }
    }
    raise_descriptor_limit()?;
    let procs = File::options()
        .write(true)
        .open(procs)
        .context("open cgroup.procs")?;
    let mut shared = Child {
        procs: procs.as_raw_fd(),
        tid: 0,
        errno: Errno::UnknownErrno,
    };
    let mut stack = vec![0_u128; 4096];
    // SAFETY: the stack is aligned, grows down from its end, and outlives the child, as does what
    // it is given: CLONE_VFORK has this process wait for its exit.
    let child = Errno::result(unsafe {
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        let end = stack.as_mut_ptr_range().end;
        libc::clone(fill, end.cast(), flags, (&raw mut shared).cast())
    })
    .context("clone")?;
    waitpid(Pid::from_raw(child), None)?;
    println!("child {}", shared.tid);
    no_more(shared.errno)
}

fn leader_exits(mib: usize) -> Result<()> {
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

fn shared_mm(mib: usize) -> Result<()> {
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
fn spawn(body: impl FnOnce() -> Result<()>) -> Result<Pid> {
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

fn storm(cgroups: &[PathBuf], kills: u32, mib: usize, parallel: usize) -> Result<ExitCode> {
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
