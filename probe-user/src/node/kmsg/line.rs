//! Single lines of an OOM report.
//!
//! Formats: mm/oom_kill.c and mm/memcontrol.c of 4.18 to 7.3. A process name may hold anything but
//! NUL, delimiters included, but is at most 15 bytes: what follows it is looked for from the right,
//! and delimiters that are longer cannot be part of it.

use super::super::memcg::Limit;
use super::super::text::{cut, cut_last, decimal, find};

/// Longest process name (`TASK_COMM_LEN` less its NUL).
const COMM_MAX: usize = 15;

/// What confined the allocation that failed (`enum oom_constraint`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Constraint {
    /// Nothing: the node.
    None,
    /// The memory nodes of a cpuset.
    Cpuset,
    /// A memory policy (`mbind`, `set_mempolicy`).
    MemoryPolicy,
    /// The limit of a memory cgroup.
    Memcg,
}

impl Constraint {
    fn parse(name: &[u8]) -> Option<Self> {
        Some(match name {
            b"CONSTRAINT_NONE" => Self::None,
            b"CONSTRAINT_CPUSET" => Self::Cpuset,
            b"CONSTRAINT_MEMORY_POLICY" => Self::MemoryPolicy,
            b"CONSTRAINT_MEMCG" => Self::Memcg,
            _ => return None,
        })
    }
}

/// A page counter of a memory cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Memory.
    Memory,
    /// Swap (v2).
    Swap,
    /// Memory and swap (v1).
    MemorySwap,
    /// Kernel memory (v1).
    Kmem,
}

/// `usage …kB, limit …kB, failcnt …` of one counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Charged.
    pub usage_bytes: u64,
    /// Most that may be.
    pub limit: Limit,
    /// Times the limit was hit.
    pub failcnt: u64,
}

/// The `oom-kill:` line (5.0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision<'a> {
    /// What confined the allocation.
    pub constraint: Constraint,
    /// Cgroup whose limit was hit; `None` unless [`Constraint::Memcg`].
    pub limit_cgroup: Option<&'a [u8]>,
    /// Memory cgroup of the chosen task; `None` without memory controller.
    pub task_cgroup: Option<&'a [u8]>,
    /// Name of the chosen task.
    pub comm: &'a [u8],
    /// Its thread id.
    pub tid: u32,
    /// Its real uid.
    pub uid: u32,
}

/// A `Killed process` line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Killed<'a> {
    /// Why: "Memory cgroup out of memory", "Out of memory",
    /// "Out of memory (oom_kill_allocating_task)"; `None` before 5.3.
    pub message: Option<&'a [u8]>,
    /// Thread id of a thread that still had the memory: the process id unless the main thread has
    /// exited before.
    pub tid: u32,
    /// Name of that thread.
    pub comm: &'a [u8],
    /// Real uid (5.4, some distributions earlier).
    pub uid: Option<u32>,
    /// Mapped.
    pub total_vm_bytes: Option<u64>,
    /// Resident anonymous memory.
    pub anon_rss_bytes: Option<u64>,
    /// Resident file pages.
    pub file_rss_bytes: Option<u64>,
    /// Resident shared memory.
    pub shmem_rss_bytes: Option<u64>,
    /// Page tables (5.4).
    pub pgtables_bytes: Option<u64>,
    /// `oom_score_adj` (5.4).
    pub oom_score_adj: Option<i32>,
}

