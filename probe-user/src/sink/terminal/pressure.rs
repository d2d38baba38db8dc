//! Lines for memory pressure: its events, and what led up to a kill.

use std::fmt::Write as _;

use super::layout::{Colour, Page};
use crate::event::label::{self, bytes, ratio, seconds};
use crate::event::{
    Before, Body, Cgroup, Confidence, CpuThrottled, Event, Finding, LeakSuspect, LimitEvent,
    MemcgLimit, MemorySample, Pressure, ReclaimStall, StallKind, escape,
};
use crate::pressure::series::approx;

const FINDINGS: usize = 3;
const EVIDENCE: usize = 3;
const COMMANDS: usize = 2;

/// Cells of a sparkline.
const CELLS: usize = 24;

pub(super) fn event(page: &mut Page, time: &str, event: &Event) {
    let who = |cgroup: Option<&Cgroup>| {
        label::subject(event.k8s.as_ref(), event.container.as_ref(), cgroup)
            .unwrap_or_else(|| "the node".to_owned())
    };
    match &event.body {
        Body::MemcgLimit(limit) => {
            let text = hit(limit, &who(Some(&limit.cgroup)));
            page.note(Colour::Dim, &format!("{time} {}", escape(&text)));
        }
        Body::ReclaimStall(stall) => {
            let text = stalled(stall, &who(stall.cgroup.as_ref()));
            page.note(Colour::Dim, &format!("{time} {}", escape(&text)));
        }
        Body::Pressure(pressure) => {
            let text = pressed(pressure, &who(pressure.cgroup.as_ref()));
            page.note(Colour::Warn, &format!("{time} {}", escape(&text)));
            findings(page, &pressure.findings);
        }
        Body::LeakSuspect(leak) => {
            page.note(
                Colour::Warn,
                &format!("{time} LEAK? {}", escape(&leak.summary)),
            );
            page.item("rate", &rate(leak), 1);
        }
        _ => {}
    }
}

fn hit(limit: &MemcgLimit, who: &str) -> String {
    let name = match limit.event {
        LimitEvent::Max => "memory.max",
        LimitEvent::High => "memory.high",
    };
    let mut text = format!("LIMIT {who}: {} of {name}", hits(limit.new));
    if limit.count > limit.new {
        let _ = write!(text, " ({} so far)", limit.count);
    }
    match (limit.usage_bytes, limit.limit_bytes) {
        (Some(usage), Some(size)) => {
            let _ = write!(text, ", {} used of {}", bytes(usage), bytes(size));
        }
        (None, Some(size)) => {
            let _ = write!(text, ", {}", bytes(size));
        }
        _ => {}
    }
    if let Some(ns) = limit.reclaim_ns {
        let _ = write!(text, ", {} in reclaim so far", duration(ns));
    }
    if let Some(process) = &limit.last_trigger {
        let _ = write!(text, ", last by {}", label::process(process));
    }
    text
}

fn stalled(stall: &ReclaimStall, who: &str) -> String {
    let what = match stall.stall {
        StallKind::DirectReclaim => "for free pages (direct reclaim)",
        StallKind::MemcgReclaim => "to free memory under a limit",
        StallKind::HighThrottle => "asleep over memory.high",
        StallKind::RefaultWait => "waiting for pages that were reclaimed too early",
        StallKind::Compaction => "for compaction",
    };
    let mut text = format!(
        "STALL {who}: {} {what} in {} waits; longest {}",
        duration(stall.new_ns),
        stall.new,
        duration(stall.longest_ns)
    );
    if let Some(bound) = half_under_ns(&stall.histogram_us_log2) {
        let _ = write!(text, ", half under {}", duration(bound));
    }
    if let Some(pages) = stall.reclaimed_pages {
        let _ = write!(text, ", {pages} pages given back");
    }
    text
}

/// Upper bound of the bucket that holds the median, ns; none for the last, which has no bound.
fn half_under_ns(histogram_us_log2: &[u64]) -> Option<u64> {
    let all = histogram_us_log2
        .iter()
        .fold(0, |sum: u64, &n| sum.saturating_add(n));
    let mut seen: u64 = 0;
    let bucket = histogram_us_log2.iter().position(|&count| {
        seen = seen.saturating_add(count);
        all > 0 && seen >= all.div_ceil(2)
    })?;
    let bounded = bucket + 1 < histogram_us_log2.len();
    let us = u32::try_from(bucket + 1)
        .ok()
        .and_then(|shift| 1_u64.checked_shl(shift));
    us.filter(|_| bounded)?.checked_mul(1000)
}

fn pressed(pressure: &Pressure, who: &str) -> String {
    let window = seconds(approx(pressure.window_ms) / 1e3);
    let share = |share: Option<f64>| share.map_or("?".to_owned(), ratio);
    format!(
        "PRESSURE {}, {who}: some task waited {} of {window}, all of them {}",
        pressure.resource,
        share(pressure.some_ratio),
        share(pressure.full_ratio)
    )
}

fn findings(page: &mut Page, findings: &[Finding]) {
    for finding in findings.iter().take(FINDINGS) {
        let Finding {
            id,
            confidence,
            summary,
            evidence,
            next_steps,
            ..
        } = finding;
        let sure = sure(*confidence);
        let text = format!("{}{sure}: {summary}", super::name(id));
        page.paragraph(Colour::Strong, &escape(&text), 2);
        for (index, evidence) in evidence.iter().take(EVIDENCE).enumerate() {
            page.item(
                if index == 0 { "because" } else { "" },
                &escape(evidence),
                2,
            );
        }
        for (index, command) in next_steps.iter().take(COMMANDS).enumerate() {
            page.command(if index == 0 { "next" } else { "" }, &escape(command));
        }
    }
    let more = findings.len().saturating_sub(FINDINGS);
    if more > 0 {
        page.item(
            "",
            &format!("… and {more} more; `-o json` lists them all"),
            1,
        );
    }
}

