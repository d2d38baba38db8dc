//! A workload that is this program, started again, so that what it measures of itself is the work
//! alone.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

use super::process;

/// What a round of work took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Took {
    pub(super) wall_ns: f64,
    pub(super) cpu_ns: f64,
}

/// A running workload, ended when dropped.
pub(super) struct Worker {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Worker {
    /// This program with arguments that make it [`serve`].
    pub(super) fn start(mut command: Command) -> Result<Self> {
        let mut child = command
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

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has it do this much work and waits for the end of it.
    pub(super) fn round(&mut self, amount: u64) -> Result<Took> {
        writeln!(self.stdin, "{amount}").context("workload")?;
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

impl Drop for Worker {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ends this process with the one that started it: an orphan would go on for ever. Stays on `cpu`;
/// without, runs anywhere at the lowest priority.
pub(super) fn settle(cpu: Option<usize>) -> Result<()> {
    // SAFETY: no pointers are passed.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } < 0 {
        return Err(io::Error::last_os_error()).context("PR_SET_PDEATHSIG");
    }
    match cpu {
        Some(cpu) => process::pin(&[cpu])?,
        // SAFETY: no pointers are passed.
        None if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) } < 0 => {
            return Err(io::Error::last_os_error()).context("setpriority");
        }
        None => {}
    }
    Ok(())
}

/// Is the workload: for each amount read from stdin, a line with the wall clock and CPU time that
/// `work` took for it, ns; the latter by the clock `cpu_ns`.
pub(super) fn serve(
    cpu_ns: impl Fn() -> Result<u64>,
    mut work: impl FnMut(u64) -> Result<()>,
) -> Result<()> {
    let mut stdout = io::stdout();
    for line in io::stdin().lines() {
        let amount: u64 = line?.parse().context("an amount of work")?;
        let (start, cpu_before) = (Instant::now(), cpu_ns()?);
        work(amount)?;
        let used_ns = cpu_ns()? - cpu_before;
        writeln!(stdout, "{} {used_ns}", start.elapsed().as_nanos())?;
    }
    Ok(())
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
}