/// One line of an OOM report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// `sysrq: Manual OOM execution`.
    SysrqOom,
    /// `X invoked oom-killer: …`: the first line of a report. Rate-limited.
    Invoked {
        /// Name of the task whose allocation failed.
        comm: &'a [u8],
        /// Allocation flags.
        gfp_mask: Option<u32>,
        /// The same by name.
        gfp_flags: Option<&'a [u8]>,
        /// Allocation of 2^order pages; -1 is sysrq-f.
        order: Option<i32>,
        /// `oom_score_adj` of that task.
        oom_score_adj: Option<i32>,
    },
    /// `CPU: n [UID: n] PID: n Comm: …` of a stack dump.
    StackOf {
        /// Thread id of the dumping task.
        tid: u32,
    },
    /// `memory: usage …kB, limit …kB, failcnt …` and the like, of the limit's owner.
    Usage(Counter, Usage),
    /// `Memory cgroup stats for PATH:`; its `memory.stat` follows.
    StatsOf {
        /// The limit's owner.
        cgroup: &'a [u8],
    },
    /// `oom-kill:constraint=…`. Rate-limited.
    Decision(Decision<'a>),
    /// `Task in A killed as a result of limit of B` (before 5.0).
    TaskOfLimit {
        /// Memory cgroup of the chosen task.
        task_cgroup: &'a [u8],
        /// Cgroup whose limit was hit.
        limit_cgroup: &'a [u8],
    },
    /// `…: Kill process N (X) score N or sacrifice child` (before 5.1).
    Sacrifice {
        /// Why.
        message: &'a [u8],
    },
    /// `Killed process …`: never rate-limited.
    Killed(Killed<'a>),
    /// `…: OOM victim N (X) is already exiting. Skip killing the task` (5.8).
    AlreadyExiting {
        /// Why it was chosen.
        message: &'a [u8],
        /// Its thread id.
        tid: u32,
        /// Its name.
        comm: &'a [u8],
    },
    /// `Tasks in PATH are going to be killed due to memory.oom.group set`.
    Group {
        /// The cgroup that is killed as a whole.
        cgroup: &'a [u8],
    },
    /// `Out of memory and no killable processes...`.
    NoKillable,
    /// `oom_reaper: reaped process N (X), now …`.
    Reaped {
        /// Thread id.
        tid: u32,
        /// Anonymous memory left.
        anon_rss_bytes: u64,
        /// File pages left.
        file_rss_bytes: u64,
        /// Shared memory left.
        shmem_rss_bytes: u64,
    },
    /// `oom_reaper: unable to reap pid:N (X)`.
    NotReaped {
        /// Thread id.
        tid: u32,
    },
}

impl<'a> Line<'a> {
    /// Recognises `text`, with escapes undone; `None` if it is no line of an OOM report, or only a
    /// piece of one.
    pub fn parse(text: &'a [u8]) -> Option<Self> {
        parse_invoked(text)
            .or_else(|| parse_decision(text).map(Self::Decision))
            .or_else(|| parse_killed(text).map(Self::Killed))
            .or_else(|| parse_usage(text))
            .or_else(|| parse_reaper(text))
            .or_else(|| parse_already_exiting(text))
            .or_else(|| parse_other(text))
    }
}

fn parse_invoked(text: &[u8]) -> Option<Line<'_>> {
    let (comm, tail) = cut_last(text, b" invoked oom-killer: ")?;
    let field = |key: &[u8]| {
        let start = find(tail, key)? + key.len();
        let value = &tail[start..];
        Some(&value[..find(value, b", ").unwrap_or(value.len())])
    };
    let gfp = field(b"gfp_mask=0x")?;
    let (mask, flags) = match cut(gfp, b"(") {
        Some((mask, flags)) => (mask, flags.strip_suffix(b")")),
        None => (gfp, None),
    };
    Some(Line::Invoked {
        comm,
        gfp_mask: std::str::from_utf8(mask)
            .ok()
            .and_then(|mask| u32::from_str_radix(mask, 16).ok()),
        gfp_flags: flags,
        order: field(b"order=").and_then(signed),
        oom_score_adj: field(b"oom_score_adj=").and_then(signed),
    })
}

fn parse_decision(text: &[u8]) -> Option<Decision<'_>> {
    let text = text.strip_prefix(b"oom-kill:constraint=")?;
    let (rest, uid) = cut_last(text, b",uid=")?;
    let (rest, tid) = cut_last(rest, b",pid=")?;
    // The name comes first that is short enough to be one.
    let task = b",task=";
    let earliest = rest.len().saturating_sub(COMM_MAX + task.len());
    let at = earliest + find(&rest[earliest..], task)?;
    let (rest, comm) = (&rest[..at], &rest[at + task.len()..]);

    let (constraint, rest) = cut(rest, b",")?;
    let constraint = Constraint::parse(constraint)?;
    let (limit_cgroup, task_cgroup) = if constraint == Constraint::Memcg {
        let (limit, task) = split_cgroups(cut(rest, b",oom_memcg=")?.1)?;
        (Some(limit), Some(task))
    } else {
        (None, cut(rest, b",task_memcg=").map(|(_, task)| task))
    };
    Some(Decision {
        constraint,
        limit_cgroup,
        task_cgroup,
        comm,
        tid: id(tid)?,
        uid: id(uid)?,
    })
}

/// Splits `LIMIT,task_memcg=TASK`. Names of cgroups may hold the delimiter too: the right one has
/// the limit's owner as an ancestor of the task's cgroup.
fn split_cgroups(paths: &[u8]) -> Option<(&[u8], &[u8])> {
    let delimiter = b",task_memcg=";
    let splits = || {
        paths
            .windows(delimiter.len())
            .enumerate()
            .filter(|(_, window)| window == delimiter)
            .map(|(at, _)| (&paths[..at], &paths[at + delimiter.len()..]))
    };
    splits()
        .find(|(limit, task)| {
            let below = task.strip_prefix(*limit);
            below.is_some_and(|rest| rest.is_empty() || *limit == b"/" || rest[0] == b'/')
        })
        .or_else(|| splits().next())
}

