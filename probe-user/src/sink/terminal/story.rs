//! The story of one pod: its deaths in order of time, then what they have in common.

use std::fmt::Write as _;

use super::layout::{Colour, Page};
use super::{MILLISECOND, name};
use crate::event::label;
use crate::event::{Confidence, CpuThrottled, DeathCause, Time, escape};
use crate::story::{ContainerStory, Death, LeadUp, Story};

/// Deaths shown; the oldest are left to `-o json`.
const SHOWN: usize = 40;
const EVIDENCE: usize = 3;
const CONTAINERS: usize = 8;
const HOLES: usize = 4;

/// The lines of a story, as [`super::render`] makes those of an event.
pub fn render(story: &Story, colour: bool) -> String {
    let mut page = Page::new(colour);
    head(&mut page, story);
    let hidden = story.deaths.len().saturating_sub(SHOWN);
    if hidden > 0 {
        page.paragraph(
            Colour::Dim,
            &format!("… {hidden} earlier deaths: `-o json` lists them"),
            1,
        );
    }
    for told in story.deaths.iter().skip(hidden) {
        death(&mut page, told);
    }
    for (index, hole) in story.holes.iter().take(HOLES).enumerate() {
        let text = format!("{} {}", short(hole.time), escape(&hole.what));
        page.item(if index == 0 { "holes" } else { "" }, &text, 2);
    }
    let more = story.holes.len().saturating_sub(HOLES);
    if more > 0 {
        page.item("", &format!("… and {more} more; `-o json` lists them"), 1);
    }
    page.line(Colour::Strong, "PATTERN");
    page.paragraph(Colour::Strong, &escape(&story.pattern.summary), 6);
    for (index, command) in story.pattern.next_steps.iter().enumerate() {
        page.command(if index == 0 { "next" } else { "" }, &escape(command));
    }
    page.into_text()
}

fn head(page: &mut Page, story: &Story) {
    let pod = &story.pod;
    let mut text = "STORY  ".to_owned();
    if let Some(namespace) = &pod.namespace {
        let _ = write!(text, "{}/", escape(namespace));
    }
    let name = pod.name.as_ref().or(pod.uids.first());
    text.push_str(&escape(name.map_or("?", String::as_str)));
    if let (Some(from), Some(to)) = (story.span.from, story.span.to) {
        let _ = write!(text, " · {} to {}", short(from), short(to));
    }
    if !pod.nodes.is_empty() {
        let _ = write!(text, " · on {}", escape(&pod.nodes.join(", ")));
    }
    page.note(Colour::Strong, &text);
    if let [_, _, ..] = pod.uids[..] {
        let text = format!("made anew under the same name: {} UIDs", pod.uids.len());
        page.paragraph(Colour::Plain, &text, 1);
    }
    for (index, container) in story.containers.iter().take(CONTAINERS).enumerate() {
        let title = if index == 0 { "ends" } else { "" };
        page.item(title, &of_container(container), 1);
    }
    let more = story.containers.len().saturating_sub(CONTAINERS);
    if more > 0 {
        page.item("", &format!("… and {more} more"), 1);
    }
}

fn of_container(container: &ContainerStory) -> String {
    let mut text = escape(container.name.as_deref().unwrap_or("?")).into_owned();
    text.push_str(": ");
    text.push_str(&match container.ends {
        0 => "not seen to end".to_owned(),
        ends => times(ends),
    });
    if container.survived > 0 {
        let _ = write!(text, ", outlived a process {}", times(container.survived));
    }
    if let Some(restarts) = container.restart_count {
        let _ = write!(text, "; restart count {restarts}");
    }
    text
}

fn times(count: u64) -> String {
    match count {
        1 => "once".to_owned(),
        _ => format!("{count} times"),
    }
}

