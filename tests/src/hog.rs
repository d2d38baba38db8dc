//! Starts `oomprobe-hog` inside a cgroup and follows what it says.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::cgroup::Cgroup;
use crate::deadline::until;

/// Where the workloads are: `OOMPROBE_HOG`, or beside this program, or one directory above it
/// (test programs stand in `deps/`).
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("OOMPROBE_HOG") {
        return Ok(path.into());
    }
    let own = std::env::current_exe().context("own path")?;
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join("oomprobe-hog"))
        .find(|path| path.exists())
        .with_context(|| format!("no oomprobe-hog beside {}", own.display()))
}

/// How a process ended, by the word of the one that waited for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It exited with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

impl End {
    /// By what waitpid(2) says.
    pub fn of(status: ExitStatus) -> Result<Self> {
        let signal = status.signal().map(Self::Signal);
        signal
            .or(status.code().map(Self::Code))
            .with_context(|| format!("no end: {status}"))
    }

    fn parse(kind: &str, number: &str) -> Option<Self> {
        let number = number.parse().ok()?;
        match kind {
            "code" => Some(Self::Code(number)),
            "signal" => Some(Self::Signal(number)),
            _ => None,
        }
    }
}

/// How a workload starts.
#[derive(Debug, Default)]
pub struct Spec {
    arguments: Vec<OsString>,
}

impl Spec {
    /// A workload in `cgroup`, which it joins before it allocates.
    pub fn inside(cgroup: &Cgroup) -> Self {
        Self::default().with("--cgroup", cgroup.directory())
    }

    fn with(mut self, flag: &str, value: impl AsRef<OsStr>) -> Self {
        self.arguments
            .extend([OsStr::new(flag).into(), value.as_ref().into()]);
        self
    }

    /// Stays on this processor.
    #[must_use]
    pub fn on_cpu(self, cpu: usize) -> Self {
        self.with("--cpu", cpu.to_string())
    }

    /// Also joins this cgroup directory of another hierarchy.
    #[must_use]
    pub fn also_inside(self, directory: impl AsRef<OsStr>) -> Self {
        self.with("--cgroup", directory)
    }

    /// Runs as the first process of a pid namespace, as a container's does.
    #[must_use]
    pub fn as_container_init(mut self) -> Self {
        self.arguments.push("--pid-namespace".into());
        self
    }

    /// Runs under this name: any bytes but NUL, the first 15 are kept.
    #[must_use]
    pub fn comm(self, comm: &[u8]) -> Self {
        self.with("--comm", OsStr::from_bytes(comm))
    }

    /// Runs with this `oom_score_adj` instead of 0.
    #[must_use]
    pub fn oom_score_adj(self, value: i16) -> Self {
        self.with("--oom-score-adj", value.to_string())
    }

    /// Takes its memory from this NUMA node only.
    #[must_use]
    pub fn on_node(self, node: u32) -> Self {
        self.with("--bind-node", node.to_string())
    }

    /// Waits for [`Hog::go`] before it allocates.
    #[must_use]
    pub fn held(mut self) -> Self {
        self.arguments.push("--go".into());
        self
    }

    /// Starts it: `workload` is a subcommand of `oomprobe-hog` and its arguments.
    pub fn start<S: AsRef<OsStr>>(self, workload: &[S], deadline: Instant) -> Result<Hog> {
        let mut child = Command::new(binary()?)
            .args(&self.arguments)
            .args(workload)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start oomprobe-hog")?;
        let stdout = child.stdout.take().context("stdout of oomprobe-hog")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut hog = Hog {
            child,
            lines,
            unclaimed: Vec::new(),
            pid: 0,
        };
        hog.pid = hog.number_after("started ", deadline)?;
        Ok(hog)
    }
}

/// A running workload; killed when dropped.
#[derive(Debug)]
pub struct Hog {
    child: Child,
    lines: Receiver<String>,
    unclaimed: Vec<String>,
    pid: i32,
}