fn parse_killed(text: &[u8]) -> Option<Killed<'_>> {
    let (before, rest) = cut(text, b"Killed process ")?;
    let message = match before {
        b"" => None,
        _ => Some(before.strip_suffix(b": ")?),
    };
    let (head, numbers) = cut_last(rest, b"total-vm:")?;
    let (who, early_uid) = if let Some(who) = head.strip_suffix(b") ") {
        (who, None)
    } else {
        let (who, uid) = cut_last(head, b"), UID ")?;
        (who, id(uid.strip_suffix(b", ")?))
    };
    let (tid, comm) = cut(who, b" (")?;
    let mut killed = Killed {
        message,
        tid: id(tid)?,
        comm,
        uid: early_uid,
        total_vm_bytes: None,
        anon_rss_bytes: None,
        file_rss_bytes: None,
        shmem_rss_bytes: None,
        pgtables_bytes: None,
        oom_score_adj: None,
    };
    let mut words = numbers
        .split(|&byte| byte == b' ' || byte == b',')
        .filter(|word| !word.is_empty());
    killed.total_vm_bytes = words.next().and_then(kilobytes);
    for (key, value) in words.filter_map(|word| cut(word, b":")) {
        match key {
            b"anon-rss" => killed.anon_rss_bytes = kilobytes(value),
            b"file-rss" => killed.file_rss_bytes = kilobytes(value),
            b"shmem-rss" => killed.shmem_rss_bytes = kilobytes(value),
            b"UID" => killed.uid = id(value),
            b"pgtables" => killed.pgtables_bytes = kilobytes(value),
            b"oom_score_adj" => killed.oom_score_adj = signed(value),
            _ => {}
        }
    }
    Some(killed)
}

fn parse_usage(text: &[u8]) -> Option<Line<'_>> {
    let (name, numbers) = cut(text, b": usage ")?;
    let counter = match name {
        b"memory" => Counter::Memory,
        b"swap" => Counter::Swap,
        b"memory+swap" => Counter::MemorySwap,
        b"kmem" => Counter::Kmem,
        _ => return None,
    };
    let (usage, rest) = cut(numbers, b", limit ")?;
    let (limit, failcnt) = cut(rest, b", failcnt ")?;
    let usage = Usage {
        usage_bytes: kilobytes(usage)?,
        limit: kilobytes(limit).map_or(Limit::Unlimited, Limit::from_bytes),
        failcnt: decimal(failcnt)?,
    };
    Some(Line::Usage(counter, usage))
}

fn parse_reaper(text: &[u8]) -> Option<Line<'_>> {
    let text = text.strip_prefix(b"oom_reaper: ")?;
    if let Some(who) = text.strip_prefix(b"unable to reap pid:") {
        let tid = id(cut(who, b" (")?.0)?;
        return Some(Line::NotReaped { tid });
    }
    let text = text.strip_prefix(b"reaped process ")?;
    let (who, left) = cut_last(text, b"), now anon-rss:")?;
    let (anon, rest) = cut(left, b", file-rss:")?;
    let (file, shmem) = cut(rest, b", shmem-rss:")?;
    Some(Line::Reaped {
        tid: id(cut(who, b" (")?.0)?,
        anon_rss_bytes: kilobytes(anon)?,
        file_rss_bytes: kilobytes(file)?,
        shmem_rss_bytes: kilobytes(shmem)?,
    })
}

fn parse_already_exiting(text: &[u8]) -> Option<Line<'_>> {
    let (message, rest) = cut(text, b": OOM victim ")?;
    let who = rest.strip_suffix(b") is already exiting. Skip killing the task")?;
    let (tid, comm) = cut(who, b" (")?;
    Some(Line::AlreadyExiting {
        message,
        tid: id(tid)?,
        comm,
    })
}

fn parse_other(text: &[u8]) -> Option<Line<'_>> {
    if let Some(rest) = text.strip_prefix(b"Memory cgroup stats for ") {
        let cgroup = rest.strip_suffix(b":")?;
        return Some(Line::StatsOf { cgroup });
    }
    if let Some(rest) = text.strip_prefix(b"Tasks in ") {
        let cgroup = rest.strip_suffix(b" are going to be killed due to memory.oom.group set")?;
        return Some(Line::Group { cgroup });
    }
    if let Some(rest) = text.strip_prefix(b"Task in ") {
        let (task_cgroup, limit_cgroup) = cut(rest, b" killed as a result of limit of ")?;
        return limit_cgroup.starts_with(b"/").then_some(Line::TaskOfLimit {
            task_cgroup,
            limit_cgroup,
        });
    }
    if let Some(rest) = text.strip_prefix(b"CPU: ") {
        let (_, tid) = cut(cut(rest, b" Comm: ")?.0, b"PID: ")?;
        return Some(Line::StackOf { tid: id(tid)? });
    }
    if text.starts_with(b"sysrq:") && text.ends_with(b"Manual OOM execution") {
        return Some(Line::SysrqOom);
    }
    if let Some((message, _)) = cut(text, b": Kill process ")
        && text.ends_with(b" or sacrifice child")
    {
        return Some(Line::Sacrifice { message });
    }
    let nobody = [
        &b"Out of memory and no killable processes"[..],
        b"Kernel panic - not syncing: Out of memory and no killable processes",
    ];
    nobody
        .iter()
        .any(|start| text.starts_with(start))
        .then_some(Line::NoKillable)
}

/// A number followed by `kB`, in bytes; `None` too if that is more than a `u64` holds.
fn kilobytes(text: &[u8]) -> Option<u64> {
    decimal(text.strip_suffix(b"kB")?)?.checked_mul(1024)
}

fn id(text: &[u8]) -> Option<u32> {
    decimal(text)?.try_into().ok()
}

fn signed(text: &[u8]) -> Option<i32> {
    std::str::from_utf8(text).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests;
