//! Who holds socket buffers: what is wrong first, then the biggest holders, then the balance.

use std::fmt::Write as _;

use super::layout::{Colour, Page};
use super::triage::finding;
use crate::event::label::{self, bytes, percent};
use crate::event::queues::Kind;
use crate::event::{
    CensusReader, HolderMethod, SkbBalance, SkbBefore, SkbCensus, SkbGroup, SkbHolder, SkbHolders,
    SkbQueue, escape,
};

/// Findings shown in full; the rest by their summaries.
const IN_FULL: usize = 3;

/// Queues that no file owns, and groups of a census, that are shown.
const QUEUES: usize = 8;
const GROUPS: usize = 8;

/// Holders of the report before that are shown.
const GONE: usize = 5;

pub(super) fn page(page: &mut Page, time: &str, host: Option<&str>, held: &SkbHolders) {
    let host = host.map_or(String::new(), |name| format!(" {}", escape(name)));
    let (colour, verdict) = match held.findings.len() {
        0 => (
            Colour::Strong,
            "nothing is held that should not be".to_owned(),
        ),
        1 => (Colour::Warn, "1 FINDING".to_owned()),
        count => (Colour::Warn, format!("{count} FINDINGS")),
    };
    page.note(colour, &format!("{time} SOCKET BUFFERS{host}  {verdict}"));
    for (index, found) in held.findings.iter().enumerate() {
        finding(page, found, index < IN_FULL);
    }
    for (index, holder) in held.holders.iter().enumerate() {
        page.item(if index == 0 { "holders" } else { "" }, &row(holder), 2);
    }
    let more = held.holders_total.saturating_sub(held.holders.len() as u64);
    if more > 0 {
        page.item("", &format!("… and {more} more that hold less"), 1);
    }
    for (index, queue) in held.queues.iter().take(QUEUES).enumerate() {
        page.item(if index == 0 { "queues" } else { "" }, &queued(queue), 2);
    }
    balance(page, &held.balance);
    if let Some(found) = &held.census {
        census(page, found);
    }
    if let Some(then) = &held.before {
        before(page, then, &held.balance);
    }
    page.item("looked", &looked(held), 3);
    for (index, missing) in held.not_read.iter().enumerate() {
        let text = format!("{}: {}", escape(&missing.what), escape(&missing.why));
        page.item(if index == 0 { "not read" } else { "" }, &text, 2);
    }
}

fn row(holder: &SkbHolder) -> String {
    let socket = &holder.socket;
    let mut text = format!("{:>8}", bytes(holder.bytes));
    if let Some(skbs) = holder.skbs {
        let _ = write!(text, " {skbs:>8} skbs");
    }
    let owner = holder.process.as_ref().map_or("?".into(), label::process);
    let _ = write!(text, "  {}", escape(&owner));
    let subject = label::subject(
        holder.k8s.as_ref(),
        holder.container.as_ref(),
        holder.cgroup.as_ref(),
    );
    if let Some(subject) = subject {
        let _ = write!(text, " {}", escape(&subject));
    }
    if holder.owners > 1 {
        let _ = write!(text, " and {} more", holder.owners - 1);
    }
    let _ = write!(text, " · {} {}", socket.family, socket.protocol);
    if holder.sockets > 1 {
        let _ = write!(text, " ×{}", holder.sockets);
    } else if let Some(local) = &socket.local {
        let _ = write!(text, " {local}");
        if let Some(remote) = &socket.remote {
            let _ = write!(text, " → {remote}");
        }
    }
    if let (1, Some(used), Some(limit)) = (
        holder.sockets,
        socket.receive_bytes,
        socket.rcvbuf_bytes.filter(|_| socket.family != "unix"),
    ) {
        let _ = write!(text, " · {} of rcvbuf", percent(used, limit));
    } else if holder.saturated_sockets > 0 {
        let _ = write!(text, " · {} full", holder.saturated_sockets);
    }
    if holder.ring_bytes > 0 {
        let _ = write!(text, " · ring {} (not slab)", bytes(holder.ring_bytes));
    }
    if holder.sent_bytes > 0 {
        let _ = write!(text, " · sent {}", bytes(holder.sent_bytes));
    }
    if let Some(drops) = holder.drops.filter(|&drops| drops > 0) {
        let _ = write!(text, " · {drops} drops");
    }
    if let Some(growth) = holder
        .growth_bytes_per_s
        .filter(|growth| growth.abs() >= 1.0)
    {
        let sign = if growth > 0.0 { "+" } else { "" };
        let _ = write!(text, " · {sign}{}", label::rate(growth));
    }
    text
}

