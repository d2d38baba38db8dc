//! Joins the lines of one OOM kill.

use super::super::memcg::{MemoryStat, Version};
use super::super::text;
use super::line::{Constraint, Counter, Decision, Killed, Line, Usage};
use super::reader::{Record, RecordHeader};

/// A finished report waits this long for lines that may still belong to it: further victims of a
/// group kill, the OOM reaper.
const LINGER_US: u64 = 1_000_000;

/// Records longer than this may have been cut by the kernel (`LOG_LINE_MAX` was 976).
const CUT_RECORD_LEN: usize = 900;

/// Everything the kernel logged about one run of the OOM killer. What it did not print, or what
/// was lost, is `None`. Names are bytes as the kernel has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OomReport {
    /// Time of the first line, microseconds of the kernel log's clock.
    pub time_us: u64,
    /// Sequence numbers of the first and the last line.
    pub seq: (u64, u64),
    /// Requested by sysrq-f.
    pub sysrq: bool,
    /// The task whose allocation failed.
    pub trigger: Option<Trigger>,
    /// What confined the allocation.
    pub constraint: Option<Constraint>,
    /// Cgroup whose limit was hit; `None` for a node OOM.
    pub limit_cgroup: Option<Vec<u8>>,
    /// Memory cgroup of the chosen task.
    pub task_cgroup: Option<Vec<u8>>,
    /// The chosen task.
    pub chosen: Option<Chosen>,
    /// The kernel's reason: "Memory cgroup out of memory", "Out of memory", …
    pub message: Option<Vec<u8>>,
    /// Memory counter of the limit's owner.
    pub memory: Option<Usage>,
    /// Swap counter of the limit's owner (v2).
    pub swap: Option<Usage>,
    /// Memory and swap counter of the limit's owner (v1).
    pub memory_swap: Option<Usage>,
    /// Kernel memory counter of the limit's owner (v1).
    pub kmem: Option<Usage>,
    /// Statistics of the limit's owner, its descendants included (5.3).
    pub stat: Option<MemoryStat>,
    /// The cgroup that was killed as a whole for `memory.oom.group`.
    pub group_cgroup: Option<Vec<u8>>,
    /// Killed processes in order, each once. Those that merely share a victim's memory are killed
    /// without a line.
    pub victims: Vec<Victim>,
    /// Thread ids that were chosen but left alone, as they were exiting already.
    pub already_exiting: Vec<u32>,
    /// Nothing could be killed.
    pub no_killable: bool,
}

/// The task whose allocation failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trigger {
    /// Its name.
    pub comm: Vec<u8>,
    /// Its thread id.
    pub tid: Option<u32>,
    /// Allocation flags.
    pub gfp_mask: Option<u32>,
    /// The same by name.
    pub gfp_flags: Option<Vec<u8>>,
    /// Allocation of 2^order pages; -1 is sysrq-f.
    pub order: Option<i32>,
    /// Its `oom_score_adj`.
    pub oom_score_adj: Option<i32>,
}

/// The chosen task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// Its thread id.
    pub tid: u32,
    /// Its name.
    pub comm: Vec<u8>,
    /// Its real uid.
    pub uid: u32,
}

/// A process that was killed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Victim {
    /// Thread id of a thread that still had the memory: the process id unless the main thread has
    /// exited before.
    pub tid: u32,
    /// Name of that thread.
    pub comm: Vec<u8>,
    /// Real uid.
    pub uid: Option<u32>,
    /// Mapped.
    pub total_vm_bytes: Option<u64>,
    /// Resident anonymous memory.
    pub anon_rss_bytes: Option<u64>,
    /// Resident file pages.
    pub file_rss_bytes: Option<u64>,
    /// Resident shared memory.
    pub shmem_rss_bytes: Option<u64>,
    /// Page tables.
    pub pgtables_bytes: Option<u64>,
    /// `oom_score_adj`.
    pub oom_score_adj: Option<i32>,
    /// What the OOM reaper said, if it did before the report was handed out.
    pub reaped: Option<Reaped>,
}

/// What the OOM reaper left of a victim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaped {
    /// It freed what it could.
    Done {
        /// Anonymous memory left.
        anon_rss_bytes: u64,
        /// File pages left.
        file_rss_bytes: u64,
        /// Shared memory left.
        shmem_rss_bytes: u64,
    },
    /// It could not take the lock.
    Unable,
}

impl OomReport {
    /// True once the kernel has said how it ended; only a group's further victims and the OOM
    /// reaper can still follow.
    fn is_decided(&self) -> bool {
        !self.victims.is_empty() || !self.already_exiting.is_empty() || self.no_killable
    }

    fn has_victim(&self, tid: u32) -> bool {
        self.victims.iter().any(|victim| victim.tid == tid)
    }

    fn decide(&mut self, decision: Decision<'_>) {
        self.constraint = Some(decision.constraint);
        self.limit_cgroup = decision.limit_cgroup.map(<[u8]>::to_vec);
        self.task_cgroup = decision.task_cgroup.map(<[u8]>::to_vec);
        self.chosen = Some(Chosen {
            tid: decision.tid,
            comm: decision.comm.to_vec(),
            uid: decision.uid,
        });
    }

