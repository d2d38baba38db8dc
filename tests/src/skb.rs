//! What `oomprobe skb` says, and what the kernel says of the same.

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{setsockopt, sockopt::RcvBuf};
use serde_json::Value;

use crate::deadline::{soon, until};
use crate::expect::{at, equal};

/// Memory of a buffer with the data of [`PAYLOAD`]: the buffer itself, and its data with what the
/// kernel keeps beside them, in `kmalloc-1k`.
pub const SKB_BYTES: u64 = HEAD_BYTES + DATA_BYTES;
/// The buffer itself.
pub const HEAD_BYTES: u64 = 256;
/// Its data.
pub const DATA_BYTES: u64 = 1024;

const PAYLOAD: [u8; 600] = [1; 600];

/// Who has which socket, and how many packets wait in it: a workload's own words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Process.
    pub pid: i32,
    /// Inode of the socket.
    pub inode: u64,
    /// How many wait.
    pub packets: u64,
}

impl Held {
    /// What follows `holds `.
    pub fn parse(told: &str) -> Result<Self> {
        let mut words = told.split(' ');
        let held = (|| {
            Some(Self {
                pid: words.next()?.parse().ok()?,
                inode: words.next()?.parse().ok()?,
                packets: words.next()?.parse().ok()?,
            })
        })();
        held.with_context(|| format!("workload said `holds {told}`"))
    }
}

/// Arguments that all have.
const COMMAND: [&str; 3] = ["skb", "-o", "json"];

/// A report of `oomprobe skb`.
#[derive(Clone, Debug)]
pub struct Report {
    /// The event.
    pub event: Value,
    /// Its exit code.
    pub code: Option<i32>,
}

impl Report {
    /// Takes one, which must be by the better way to find sockets.
    pub fn take(oomprobe: &Path, arguments: &[&str]) -> Result<Self> {
        Self::of(Command::new(oomprobe).args(COMMAND).args(arguments))
    }

    /// The same in a PID namespace of its own, as in a pod without hostPID.
    pub fn take_in_pid_namespace(oomprobe: &Path, arguments: &[&str]) -> Result<Self> {
        let mut shell = Command::new("sh");
        // It is the shell's children that are in the namespace.
        shell.args(["-c", r#""$@"; exit $?"#, "sh"]);
        shell.arg(oomprobe).args(COMMAND).args(arguments);
        // SAFETY: one system call, which is safe between fork and exec.
        unsafe { shell.pre_exec(|| Ok(unshare(CloneFlags::CLONE_NEWPID)?)) };
        Self::of(&mut shell)
    }

    fn of(command: &mut Command) -> Result<Self> {
        let output = command.output().context("run oomprobe skb")?;
        let errors = String::from_utf8_lossy(&output.stderr);
        let event: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("skb: {:?}: {errors}", output.status))?;
        equal(&event, "kind", "skb_holders")?;
        equal(&event, "method", "open_files")?;
        Ok(Self {
            event,
            code: output.status.code(),
        })
    }

    /// What is said of the holder whose biggest socket this is.
    pub fn holder(&self, inode: u64) -> Result<&Value> {
        let is_it = |holder: &Value| at(holder, "socket.inode") == inode;
        self.one("holders", &format!("socket {inode}"), is_it)
    }

    /// What is said of a queue that no socket has.
    pub fn queue(&self, kind: &str, netns: u64) -> Result<&Value> {
        let is_it = |queue: &Value| at(queue, "kind") == kind && at(queue, "netns") == netns;
        self.one("queues", &format!("{kind} of {netns}"), is_it)
    }

    /// What the census found in the queues of a socket.
    pub fn group(&self, inode: u64) -> Result<&Value> {
        let is_it = |group: &Value| at(group, "socket.inode") == inode;
        self.one("census.groups", &format!("socket {inode}"), is_it)
    }

    /// The only element of a list that `is_it`.
    pub fn one(&self, list: &str, what: &str, is_it: impl Fn(&Value) -> bool) -> Result<&Value> {
        let all = at(&self.event, list).as_array().context("no such list")?;
        let found: Vec<_> = all.iter().filter(|one| is_it(one)).collect();
        match found[..] {
            [one] => Ok(one),
            [] => bail!("no {what} in {list}: {}", self.event),
            _ => bail!("more than one {what} in {list}: {found:?}"),
        }
    }

    /// Fails unless the verdict of a holder or queue is this one, and is among the findings, which
    /// the exit code tells.
    pub fn finds(&self, subject: &Value, id: &str) -> Result<()> {
        equal(subject, "verdict.id", id)?;
        let findings = at(&self.event, "findings").as_array().context("findings")?;
        let verdict = at(subject, "verdict");
        ensure!(findings.contains(verdict), "not among {findings:?}");
        self.exits_with(4)
    }

    /// Fails unless nothing is wrong with a holder.
    pub fn finds_nothing(&self, subject: &Value) -> Result<()> {
        equal(subject, "verdict", Value::Null)
    }

    /// Fails unless it ended with this code.
    pub fn exits_with(&self, code: i32) -> Result<()> {
        let told = self.code;
        ensure!(
            told == Some(code),
            "skb exits with {told:?}: {}",
            self.event
        );
        Ok(())
    }

    /// A number of the report.
    pub fn number(&self, path: &str) -> Result<u64> {
        number(&self.event, path)
    }
}

/// The report for people.
pub fn pretty(oomprobe: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new(oomprobe)
        .args(["skb", "-o", "pretty"])
        .args(arguments)
        .output()
        .context("run oomprobe skb")?;
    String::from_utf8(output.stdout).context("what skb prints")
}

/// A number in a value.
pub fn number(value: &Value, path: &str) -> Result<u64> {
    let number = at(value, path);
    let text = || format!("{path} is {number}");
    number.as_u64().with_context(text)
}

/// Fails unless a number is within a tenth of the truth.
pub fn near(what: &str, number: u64, truth: u64) -> Result<()> {
    ensure!(
        number.abs_diff(truth) <= truth / 10,
        "{what} are {number}, in truth {truth}"
    );
    Ok(())
}

/// Fails unless a census counted all packets in a socket: of buffers that are free and at hand, which
/// look alive, some may point to it from an earlier life.
pub fn counted(group: &Value, packets: u64) -> Result<()> {
    let skbs = number(group, "skbs")?;
    ensure!(
        (packets..=packets + packets / 50).contains(&skbs),
        "{skbs} counted, in truth {packets}"
    );
    Ok(())
}

/// Fails unless `part` is so many percent of `whole`.
pub fn explains(percent: u64, part: u64, whole: u64) -> Result<()> {
    ensure!(
        part * 100 >= whole * percent,
        "{part} of {whole} are explained, less than {percent} %"
    );
    Ok(())
}

/// What `/proc/slabinfo` counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slab {
    /// Buffers in use.
    pub heads: u64,
    /// Memory of these, and of data of one kilobyte.
    pub bytes: u64,
}