/// One queue that no file owns.
fn queued(found: &SkbQueue) -> String {
    let queue = &found.queue;
    let (what, more) = kind(&queue.kind);
    let mut text = match (queue.packets, queue.bytes) {
        (Some(packets), _) => format!("{packets:>8} packets"),
        (None, Some(held)) => format!("{:>8}", bytes(held)),
        (None, None) => "       ? packets".to_owned(),
    };
    let _ = write!(text, "  {}", escape(&what));
    if let Some(device) = &queue.device {
        let _ = write!(text, " of {}", escape(device));
    }
    if let Some(more) = more {
        let _ = write!(text, " · {more}");
    }
    if let Some(process) = &found.process {
        let _ = write!(text, " · {}", escape(&label::process(process)));
    }
    let subject = label::subject(
        found.k8s.as_ref(),
        found.container.as_ref(),
        found.cgroup.as_ref(),
    );
    if let Some(subject) = subject {
        let _ = write!(text, " · {}", escape(&subject));
    }
    if let Some(moved) = queue.moved {
        let _ = write!(
            text,
            " · {} left it in {} ms",
            moved.left_packets, moved.interval_ms
        );
    }
    text
}

/// What kind of queue, and what only this kind has.
fn kind(kind: &Kind) -> (String, Option<String>) {
    let count = |count: u64, of: &str| Some(format!("{count} {of}"));
    match kind {
        Kind::Nfqueue { queue, .. } => (format!("nfqueue {queue}"), None),
        Kind::Qdisc { discipline, .. } => (format!("qdisc {discipline}"), None),
        Kind::Tun { files, .. } => ("tun queue, at most".to_owned(), count(*files, "readers")),
        Kind::SoftnetBacklog { cpu } => (format!("backlog of CPU {cpu}"), None),
        Kind::Fragments { ip, datagrams } => (
            format!("fragments of IPv{ip}"),
            count(*datagrams, "datagrams"),
        ),
        Kind::TcpOrphans { sockets } => (
            "closed TCP connections".to_owned(),
            count(*sockets, "connections"),
        ),
        Kind::TcpUnaccepted { port, sockets, .. } => (
            format!("TCP connections to port {port} that nobody accepted"),
            count(*sockets, "connections"),
        ),
        Kind::NeighbourUnresolved { entries } => (
            "packets for unresolved neighbours".to_owned(),
            count(*entries, "neighbours"),
        ),
        Kind::NeighbourProxy { table } => (format!("proxy queue of {table}"), None),
    }
}

/// What changed since the report before.
fn before(page: &mut Page, then: &SkbBefore, now: &SkbBalance) {
    let count = |count: Option<u64>| count.map_or("?".to_owned(), |count| count.to_string());
    let size = |size: Option<u64>| size.map_or("?".to_owned(), bytes);
    let balance = &then.balance;
    let text = format!(
        "{} ago: {} buffers, now {} · found {}, now {} · unreclaimable {}, now {}",
        label::ago(then.age_ms / 1000),
        count(balance.slab_objects),
        count(now.slab_objects),
        count(balance.explained_objects),
        count(now.explained_objects),
        size(balance.slab_unreclaimable_bytes),
        size(now.slab_unreclaimable_bytes),
    );
    page.item("before", &text, 3);
    for holder in then.gone.iter().take(GONE) {
        page.item("", &format!("gone {}", row(holder).trim_start()), 2);
    }
    let more = then.gone.len().saturating_sub(GONE);
    if more > 0 {
        page.item("", &format!("… and {more} more are gone"), 1);
    }
}

