//! Objects that are not freed: how many, from where, and how far that can be trusted.

use std::fmt::Write as _;

use super::layout::{self, Colour, Page};
use super::triage::{short, tail};
use crate::event::label;
use crate::event::{Outstanding, OutstandingStack, TrackAccuracy, escape};

/// Stacks that are shown, and frames of each.
const STACKS: usize = 5;
const FRAMES: usize = 8;
const CGROUPS: usize = 5;

pub(super) fn page(page: &mut Page, time: &str, host: Option<&str>, it: &Outstanding) {
    let host = host.map(|name| format!(" {}", escape(name)));
    let bytes = it
        .bytes
        .map_or(String::new(), |bytes| format!(", {}", label::bytes(bytes)));
    let young = if it.young_objects > 0 {
        format!(
            " ({} of them younger than {} ms)",
            it.young_objects, it.min_age_ms
        )
    } else {
        String::new()
    };
    let head = format!(
        "{time} OUTSTANDING{}  {}: {} objects{young}{bytes} not freed after {}",
        host.unwrap_or_default(),
        escape(&it.what),
        it.objects,
        label::ago(it.duration_ms / 1000)
    );
    page.note(Colour::Strong, &head);
    let ages: Vec<String> = it
        .ages
        .iter()
        .map(|age| format!("{} older than {}", age.objects, label::ago(age.from_s)))
        .collect();
    if !ages.is_empty() {
        page.item("age", &ages.join(" · "), 1);
    }
    for stack in it.stacks.iter().take(STACKS) {
        self::stack(page, stack);
    }
    let shown = it.stacks.len().min(STACKS) as u64;
    let more = it.stacks_total.saturating_sub(shown);
    if more > 0 {
        page.line(
            Colour::Dim,
            &format!("  {more} more stacks: see `-o json`, `--folded`"),
        );
    }
    for (index, cgroup) in it.cgroups.iter().take(CGROUPS).enumerate() {
        let (k8s, container) = (cgroup.k8s.as_ref(), cgroup.container.as_ref());
        let who = label::subject(k8s, container, cgroup.cgroup.as_ref());
        let text = format!(
            "{} objects, {}: {}",
            cgroup.objects,
            short(cgroup.bytes),
            tail(&escape(who.as_deref().unwrap_or("not known, or gone")), 60)
        );
        page.item(if index == 0 { "cgroup" } else { "" }, &text, 1);
    }
    page.item("trust", &trust(it), 4);
    for (index, spot) in it.blind_spots.iter().enumerate() {
        page.item(if index == 0 { "not seen" } else { "" }, &escape(spot), 2);
    }
    page.item("hooks", &escape(&it.hooks.join(", ")), 4);
}

fn stack(page: &mut Page, stack: &OutstandingStack) {
    let (k8s, container) = (stack.k8s.as_ref(), stack.container.as_ref());
    let who = label::subject(k8s, container, stack.cgroup.as_ref());
    let mut text = format!("{} objects", stack.objects);
    if let Some(bytes) = stack.bytes {
        let _ = write!(text, ", {}", label::bytes(bytes));
    }
    if let Some(growth) = stack.growth_objects_per_s.filter(|rate| rate.abs() >= 0.5) {
        let _ = write!(text, ", {growth:+.0}/s");
    }
    let _ = write!(text, ", oldest {}", label::seconds(stack.oldest_s));
    if stack.in_interrupt {
        text.push_str(", by an interrupt");
    } else {
        if let (Some(comm), Some(pid)) = (&stack.comm, stack.pid) {
            let _ = write!(text, ", {} (pid {pid})", escape(comm));
        }
        if let Some(who) = who {
            let _ = write!(text, " in {}", tail(&escape(&who), 50));
        }
    }
    page.paragraph(Colour::Warn, &text, 2);
    let frames: Vec<&str> = stack
        .stack
        .iter()
        .take(FRAMES)
        .map(|frame| frame.split('+').next().unwrap_or(frame))
        .collect();
    let frames = if frames.is_empty() {
        "(its stack was not taken)".to_owned()
    } else {
        frames.join(" < ")
    };
    page.item("", &escape(&frames), 3);
    for held in &stack.held_by {
        page.item(
            "",
            &format!("held now: {}", super::skb::grouped(held).trim_start()),
            3,
        );
    }
}

fn trust(it: &Outstanding) -> String {
    let TrackAccuracy {
        allocated,
        freed,
        followed,
        reused,
        miss_ratio,
        unknown_frees,
        no_room,
        busy,
        stack_collisions,
        stack_failures,
        bulk_cut,
        skipped_runs,
    } = &it.accuracy;
    let miss = miss_ratio.map_or("?".to_owned(), |ratio| format!("{:.3} %", ratio * 100.0));
    // It got sparser on the way.
    let sample = it.sample_asked.map_or_else(
        || it.sample.to_string(),
        |asked| format!("{asked}, later of {}", it.sample),
    );
    let mut text = format!(
        "{allocated} allocated, {freed} freed; 1 of {sample} followed: {followed}; frees missed: \
         {reused} ({miss}); frees of unknown: {unknown_frees}"
    );
    for (what, count) in [
        ("no room", *no_room),
        ("busy", *busy),
        ("stacks lost", stack_collisions + stack_failures),
        ("bulk", *bulk_cut),
        ("skipped runs", skipped_runs.unwrap_or(0)),
    ] {
        if count > 0 {
            let _ = write!(text, "; {what}: {count}");
        }
    }
    if let Some(growth) = it.slab_growth_objects {
        let _ = write!(text, "; slabinfo: {growth:+}");
    }
    if let Some(bytes) = it.map_bytes {
        let _ = write!(
            text,
            "; takes {} of the kernel's memory",
            label::bytes(bytes)
        );
    }
    layout::cut(&text, 4 * layout::WIDTH)
}