impl Slab {
    /// Reads it.
    pub fn read() -> Result<Self> {
        let text = fs::read_to_string("/proc/slabinfo").context("slabinfo")?;
        let mut slab = Self::default();
        for line in text.lines() {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            let [name, objects, _, bytes, ..] = words[..] else {
                continue;
            };
            let is_head = name == "skbuff_head_cache";
            let is_data = name.starts_with("kmalloc-") && name.ends_with("-1k");
            if !(is_head || is_data) {
                continue;
            }
            let objects: u64 = objects.parse().with_context(|| line.to_owned())?;
            let bytes: u64 = bytes.parse().with_context(|| line.to_owned())?;
            slab.bytes += objects * bytes;
            if is_head {
                slab.heads = objects;
            }
        }
        ensure!(slab.heads > 0, "slabinfo has no skbuff_head_cache");
        Ok(slab)
    }

    /// Reads it once it falls no more: sockets that were closed before are freed after a grace period
    /// of RCU.
    pub fn settled() -> Result<Self> {
        /// Some times as long as the longest there is on an idle machine.
        const QUIET: Duration = Duration::from_millis(500);
        let mut slab = Self::read()?;
        until(soon(), "slab that does not shrink", || {
            thread::sleep(QUIET);
            let before = std::mem::replace(&mut slab, Self::read()?);
            Ok((slab.heads >= before.heads.saturating_sub(100)).then_some(slab))
        })
    }

    /// What came since then.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            heads: self.heads.saturating_sub(before.heads),
            bytes: self.bytes.saturating_sub(before.bytes),
        }
    }

    /// Waits until what had come since `before` is gone, but for a twentieth.
    pub fn wait_gone(self, before: Self, deadline: Instant) -> Result<()> {
        until(deadline, "slab as it was before", || {
            let left = Self::read()?.since(before);
            let is_gone = left.heads * 20 <= self.heads && left.bytes * 20 <= self.bytes;
            Ok(is_gone.then_some(()))
        })
    }
}

/// Sends so many datagrams over the loopback device to a socket that has no room: only captures
/// keep them.
pub fn feed(packets: u64) -> Result<()> {
    let full = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("UDP socket")?;
    // The kernel makes it the least there is: a packet or two.
    setsockopt(&full, RcvBuf, &0).context("SO_RCVBUF")?;
    let address = full.local_addr().context("address of the socket")?;
    let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("UDP socket")?;
    for _ in 0..packets {
        sender.send_to(&PAYLOAD, address).context("send")?;
    }
    Ok(())
}
