//! What the readings say by themselves. Pressure on memory is judged in [`crate::verdict`].
//!
//! A node may be busy and well: every rule asks for more than a full load brings about.

use std::cmp::Reverse;
use std::collections::HashSet;

use crate::event::label::{self, ago, bytes, percent};
use crate::event::{
    Cgroup, Confidence, CpuThrottled, Disk, Finding, FindingId, RecentKill, Severity, Throttled,
    Triage,
};
use crate::verdict::quote;

/// A kill this long ago still counts, s.
const RECENT_S: u64 = 3600;

/// Unreclaimable slab above this many bytes and above a tenth of the memory is too much.
const SLAB_BYTES: u64 = 1 << 30;

/// What can be had of the memory, percent: below it the next burst ends in reclaim or in a kill.
const AVAILABLE_PERCENT: u64 = 3;

/// The same where swap is full too.
const AVAILABLE_SWAP_FULL_PERCENT: u64 = 10;

/// Free swap, percent: below it swap is full.
const SWAP_FREE_PERCENT: u64 = 5;

/// Committed memory by its limit, percent, under strict overcommit.
const COMMIT_PERCENT: u64 = 95;

/// Share of the time in which some task waited for a processor: now, and over 60 s.
const CPU_SOME: (f64, f64) = (0.8, 0.6);
/// Load by processors. A parallel build of twice as many jobs is busy, not ill.
const CPU_LOAD: f64 = 4.0;

/// Share of the time in which all tasks waited for a disk: now, and over 60 s.
const IO_FULL: (f64, f64) = (0.6, 0.4);
/// Tasks that wait for a disk: a single copy keeps a disk busy, and no other task from its work.
const IO_BLOCKED: u64 = 4;

/// Free inodes, percent: the kubelet's default `nodefs.inodesFree`.
const INODES_PERCENT: u64 = 5;

/// Connections by their most, percent.
const CONNTRACK_PERCENT: u64 = 90;

/// What is wrong by these readings alone.
pub(super) fn of(triage: &Triage) -> Vec<Finding> {
    let rules = [
        oom_recent,
        memory_short,
        slab_unreclaimable,
        commit_limit,
        io_pressure,
        conntrack_full,
        cpu_pressure,
    ];
    let mut found: Vec<Finding> = rules.iter().filter_map(|rule| rule(triage)).collect();
    found.extend(triage.disks.iter().filter_map(disk_pressure));
    found.extend(triage.cpu.throttled.iter().filter_map(cpu_throttling));
    found
}

/// Most serious first, and each thing about each cgroup once.
pub(super) fn ranked(mut findings: Vec<Finding>) -> Vec<Finding> {
    // Stable: of equals, the order in which they were found.
    findings.sort_by_key(|finding| Reverse((finding.severity, finding.confidence)));
    let mut seen = HashSet::new();
    findings.retain(|finding| {
        let cgroup = finding
            .cgroup
            .as_ref()
            .and_then(|cgroup| cgroup.path.clone());
        seen.insert((finding.id, cgroup))
    });
    findings
}

fn warning(id: FindingId, summary: String) -> Finding {
    Finding {
        id,
        severity: Severity::Warn,
        confidence: Confidence::High,
        cgroup: None,
        summary,
        evidence: Vec::new(),
        next_steps: Vec::new(),
    }
}

fn steps(steps: &[&str]) -> Vec<String> {
    steps.iter().map(|&step| step.to_owned()).collect()
}

/// Whether `part` is less than so many percent of `whole`.
fn below(part: u64, whole: u64, percent: u64) -> bool {
    u128::from(part) * 100 < u128::from(whole) * u128::from(percent)
}

fn in_percent(ratio: f64) -> String {
    format!("{:.0} %", ratio * 100.0)
}

