//! One look at the node: what is wrong first, then the readings it rests on.

use std::fmt::Write as _;

use super::layout::{self, Colour, Page};
use super::name;
use crate::event::label::{self, ago, percent};
use crate::event::{
    Confidence, Disk, Finding, NodePressure, RecentKill, Severity, TopCgroup, Triage, escape,
};

/// Findings shown in full; the rest by their summaries.
pub(super) const IN_FULL: usize = 3;
const EVIDENCE: usize = 6;
const COMMANDS: usize = 3;
const CACHES: usize = 4;

pub(super) fn page(page: &mut Page, time: &str, host: Option<&str>, triage: &Triage) {
    let host = host.map(|name| format!(" {}", escape(name)));
    let (colour, verdict) = match triage.findings.len() {
        0 => (Colour::Strong, "healthy".to_owned()),
        1 => (Colour::Warn, "1 FINDING".to_owned()),
        count => (Colour::Warn, format!("{count} FINDINGS")),
    };
    let head = format!("{time} TRIAGE{}  {verdict}", host.unwrap_or_default());
    let head = if triage.findings.is_empty() {
        format!("{head}: {}", key_numbers(triage))
    } else {
        head
    };
    page.note(colour, &head);
    for (index, found) in triage.findings.iter().enumerate() {
        finding(page, found, index < IN_FULL);
    }
    readings(page, triage);
    top(page, triage);
    for (index, missing) in triage.not_read.iter().enumerate() {
        let text = format!("{}: {}", escape(&missing.what), escape(&missing.why));
        page.item(if index == 0 { "not read" } else { "" }, &text, 2);
    }
}

/// What tells health at a glance.
fn key_numbers(triage: &Triage) -> String {
    let memory = &triage.memory;
    let mut text = match (memory.available_bytes, memory.total_bytes) {
        (Some(available), Some(total)) => format!(
            "{} of {} available",
            label::bytes(available),
            label::bytes(total)
        ),
        _ => "memory unknown".to_owned(),
    };
    for pressure in &triage.pressure {
        if let Some(some) = pressure.some_ratio {
            let _ = write!(text, " · {} {}", pressure.resource, share(some));
        }
    }
    text
}

pub(super) fn finding(page: &mut Page, finding: &Finding, in_full: bool) {
    let colour = match finding.severity {
        Severity::Error | Severity::Fatal => Colour::Alarm,
        _ => Colour::Warn,
    };
    let sure = match finding.confidence {
        Confidence::High => "",
        Confidence::Medium => " (likely)",
        Confidence::Low => " (a guess)",
    };
    let text = format!(
        "{} {}{sure}: {}",
        name(&finding.severity),
        name(&finding.id),
        escape(&finding.summary)
    );
    page.note(colour, &text);
    if !in_full {
        return;
    }
    for (index, evidence) in finding.evidence.iter().take(EVIDENCE).enumerate() {
        let title = if index == 0 { "because" } else { "" };
        page.item(title, &escape(evidence), 2);
    }
    for (index, command) in finding.next_steps.iter().take(COMMANDS).enumerate() {
        page.command(if index == 0 { "next" } else { "" }, &escape(command));
    }
}

fn readings(page: &mut Page, triage: &Triage) {
    page.item("memory", &memory(triage), 2);
    page.item("swap", &swap(triage), 1);
    page.item("slab", &slab(triage), 2);
    page.item("pressure", &pressure(&triage.pressure), 1);
    page.item("reclaim", &reclaim(triage), 2);
    page.item("cpu", &cpu(triage), 2);
    page.item("oom", &oom(triage), 2);
    if let Some(table) = &triage.conntrack {
        let share = percent(table.count, table.max);
        let text = format!(
            "{} of {} tracked connections ({share})",
            table.count, table.max
        );
        page.item("conns", &text, 1);
    }
    for (index, disk) in triage.disks.iter().enumerate() {
        page.item(if index == 0 { "disk" } else { "" }, &room(disk), 1);
    }
}

