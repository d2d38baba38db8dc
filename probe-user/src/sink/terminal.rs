//! The view for a person at a terminal: an OOM kill in one screenful, the end of a container in a few
//! lines, anything else in a line or two.

mod death;
mod layout;
mod outstanding;
mod pressure;
mod skb;
mod slab;
pub mod story;
mod triage;

use std::fmt::Write as _;
use std::io::Write;

use layout::{Colour, Page, cut};

use super::{Error, Sink};
use crate::event::label::{self, bytes};
use crate::event::{
    Body, Candidate, Confidence, Event, Gap, Heartbeat, KernelFacts, Loss, Memory, OomKill,
    OomOutcome, Outcome, ProbeStatus, Process, Role, Time, Victim, escape,
};

/// Bytes of an RFC 3339 time to the millisecond: more is noise to a person.
const MILLISECOND: usize = "2025-11-21T02:02:14.123".len();

/// Columns of a `task_struct.comm`.
const COMM: usize = 15;
const VICTIMS: usize = 3;
const OTHERS: usize = 3;
const EVIDENCE: usize = 6;
const COMMANDS: usize = 3;

/// Writes each event for a person and flushes it.
#[derive(Debug)]
pub struct Terminal<W> {
    out: W,
    colour: bool,
}

impl<W: Write> Terminal<W> {
    /// Writes to `out`, with ANSI colours if told so.
    pub const fn new(out: W, colour: bool) -> Self {
        Self { out, colour }
    }
}

impl<W: Write> Sink for Terminal<W> {
    fn write(&mut self, event: &Event) -> Result<(), Error> {
        self.out.write_all(render(event, self.colour).as_bytes())?;
        self.out.flush()?;
        Ok(())
    }
}

/// The lines of an event, each ended by a newline and at most `layout::WIDTH` columns wide. Only
/// `colour` brings escape codes in: all that the node's processes chose is escaped.
pub fn render(event: &Event, colour: bool) -> String {
    let mut page = Page::new(colour);
    let full = event.time.to_string();
    let time = full
        .get(..MILLISECOND)
        .map_or(full.clone(), |time| format!("{time}Z"));
    match &event.body {
        Body::OomKill(kill) => oom_kill(&mut page, &time, kill),
        Body::OomOutcome(outcome) => line(&mut page, Colour::Dim, &time, &ended(outcome)),
        Body::ProcessDeath(death) => death::page(&mut page, &time, event, death),
        Body::MemcgLimit(_) | Body::ReclaimStall(_) | Body::Pressure(_) | Body::LeakSuspect(_) => {
            pressure::event(&mut page, &time, event);
        }
        Body::Triage(triage) => {
            triage::page(&mut page, &time, event.host.name.as_deref(), triage);
        }
        Body::SkbHolders(held) => {
            skb::page(&mut page, &time, event.host.name.as_deref(), held);
        }
        Body::SkbOutstanding(it) | Body::SlabOutstanding(it) => {
            outstanding::page(&mut page, &time, event.host.name.as_deref(), it);
        }
        Body::SlabUsage(usage) => slab::page(&mut page, &time, event.host.name.as_deref(), usage),
        Body::ProbeStatus(status) => {
            let colour = if status.attached {
                Colour::Dim
            } else {
                Colour::Alarm
            };
            line(&mut page, colour, &time, &probes(status));
        }
        Body::Heartbeat(beat) => line(&mut page, Colour::Dim, &time, &alive(beat)),
        Body::Loss(loss) => line(&mut page, Colour::Alarm, &time, &lost(loss)),
        Body::Gap(gap) => line(&mut page, Colour::Alarm, &time, &missed(gap, event.time)),
    }
    page.into_text()
}

fn line(page: &mut Page, colour: Colour, time: &str, text: &str) {
    page.note(colour, &format!("{time} {}", escape(text)));
}

fn oom_kill(page: &mut Page, time: &str, kill: &OomKill) {
    let verdict = &kill.verdict;
    let (colour, title) = match kill.outcome {
        Outcome::Killed => (Colour::Alarm, "OOM KILL"),
        _ => (Colour::Warn, "OOM, NO KILL"),
    };
    let sure = match verdict.confidence {
        Confidence::High => "",
        Confidence::Medium => " (likely)",
        Confidence::Low => " (a guess)",
    };
    let header = format!(
        "{time} {title}  {} · {}{sure} · id {}",
        name(&kill.scope),
        name(&verdict.cause),
        escape(&kill.incident)
    );
    page.line(colour, &cut(&header, layout::WIDTH));
    page.paragraph(Colour::Strong, &escape(&verdict.summary), 3);
    if let Some((bar, legend)) = bar(&kill.memory) {
        page.item("memory", &format!("{bar} {legend}"), 1);
    }
    if let Some(before) = &kill.before {
        let limit = kill
            .limit
            .as_ref()
            .and_then(|limit| limit.level.limit_bytes);
        pressure::before(page, before, limit);
    }
    victims(page, kill);
    others(page, kill);
    for (index, evidence) in verdict.evidence.iter().take(EVIDENCE).enumerate() {
        page.item(
            if index == 0 { "because" } else { "" },
            &escape(evidence),
            2,
        );
    }
    if let Some(report) = &verdict.kubernetes_will_report {
        let text = match report.oom_killed {
            Some(true) => format!("will report OOMKilled: {}", report.why),
            Some(false) => format!("will not report it: {}", report.why),
            None => format!("may report OOMKilled: {}", report.why),
        };
        page.item("k8s", &escape(&text), 3);
    }
    for (index, command) in verdict.next_steps.iter().take(COMMANDS).enumerate() {
        page.command(if index == 0 { "next" } else { "" }, &escape(command));
    }
}

