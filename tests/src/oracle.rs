//! The kernel's own word on OOM kills: its log and its counters.
//!
//! This reads the log independently of oomprobe's own parser, and only as much of it as the
//! scenarios compare. Formats: `oom_kill_process()`, `__oom_kill_process()` and `dump_header()` in
//! mm/oom_kill.c, the same from 5.10 to 7.x.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::deadline::{soon, until};

/// The kernel prints at most this many full OOM reports ...
const REPORT_BURST: usize = 10;
/// ... in 5 s (`oom_rs` in mm/oom_kill.c); a second more, as printk has a clock of its own.
const REPORT_INTERVAL_US: u64 = 6_000_000;

/// One "Killed process" line. The kernel prints it for every kill without a rate limit; in a
/// group kill the chosen process may get two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kill {
    /// What stands before it: "Memory cgroup out of memory", …
    pub message: String,
    /// Thread id: the thread by which the kernel found the memory, as a rule the leader.
    pub tid: i32,
    /// Name of that thread.
    pub comm: Vec<u8>,
    /// Its anonymous resident memory.
    pub anon_rss_bytes: u64,
    /// Its `oom_score_adj`.
    pub oom_score_adj: i32,
    /// When it was logged, by the kernel's monotonic clock.
    pub time_us: u64,
}

/// The "oom-kill:" line. Rate limited: it is missing in a burst.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// `CONSTRAINT_MEMCG`, …
    pub constraint: String,
    /// Path of the cgroup whose limit was hit; none in a global OOM.
    pub limit_path: Option<Vec<u8>>,
    /// Path of the chosen process's cgroup.
    pub task_path: Vec<u8>,
    /// Thread id of the chosen process.
    pub tid: i32,
}

/// What the kernel said since [`Oracle::begin`].
#[derive(Debug)]
pub struct Oracle {
    kmsg: File,
    vmstat_at_begin: u64,
    /// Every kill on this machine, other programs' included.
    pub kills: Vec<Kill>,
    /// Summaries, where the rate limit let them through.
    pub summaries: Vec<Summary>,
    /// "Out of memory and no killable processes" and its memcg form.
    pub nothing_killable: u32,
}

impl Oracle {
    /// Starts to listen.
    pub fn begin() -> Result<Self> {
        let mut oracle = Self::of_whole_log()?;
        // Records are numbered, not bytes: the only positions are the ends.
        oracle
            .kmsg
            .seek(SeekFrom::End(0))
            .context("/dev/kmsg: seek to the end")?;
        Ok(oracle)
    }

    /// Starts to listen once the kernel would print a summary again, should the kills of the last
    /// seconds have used up its allowance.
    pub fn begin_with_reports() -> Result<Self> {
        until(soon(), "a pause in the kernel's OOM reports", || {
            let mut whole = Self::of_whole_log()?;
            whole.read()?;
            let since = monotonic_us()?.saturating_sub(REPORT_INTERVAL_US);
            let recent = whole.kills.iter().filter(|kill| kill.time_us >= since);
            Ok((recent.count() < REPORT_BURST).then_some(()))
        })?;
        Self::begin()
    }

    /// From the oldest record that the kernel still has.
    fn of_whole_log() -> Result<Self> {
        let kmsg = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/kmsg")
            .context("/dev/kmsg")?;
        Ok(Self {
            kmsg,
            vmstat_at_begin: vmstat_oom_kill()?,
            kills: Vec::new(),
            summaries: Vec::new(),
            nothing_killable: 0,
        })
    }

    /// Waits for the summary of a kill in the cgroup with this path.
    pub fn wait_summary(&mut self, task_path: &str, deadline: Instant) -> Result<Summary> {
        until(deadline, &format!("oom-kill line of {task_path}"), || {
            self.read()?;
            let mut summaries = self.summaries.iter();
            Ok(summaries
                .find(|summary| summary.task_path == task_path.as_bytes())
                .cloned())
        })
    }