fn rate(leak: &LeakSuspect) -> String {
    format!(
        "{}, with 95 % confidence {} to {}{}",
        label::rate(leak.growth_bytes_per_s),
        label::rate(leak.growth_low_bytes_per_s),
        label::rate(leak.growth_high_bytes_per_s),
        sure(leak.confidence)
    )
}

const fn sure(confidence: Confidence) -> &'static str {
    match confidence {
        Confidence::High => "",
        Confidence::Medium => " (likely)",
        Confidence::Low => " (a guess)",
    }
}

/// What led up to a kill: usage as a sparkline, up to `limit_bytes` if that is known, and numbers.
pub(super) fn before(page: &mut Page, before: &Before, limit_bytes: Option<u64>) {
    let mut facts = Vec::new();
    if let Some(ms) = before.first_limit_hit_ms {
        facts.push(format!("first hit {} before", seconds(ms / 1e3)));
    }
    facts.extend(before.max_hits.map(|hits| format!("{hits} hits")));
    let growth = before.growth_bytes_per_s.filter(|&rate| rate >= 1.0);
    facts.extend(growth.map(|rate| format!("growth {}", label::rate(rate))));
    if let Some(stall) = before.stall_ms.filter(|_| before.span_ms > 0.0) {
        facts.push(format!("waited {}", ratio(stall / before.span_ms)));
    }
    if before.thrashed == Some(true) {
        facts.push("thrashed".to_owned());
    }
    if let Some(cpu) = before.cpu_throttled.filter(CpuThrottled::held_up) {
        facts.push(format!("CPU throttled {}", ratio(cpu.throttled_ratio)));
    }
    let facts = facts.join(", ");
    let Some(line) = sparkline(&before.samples, limit_bytes) else {
        if !facts.is_empty() {
            page.item("before", &facts, 1);
        }
        return;
    };
    let oldest = before
        .samples
        .first()
        .map_or(0.0, |sample| sample.before_ms);
    let text = format!("[{line}] {}  {facts}", seconds(oldest / 1e3));
    page.item("before", &text, 2);
}

/// Usage over time, in equal steps of time; the highest cell is the limit, else the highest usage.
fn sparkline(samples: &[MemorySample], limit_bytes: Option<u64>) -> Option<String> {
    const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let [first, _, ..] = samples else {
        return None;
    };
    let highest = samples.iter().map(|sample| sample.usage_bytes).max();
    let top = limit_bytes.max(highest).filter(|&top| top > 0)?;
    let step_ms = first.before_ms / approx(CELLS);
    let line = (1..=CELLS).map(|cell| {
        let end_ms = first.before_ms - step_ms * approx(cell);
        let until = samples.partition_point(|sample| sample.before_ms >= end_ms);
        let usage = samples[until.saturating_sub(1)].usage_bytes.min(top);
        let level = u128::from(usage) * 7 / u128::from(top);
        LEVELS[usize::try_from(level).unwrap_or(0).min(7)]
    });
    Some(line.collect())
}

fn duration(ns: u64) -> String {
    if ns < 1_000_000 {
        format!("{} µs", ns / 1000)
    } else {
        seconds(approx(ns) / 1e9)
    }
}

fn hits(count: u64) -> String {
    match count {
        1 => "1 hit".to_owned(),
        count => format!("{count} hits"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(before_ms: f64, usage_bytes: u64) -> MemorySample {
        MemorySample {
            before_ms,
            usage_bytes,
            ..MemorySample::default()
        }
    }

    #[test]
    fn a_sparkline_follows_time_and_not_the_number_of_samples() {
        // Ten seconds at a tenth of the limit, then many samples at the limit in the last.
        let mut samples: Vec<_> = (1..=10)
            .rev()
            .map(|s| sample(f64::from(s) * 1e3, 10))
            .collect();
        samples.extend(
            (0..10)
                .rev()
                .map(|tenth| sample(f64::from(tenth) * 1e2, 100)),
        );
        let line = sparkline(&samples, Some(100)).unwrap();
        assert_eq!(line.chars().count(), CELLS);
        assert_eq!(
            line.chars().filter(|&cell| cell == '▁').count(),
            21,
            "{line}"
        );
        assert!(line.ends_with("███"), "{line}");
    }

    #[test]
    fn nothing_to_draw() {
        assert_eq!(sparkline(&[], Some(1)), None);
        assert_eq!(sparkline(&[sample(1.0, 1)], Some(1)), None);
        assert_eq!(sparkline(&[sample(1.0, 0), sample(0.0, 0)], None), None);
        let odd = [sample(f64::NAN, u64::MAX), sample(0.0, 1)];
        assert_eq!(
            sparkline(&odd, None).map(|line| line.chars().count()),
            Some(CELLS)
        );
    }

    #[test]
    fn the_median_of_a_histogram() {
        assert_eq!(half_under_ns(&[0, 0, 5, 4, 0]), Some(8_000));
        assert_eq!(half_under_ns(&[0, 0, 0]), None);
        assert_eq!(
            half_under_ns(&[0, 0, 9]),
            None,
            "the last bucket has no bound"
        );
        assert_eq!(half_under_ns(&[]), None);
    }
}