/// The value of a unit enum as events write it.
fn name(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value)
        .ok()
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_default()
}

/// What the memory is made of, as a bar of fixed length, and its legend.
fn bar(memory: &Memory) -> Option<(String, String)> {
    const CELLS: u64 = 30;
    let total = memory.total_bytes.filter(|&total| total > 0)?;
    let sum = |parts: &[Option<u64>]| {
        parts
            .iter()
            .flatten()
            .fold(0, |a: u64, b| a.saturating_add(*b))
    };
    let parts = [
        ('█', "anon", sum(&[memory.anon_bytes])),
        ('▓', "page cache", sum(&[memory.file_bytes])),
        ('#', "tmpfs", sum(&[memory.shmem_bytes])),
        ('~', "sockets", sum(&[memory.sock_bytes])),
        (
            '▒',
            "kernel",
            sum(&[
                memory.slab_reclaimable_bytes,
                memory.slab_unreclaimable_bytes,
                memory.kernel_stack_bytes,
                memory.page_tables_bytes,
                memory.percpu_bytes,
                memory.vmalloc_bytes,
                memory.kernel_other_bytes,
            ]),
        ),
    ];
    if parts.iter().all(|&(.., bytes)| bytes == 0) {
        return None;
    }
    let mut bar = String::new();
    let mut legend = bytes(total);
    let mut used = 0;
    for (cell, name, part) in parts {
        let share = u128::from(part) * u128::from(CELLS) + u128::from(total) / 2;
        let cells = u64::try_from(share / u128::from(total))
            .unwrap_or(CELLS)
            .min(CELLS - used);
        used += cells;
        bar.extend((0..cells).map(|_| cell));
        if cells > 0 {
            let _ = write!(legend, "  {cell} {name} {}", label::percent(part, total));
        }
    }
    bar.extend((used..CELLS).map(|_| '·'));
    Some((format!("[{bar}]"), legend))
}

fn victims(page: &mut Page, kill: &OomKill) {
    let title = if kill.outcome == Outcome::Killed {
        "killed"
    } else {
        "marked"
    };
    let first = kill.chosen().and_then(owner_of);
    for (index, victim) in kill.victims.iter().take(VICTIMS).enumerate() {
        // The summary has named the first one's owner.
        let owner = owner_of(victim).filter(|owner| Some(owner) != first.as_ref());
        let row = row(&victim.process, &how(victim), owner.as_deref());
        page.item(if index == 0 { title } else { "" }, &row, 1);
    }
    let more = kill.victims.len().saturating_sub(VICTIMS);
    if more > 0 {
        page.item(
            "",
            &format!("… and {more} more; `-o json` lists them all"),
            1,
        );
    }
}

fn owner_of(victim: &Victim) -> Option<String> {
    label::subject(
        victim.k8s.as_ref(),
        victim.container.as_ref(),
        victim.cgroup.as_ref(),
    )
}

fn how(victim: &Victim) -> String {
    let role = match victim.role {
        Role::Chosen => "chosen",
        Role::Group => "oom.group",
        Role::SharesMm => "shares memory",
        Role::AlreadyExiting => "was exiting",
    };
    match victim.container_init {
        Some(true) => format!("{role}, init"),
        Some(false) => format!("{role}, child"),
        None => role.to_owned(),
    }
}

/// The biggest that were spared.
fn others(page: &mut Page, kill: &OomKill) {
    let chosen = kill.chosen().and_then(owner_of);
    let spared = kill.candidates.iter().filter(|other| {
        kill.victims
            .iter()
            .all(|victim| victim.process.pid != other.process.pid)
    });
    for (index, other) in spared.take(OTHERS).enumerate() {
        let Candidate {
            process,
            cgroup,
            k8s,
            container,
            points,
        } = other;
        let owner = label::subject(k8s.as_ref(), container.as_ref(), cgroup.as_ref());
        let same = owner.is_some() && owner == chosen;
        let how = match points {
            None => "protected",
            Some(_) if same && container.is_some() => "same container",
            Some(_) if same => "same cgroup",
            Some(_) => "",
        };
        let row = row(process, how, owner.filter(|_| !same).as_deref());
        page.item(if index == 0 { "spared" } else { "" }, &row, 1);
    }
}

