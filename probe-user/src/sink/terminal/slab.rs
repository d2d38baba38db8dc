//! The kernel's memory: what is wrong first, then caches, cgroups and the balance.

use std::fmt::Write as _;

use super::layout::{self, Colour, Page};
use super::triage::{IN_FULL, finding, short, tail};
use crate::event::label::{self, percent};
use crate::event::{
    AllocationSite, CgroupKernelMemory, KernelBalance, ProfileState, SlabCacheUsage, SlabUsage,
    escape,
};

/// Names of merged caches that are shown.
const ALIASES: usize = 3;
/// Frames of a trace that are shown.
const FRAMES: usize = 6;

pub(super) fn page(page: &mut Page, time: &str, host: Option<&str>, usage: &SlabUsage) {
    let host = host.map(|name| format!(" {}", escape(name)));
    let (colour, verdict) = match usage.findings.len() {
        0 => (Colour::Strong, "healthy".to_owned()),
        1 => (Colour::Warn, "1 FINDING".to_owned()),
        count => (Colour::Warn, format!("{count} FINDINGS")),
    };
    let bytes = |part: Option<u64>| part.map_or("?".to_owned(), label::bytes);
    let mut head = format!(
        "{time} SLAB{}  {verdict}: {} unreclaimable",
        host.unwrap_or_default(),
        bytes(usage.slab_unreclaimable_bytes)
    );
    if let Some(growth) = usage.slab_unreclaimable_growth_bytes_per_s {
        let _ = write!(head, " ({})", label::rate(growth));
    }
    let reclaimable = bytes(usage.slab_reclaimable_bytes);
    let _ = write!(head, " · {reclaimable} reclaimable");
    page.note(colour, &head);
    for (index, found) in usage.findings.iter().enumerate() {
        finding(page, found, index < IN_FULL);
    }
    caches(page, usage);
    cgroups(page, &usage.cgroups);
    if let Some(balance) = &usage.balance {
        page.item("balance", &self::balance(balance), 4);
    }
    sites(page, "vmalloc", &usage.vmalloc);
    profile(page, usage);
    for trace in &usage.traces {
        let frames: Vec<&str> = trace
            .stack
            .iter()
            .take(FRAMES)
            .map(String::as_str)
            .collect();
        let text = format!(
            "{} {} objects from {}: {}",
            trace.cache,
            trace.objects,
            trace.site,
            frames.join(" < ")
        );
        page.item("trace", &escape(&text), 3);
    }
    for (index, missing) in usage.not_read.iter().enumerate() {
        let text = format!("{}: {}", escape(&missing.what), escape(&missing.why));
        page.item(if index == 0 { "not read" } else { "" }, &text, 2);
    }
}

fn caches(page: &mut Page, usage: &SlabUsage) {
    if usage.caches.is_empty() {
        return;
    }
    let head = format!(
        "  {:>6} {:>9} {:>10} {:>6} {:>5}  {}",
        "SIZE", "GROWTH/S", "OBJECTS", "EACH", "RECL", "CACHE"
    );
    page.line(Colour::Dim, &head);
    for cache in &usage.caches {
        page.line(Colour::Plain, &line(cache));
    }
    let listed = usage.caches.len() as u64;
    if usage.caches_total > listed {
        let text = format!("  {listed} of {} caches", usage.caches_total);
        page.line(Colour::Dim, &text);
    }
}

fn line(cache: &SlabCacheUsage) -> String {
    let reclaimable = match cache.reclaimable {
        Some(true) => "yes",
        Some(false) => "no",
        None => "?",
    };
    let numbers = format!(
        "  {:>6} {:>9} {:>10} {:>6} {reclaimable:>5}  ",
        short(Some(cache.bytes)),
        growth(cache.growth_bytes_per_s),
        cache.objects,
        cache.object_bytes
    );
    let mut name = cache.name.clone();
    if let Some(aliases) = cache.aliases.as_ref().filter(|aliases| !aliases.is_empty()) {
        let shown: Vec<&str> = aliases.iter().take(ALIASES).map(String::as_str).collect();
        let more = if aliases.len() > ALIASES { ", …" } else { "" };
        let _ = write!(
            name,
            " (shared with {} aliases: {}{more})",
            aliases.len(),
            shown.join(", ")
        );
    }
    let room = layout::WIDTH - layout::width(&numbers);
    numbers + &layout::cut(&escape(&name), room)
}

