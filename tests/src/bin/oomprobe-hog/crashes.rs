//! What ends a process at once: faults, aborts, filters and limits.

use std::fs::File;
use std::io::Write;
use std::num::NonZeroUsize;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Subcommand, ValueEnum};
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::ftruncate;

use super::PAGE;

/// A way to die that needs nobody else.
#[derive(Subcommand)]
pub(super) enum Crash {
    /// SIGSEGV: reads this address (hexadecimal)
    Segv { address: String },
    /// SIGSEGV: writes to a page that may only be read; says where
    ReadOnly,
    /// SIGBUS: reads a file's page behind its end; says where
    Bus,
    /// SIGABRT: abort(3)
    Abort,
    /// SIGFPE: divides by zero
    Fpe,
    /// SIGILL: an instruction that is none
    Ill,
    /// SIGTRAP: a breakpoint that nobody set
    Trap,
    /// A system call that seccomp forbids
    Seccomp { action: Forbid },
    /// Uses more CPU time than `RLIMIT_CPU` allows: the soft limit, or the hard one
    CpuLimit {
        #[arg(long)]
        hard: bool,
    },
    /// Writes more than `RLIMIT_FSIZE` allows
    FileLimit,
}

/// What seccomp does about it.
#[derive(Clone, Copy, ValueEnum)]
pub(super) enum Forbid {
    /// `SECCOMP_RET_KILL_PROCESS`
    Process,
    /// `SECCOMP_RET_KILL_THREAD`, in the only thread
    OnlyThread,
    /// `SECCOMP_RET_KILL_THREAD`, in a second thread; the process then exits with 7
    OtherThread,
    /// `SECCOMP_SET_MODE_STRICT`
    Strict,
}

impl Crash {
    /// Dies; returns if that failed. Writes a core dump to the working directory only if `core`.
    pub(super) fn run(&self, core: Option<&Path>) -> Result<ExitCode> {
        if let Some(directory) = core {
            std::env::set_current_dir(directory).context("core directory")?;
            let (_, hard) = getrlimit(Resource::RLIMIT_CORE)?;
            setrlimit(Resource::RLIMIT_CORE, hard, hard).context("RLIMIT_CORE")?;
        } else {
            setrlimit(Resource::RLIMIT_CORE, 0, 0).context("RLIMIT_CORE")?;
        }
        // The runtime of this language looks for stack overflows by handlers of its own.
        let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
        for signal in [Signal::SIGSEGV, Signal::SIGBUS] {
            // SAFETY: the default action runs no code of this program.
            unsafe { sigaction(signal, &default) }.context("sigaction")?;
        }
        match self {
            Self::Segv { address } => {
                let digits = address.trim_start_matches("0x");
                touch(usize::from_str_radix(digits, 16).context("address")?);
            }
            Self::ReadOnly => write_read_only()?,
            Self::Bus => read_behind_end()?,
            Self::Abort => std::process::abort(),
            Self::Fpe | Self::Ill | Self::Trap => self.complain(),
            Self::Seccomp { action } => return seccomp(*action),
            Self::CpuLimit { hard } => {
                let limit = if *hard { 1 } else { 60 };
                setrlimit(Resource::RLIMIT_CPU, 1, limit).context("RLIMIT_CPU")?;
                loop {
                    std::hint::spin_loop();
                }
            }
            Self::FileLimit => {
                setrlimit(Resource::RLIMIT_FSIZE, 100, 100).context("RLIMIT_FSIZE")?;
                let file = memfd_create(c"limited", MFdFlags::empty()).context("memfd")?;
                let mut file = File::from(file);
                while file.write(&[0; 64]).is_ok() {}
            }
        }
        bail!("it survived")
    }

    /// Makes the processor complain.
    fn complain(&self) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: none of these comes back; that is what they are for.
        unsafe {
            use std::arch::asm;

            match self {
                Self::Fpe => {
                    asm!("div {zero:e}", zero = in(reg) 0, inout("eax") 1 => _, out("edx") _);
                }
                Self::Ill => asm!("ud2"),
                _ => asm!("int3"),
            }
        }
    }
}