fn death(page: &mut Page, death: &Death) {
    let colour = match (death.container_ended, death.cause) {
        (_, DeathCause::RuntimeStop) => Colour::Dim,
        (_, DeathCause::AppExit) if death.exit_code == Some(0) => Colour::Dim,
        (Some(true), _) => Colour::Alarm,
        _ => Colour::Warn,
    };
    let sure = match death.confidence {
        Confidence::High => "",
        Confidence::Medium => " (likely)",
        Confidence::Low => " (a guess)",
    };
    let mut head = format!(
        "{} {}",
        short(death.time),
        escape(death.container.as_deref().unwrap_or("?"))
    );
    if let Some(count) = death.restart_count {
        let _ = write!(head, "#{count}");
    }
    let _ = write!(head, "  {}{sure}", name(&death.cause));
    if let Some(scope) = &death.scope {
        let _ = write!(head, " · {}", name(scope));
    }
    if let Some(limit) = death.limit_bytes {
        let _ = write!(head, " at {}", label::bytes(limit));
    }
    if let Some(ms) = death.lifetime_ms {
        let _ = write!(head, " · lived {}", label::seconds(seconds(ms)));
    }
    if let Some(ms) = death.restarted_after_ms {
        let _ = write!(head, " · restarted after {}", label::seconds(seconds(ms)));
    }
    if death.container_ended == Some(false) {
        head.push_str(" · container went on");
    }
    if death.others > 0 {
        let _ = write!(head, " · {} more with it", death.others);
    }
    page.note(colour, &head);
    page.paragraph(Colour::Plain, &escape(&death.summary), 3);
    let before = before(&death.lead_up);
    if !before.is_empty() {
        page.item("before", &before, 2);
    }
    for (index, said) in death.lead_up.said.iter().enumerate() {
        let is_first = index == 0 && before.is_empty();
        page.item(if is_first { "before" } else { "" }, &escape(said), 2);
    }
    for (index, evidence) in death.evidence.iter().take(EVIDENCE).enumerate() {
        page.item(
            if index == 0 { "because" } else { "" },
            &escape(evidence),
            2,
        );
    }
    if let Some(text) = kubernetes(death) {
        page.item("k8s", &escape(&text), 3);
    }
}

fn before(lead_up: &LeadUp) -> String {
    let mut parts = Vec::new();
    if let Some(rate) = lead_up.growth_bytes_per_s {
        parts.push(format!("growth {}", label::rate(rate)));
    }
    if let Some(hits) = lead_up.max_hits {
        parts.push(format!("limit hit {}", times(hits)));
    }
    if let Some(hits) = lead_up.high_hits.filter(|hits| *hits > 0) {
        parts.push(format!("memory.high hit {}", times(hits)));
    }
    if let Some(ms) = lead_up.stall_ms {
        let stalled = label::seconds(ms / 1000.0);
        parts.push(format!("waited for memory {stalled}"));
    }
    if let Some(ms) = lead_up.node_stall_ms {
        let stalled = label::seconds(ms / 1000.0);
        parts.push(format!("tasks waited for the node's memory {stalled}"));
    }
    if lead_up.thrashed == Some(true) {
        parts.push("thrashed".to_owned());
    }
    if let Some(cpu) = lead_up.cpu_throttled.filter(CpuThrottled::held_up) {
        let ratio = label::ratio(cpu.throttled_ratio);
        parts.push(format!("CPU limit stopped it in {ratio} of all periods"));
    }
    if lead_up.ooms_without_kill > 0 {
        let ooms = times(lead_up.ooms_without_kill);
        parts.push(format!("out of memory without a kill {ooms}"));
    }
    if let Some(held_up) = &lead_up.held_up_by {
        parts.push(format!("held up by {}", name(held_up)));
    }
    parts.join(" · ")
}

fn kubernetes(death: &Death) -> Option<String> {
    let report = death.kubernetes_will_report.as_ref()?;
    let word = match report.oom_killed {
        Some(true) => "OOMKilled",
        Some(false) => "not OOMKilled",
        None => "perhaps OOMKilled",
    };
    let wrong = if report.wrong { ", which is WRONG" } else { "" };
    let code = death
        .exit_code
        .map(|code| format!("exit code {code}, "))
        .unwrap_or_default();
    Some(format!("{code}{word}{wrong}: {}", report.why))
}

/// To the millisecond.
fn short(time: Time) -> String {
    let full = time.to_string();
    match full.get(..MILLISECOND) {
        Some(time) => format!("{time}Z"),
        None => full,
    }
}

#[expect(clippy::cast_precision_loss, reason = "a time for a person")]
fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}