fn memory(triage: &Triage) -> String {
    let memory = &triage.memory;
    let (Some(total), Some(available)) = (memory.total_bytes, memory.available_bytes) else {
        return "unknown".to_owned();
    };
    let mut text = format!(
        "{} of {} available ({})",
        label::bytes(available),
        label::bytes(total),
        percent(available, total)
    );
    for (name, part) in [
        ("anon", memory.anon_bytes),
        ("file", memory.file_bytes),
        ("tmpfs", memory.shmem_bytes),
        ("dirty", memory.dirty_bytes),
        ("committed", memory.committed_bytes),
    ] {
        if let Some(part) = part {
            let _ = write!(text, " · {name} {}", label::bytes(part));
        }
    }
    text
}

fn swap(triage: &Triage) -> String {
    let memory = &triage.memory;
    match (memory.swap_total_bytes, memory.swap_free_bytes) {
        (Some(0), _) => "none".to_owned(),
        (Some(total), Some(free)) => format!(
            "{} of {} used · {} pages/s in · {} pages/s out",
            label::bytes(total.saturating_sub(free)),
            label::bytes(total),
            rate(triage.reclaim.swap_in_per_s),
            rate(triage.reclaim.swap_out_per_s)
        ),
        _ => "unknown".to_owned(),
    }
}

fn slab(triage: &Triage) -> String {
    let memory = &triage.memory;
    let bytes = |part: Option<u64>| part.map_or("?".to_owned(), label::bytes);
    let mut text = format!(
        "{} unreclaimable · {} reclaimable",
        bytes(memory.slab_unreclaimable_bytes),
        bytes(memory.slab_reclaimable_bytes)
    );
    for (index, cache) in memory.slab_caches.iter().take(CACHES).enumerate() {
        let before = if index == 0 { " · biggest: " } else { ", " };
        let size = label::bytes(cache.bytes);
        let _ = write!(text, "{before}{} {size}", escape(&cache.name));
    }
    text
}

fn pressure(all: &[NodePressure]) -> String {
    let known = |ratio: Option<f64>| ratio.map_or("?".to_owned(), share);
    let mut text = String::new();
    for (index, pressure) in all.iter().enumerate() {
        let (between, minute) = if index == 0 {
            ("", "60 s: ")
        } else {
            (" · ", "")
        };
        let _ = write!(
            text,
            "{between}{} {}",
            pressure.resource,
            known(pressure.some_ratio)
        );
        // No processor is idle for want of processors: `full` says nothing of the node.
        if pressure.resource != "cpu" {
            let _ = write!(text, ", full {}", known(pressure.full_ratio));
        }
        let _ = write!(text, " ({minute}{})", known(pressure.some_60s_ratio));
    }
    if text.is_empty() {
        text.push_str("not told by this kernel");
    }
    text
}

fn reclaim(triage: &Triage) -> String {
    let reclaim = &triage.reclaim;
    format!(
        "per s: kswapd {}, direct {}, freed {} pages · refaults anon {} file {} · stalls {} · \
         major faults {}",
        rate(reclaim.kswapd_scanned_per_s),
        rate(reclaim.direct_scanned_per_s),
        rate(reclaim.reclaimed_per_s),
        rate(reclaim.refaults_anon_per_s),
        rate(reclaim.refaults_file_per_s),
        rate(reclaim.direct_stalls_per_s),
        rate(reclaim.major_faults_per_s)
    )
}

fn cpu(triage: &Triage) -> String {
    let cpu = &triage.cpu;
    let load = |load: Option<f64>| load.map_or("?".to_owned(), |load| format!("{load:.2}"));
    let count = |count: Option<u64>| count.map_or("?".to_owned(), |count| count.to_string());
    let mut text = format!(
        "load {} {} {} on {} processors · {} running, {} blocked",
        load(cpu.load1),
        load(cpu.load5),
        load(cpu.load15),
        count(cpu.cpus),
        count(cpu.running),
        count(cpu.blocked)
    );
    if let Some(worst) = cpu.throttled.first() {
        let (k8s, container) = (worst.k8s.as_ref(), worst.container.as_ref());
        let who = label::subject(k8s, container, Some(&worst.cgroup)).unwrap_or_default();
        let periods = share(worst.throttled_ratio);
        let _ = write!(
            text,
            " · throttled in {periods} of its periods: {}",
            tail(&escape(&who), 50)
        );
    }
    text
}

