//! A tracer under measurement: started as a user starts it, its lines stamped as they arrive.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fmt,
    fs::File,
    io::{BufRead as _, BufReader, Read as _, Seek as _, Write as _},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::process;

/// How long a tool may take for anything at all.
const PATIENCE: Duration = Duration::from_secs(30);

/// What bpftrace's command says when the script is attached.
pub(super) const ATTACHED: &str = "attached\n";

/// Where tools look for tracepoints.
const EVENTS: &str = "/sys/kernel/tracing/events";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    Oomprobe,
    Bpftrace,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Oomprobe => "oomprobe",
            Self::Bpftrace => "bpftrace",
        })
    }
}

/// A report of one kill.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Seen {
    /// `CLOCK_BOOTTIME` that the tool's BPF program read, ns.
    pub(super) stamp_ns: u64,
    /// `CLOCK_BOOTTIME` when the whole line had been read from the tool's stdout, ns.
    pub(super) arrival_ns: u64,
}

/// What one line says.
#[derive(Debug, Clone, PartialEq)]
enum Said {
    /// Hooks are attached; the line itself.
    Ready(String),
    Kill {
        pid: u32,
        stamp_ns: u64,
    },
    Nothing,
}

/// How to start the tools.
#[derive(Debug, Clone, Copy)]
pub(super) struct Programs<'a> {
    pub(super) oomprobe: &'a Path,
    /// What bpftrace is to do.
    pub(super) script: &'a str,
}

impl Programs<'_> {
    fn command(self, kind: Kind) -> Command {
        match kind {
            Kind::Oomprobe => {
                let mut command = Command::new(self.oomprobe);
                command.args(["trace", "-o", "json"]);
                command
            }
            Kind::Bpftrace => bpftrace(self.script),
        }
    }
}

/// A command for a tool that needs tracefs, which oomprobe does not: where it is not mounted, it is for
/// this tool alone.
pub(super) fn with_tracefs(program: impl AsRef<OsStr>) -> Command {
    if Path::new(EVENTS).is_dir() {
        return Command::new(program);
    }
    let mut unshare = Command::new("unshare");
    unshare
        .args(["--mount", "sh", "-c"])
        .args([
            "mount -t tracefs tracefs /sys/kernel/tracing && exec \"$@\"",
            "sh",
        ])
        .arg(program);
    unshare
}

/// bpftrace with a script; says [`ATTACHED`] once that is written to its stdin, and ends when that is
/// closed.
pub(super) fn bpftrace(script: &str) -> Command {
    let mut command = with_tracefs("bpftrace");
    // It has no line of its own for "attached": a command it starts then passes on what waits for
    // it, and goes when the pipe is closed.
    command.args(["-c", "/bin/cat", "-e", script]);
    command
}

/// A running tool, ended when dropped.
pub(super) struct Tool {
    pub(super) kind: Kind,
    child: Child,
    stderr: File,
    /// Arrival, ns, and line. Parsed only when asked for, so that nothing delays the next stamp.
    lines: Receiver<(u64, String)>,
    seen: HashMap<u32, Seen>,
    spawned_ns: u64,
}

impl Tool {
    /// Starts a tool.
    pub(super) fn start(programs: Programs<'_>, kind: Kind) -> Result<Self> {
        Self::spawn(programs.command(kind), kind)
    }

    /// Starts a tool and waits until it is attached.
    pub(super) fn attached(programs: Programs<'_>, kind: Kind) -> Result<Self> {
        let mut tool = Self::start(programs, kind)?;
        tool.ready()?;
        Ok(tool)
    }

    /// How long a tool takes from being started to being attached, ms. It is ended then.
    pub(super) fn start_up_ms(programs: Programs<'_>, kind: Kind) -> Result<(f64, String)> {
        let mut tool = Self::start(programs, kind)?;
        tool.ready()
    }