    fn kill(&mut self, killed: Killed<'_>) {
        if let Some(message) = killed.message {
            self.message = Some(message.to_vec());
        }
        // A group kill names its first victim again if that is still alive.
        if self.has_victim(killed.tid) {
            return;
        }
        self.settle_name(killed.tid, killed.comm);
        self.victims.push(Victim {
            tid: killed.tid,
            comm: killed.comm.to_vec(),
            uid: killed.uid,
            total_vm_bytes: killed.total_vm_bytes,
            anon_rss_bytes: killed.anon_rss_bytes,
            file_rss_bytes: killed.file_rss_bytes,
            shmem_rss_bytes: killed.shmem_rss_bytes,
            pgtables_bytes: killed.pgtables_bytes,
            oom_score_adj: killed.oom_score_adj,
            reaped: None,
        });
    }

    /// A cgroup named `a,task=b` makes the `oom-kill:` line ambiguous; the name in the
    /// `Killed process` line is not.
    fn settle_name(&mut self, tid: u32, comm: &[u8]) {
        let (Some(chosen), Some(cgroup)) = (&mut self.chosen, &mut self.task_cgroup) else {
            return;
        };
        if chosen.tid != tid || chosen.comm == comm {
            return;
        }
        let joined = [cgroup, &b",task="[..], &chosen.comm].concat();
        let suffix = [b",task=", comm].concat();
        if let Some(path) = joined.strip_suffix(&suffix[..]) {
            *cgroup = path.to_vec();
            chosen.comm = comm.to_vec();
        }
    }

    fn reap(&mut self, tid: u32, reaped: Reaped) {
        if let Some(victim) = self.victims.iter_mut().find(|victim| victim.tid == tid) {
            victim.reaped = Some(reaped);
        }
    }
}

/// Collects kernel log records into [`OomReport`]s.
///
/// The kernel runs one OOM kill at a time (`oom_lock`), so their lines do not interleave; other
/// records may come between. Feed it every record in order: a gap in the numbers ends a report.
#[derive(Debug, Default)]
pub struct Assembler {
    current: Option<OomReport>,
    /// Time of the last line that belongs to it.
    last_us: u64,
    last_seq: Option<u64>,
    /// The lines of `memory.stat` follow.
    in_stats: bool,
    /// Beginning of a line that the kernel printed in pieces.
    unfinished: Vec<u8>,
    /// sysrq-f was pressed; its report follows.
    sysrq: bool,
}

impl Assembler {
    /// Takes the next record. Returns a report that is complete by what this record shows: another
    /// one begins, or [`Self::expire`] is due.
    pub fn push(&mut self, record: Record<'_>) -> Option<OomReport> {
        let header = record.header;
        let expected = self
            .last_seq
            .replace(header.seq)
            .map(|last| last.wrapping_add(1));
        let mut done = if expected.is_some_and(|expected| expected != header.seq) {
            self.finish()
        } else {
            self.expire(header.time_us)
        };
        // Only the kernel writes with facility 0: user space cannot forge a report.
        if header.priority >> 3 != 0 {
            return done;
        }
        let mut pieces = std::mem::take(&mut self.unfinished);
        let text = if header.continuation && !pieces.is_empty() {
            pieces.extend_from_slice(record.text);
            &pieces[..]
        } else {
            record.text
        };
        match Line::parse(text) {
            Some(line) => {
                self.in_stats = matches!(line, Line::StatsOf { .. });
                self.take(line, record, &mut done);
            }
            None if self.in_stats => self.take_stats(text),
            None => {
                let starts = [&b"oom-kill:"[..], b"Task in ", b"Tasks in "];
                if starts.iter().any(|start| text.starts_with(start)) {
                    self.unfinished = text.to_vec();
                }
            }
        }
        done
    }

    /// The report in progress, if what it tells is complete and it has had time for its last
    /// lines. `now_us` is on the kernel log's clock, to which `CLOCK_MONOTONIC` is near enough.
    pub fn expire(&mut self, now_us: u64) -> Option<OomReport> {
        let report = self.current.as_ref()?;
        if report.is_decided() && now_us.saturating_sub(self.last_us) > LINGER_US {
            return self.finish();
        }
        None
    }

    /// The report in progress, for a look at it.
    pub fn in_progress(&self) -> Option<&OomReport> {
        self.current.as_ref()
    }

    /// The report in progress, complete or not.
    pub fn finish(&mut self) -> Option<OomReport> {
        self.in_stats = false;
        self.unfinished.clear();
        self.current.take()
    }