impl Hog {
    /// Pid of the workload's first process in this namespace.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Lets a [`Spec::held`] workload start.
    pub fn go(&mut self) -> Result<()> {
        let stdin = self.child.stdin.as_mut().context("stdin of oomprobe-hog")?;
        stdin.write_all(b"g").context("go")
    }

    /// The next line that starts with `prefix`, without it; `None` if the workload ends first.
    /// Other lines are kept: a process and its child do not speak in a fixed order.
    fn next(&mut self, prefix: &str, deadline: Instant) -> Result<Option<String>> {
        if let Some(at) = self
            .unclaimed
            .iter()
            .position(|line| line.starts_with(prefix))
        {
            return Ok(Some(self.unclaimed.remove(at).split_off(prefix.len())));
        }
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(mut line) if line.starts_with(prefix) => {
                    return Ok(Some(line.split_off(prefix.len())));
                }
                Ok(line) => self.unclaimed.push(line),
                Err(RecvTimeoutError::Timeout) => bail!("workload never said `{prefix}`"),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
            }
        }
    }

    /// The next line that starts with `prefix`, without it.
    pub fn after(&mut self, prefix: &str, deadline: Instant) -> Result<String> {
        self.next(prefix, deadline)?
            .with_context(|| format!("workload ended without saying `{prefix}`"))
    }

    fn number_after(&mut self, prefix: &str, deadline: Instant) -> Result<i32> {
        let text = self.after(prefix, deadline)?;
        text.parse()
            .with_context(|| format!("workload said `{prefix}{text}`"))
    }

    /// Pid of the child, thread or twin that the workload made.
    pub fn child_pid(&mut self, deadline: Instant) -> Result<i32> {
        self.number_after("child ", deadline)
    }

    /// Pid and signal of the next child that a signal ended; `None` after the last.
    pub fn next_killed(&mut self, deadline: Instant) -> Result<Option<(i32, i32)>> {
        while let Some(end) = self.next("ended ", deadline)? {
            if let Some((pid, signal)) = end.split_once(" signal ") {
                return Ok(Some((pid.parse()?, signal.parse()?)));
            }
        }
        Ok(None)
    }

    /// Pid and end of the next child that the workload, or the one beside its pid namespace, has
    /// waited for.
    pub fn ended(&mut self, deadline: Instant) -> Result<(i32, End)> {
        let told = self.after("ended ", deadline)?;
        let mut words = told.split(' ');
        let end = (|| {
            let pid = words.next()?.parse().ok()?;
            Some((pid, End::parse(words.next()?, words.next()?)?))
        })();
        end.with_context(|| format!("workload said `ended {told}`"))
    }

    /// What is left of a line after each `prefix`, until the workload ends.
    pub fn all_after(&mut self, prefix: &str, deadline: Instant) -> Result<Vec<String>> {
        let mut all = Vec::new();
        while let Some(rest) = self.next(prefix, deadline)? {
            all.push(rest);
        }
        Ok(all)
    }

    /// Has all the memory it wanted.
    pub fn wait_ready(&mut self, deadline: Instant) -> Result<()> {
        self.after("ready", deadline).map(drop)
    }

    /// Its end, whatever it is.
    pub fn wait(&mut self, deadline: Instant) -> Result<ExitStatus> {
        until(deadline, "end of the workload", || {
            Ok(self.child.try_wait()?)
        })
    }

    /// Its end by SIGKILL, which is also what `128 + 9` from inside a pid namespace means.
    pub fn wait_killed(&mut self, deadline: Instant) -> Result<()> {
        let status = self.wait(deadline)?;
        if status.signal() == Some(libc::SIGKILL) || status.code() == Some(128 + libc::SIGKILL) {
            return Ok(());
        }
        bail!("workload was not killed: {status}")
    }

    /// Fails unless it is still running.
    pub fn expect_alive(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("workload should live, but: {status}"),
        }
    }
}

impl Drop for Hog {
    fn drop(&mut self) {
        // Both fail only if it is gone already; its children die with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