    fn spawn(mut command: Command, kind: Kind) -> Result<Self> {
        let stderr = tempfile::tempfile().context("file for stderr")?;
        let spawned_ns = process::boot_ns()?;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr.try_clone()?)
            .spawn()
            .with_context(|| format!("cannot start {kind}"))?;
        if kind == Kind::Bpftrace {
            let stdin = child.stdin.as_mut().context("stdin")?;
            stdin
                .write_all(ATTACHED.as_bytes())
                .context("stdin of bpftrace")?;
        }
        let stdout = child.stdout.take().context("stdout")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            stamp_lines(stdout, |arrival_ns, line| {
                // The receiver is gone when the tool is being ended.
                let _ = sender.send((arrival_ns, line));
            });
        });
        Ok(Self {
            kind,
            child,
            stderr,
            lines,
            seen: HashMap::new(),
            spawned_ns,
        })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the tool says that it is attached; ms since it was started, and what it said.
    pub(super) fn ready(&mut self) -> Result<(f64, String)> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.next(deadline)? {
                Some((arrival_ns, Said::Ready(line))) => {
                    return Ok((ms(arrival_ns.saturating_sub(self.spawned_ns)), line));
                }
                Some(_) => {}
                None => bail!("{} is not attached in time: {}", self.kind, self.words()),
            }
        }
    }

    /// The tool's report of the kill of `pid`, if it comes within `patience`.
    pub(super) fn kill_of(&mut self, pid: u32, patience: Duration) -> Result<Option<Seen>> {
        let deadline = Instant::now() + patience;
        while !self.seen.contains_key(&pid) {
            match self.next(deadline)? {
                Some((arrival_ns, Said::Kill { pid, stamp_ns })) => {
                    self.seen.insert(
                        pid,
                        Seen {
                            stamp_ns,
                            arrival_ns,
                        },
                    );
                }
                Some(_) => {}
                None => return Ok(None),
            }
        }
        Ok(self.seen.get(&pid).copied())
    }

    fn next(&mut self, deadline: Instant) -> Result<Option<(u64, Said)>> {
        use std::sync::mpsc::RecvTimeoutError::{Disconnected, Timeout};
        match self
            .lines
            .recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {
            Ok((arrival_ns, line)) => {
                let said = match self.kind {
                    Kind::Oomprobe => of_oomprobe(line),
                    Kind::Bpftrace => of_bpftrace(line),
                };
                Ok(Some((arrival_ns, said)))
            }
            Err(Timeout) => Ok(None),
            Err(Disconnected) => {
                let status = self.child.wait()?;
                bail!("{} ended ({status}): {}", self.kind, self.words())
            }
        }
    }

    /// What it wrote to stderr.
    fn words(&self) -> String {
        let mut words = Vec::new();
        let mut file = &self.stderr;
        let read = file.rewind().and_then(|()| file.read_to_end(&mut words));
        match read {
            Ok(_) => String::from_utf8_lossy(&words).trim().to_owned(),
            Err(error) => error.to_string(),
        }
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Calls `take` with each line and the time at which its end had been read.
fn stamp_lines(stdout: ChildStdout, mut take: impl FnMut(u64, String)) {
    let mut reader = BufReader::with_capacity(1 << 20, stdout);
    let mut line = String::new();
    while let Ok(1..) = reader.read_line(&mut line) {
        let Ok(now) = process::boot_ns() else { return };
        take(now, std::mem::take(&mut line));
    }
}

fn of_oomprobe(line: String) -> Said {
    let Ok(event) = serde_json::from_str::<serde_json::Value>(&line) else {
        return Said::Nothing;
    };
    match event["kind"].as_str() {
        Some("probe_status") => Said::Ready(line),
        Some("oom_kill") => {
            let pid = event["process"]["pid"]
                .as_u64()
                .and_then(|pid| u32::try_from(pid).ok());
            match (pid, event["time_boot_ns"].as_u64()) {
                (Some(pid), Some(stamp_ns)) => Said::Kill { pid, stamp_ns },
                _ => Said::Nothing,
            }
        }
        _ => Said::Nothing,
    }
}

fn of_bpftrace(line: String) -> Said {
    if line == ATTACHED {
        return Said::Ready(line);
    }
    let kill = line
        .trim_end()
        .split_once(' ')
        .and_then(|(stamp, pid)| Some((stamp.parse().ok()?, pid.parse().ok()?)));
    match kill {
        Some((stamp_ns, pid)) => Said::Kill { pid, stamp_ns },
        None => Said::Nothing,
    }
}

/// Nanoseconds as milliseconds.
#[expect(clippy::cast_precision_loss, reason = "durations far below 2^53 ns")]
pub(super) fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_both_tools() {
        let kill = |pid, stamp_ns| Said::Kill { pid, stamp_ns };
        assert_eq!(
            of_bpftrace("5211037003152 16673\n".into()),
            kill(16673, 5_211_037_003_152)
        );
        assert_eq!(of_bpftrace("Attaching 1 probe...\n".into()), Said::Nothing);
        assert_eq!(
            of_bpftrace("attached\n".into()),
            Said::Ready("attached\n".into())
        );

        let event = r#"{"kind":"oom_kill","time_boot_ns":7,"process":{"pid":42}}"#;
        assert_eq!(of_oomprobe(event.into()), kill(42, 7));
        let status = r#"{"kind":"probe_status","time_boot_ns":1}"#;
        assert_eq!(of_oomprobe(status.into()), Said::Ready(status.into()));
        for other in [r#"{"kind":"oom_outcome","time_boot_ns":7}"#, "{", ""] {
            assert_eq!(of_oomprobe(other.into()), Said::Nothing, "{other}");
        }
    }
}
