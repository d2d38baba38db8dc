//! A workload that is always at the limit of its cgroup, and is never killed for it.
//!
//! It waits for no device: the cost of tracing is not hidden behind one.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
    slice,
};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};

use crate::bench::{
    process,
    worker::{self, Worker},
};

/// Memory the workload goes through, over and over: four times the limit.
pub(super) const SPAN_BYTES: usize = 4 * super::LIMIT_BYTES;

const STEP_BYTES: usize = 256 << 10;

const STEPS_PER_MIB: u64 = (1 << 20) / STEP_BYTES as u64;

/// Of what kind the memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Kind {
    /// Page cache: a file without blocks is read, so that pages come from no disk.
    File,
    /// Memory of its own that the kernel may drop unwritten (`MADV_FREE`).
    Anon,
}

/// Goes through memory at the limit of a cgroup: for each number of MiB read from stdin, a line
/// with the wall clock and CPU time it took, ns.
#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    #[arg(value_enum)]
    kind: Kind,
    /// Cgroup to work in
    cgroup: PathBuf,
    /// CPU to stay on; without, anywhere at the lowest priority
    #[arg(long)]
    cpu: Option<usize>,
}

/// Is the workload.
pub(crate) fn work(args: &LoadArgs) -> Result<()> {
    worker::settle(args.cpu)?;
    fs::write(args.cgroup.join("cgroup.procs"), "0")
        .with_context(|| format!("join {}", args.cgroup.display()))?;
    let mut memory = Memory::new(args.kind)?;
    worker::serve(
        || process::cpu_ns(std::process::id()),
        |mib| {
            for _ in 0..mib.saturating_mul(STEPS_PER_MIB) {
                memory.step()?;
            }
            Ok(())
        },
    )
}

enum Memory {
    File {
        file: File,
        buffer: Vec<u8>,
        at: usize,
    },
    Anon {
        mapping: &'static mut [u8],
        at: usize,
    },
}

impl Memory {
    fn new(kind: Kind) -> Result<Self> {
        match kind {
            Kind::File => {
                // Beside this program: what is in a tmpfs could not be reclaimed.
                let program = std::env::current_exe()?;
                let directory = program.parent().context("no directory")?;
                let file = tempfile::tempfile_in(directory)
                    .with_context(|| format!("a file in {}", directory.display()))?;
                file.set_len(SPAN_BYTES as u64)?;
                Ok(Self::File {
                    file,
                    buffer: vec![0; STEP_BYTES],
                    at: 0,
                })
            }
            Kind::Anon => {
                // SAFETY: a new private mapping, of which the slice is the only user; it is never
                // unmapped.
                let mapping = unsafe {
                    let start = libc::mmap(
                        std::ptr::null_mut(),
                        SPAN_BYTES,
                        libc::PROT_READ | libc::PROT_WRITE,
                        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                        -1,
                        0,
                    );
                    if start == libc::MAP_FAILED {
                        return Err(io::Error::last_os_error()).context("mmap");
                    }
                    slice::from_raw_parts_mut(start.cast(), SPAN_BYTES)
                };
                Ok(Self::Anon { mapping, at: 0 })
            }
        }
    }

    fn step(&mut self) -> io::Result<()> {
        match self {
            Self::File { file, buffer, at } => {
                file.read_exact_at(buffer, *at as u64)?;
                *at = (*at + STEP_BYTES) % SPAN_BYTES;
            }
            Self::Anon { mapping, at } => {
                let step = &mut mapping[*at..*at + STEP_BYTES];
                step.fill(1);
                // SAFETY: inside the mapping; what the kernel drops reads as zero, which is a `u8`.
                if unsafe { libc::madvise(step.as_mut_ptr().cast(), STEP_BYTES, libc::MADV_FREE) }
                    < 0
                {
                    return Err(io::Error::last_os_error());
                }
                *at = (*at + STEP_BYTES) % SPAN_BYTES;
            }
        }
        Ok(())
    }
}

/// Starts the workload.
pub(super) fn start(kind: Kind, cgroup: &Path, cpu: Option<usize>) -> Result<Worker> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("bench-load");
    if let Some(cpu) = cpu {
        command.args(["--cpu", &cpu.to_string()]);
    }
    command
        .arg(match kind {
            Kind::File => "file",
            Kind::Anon => "anon",
        })
        .arg(cgroup);
    Worker::start(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_gone_through_in_a_circle() {
        for kind in [Kind::File, Kind::Anon] {
            let mut memory = Memory::new(kind).unwrap();
            for _ in 0..=SPAN_BYTES / STEP_BYTES {
                memory.step().unwrap();
            }
            let (Memory::File { at, .. } | Memory::Anon { at, .. }) = memory;
            assert_eq!(at, STEP_BYTES);
        }
    }
}