fn row(process: &Process, how: &str, owner: Option<&str>) -> String {
    let size = process
        .rss
        .map_or("?".to_owned(), |rss| bytes(rss.total_bytes()));
    let adj = process
        .oom_score_adj
        .map_or("?".to_owned(), |adj| adj.to_string());
    let pid = process.pid.map_or("?".to_owned(), |pid| pid.to_string());
    let comm = cut(&escape(process.comm.as_deref().unwrap_or("?")), COMM);
    let pad = COMM - layout::width(&comm);
    let owner = owner.map(escape).unwrap_or_default();
    let gap = if how.is_empty() || owner.is_empty() {
        ""
    } else {
        "  "
    };
    format!(
        "{comm}{:pad$} {pid:>7} {size:>9}  adj {adj:>5}  {how}{gap}{owner}",
        ""
    )
}

fn ended(outcome: &OomOutcome) -> String {
    let mut text = format!("oom end  {}: ", outcome.incident);
    let alive: Vec<_> = outcome
        .victims
        .iter()
        .filter(|victim| victim.still_alive)
        .collect();
    match (&outcome.victims[..], &alive[..]) {
        ([], _) => text.push_str("no victim is known"),
        (_, [stuck, ..]) => {
            let _ = write!(
                text,
                "{} of {} STILL ALIVE: {}",
                alive.len(),
                outcome.victims.len(),
                label::process(&stuck.process)
            );
        }
        ([one], _) => {
            let _ = write!(text, "{} gone", label::process(&one.process));
            if let Some(ms) = one.kill_to_exit_ms {
                let _ = write!(text, " in {ms:.0} ms");
            }
        }
        (all, _) => {
            let _ = write!(text, "all {} gone", all.len());
        }
    }
    if outcome.late_victims > 0 {
        let _ = write!(text, ", {} seen late", outcome.late_victims);
    }
    if let Some(freed) = outcome
        .freed_bytes
        .and_then(|freed| u64::try_from(freed).ok())
    {
        let _ = write!(text, ", {} freed", bytes(freed));
    }
    match outcome.container_survived {
        Some(true) => text.push_str(", container lives on"),
        Some(false) => text.push_str(", container ended"),
        None => {}
    }
    text
}

fn probes(status: &ProbeStatus) -> String {
    let missing: Vec<_> = status
        .signals
        .iter()
        .filter(|signal| signal.hook.is_none())
        .map(|signal| signal.signal.as_str())
        .collect();
    let mut text = if status.attached {
        "attached"
    } else {
        "NOT ATTACHED"
    }
    .to_owned();
    if let Some(ms) = status.ready_ms {
        let _ = write!(text, " in {ms:.0} ms");
    }
    let all = status.signals.len();
    let _ = write!(text, ": {} of {all} signals", all - missing.len());
    if !missing.is_empty() {
        let _ = write!(text, ", none for {}", missing.join(", "));
    }
    let KernelFacts {
        release, cgroup, ..
    } = &status.kernel;
    if let Some(cgroup) = cgroup {
        let _ = write!(text, " · cgroup {cgroup}");
    }
    if let Some(release) = release {
        let _ = write!(text, " · {release}");
    }
    text
}

fn alive(beat: &Heartbeat) -> String {
    let lost: u64 = beat
        .lost
        .values()
        .fold(0, |sum, count| sum.saturating_add(*count));
    let kills = match beat.kernel_oom_kills {
        Some(kernel) => format!("{} of {kernel} OOM kills seen", beat.seen_oom_kills),
        None => format!("{} OOM kills seen", beat.seen_oom_kills),
    };
    format!(
        "alive for {} s · {kills} · {lost} records lost",
        beat.uptime_s
    )
}

fn lost(loss: &Loss) -> String {
    if let Some(hook) = &loss.hook {
        return format!(
            "LOSS  up to {} calls of {hook} not looked at: {} ({} so far)",
            loss.count, loss.reason, loss.total
        );
    }
    let ring = loss
        .ring
        .as_deref()
        .map(|ring| format!(" in {ring}"))
        .unwrap_or_default();
    format!(
        "LOSS  {} records lost{ring}: {} ({} so far)",
        loss.count, loss.reason, loss.total
    )
}

fn missed(gap: &Gap, now: Time) -> String {
    let interval = gap.since.and_then(|since| now.since(since));
    let interval = interval
        .map(|time| format!(" in {} s", time.as_secs()))
        .unwrap_or_default();
    format!(
        "GAP   {} missing: {} rose by {}{interval}, {} seen",
        gap.missing, gap.counter, gap.expected, gap.seen
    )
}