fn touch(address: usize) {
    // SAFETY: nothing is there: this process ends here. Volatile, so that it is not left out.
    unsafe { std::ptr::with_exposed_provenance::<u8>(address).read_volatile() };
}

fn write_read_only() -> Result<()> {
    let length = NonZeroUsize::new(PAGE).context("page")?;
    // SAFETY: a new anonymous mapping; the write to it ends this process.
    unsafe {
        let start = mmap_anonymous(None, length, ProtFlags::PROT_READ, MapFlags::MAP_PRIVATE)?;
        println!("fault {:#x}", start.as_ptr().addr());
        start.cast::<u8>().as_ptr().write_volatile(1);
    }
    Ok(())
}

fn read_behind_end() -> Result<()> {
    let file = memfd_create(c"truncated", MFdFlags::empty()).context("memfd")?;
    ftruncate(&file, i64::try_from(PAGE)?)?;
    let length = NonZeroUsize::new(PAGE).context("page")?;
    // SAFETY: a new mapping of a file of our own; the read of it ends this process.
    unsafe {
        let (read, shared) = (ProtFlags::PROT_READ, MapFlags::MAP_SHARED);
        let start = mmap(None, length, read, shared, file.as_fd(), 0)?;
        ftruncate(&file, 0)?;
        println!("fault {:#x}", start.as_ptr().addr());
        start.cast::<u8>().as_ptr().read_volatile();
    }
    Ok(())
}

/// The system call that the filter forbids: nothing else here makes it.
const FORBIDDEN: libc::c_long = libc::SYS_getpgid;

fn seccomp(action: Forbid) -> Result<ExitCode> {
    let forbidden = || {
        // SAFETY: takes no pointer.
        unsafe { libc::syscall(FORBIDDEN, 0) }
    };
    match action {
        Forbid::Strict => {
            // SAFETY: takes no pointer.
            let strict = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_STRICT) };
            Errno::result(strict).context("strict mode")?;
            forbidden();
        }
        Forbid::Process => {
            filter(libc::SECCOMP_RET_KILL_PROCESS)?;
            forbidden();
        }
        Forbid::OnlyThread => {
            filter(libc::SECCOMP_RET_KILL_THREAD)?;
            forbidden();
        }
        Forbid::OtherThread => {
            let thread = std::thread::spawn(move || {
                filter(libc::SECCOMP_RET_KILL_THREAD)?;
                // SAFETY: gettid(2) takes nothing and cannot fail.
                println!("child {}", unsafe { libc::gettid() });
                forbidden();
                anyhow::Ok(())
            });
            // The kernel takes the thread without a word, and its stack is never unwound: only the
            // list of threads tells.
            while std::fs::read_dir("/proc/self/task")?.count() > 1 {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            std::mem::forget(thread);
            return Ok(ExitCode::from(7));
        }
    }
    bail!("it survived")
}

/// A filter for this thread that lets everything pass but one system call.
fn filter(action: u32) -> Result<()> {
    let step = |code: u32, k: u32, jt: u8, jf: u8| -> Result<libc::sock_filter> {
        Ok(libc::sock_filter {
            code: u16::try_from(code)?,
            jt,
            jf,
            k,
        })
    };
    let mut program = [
        // `seccomp_data.nr` is its first word.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0)?,
        step(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            u32::try_from(FORBIDDEN)?,
            0,
            1,
        )?,
        step(libc::BPF_RET | libc::BPF_K, action, 0, 0)?,
        step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0, 0)?,
    ];
    let program = libc::sock_fprog {
        len: u16::try_from(program.len())?,
        filter: program.as_mut_ptr(),
    };
    prctl::set_no_new_privs().context("no_new_privs")?;
    // SAFETY: the program is valid for the call, which copies it.
    let set = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    };
    Errno::result(set).context("seccomp filter").map(drop)
}