fn oom_recent(triage: &Triage) -> Option<Finding> {
    let oom = &triage.oom;
    let now = oom.kills_now.unwrap_or(0);
    let recent: Vec<&RecentKill> = oom
        .recent
        .iter()
        .filter(|kill| kill.age_s <= RECENT_S)
        .collect();
    // Without the kernel log, the counter of a node that was booted lately tells as much.
    let since_boot = oom
        .kills_since_boot
        .filter(|_| oom.uptime_s <= RECENT_S && recent.is_empty())
        .unwrap_or(0);
    if now == 0 && since_boot == 0 && recent.is_empty() {
        return None;
    }
    let summary = match recent.first() {
        Some(kill) => {
            let process = label::process(&kill.process);
            let owner = owner(kill);
            format!(
                "the OOM killer killed {process}{owner} {} ago",
                ago(kill.age_s)
            )
        }
        None if now > 0 => format!("the OOM killer ran during this look, processes killed: {now}"),
        None => format!(
            "the OOM killer ran since boot {} ago, processes killed: {since_boot}",
            ago(oom.uptime_s)
        ),
    };
    let mut finding = warning(FindingId::OomRecent, summary);
    finding.severity = Severity::Error;
    finding.cgroup = recent.first().and_then(|kill| kill.limit_cgroup.clone());
    for kill in &recent {
        finding.evidence.push(evidence_of(kill));
    }
    if let Some(total) = oom.kills_since_boot {
        let up = ago(oom.uptime_s);
        let now = if now > 0 {
            format!(", {now} of them now")
        } else {
            String::new()
        };
        finding
            .evidence
            .push(format!("kills since boot, {up} ago: {total}{now}"));
    }
    if let Some(describe) = recent.first().and_then(|kill| describe(kill)) {
        finding.next_steps.push(describe);
    }
    finding.next_steps.extend(steps(&[
        "journalctl -k -g 'oom-kill|Killed process'",
        "oomprobe trace",
    ]));
    Some(finding)
}

fn owner(kill: &RecentKill) -> String {
    let (k8s, container) = (kill.k8s.as_ref(), kill.container.as_ref());
    label::subject(k8s, container, kill.cgroup.as_ref())
        .map(|owner| format!(" in {owner}"))
        .unwrap_or_default()
}

fn evidence_of(kill: &RecentKill) -> String {
    let path = |cgroup: Option<&Cgroup>| cgroup.and_then(|cgroup| cgroup.path.clone());
    let limit = match (path(kill.limit_cgroup.as_ref()), &kill.message) {
        (Some(limit), _) if Some(&limit) == path(kill.cgroup.as_ref()).as_ref() => {
            "at its own limit".to_owned()
        }
        (Some(limit), _) => format!("at the limit of {limit}"),
        (None, Some(message)) => message.clone(),
        (None, None) => "the log does not say at whose limit".to_owned(),
    };
    let size = match kill.process.rss {
        Some(rss) => format!(", {}", bytes(rss.total_bytes())),
        None => String::new(),
    };
    format!(
        "{} ago: {}{}{size}, {limit}",
        ago(kill.age_s),
        label::process(&kill.process),
        owner(kill)
    )
}

fn describe(kill: &RecentKill) -> Option<String> {
    let k8s = kill.k8s.as_ref()?;
    let namespace = quote(k8s.namespace.name.as_deref()?)?;
    let pod = quote(k8s.pod.name.as_deref()?)?;
    Some(format!("kubectl -n {namespace} describe pod {pod}"))
}

fn memory_short(triage: &Triage) -> Option<Finding> {
    let memory = &triage.memory;
    let (total, available) = (memory.total_bytes?, memory.available_bytes?);
    let swap_total = memory.swap_total_bytes.unwrap_or(0);
    let swap_free = memory.swap_free_bytes.unwrap_or(0);
    let swap_full = swap_total > 0 && below(swap_free, swap_total, SWAP_FREE_PERCENT);
    let least = if swap_full {
        AVAILABLE_SWAP_FULL_PERCENT
    } else {
        AVAILABLE_PERCENT
    };
    if !below(available, total, least) {
        return None;
    }
    let mut finding = warning(
        FindingId::Overcommit,
        format!(
            "the node runs out of memory: {} of {} can still be had",
            bytes(available),
            bytes(total)
        ),
    );
    finding.evidence.push(format!(
        "MemAvailable {} of {} ({})",
        bytes(available),
        bytes(total),
        percent(available, total)
    ));
    if swap_total > 0 {
        finding.evidence.push(format!(
            "swap {} free of {}",
            bytes(swap_free),
            bytes(swap_total)
        ));
    }
    if let Some(top) = triage.top.first() {
        let who = label::subject(top.k8s.as_ref(), top.container.as_ref(), Some(&top.cgroup));
        finding.evidence.push(format!(
            "the biggest is {} with {}",
            who.unwrap_or_default(),
            bytes(top.usage_bytes)
        ));
    }
    if triage.disks.iter().any(|disk| disk.kubelet) {
        finding.evidence.push(
            "the kubelet evicts pods once less than 100 MiB can be had (its default)".to_owned(),
        );
        finding
            .next_steps
            .push("kubectl top pod -A --sort-by=memory | head -15".to_owned());
    }
    finding.next_steps.extend(steps(&[
        "ps -eo pid,rss,oom_score_adj,comm --sort=-rss | head -15",
        "grep -E 'Anon|Shmem|Slab|SUnreclaim|Huge' /proc/meminfo",
    ]));
    Some(finding)
}

