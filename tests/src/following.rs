//! Runs `oomprobe skb --track` or `slab --track` and has it report.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::deadline::until;

/// What it says once its hooks are attached.
const READY: &str = "oomprobe: following";

/// A running `--track`; killed when dropped.
#[derive(Debug)]
pub struct Following {
    child: Child,
    stderr: BufReader<std::process::ChildStderr>,
    report: Option<JoinHandle<std::io::Result<Vec<u8>>>>,
}

impl Following {
    /// Starts oomprobe with these arguments and waits until its hooks are attached.
    pub fn start(oomprobe: &Path, arguments: &[&str]) -> Result<Self> {
        let mut child = Command::new(oomprobe)
            .args(arguments)
            .args(["-o", "json"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", oomprobe.display()))?;
        let mut stdout = child.stdout.take().context("stdout of oomprobe")?;
        // A report may be longer than a pipe is.
        let report = std::thread::spawn(move || {
            let mut report = Vec::new();
            stdout.read_to_end(&mut report).map(|_| report)
        });
        let stderr = child.stderr.take().context("stderr of oomprobe")?;
        let mut following = Self {
            child,
            stderr: BufReader::new(stderr),
            report: Some(report),
        };
        let mut said = String::new();
        while !said.contains(READY) {
            let read = following.stderr.read_line(&mut said).context("stderr")?;
            ensure!(read > 0, "oomprobe {arguments:?} ended: {said}");
        }
        Ok(following)
    }

    /// Interrupts it; it must report and exit with 0.
    pub fn stop(mut self, deadline: Instant) -> Result<Value> {
        let pid = i32::try_from(self.child.id()).context("pid of oomprobe")?;
        kill(Pid::from_raw(pid), Signal::SIGINT).context("SIGINT to oomprobe")?;
        let status = until(deadline, "end of oomprobe", || Ok(self.child.try_wait()?))?;
        let report = self.report.take().context("a report")?.join();
        let report = report.ok().context("a panic")?.context("stdout")?;
        let mut words = String::new();
        self.stderr.read_to_string(&mut words).context("stderr")?;
        ensure!(status.success(), "oomprobe: {status}: {words}");
        serde_json::from_slice(&report)
            .with_context(|| format!("{:?}, {words}", String::from_utf8_lossy(&report)))
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
