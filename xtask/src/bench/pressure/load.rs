//! A workload that is always at the limit of its cgroup, and is never killed for it.
//!
//! It is this program, started again (`xtask bench-load`), so that what it measures of itself is the
//! work alone. It waits for no device: the cost of tracing is not hidden behind one.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    slice,
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use crate::bench::process;

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
    // SAFETY: no pointers are passed. An orphan would go on for ever.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } < 0 {
        return Err(io::Error::last_os_error()).context("PR_SET_PDEATHSIG");
    }
    match args.cpu {
        Some(cpu) => process::pin(&[cpu])?,
        // SAFETY: no pointers are passed.
        None if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) } < 0 => {
            return Err(io::Error::last_os_error()).context("setpriority");
        }
        None => {}
    }
    fs::write(args.cgroup.join("cgroup.procs"), "0")
        .with_context(|| format!("join {}", args.cgroup.display()))?;
    let mut memory = Memory::new(args.kind)?;
    let mut stdout = io::stdout();
    for line in io::stdin().lines() {
        let mib: u64 = line?.parse().context("a number of MiB")?;
        let (start, cpu_ns) = (Instant::now(), process::cpu_ns(std::process::id())?);
        for _ in 0..mib.saturating_mul(STEPS_PER_MIB) {
            memory.step()?;
        }
        let cpu_ns = process::cpu_ns(std::process::id())? - cpu_ns;
        writeln!(stdout, "{} {cpu_ns}", start.elapsed().as_nanos())?;
    }
    Ok(())
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

/// A running workload, ended when dropped.
pub(super) struct Load {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

/// What a round took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Took {
    pub(super) wall_ns: f64,
    pub(super) cpu_ns: f64,
}

impl Load {
    pub(super) fn start(kind: Kind, cgroup: &Path, cpu: Option<usize>) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("bench-load");
        if let Some(cpu) = cpu {
            command.args(["--cpu", &cpu.to_string()]);
        }
        let mut child = command
            .arg(match kind {
                Kind::File => "file",
                Kind::Anon => "anon",
            })
            .arg(cgroup)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the workload")?;
        let stdin = child.stdin.take().context("stdin")?;
        let stdout = child.stdout.take().context("stdout")?;
        Ok(Self {
            child,
            stdin,
            stdout: BufReader::new(stdout),
        })
    }

    /// Goes through this much memory and waits for the end of it.
    pub(super) fn round(&mut self, mib: u64) -> Result<Took> {
        writeln!(self.stdin, "{mib}").context("workload")?;
        let mut line = String::new();
        if self.stdout.read_line(&mut line)? == 0 {
            bail!("the workload ended ({})", self.child.wait()?);
        }
        parse(&line).with_context(|| format!("the workload said {line:?}"))
    }

    /// Works until it is dropped.
    pub(super) fn keep_on(&mut self) -> Result<()> {
        writeln!(self.stdin, "{}", u64::MAX).context("workload")
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn parse(line: &str) -> Option<Took> {
    let (wall_ns, cpu_ns) = line.trim().split_once(' ')?;
    Some(Took {
        wall_ns: wall_ns.parse().ok()?,
        cpu_ns: cpu_ns.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_round_took() {
        let took = Took {
            wall_ns: 20.0,
            cpu_ns: 10.0,
        };
        assert_eq!(parse("20 10\n"), Some(took));
        assert_eq!(parse("20\n"), None);
    }

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