    /// Takes in what the log has gained. One read(2) gives one record.
    pub fn read(&mut self) -> Result<()> {
        let mut record = [0; 8192];
        loop {
            match self.kmsg.read(&mut record) {
                Ok(0) => return Ok(()),
                Ok(length) => self.take(&record[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                    bail!("the kernel log overran its buffer: kills may be missing")
                }
                Err(error) => return Err(error).context("/dev/kmsg"),
            }
        }
    }

    fn take(&mut self, record: &[u8]) {
        let Some((time_us, text)) = message(record) else {
            return;
        };
        if let Some(kill) = parse_kill(time_us, &text) {
            self.kills.push(kill);
        } else if let Some(summary) = parse_summary(&text) {
            self.summaries.push(summary);
        } else if find(&text, b"ut of memory and no killable processes").is_some() {
            self.nothing_killable += 1;
        }
    }

    /// The kill of this thread, first of several.
    pub fn kill_of(&self, tid: i32) -> Option<&Kill> {
        self.kills.iter().find(|kill| kill.tid == tid)
    }

    /// Waits until the kernel has reported the kill of `tid`.
    pub fn wait_kill(&mut self, tid: i32, deadline: Instant) -> Result<Kill> {
        until(
            deadline,
            &format!("kernel's line on the kill of {tid}"),
            || {
                self.read()?;
                Ok(self.kill_of(tid).cloned())
            },
        )
    }

    /// Checks that `/proc/vmstat oom_kill` has risen by one for each kill in the log. Kills by
    /// others may be under way, so the two agree at some moment, not at every.
    pub fn check_vmstat(&mut self, deadline: Instant) -> Result<()> {
        let result = until(deadline, "vmstat oom_kill equal to the log", || {
            self.read()?;
            Ok((self.vmstat_delta()? == self.kills.len() as u64).then_some(()))
        });
        let (logged, counted) = (self.kills.len(), self.vmstat_delta()?);
        result.with_context(|| format!("log: {logged} kills, vmstat: {counted}"))
    }

    /// Kills counted by the kernel since the begin.
    pub fn vmstat_delta(&self) -> Result<u64> {
        let current = vmstat_oom_kill()?;
        ensure!(
            current >= self.vmstat_at_begin,
            "/proc/vmstat oom_kill went back"
        );
        Ok(current - self.vmstat_at_begin)
    }
}

/// The clock of kernel log records, in µs.
fn monotonic_us() -> Result<u64> {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is a timespec that lives across the call.
    let read = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    ensure!(read == 0, "cannot read the monotonic clock");
    Ok(now.tv_sec.unsigned_abs() * 1_000_000 + now.tv_nsec.unsigned_abs() / 1000)
}

fn vmstat_oom_kill() -> Result<u64> {
    let text = fs::read_to_string("/proc/vmstat").context("/proc/vmstat")?;
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill "))
        .context("/proc/vmstat: no oom_kill")?
        .parse()
        .context("/proc/vmstat: oom_kill")
}

/// Time in µs and unescaped text of a record of the kernel itself,
/// "priority,sequence,time,…;text\n" and continuation lines.
fn message(record: &[u8]) -> Option<(u64, Vec<u8>)> {
    let start = record.iter().position(|byte| *byte == b';')?;
    let prefix = std::str::from_utf8(&record[..start]).ok()?;
    let mut fields = prefix.split(',');
    let priority: u32 = fields.next()?.parse().ok()?;
    let time_us = fields.nth(1)?.parse().ok()?;
    if priority >> 3 != 0 {
        return None; // Written by a program, not by the kernel.
    }
    let mut text = record[start + 1..].split(|byte| *byte == b'\n').next()?;
    let mut out = Vec::with_capacity(text.len());
    while let [first, rest @ ..] = text {
        let escaped = rest
            .strip_prefix(b"x")
            .filter(|_| *first == b'\\')
            .and_then(|hex| std::str::from_utf8(hex.get(..2)?).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        out.push(escaped.unwrap_or(*first));
        text = if escaped.is_some() { &rest[3..] } else { rest };
    }
    Some((time_us, out))
}

fn parse_kill(time_us: u64, text: &[u8]) -> Option<Kill> {
    const KILLED: &[u8] = b": Killed process ";
    let at = find(text, KILLED)?;
    let rest = &text[at + KILLED.len()..];
    let open = find(rest, b" (")?;
    // The comm may itself hold a parenthesis; the last field list is the kernel's.
    let close = rfind(rest, b") total-vm:")?;
    let fields = std::str::from_utf8(&rest[close + 2..]).ok()?;
    let field = |name: &str| {
        fields
            .split([' ', ','])
            .find_map(|word| word.strip_prefix(name))
    };
    let anon_kib: u64 = field("anon-rss:")?.strip_suffix("kB")?.parse().ok()?;
    Some(Kill {
        message: String::from_utf8_lossy(&text[..at]).into_owned(),
        tid: std::str::from_utf8(&rest[..open]).ok()?.parse().ok()?,
        comm: rest.get(open + 2..close)?.to_vec(),
        anon_rss_bytes: anon_kib << 10,
        oom_score_adj: field("oom_score_adj:")?.parse().ok()?,
        time_us,
    })
}

fn parse_summary(text: &[u8]) -> Option<Summary> {
    let rest = text.strip_prefix(b"oom-kill:constraint=")?;
    let constraint = rest.split(|byte| *byte == b',').next()?;
    let before_task = rfind(rest, b",task_memcg=")?;
    let limit_path = find(rest, b",oom_memcg=")
        .and_then(|at| rest.get(at + b",oom_memcg=".len()..before_task))
        .map(<[u8]>::to_vec);
    let task_path = &rest[before_task + b",task_memcg=".len()..];
    let task_path = task_path[..rfind(task_path, b",task=")?].to_vec();
    let tid = &rest[rfind(rest, b",pid=")? + b",pid=".len()..];
    let tid = std::str::from_utf8(tid.split(|byte| *byte == b',').next()?).ok()?;
    Some(Summary {
        constraint: String::from_utf8_lossy(constraint).into_owned(),
        limit_path,
        task_path,
        tid: tid.parse().ok()?,
    })
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

fn rfind(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).rposition(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_kill_with_a_hostile_name() {
        let record = b"3,901,123456,-;Memory cgroup out of memory: Killed process 42 \
            (a) \\x1b\\xff (\\x0a\\x5c) total-vm:23036kB, anon-rss:20224kB, file-rss:936kB, \
            shmem-rss:0kB, UID:0 pgtables:84kB oom_score_adj:-5\n SUBSYSTEM=x\n";
        let (time_us, text) = message(record).unwrap();
        let kill = parse_kill(time_us, &text).unwrap();
        assert_eq!(kill.time_us, 123_456);
        assert_eq!(kill.message, "Memory cgroup out of memory");
        assert_eq!((kill.tid, kill.oom_score_adj), (42, -5));
        assert_eq!(kill.comm, b"a) \x1b\xff (\n\\");
        assert_eq!(kill.anon_rss_bytes, 20224 << 10);
    }

    #[test]
    fn a_program_cannot_speak_for_the_kernel() {
        let record = b"12,901,123456,-;Out of memory: Killed process 42 (x) total-vm:1kB, \
            anon-rss:1kB, file-rss:1kB, shmem-rss:0kB, UID:0 pgtables:8kB oom_score_adj:0\n";
        assert_eq!(message(record), None);
    }

    #[test]
    fn reads_summaries_of_both_kinds() {
        let memcg = b"oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,\
            mems_allowed=0,oom_memcg=/a,b,task_memcg=/a,b/c,task=x,pid=1,,pid=77,uid=0";
        let summary = parse_summary(memcg).unwrap();
        assert_eq!(summary.limit_path.as_deref(), Some(&b"/a,b"[..]));
        assert_eq!(summary.task_path, b"/a,b/c");
        assert_eq!(
            (summary.constraint.as_str(), summary.tid),
            ("CONSTRAINT_MEMCG", 77)
        );
        let global = b"oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,\
            mems_allowed=0,global_oom,task_memcg=/a,task=x,pid=78,uid=0";
        let summary = parse_summary(global).unwrap();
        assert_eq!((summary.limit_path, summary.tid), (None, 78));
    }
}