/// A change for a column: "+1.5M", "-4K".
fn growth(growth: Option<f64>) -> String {
    match growth {
        None => "new".to_owned(),
        Some(rate) if rate.abs() < 0.5 => "-".to_owned(),
        Some(rate) => {
            let size = label::rate(rate.abs());
            let size = size
                .trim_end_matches("/s")
                .replace(' ', "")
                .replace("iB", "");
            format!("{}{size}", if rate < 0.0 { '-' } else { '+' })
        }
    }
}

fn cgroups(page: &mut Page, cgroups: &[CgroupKernelMemory]) {
    if cgroups.is_empty() {
        return;
    }
    let head = format!(
        "  {:>6} {:>9} {:>6} {:>6} {:>6} {:>7} {:>6} {:>6}  {}",
        "KERNEL", "GROWTH/S", "UNRECL", "RECL", "PERCPU", "VMALLOC", "STACKS", "SOCK", "WHO"
    );
    page.line(Colour::Dim, &head);
    for row in cgroups {
        let who = label::subject(row.k8s.as_ref(), row.container.as_ref(), Some(&row.cgroup));
        let numbers = format!(
            "  {:>6} {:>9} {:>6} {:>6} {:>6} {:>7} {:>6} {:>6}  ",
            short(Some(row.kernel_bytes)),
            growth(row.growth_bytes_per_s),
            short(row.slab_unreclaimable_bytes),
            short(row.slab_reclaimable_bytes),
            short(row.percpu_bytes),
            short(row.vmalloc_bytes),
            short(row.kernel_stack_bytes),
            short(row.sock_bytes)
        );
        let room = layout::WIDTH - layout::width(&numbers);
        let text = numbers + &tail(&escape(&who.unwrap_or_default()), room);
        page.line(Colour::Plain, &text);
    }
}

fn balance(balance: &KernelBalance) -> String {
    let mut text = format!(
        "{} = {} free",
        label::bytes(balance.total_bytes),
        label::bytes(balance.free_bytes)
    );
    for (name, part) in [
        ("free on processors", balance.per_cpu_free_bytes),
        ("processes and files", Some(balance.lru_bytes)),
        ("slab", Some(balance.slab_bytes)),
        ("other reclaimable", balance.misc_reclaimable_bytes),
        ("stacks", Some(balance.kernel_stack_bytes)),
        ("page tables", Some(balance.page_tables_bytes)),
        ("KVM and IOMMU tables", balance.sec_page_tables_bytes),
        ("percpu", balance.percpu_bytes),
        ("vmalloc", Some(balance.vmalloc_bytes)),
        ("huge pages", balance.hugetlb_bytes),
        ("compressed", balance.compressed_bytes),
        ("GPU", balance.gpu_bytes),
        ("memmap", balance.memmap_bytes),
        ("bounce", balance.bounce_bytes),
    ] {
        if let Some(part) = part.filter(|part| *part > 0) {
            let _ = write!(text, " + {} {name}", label::bytes(part));
        }
    }
    let rest = balance.unaccounted_bytes;
    let size = label::bytes(rest.unsigned_abs());
    let sign = if rest < 0 { "-" } else { "" };
    let _ = write!(
        text,
        " + {sign}{size} unaccounted ({}, ±{}): pages of drivers and the like, in no slab",
        if rest < 0 {
            "noise".to_owned()
        } else {
            percent(rest.unsigned_abs(), balance.total_bytes)
        },
        label::bytes(balance.noise_bytes)
    );
    if let Some(balloon) = balance.balloon_bytes.filter(|balloon| *balloon > 0) {
        let _ = write!(text, "; a balloon has {}", label::bytes(balloon));
    }
    text
}

fn sites(page: &mut Page, title: &str, sites: &[AllocationSite]) {
    let mut text = String::new();
    for site in sites {
        let between = if text.is_empty() { "" } else { " · " };
        let size = label::bytes(site.bytes);
        let _ = write!(text, "{between}{} {size}", escape(&site.site));
        if let Some(growth) = site.growth_bytes_per_s.filter(|rate| rate.abs() >= 0.5) {
            let _ = write!(text, " ({})", label::rate(growth));
        }
    }
    if !text.is_empty() {
        page.item(title, &text, 3);
    }
}

fn profile(page: &mut Page, usage: &SlabUsage) {
    let profile = &usage.profile;
    match (profile.state, &profile.remedy) {
        (ProfileState::On, _) => sites(page, "profile", &profile.sites),
        (ProfileState::Off, Some(remedy)) => {
            let text = format!("the kernel can tell who allocated: {remedy}");
            page.item("profile", &escape(&text), 2);
        }
        _ => {}
    }
}
