//! The daemon as a process: how it is stopped, and how it stays alive where memory is gone.

use std::path::Path;

use anyhow::Context as _;
use tokio::signal::unix::{Signal as UnixSignal, SignalKind};

use crate::kernel::loader;

/// SIGINT and SIGTERM.
pub(crate) struct Stop {
    interrupt: UnixSignal,
    terminate: UnixSignal,
}

impl Stop {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let handle = |kind| tokio::signal::unix::signal(kind).context("cannot handle signals");
        Ok(Self {
            interrupt: handle(SignalKind::interrupt())?,
            terminate: handle(SignalKind::terminate())?,
        })
    }

    pub(crate) async fn requested(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Gives memory back to the kernel: what is freed, and pages of the program that were needed for the
/// start only, such as the BPF object. What is needed again is read again.
pub(super) fn release_memory() {
    let (object, page) = (loader::object(), rustix::param::page_size());
    let start = object.as_ptr().addr().next_multiple_of(page);
    let end = object.as_ptr_range().end.addr() & !(page - 1);
    if start < end {
        // SAFETY: whole pages of a read-only file mapping.
        unsafe {
            libc::madvise(
                object.as_ptr().with_addr(start).cast_mut().cast(),
                end - start,
                libc::MADV_DONTNEED,
            );
        }
    }
    #[cfg(target_env = "gnu")]
    // SAFETY: no preconditions.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Makes the OOM killer spare this process, as far as it may, and keeps its pages in memory.
/// Neither is needed to work; both matter on a node that is out of memory.
pub(super) fn protect_from_oom(proc: &Path) {
    // With this sysctl the kernel kills whoever allocates, and that is us while we explain a kill;
    // only -1000 is exempt then. Otherwise -999 is enough and leaves a last resort.
    let kills_allocating = std::fs::read(proc.join("sys/vm/oom_kill_allocating_task"))
        .is_ok_and(|value| value.trim_ascii() != b"0");
    let adj = if kills_allocating { "-1000" } else { "-999" };
    // Without CAP_SYS_RESOURCE it stays as it was, which `doctor` says.
    let _ = std::fs::write("/proc/self/oom_score_adj", adj);
    // SAFETY: no preconditions. On fault only: pages never touched need no memory.
    unsafe {
        libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT);
    }
}
