//! The OOM kills that the kernel log still has.

use std::collections::VecDeque;
use std::path::Path;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::event::{Cgroup, Process, RecentKill, Rss, Time, text};
use crate::node::Error;
use crate::node::clock::{BootClock, boot_ns};
use crate::node::kmsg::{Assembler, KmsgReader, OomReport, Start};

/// Kills told.
const MOST: usize = 5;

/// Records read at most: another writer may fill the log as fast as it is read.
const RECORDS: usize = 1_000_000;

/// The last kills in the log at `device`, newest first.
pub(super) fn recent(device: &Path) -> Result<Vec<RecentKill>, Error> {
    let mut log = KmsgReader::open(device, Start::Oldest)?;
    let mut assembler = Assembler::default();
    let mut last = VecDeque::new();
    let mut keep = |report: Option<OomReport>| {
        let Some(report) = report.filter(|report| !report.victims.is_empty()) else {
            return;
        };
        last.push_front(report);
        last.truncate(MOST);
    };
    for _ in 0..RECORDS {
        let Some(record) = log.next_record()? else {
            break;
        };
        keep(assembler.push(record));
    }
    keep(assembler.finish());
    let now = clock_gettime(ClockId::Monotonic);
    let now_us = Duration::new(
        now.tv_sec.unsigned_abs(),
        u32::try_from(now.tv_nsec).unwrap_or(0),
    );
    let clock = BootClock::now();
    let kill = |report: &OomReport| {
        // The log's clock stands still in suspend: what counts is how long ago it was.
        let age = now_us.saturating_sub(Duration::from_micros(report.time_us));
        let age_ns = u64::try_from(age.as_nanos()).unwrap_or(u64::MAX);
        let at = clock.wall_time(boot_ns().saturating_sub(age_ns));
        kill(report, age, at)
    };
    Ok(last.iter().map(kill).collect())
}

fn kill(report: &OomReport, age: Duration, at: std::time::SystemTime) -> RecentKill {
    let since_epoch = at.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let cgroup = |path: &Option<Vec<u8>>| {
        path.as_ref().map(|path| Cgroup {
            id: None,
            path: Some(text(path)),
        })
    };
    let process = report.victims.first().map(|victim| Process {
        pid: Some(victim.tid),
        tid: Some(victim.tid),
        comm: Some(text(&victim.comm)),
        uid: victim.uid,
        oom_score_adj: victim.oom_score_adj,
        rss: victim.anon_rss_bytes.map(|anon_bytes| Rss {
            anon_bytes,
            file_bytes: victim.file_rss_bytes.unwrap_or(0),
            shmem_bytes: victim.shmem_rss_bytes.unwrap_or(0),
        }),
        page_tables_bytes: victim.pgtables_bytes,
        virtual_bytes: victim.total_vm_bytes,
        ..Process::default()
    });
    RecentKill {
        time: Time::from_unix_ns(u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX)),
        age_s: age.as_secs(),
        process: process.unwrap_or_default(),
        victims: report.victims.len() as u64,
        cgroup: cgroup(&report.task_cgroup),
        k8s: None,
        container: None,
        limit_cgroup: cgroup(&report.limit_cgroup),
        message: report.message.as_deref().map(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_this_machine() {
        let Ok(kills) = recent(Path::new("/dev/kmsg")) else {
            eprintln!("skipped: /dev/kmsg cannot be read");
            return;
        };
        assert!(kills.len() <= MOST);
        assert!(kills.is_sorted_by(|newer, older| newer.age_s <= older.age_s));
        for kill in kills {
            assert!(kill.victims > 0);
            assert!(kill.process.comm.is_some());
        }
    }

    #[test]
    fn a_log_that_is_not_there_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(recent(&dir.path().join("kmsg")).unwrap_err().is_gone());
    }
}