/// Whether so much slab cannot be given back that it is told.
pub(super) fn is_slab_large(slab: u64, total: u64) -> bool {
    slab > SLAB_BYTES && !below(slab, total, 10)
}

fn slab_unreclaimable(triage: &Triage) -> Option<Finding> {
    let memory = &triage.memory;
    let (total, slab) = (memory.total_bytes?, memory.slab_unreclaimable_bytes?);
    if !is_slab_large(slab, total) {
        return None;
    }
    let mut finding = warning(
        FindingId::SlabUnreclaimable,
        format!(
            "kernel objects that cannot be given back fill {} of the memory",
            percent(slab, total)
        ),
    );
    finding
        .evidence
        .push(format!("SUnreclaim {} of {}", bytes(slab), bytes(total)));
    let biggest: Vec<String> = memory
        .slab_caches
        .iter()
        .take(3)
        .map(|cache| format!("{} {}", cache.name, bytes(cache.bytes)))
        .collect();
    if !biggest.is_empty() {
        finding
            .evidence
            .push(format!("biggest caches: {}", biggest.join(", ")));
    }
    let buffers = triage.socket_buffers.as_ref();
    if let Some(buffers) = buffers
        && let Some(objects) = buffers.slab_objects
    {
        let explained = buffers.explained_objects.unwrap_or(0);
        finding.evidence.push(format!(
            "{objects} socket buffers in use, {explained} of them in queues that were found, with {}",
            bytes(buffers.explained_bytes)
        ));
    }
    let mut biggest = memory.slab_caches.iter().take(3);
    if biggest.any(|cache| cache.name.starts_with("skbuff")) {
        finding.next_steps.extend(steps(&["oomprobe skb"]));
    }
    finding
        .next_steps
        .extend(steps(&["oomprobe slab --duration 60s"]));
    Some(finding)
}

fn commit_limit(triage: &Triage) -> Option<Finding> {
    let memory = &triage.memory;
    let (committed, limit) = (memory.committed_bytes?, memory.commit_limit_bytes?);
    if memory.overcommit_mode? != 2 || below(committed, limit, COMMIT_PERCENT) {
        return None;
    }
    let mut finding = warning(
        FindingId::Overcommit,
        "memory is promised up to its limit: allocations fail although memory is free".to_owned(),
    );
    finding.evidence = vec![
        format!(
            "Committed_AS {} of CommitLimit {}",
            bytes(committed),
            bytes(limit)
        ),
        "vm.overcommit_memory is 2: the limit is binding".to_owned(),
    ];
    finding.next_steps = steps(&[
        "sysctl vm.overcommit_memory vm.overcommit_ratio vm.overcommit_kbytes",
        "ps -eo pid,vsz,rss,comm --sort=-vsz | head -15",
    ]);
    Some(finding)
}

fn cpu_throttling(throttled: &Throttled) -> Option<Finding> {
    if !CpuThrottled::is_wait(throttled.throttled_periods, throttled.throttled_ratio) {
        return None;
    }
    let (k8s, container) = (throttled.k8s.as_ref(), throttled.container.as_ref());
    let who = label::subject(k8s, container, Some(&throttled.cgroup)).unwrap_or_default();
    let mut finding = warning(
        FindingId::CpuThrottling,
        format!(
            "{who} waits for its CPU limit in {} of its periods",
            in_percent(throttled.throttled_ratio)
        ),
    );
    finding.cgroup = Some(throttled.cgroup.clone());
    finding.evidence.push(format!(
        "throttled in {} of {} periods, for {:.0} ms in all",
        throttled.throttled_periods, throttled.periods, throttled.throttled_ms
    ));
    finding.next_steps.extend(cpu_stat(&throttled.cgroup));
    Some(finding)
}

/// By name, as the place differs between cgroup v1 and v2.
fn cpu_stat(cgroup: &Cgroup) -> Option<String> {
    let name = quote(cgroup.path.as_deref()?.rsplit('/').next()?)?;
    Some(format!(
        "find /sys/fs/cgroup -name {name} -exec cat {{}}/cpu.stat ';' 2>/dev/null"
    ))
}

