//! One report after the other: what a restart gave back.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::hold;
use crate::deadline::until;
use crate::expect::{at, equal};
use crate::scenario::{Context, Need, Scenario};
use crate::skb::{explains, number};

pub(super) const ALL: &[Scenario] = &[Scenario::new(
    "skb_watch",
    "a holder is ended while oomprobe looks again and again",
    watch,
)
.needs(&[Need::Tracer])];

/// Some 24 MiB.
const WORKLOAD: &[&str] = &["unread", "udp", "20000"];

/// A running `oomprobe skb --watch`; killed when dropped.
struct Watch {
    child: Child,
    lines: Receiver<std::io::Result<String>>,
    deadline: Instant,
}

impl Watch {
    fn start(context: &Context) -> Result<Self> {
        let mut child = Command::new(context.oomprobe()?)
            .args(["skb", "-o", "json", "--watch", "1s"])
            .args(["--duration", "1s", "--census", "off"])
            .stdout(Stdio::piped())
            .spawn()
            .context("start oomprobe")?;
        let stdout = child.stdout.take().context("stdout of oomprobe")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            let lines = BufReader::new(stdout).lines();
            // Ends where nobody wants more.
            lines
                .map_while(|line| sender.send(line).ok())
                .for_each(drop);
        });
        Ok(Self {
            child,
            lines,
            deadline: context.deadline,
        })
    }

    fn next(&mut self) -> Result<Value> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let line = self.lines.recv_timeout(left).context("no report")??;
        Ok(serde_json::from_str(&line)?)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn watch(context: &mut Context) -> Result<()> {
    let (hog, held) = hold(context, WORKLOAD)?;
    let mut watch = Watch::start(context)?;
    let first = watch.next()?;
    equal(&first, "seq", 0)?;
    equal(&first, "before", Value::Null)?;
    let second = watch.next()?;
    equal(&second, "seq", 1)?;
    equal(&second, "before.balance", at(&first, "balance").clone())?;
    let is_it = |holder: &&Value| at(holder, "socket.inode") == held.inode;
    let gone = at(&second, "before.gone").as_array().context("gone")?;
    ensure!(!gone.iter().any(|holder| is_it(&holder)), "gone: {second}");

    drop(hog);
    let event = until(context.deadline, "a report without the holder", || {
        let event = watch.next()?;
        let gone = at(&event, "before.gone").as_array();
        let is_gone = gone.context("gone")?.iter().any(|holder| is_it(&holder));
        Ok(is_gone.then_some(event))
    })?;
    let gone = at(&event, "before.gone").as_array().context("gone")?;
    let holder = gone.iter().find(is_it).context("holder")?;
    equal(holder, "process.pid", held.pid)?;
    explains(95, number(holder, "skbs")?, held.packets)?;

    let pid = i32::try_from(watch.child.id()).context("pid of oomprobe")?;
    kill(Pid::from_raw(pid), Signal::SIGINT).context("SIGINT to oomprobe")?;
    let status = until(context.deadline, "end of oomprobe", || {
        Ok(watch.child.try_wait()?)
    })?;
    // What others on this machine hold may be a finding.
    ensure!(matches!(status.code(), Some(0 | 4)), "oomprobe: {status}");
    Ok(())
}
