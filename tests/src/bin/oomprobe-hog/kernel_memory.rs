//! Kernel memory: socket buffers and pipes.

use std::fs::File;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socketpair};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, pipe2, write};

use super::{PAGE, refused, wait_to_be_killed};

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

pub(super) fn sockets(pairs: u32) -> Result<ExitCode> {
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

pub(super) fn pipes(count: u32) -> Result<ExitCode> {
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

/// Slab, as pages of pipes are charged to the owner of the address space in old kernels (5.10).
pub(super) fn vfork(procs: &Path) -> Result<ExitCode> {
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
        let message = [1_u8; 2048];
        // SAFETY: valid descriptors and buffers of the sizes told; the rest takes nothing.
        unsafe {
            child.tid = libc::gettid();
            if libc::write(child.procs, b"0".as_ptr().cast(), 1) < 0 {
                child.errno = Errno::last();
                return 1;
            }
            loop {
                let mut ends = [0; 2];
                let kind = libc::SOCK_DGRAM | libc::SOCK_NONBLOCK;
                if libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) < 0 {
                    child.errno = Errno::last();
                    return 0;
                }
                while libc::write(ends[1], message.as_ptr().cast(), message.len()) > 0 {}
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
    match shared.errno {
        // A socket for which there is no inode is told as one too many.
        Errno::ENFILE => Ok(refused(&shared.errno.into())),
        other => no_more(other),
    }
}