fn cpu_pressure(triage: &Triage) -> Option<Finding> {
    let cpu = triage.pressure.iter().find(|one| one.resource == "cpu")?;
    let (now, minute) = (cpu.some_ratio?, cpu.some_60s_ratio?);
    let (load, cpus) = (triage.cpu.load1?, triage.cpu.cpus?);
    let cpus = f64::from(u32::try_from(cpus).unwrap_or(u32::MAX));
    if now < CPU_SOME.0 || minute < CPU_SOME.1 || load < cpus * CPU_LOAD {
        return None;
    }
    let mut finding = warning(
        FindingId::CpuPressure,
        format!("tasks wait for a processor {} of the time", in_percent(now)),
    );
    finding.evidence = vec![
        format!(
            "cpu some {} now, {} over 60 s",
            in_percent(now),
            in_percent(minute)
        ),
        format!("load {load:.1} on {cpus} processors"),
    ];
    finding.next_steps = steps(&[
        "ps -eo pid,pcpu,stat,comm --sort=-pcpu | head -15",
        "systemd-cgtop -n 2 -b -c | tail -20",
    ]);
    Some(finding)
}

fn io_pressure(triage: &Triage) -> Option<Finding> {
    let io = triage.pressure.iter().find(|one| one.resource == "io")?;
    let (now, minute) = (io.full_ratio?, io.full_60s_ratio?);
    let blocked = triage.cpu.blocked?;
    if now < IO_FULL.0 || minute < IO_FULL.1 || blocked < IO_BLOCKED {
        return None;
    }
    let mut finding = warning(
        FindingId::IoPressure,
        format!(
            "nothing gets on for want of a disk {} of the time",
            in_percent(now)
        ),
    );
    finding.evidence = vec![
        format!(
            "io full {} now, {} over 60 s",
            in_percent(now),
            in_percent(minute)
        ),
        format!("{blocked} tasks wait for a disk"),
    ];
    if let Some(dirty) = triage.memory.dirty_bytes {
        finding
            .evidence
            .push(format!("{} not written back yet", bytes(dirty)));
    }
    finding.next_steps = steps(&[
        "ps -eo pid,stat,wchan:20,comm | awk '$2 ~ /D/'",
        "cat /proc/diskstats",
    ]);
    Some(finding)
}

fn disk_pressure(disk: &Disk) -> Option<Finding> {
    let full = below(
        disk.available_bytes,
        disk.total_bytes,
        disk.threshold_percent,
    );
    let inodes = disk.inodes.zip(disk.inodes_available);
    let inodes_percent = disk.threshold_percent.min(INODES_PERCENT);
    let no_inodes = inodes.is_some_and(|(all, free)| below(free, all, inodes_percent));
    // An image or another read-only file system is full by design.
    let read_only = disk.available_bytes == 0 && inodes.is_none_or(|(_, free)| free == 0);
    if !(full || no_inodes) || (read_only && !disk.kubelet) {
        return None;
    }
    let path = disk.paths.first().map_or("/", String::as_str);
    let what = if full { "bytes" } else { "inodes" };
    let consequence = if disk.kubelet {
        ": the kubelet evicts pods"
    } else {
        ""
    };
    let mut finding = warning(
        FindingId::DiskPressure,
        format!("the file system of {path} is short of {what}{consequence}"),
    );
    let by = if disk.kubelet {
        "the kubelet's default threshold"
    } else {
        "the threshold"
    };
    if full {
        finding.evidence.push(format!(
            "{} free of {} ({}), {by} is {} %",
            bytes(disk.available_bytes),
            bytes(disk.total_bytes),
            percent(disk.available_bytes, disk.total_bytes),
            disk.threshold_percent
        ));
    }
    if let Some((all, free)) = inodes.filter(|_| no_inodes) {
        finding.evidence.push(format!(
            "{free} inodes free of {all} ({}), {by} is {inodes_percent} %",
            percent(free, all)
        ));
    }
    if disk.paths.len() > 1 {
        finding
            .evidence
            .push(format!("it holds {}", disk.paths.join(", ")));
    }
    finding
        .next_steps
        .push(format!("df -h {path}; df -i {path}"));
    finding
        .next_steps
        .push(format!("du -xh -d 2 {path} | sort -rh | head -20"));
    Some(finding)
}

fn conntrack_full(triage: &Triage) -> Option<Finding> {
    let table = triage.conntrack.as_ref()?;
    if table.max == 0 || below(table.count, table.max, CONNTRACK_PERCENT) {
        return None;
    }
    let mut finding = warning(
        FindingId::ConntrackFull,
        "the connection tracking table is nearly full: new connections will be dropped".to_owned(),
    );
    finding.evidence.push(format!(
        "{} of {} connections ({})",
        table.count,
        table.max,
        percent(table.count, table.max)
    ));
    finding.next_steps = steps(&[
        "dmesg | grep 'table full'",
        "cat /proc/net/stat/nf_conntrack",
        "sysctl net.netfilter.nf_conntrack_max",
    ]);
    Some(finding)
}

#[cfg(test)]
mod tests;