fn census(page: &mut Page, census: &SkbCensus) {
    let error = if census.full {
        "all counted".to_owned()
    } else {
        format!("± {}", label::ratio(census.relative_error))
    };
    let ratio = census
        .explained_ratio
        .map_or(String::new(), |ratio| format!(" ({})", label::ratio(ratio)));
    let by = match census.read_by {
        CensusReader::Kcore => "/proc/kcore",
        CensusReader::Bpf => "BPF",
    };
    let unfollowed = match census.unfollowed_skbs {
        0 => String::new(),
        count => format!(" · no time to follow: {count}"),
    };
    let text = format!(
        "{} buffers{ratio} found in the slabs with their socket or device, {} · moving: {} · of \
         nobody: {}{unfollowed} · {error}: {} of {} pages, in {} ms by {by}",
        census.explained_skbs,
        bytes(census.bytes),
        census.moving_skbs,
        census.unreferenced_skbs,
        census.sampled_pages,
        census.total_pages,
        census.took_ms,
    );
    page.item("below", &text, 3);
    for group in census.groups.iter().take(GROUPS) {
        page.item("", &grouped(group), 2);
    }
    let more = census
        .groups_total
        .saturating_sub(census.groups.len().min(GROUPS) as u64);
    if more > 0 {
        page.item("", &format!("… and {more} more"), 1);
    }
}

/// Buffers of a census that point to the same.
pub(super) fn grouped(group: &SkbGroup) -> String {
    let mut text = format!("{:>8} {:>8} skbs ", bytes(group.own_bytes), group.skbs);
    if let Some(socket) = &group.socket {
        let _ = write!(text, " {} {}", socket.family, escape(&socket.protocol));
        if group.sockets > 1 {
            let _ = write!(text, " ×{}", group.sockets);
        }
        if let Some(queue) = &group.queue {
            let _ = write!(text, " {queue} queue");
        }
        match socket.inode {
            Some(inode) => {
                let _ = write!(text, " · inode {inode}");
            }
            None => text.push_str(" · no file has it open"),
        }
    } else if group.device.is_none() {
        text.push_str(" of nobody");
    }
    if let Some(device) = &group.device {
        let _ = write!(text, " · device {}", escape(device));
    }
    if let Some(destructor) = &group.destructor {
        let _ = write!(text, " · {}", escape(destructor));
    }
    if let Some(process) = &group.process {
        let _ = write!(text, " · {}", escape(&label::process(process)));
    }
    let subject = label::subject(
        group.k8s.as_ref(),
        group.container.as_ref(),
        group.cgroup.as_ref(),
    );
    if let Some(subject) = subject {
        let _ = write!(text, " · {}", escape(&subject));
    }
    text
}

fn balance(page: &mut Page, balance: &SkbBalance) {
    let count = |count: Option<u64>| count.map_or("?".to_owned(), |count| count.to_string());
    let mut text = format!("{} buffers in use", count(balance.slab_objects));
    if let Some(noise) = balance.noise_objects {
        let _ = write!(text, " (of them up to {noise} may be free)");
    }
    if let Some(growth) = balance.slab_growth_objects.filter(|&growth| growth != 0) {
        let _ = write!(text, ", {growth:+} between the looks");
    }
    if let Some(unreclaimable) = balance.slab_unreclaimable_bytes {
        let _ = write!(text, " · unreclaimable {}", bytes(unreclaimable));
    }
    page.item("slab", &text, 2);
    for cache in &balance.caches {
        let mut text = format!(
            "{}: {} objects, {}",
            escape(&cache.name),
            count(cache.objects),
            cache.bytes.map_or("?".to_owned(), bytes)
        );
        if !cache.shared_with.is_empty() {
            let _ = write!(
                text,
                ", shared with {} other caches",
                cache.shared_with.len()
            );
        }
        page.item("", &text, 1);
    }
    // Rounded down: what is not all is not called all.
    let percent = |ratio: f64| format!(" ({:.1} %)", (ratio * 1e3).floor() / 10.0);
    let share = balance.explained_ratio.map_or(String::new(), percent);
    let text = format!(
        "{} buffers{share} found in queues, {} with their data (shared data each time; TCP's is no \
         slab) · not found: {}",
        count(balance.explained_objects),
        bytes(balance.explained_bytes),
        count(balance.unexplained_objects)
    );
    page.item("above", &text, 2);
}

fn looked(held: &SkbHolders) -> String {
    let mut text = format!(
        "{} descriptors of sockets in {} ms",
        held.descriptors, held.look_ms
    );
    match held.method {
        HolderMethod::OpenFiles => text.push_str(", by the BPF iterator over open files"),
        HolderMethod::ProcNet => text.push_str(", by /proc/<pid>/net"),
    }
    if let Some(why) = &held.method_why {
        let _ = write!(text, ": {}", escape(why));
    }
    text
}
