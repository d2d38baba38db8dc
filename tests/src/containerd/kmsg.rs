//! The kernel's own report of an OOM kill, from /dev/kmsg (Documentation/ABI/testing/dev-kmsg).

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use anyhow::{Context, Result};

use super::wait::{soon, until};

/// The kernel prints at most this many full OOM reports ...
const REPORT_BURST: usize = 10;
/// ... in 5 s (`oom_rs` in mm/oom_kill.c); a second more, as printk has a clock of its own.
const REPORT_INTERVAL: Duration = Duration::from_secs(6);

/// What the kernel's line `oom-kill:` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OomKill {
    /// The memory cgroup whose limit was hit.
    pub oom_memcg: String,
    /// The victim's memory cgroup.
    pub task_memcg: String,
    /// The victim's pid.
    pub pid: u32,
}

/// The kernel's log from one moment on.
pub struct Kmsg {
    file: File,
}

impl Kmsg {
    /// Reads from here on. Returns once the kernel would print a report again, should the
    /// kills of the last seconds have used up its allowance.
    pub fn follow() -> Result<Self> {
        until(soon(), "a pause in the kernel's OOM reports", || {
            Ok((recent_kills()? < REPORT_BURST).then_some(()))
        })?;
        let mut kmsg = Self::open()?;
        kmsg.file.seek(SeekFrom::End(0))?;
        Ok(kmsg)
    }

    /// Waits for the report of a kill in `task_memcg`.
    pub fn oom_kill_in(&mut self, task_memcg: &str) -> Result<OomKill> {
        until(soon(), &format!("an oom-kill line of {task_memcg}"), || {
            while let Some(record) = self.next_record()? {
                if let Some(kill) = parse(&record).filter(|kill| kill.task_memcg == task_memcg) {
                    return Ok(Some(kill));
                }
            }
            Ok(None)
        })
    }

    /// From the oldest record that the kernel still has.
    fn open() -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/kmsg")
            .context("cannot read /dev/kmsg")?;
        Ok(Self { file })
    }

    /// The next record, `<prefix>;<message>`, if there is one yet.
    fn next_record(&mut self) -> Result<Option<String>> {
        // One read gives one record; the kernel's longest is shorter than this.
        let mut record = [0; 8192];
        loop {
            match self.file.read(&mut record) {
                Ok(length) => return Ok(Some(String::from_utf8_lossy(&record[..length]).into())),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                // Records were overwritten before they were read: go on with the oldest left.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
                Err(error) => return Err(error).context("cannot read /dev/kmsg"),
            }
        }
    }
}

fn recent_kills() -> Result<usize> {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is a timespec that lives across the call.
    let read = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    anyhow::ensure!(read == 0, "cannot read the monotonic clock");
    let since = Duration::from_secs(now.tv_sec.unsigned_abs()).saturating_sub(REPORT_INTERVAL);

    let mut kmsg = Kmsg::open()?;
    let mut kills = 0;
    while let Some(record) = kmsg.next_record()? {
        if record.contains(": Killed process ") && timestamp(&record).is_some_and(|at| at >= since)
        {
            kills += 1;
        }
    }
    Ok(kills)
}

/// Third field of the prefix `priority,sequence,timestamp,flags`, microseconds.
fn timestamp(record: &str) -> Option<Duration> {
    let micros = record.split(',').nth(2)?.parse().ok()?;
    Some(Duration::from_micros(micros))
}

/// `oom-kill:constraint=…,oom_memcg=…,task_memcg=…,task=…,pid=…,uid=…`. Neither path has a comma
/// in these tests.
fn parse(record: &str) -> Option<OomKill> {
    let (_, fields) = record.split_once(";oom-kill:")?;
    let field = |name: &str| {
        fields
            .trim_end()
            .split(',')
            .find_map(|one| one.strip_prefix(name)?.strip_prefix('='))
    };
    Some(OomKill {
        oom_memcg: field("oom_memcg")?.into(),
        task_memcg: field("task_memcg")?.into(),
        pid: field("pid")?.parse().ok()?,
    })
}