    fn take(&mut self, line: Line<'_>, record: Record<'_>, done: &mut Option<OomReport>) {
        let header = record.header;
        let decided = self.current.as_ref().is_some_and(OomReport::is_decided);
        let report = match line {
            Line::SysrqOom => {
                self.sysrq = true;
                return;
            }
            // Other parts of the kernel dump stacks too.
            Line::StackOf { .. } => match &mut self.current {
                Some(report) if !decided => report,
                _ => return,
            },
            // A victim may be that of a report already handed out.
            Line::Reaped { tid, .. } | Line::NotReaped { tid } => match &mut self.current {
                Some(report) if report.has_victim(tid) => report,
                _ => return,
            },
            Line::Invoked { .. } => self.begin(header, done),
            Line::Killed(killed) => match &self.current {
                Some(report) if decided && !joins_group(report, killed.message) => {
                    self.begin(header, done)
                }
                _ => self.current_or_new(header),
            },
            Line::AlreadyExiting { message, .. } => match &self.current {
                Some(report) if decided && !joins_group(report, Some(message)) => {
                    self.begin(header, done)
                }
                _ => self.current_or_new(header),
            },
            Line::Group { .. } => self.current_or_new(header),
            Line::Usage(..)
            | Line::StatsOf { .. }
            | Line::Decision(_)
            | Line::TaskOfLimit { .. }
            | Line::Sacrifice { .. }
            | Line::NoKillable => {
                if decided {
                    self.begin(header, done)
                } else {
                    self.current_or_new(header)
                }
            }
        };
        report.seq.1 = header.seq;
        apply(report, line);
        self.last_us = header.time_us;
    }

    fn begin(&mut self, header: RecordHeader, done: &mut Option<OomReport>) -> &mut OomReport {
        if let Some(report) = self.current.take() {
            *done = Some(report);
        }
        self.current_or_new(header)
    }

    fn current_or_new(&mut self, header: RecordHeader) -> &mut OomReport {
        let sysrq = &mut self.sysrq;
        self.current.get_or_insert_with(|| OomReport {
            sysrq: std::mem::take(sysrq),
            time_us: header.time_us,
            seq: (header.seq, header.seq),
            ..OomReport::default()
        })
    }

    /// One line of statistics, or, before 6.5, all of them in one record.
    fn take_stats(&mut self, text: &[u8]) {
        let Some(report) = &mut self.current else {
            return;
        };
        let whole = match text.iter().rposition(|&byte| byte == b'\n') {
            Some(last) if text.len() >= CUT_RECORD_LEN => &text[..last],
            _ => text,
        };
        for (_, line) in text::lines(whole) {
            let pair = text::cut(line, b" ");
            let Some((key, value)) =
                pair.and_then(|(key, value)| Some((key, text::decimal(value)?)))
            else {
                continue;
            };
            let version = if key == b"cache" {
                Version::V1
            } else {
                Version::V2
            };
            report
                .stat
                .get_or_insert(MemoryStat::empty(version))
                .set(key, value);
        }
    }
}

/// A group's further victims follow its first without a heading of their own.
fn joins_group(report: &OomReport, message: Option<&[u8]>) -> bool {
    report.group_cgroup.is_some() && report.message.as_deref() == message
}

fn apply(report: &mut OomReport, line: Line<'_>) {
    match line {
        Line::Invoked {
            comm,
            gfp_mask,
            gfp_flags,
            order,
            oom_score_adj,
        } => {
            report.sysrq |= order == Some(-1);
            report.trigger = Some(Trigger {
                comm: comm.to_vec(),
                tid: None,
                gfp_mask,
                gfp_flags: gfp_flags.map(<[u8]>::to_vec),
                order,
                oom_score_adj,
            });
        }
        Line::StackOf { tid } => {
            if let Some(trigger) = &mut report.trigger {
                trigger.tid.get_or_insert(tid);
            }
        }
        Line::Usage(Counter::Memory, usage) => report.memory = Some(usage),
        Line::Usage(Counter::Swap, usage) => report.swap = Some(usage),
        Line::Usage(Counter::MemorySwap, usage) => report.memory_swap = Some(usage),
        Line::Usage(Counter::Kmem, usage) => report.kmem = Some(usage),
        Line::StatsOf { cgroup } => report.limit_cgroup = Some(cgroup.to_vec()),
        Line::Decision(decision) => report.decide(decision),
        Line::TaskOfLimit {
            task_cgroup,
            limit_cgroup,
        } => {
            report.task_cgroup = Some(task_cgroup.to_vec());
            report.limit_cgroup = Some(limit_cgroup.to_vec());
        }
        Line::Sacrifice { message } => report.message = Some(message.to_vec()),
        Line::Killed(killed) => report.kill(killed),
        Line::AlreadyExiting { message, tid, .. } => {
            report.message = Some(message.to_vec());
            if !report.already_exiting.contains(&tid) {
                report.already_exiting.push(tid);
            }
        }
        Line::Group { cgroup } => report.group_cgroup = Some(cgroup.to_vec()),
        Line::NoKillable => report.no_killable = true,
        Line::Reaped {
            tid,
            anon_rss_bytes,
            file_rss_bytes,
            shmem_rss_bytes,
        } => report.reap(
            tid,
            Reaped::Done {
                anon_rss_bytes,
                file_rss_bytes,
                shmem_rss_bytes,
            },
        ),
        Line::NotReaped { tid } => report.reap(tid, Reaped::Unable),
        Line::SysrqOom => report.sysrq = true,
    }
}

#[cfg(test)]
mod tests;