fn oom(triage: &Triage) -> String {
    let oom = &triage.oom;
    let up = ago(oom.uptime_s);
    let mut text = match oom.kills_since_boot {
        Some(0) => format!("no kill since boot, {up} ago"),
        Some(1) => format!("1 kill since boot, {up} ago"),
        Some(count) => format!("{count} kills since boot, {up} ago"),
        None => format!("booted {up} ago"),
    };
    if let Some(kill) = oom.recent.first() {
        let _ = write!(text, " · last {} ago: {}", ago(kill.age_s), killed(kill));
    }
    text
}

fn killed(kill: &RecentKill) -> String {
    let (k8s, container) = (kill.k8s.as_ref(), kill.container.as_ref());
    let process = label::process(&kill.process);
    match label::subject(k8s, container, kill.cgroup.as_ref()) {
        Some(owner) => format!("{} in {}", escape(&process), tail(&escape(&owner), 60)),
        None => escape(&process).into_owned(),
    }
}

fn room(disk: &Disk) -> String {
    let mut text = format!(
        "{} of {} free ({})",
        label::bytes(disk.available_bytes),
        label::bytes(disk.total_bytes),
        percent(disk.available_bytes, disk.total_bytes)
    );
    if let Some((all, free)) = disk.inodes.zip(disk.inodes_available) {
        let _ = write!(text, " · inodes {}", percent(free, all));
    }
    let _ = write!(text, " · {}", escape(&disk.paths.join(" ")));
    text
}

/// The biggest cgroups, a line each.
fn top(page: &mut Page, triage: &Triage) {
    if triage.top.is_empty() {
        return;
    }
    let head = format!(
        "  {:>6} {:>6} {:>5} {:>6} {:>6} {:>6} {:>6} {:>6} {:>6} {:>5}  {}",
        "USAGE", "LIMIT", "FULL", "ANON", "FILE", "TMPFS", "KERNEL", "SOCK", "SWAP", "STALL", "WHO"
    );
    page.line(Colour::Dim, &head);
    for row in &triage.top {
        page.line(Colour::Plain, &line(row));
    }
    let listed = triage.top.len() as u64;
    if triage.cgroups > listed {
        let text = format!("  the biggest {listed} of {} cgroups", triage.cgroups);
        page.line(Colour::Dim, &text);
    }
}

fn line(row: &TopCgroup) -> String {
    let ratio = |ratio: Option<f64>| ratio.map_or("-".to_owned(), |r| share(r).replace(' ', ""));
    let who = label::subject(row.k8s.as_ref(), row.container.as_ref(), Some(&row.cgroup));
    let numbers = format!(
        "  {:>6} {:>6} {:>5} {:>6} {:>6} {:>6} {:>6} {:>6} {:>6} {:>5}  ",
        short(Some(row.usage_bytes)),
        short(row.limit_bytes),
        ratio(row.limit_ratio),
        short(row.anon_bytes),
        short(row.file_bytes),
        short(row.shmem_bytes),
        short(row.kernel_bytes.or(row.slab_bytes)),
        short(row.sock_bytes),
        short(row.swap_bytes),
        ratio(row.memory_some_ratio)
    );
    let room = layout::WIDTH - layout::width(&numbers);
    numbers + &tail(&escape(&who.unwrap_or_default()), room)
}

/// Bytes for a column: "1.5G", "512M".
pub(super) fn short(bytes: Option<u64>) -> String {
    match bytes {
        None | Some(0) => "-".to_owned(),
        Some(bytes) => label::bytes(bytes).replace(' ', "").replace("iB", ""),
    }
}

fn share(ratio: f64) -> String {
    let percent = ratio * 100.0;
    if percent > 0.0 && percent < 1.0 {
        "<1 %".to_owned()
    } else {
        format!("{percent:.0} %")
    }
}

fn rate(rate: Option<f64>) -> String {
    match rate {
        None => "?".to_owned(),
        Some(rate) if rate > 0.0 && rate < 1.0 => "<1".to_owned(),
        Some(rate) => format!("{rate:.0}"),
    }
}

/// The last columns of a path or name, which tell more than the first.
pub(super) fn tail(text: &str, columns: usize) -> String {
    if layout::width(text) <= columns {
        return text.to_owned();
    }
    let end = text
        .char_indices()
        .map(|(index, _)| &text[index..])
        .find(|rest| layout::width(rest) < columns);
    format!("…{}", end.unwrap_or_default())
}
