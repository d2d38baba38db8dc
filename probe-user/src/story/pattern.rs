//! What the deaths of a story have in common.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::{Death, Group, HeldUp, Pattern, Span};
use crate::event::label;
use crate::event::{DeathCause, ProcessRole, Scope};

/// Groups that the summary names.
const NAMED: usize = 4;
const COMMANDS: usize = 5;
/// From how many on a median says something.
const MANY: usize = 3;

/// The pattern of these deaths, which are in order of time.
pub(super) fn find(deaths: &[Death], left_out: u64, span: &Span, has_holes: bool) -> Pattern {
    let ends: Vec<&Death> = deaths.iter().filter(|death| is_end(death)).collect();
    let of_processes: Vec<&Death> = deaths.iter().filter(|death| !is_end(death)).collect();
    let told = if ends.is_empty() {
        &of_processes
    } else {
        &ends
    };
    let grouped = group(told);
    let mut summary = String::new();
    match told.len() {
        0 => summary.push_str("No death was seen"),
        1 => summary.push_str("1 death"),
        many => {
            let _ = write!(summary, "{many} deaths");
        }
    }
    let window = match &told[..] {
        [] => span.to.zip(span.from),
        [first, .., last] => Some((last.time, first.time)),
        [_] => None,
    };
    if let Some(time) = window.and_then(|(to, from)| to.since(from)) {
        let _ = write!(summary, " in {}", label::seconds(time.as_secs_f64()));
    }
    if ends.is_empty() && !told.is_empty() {
        summary.push_str(" of processes whose containers were not seen to end");
    }
    list(&mut summary, &grouped);
    summary.push('.');
    remarks(&mut summary, &ends, &of_processes);
    if left_out > 0 {
        let _ = write!(summary, " {left_out} older deaths are left out.");
    }
    if has_holes {
        summary.push_str(" The capture has holes: there may have been more.");
    }
    Pattern {
        summary,
        next_steps: next_steps(&grouped),
        groups: grouped
            .into_iter()
            .map(|(what, deaths)| Group {
                count: deaths.len() as u64,
                what,
            })
            .collect(),
    }
}

/// Whether a container ended with it.
fn is_end(death: &Death) -> bool {
    death
        .container_ended
        .unwrap_or(death.role == Some(ProcessRole::Init))
}

fn list(summary: &mut String, grouped: &[(String, Vec<&Death>)]) {
    let is_one = matches!(grouped, [(_, deaths)] if deaths.len() == 1);
    for (index, (what, deaths)) in grouped.iter().take(NAMED).enumerate() {
        summary.push_str(if index == 0 { ": " } else { ", " });
        if !is_one {
            let _ = write!(summary, "{} × ", deaths.len());
        }
        summary.push_str(what);
    }
    let rest: usize = grouped
        .iter()
        .skip(NAMED)
        .map(|(_, deaths)| deaths.len())
        .sum();
    if rest > 0 {
        let _ = write!(summary, ", {rest} × other");
    }
}

fn remarks(summary: &mut String, ends: &[&Death], of_processes: &[&Death]) {
    let lived: Vec<f64> = ends
        .iter()
        .filter_map(|death| death.lifetime_ms)
        .map(to_seconds)
        .collect();
    if lived.len() >= MANY
        && let Some(median) = median(lived)
    {
        let _ = write!(
            summary,
            " An instance lived for {} (median).",
            label::seconds(median)
        );
    }
    if !ends.is_empty() && !of_processes.is_empty() {
        let count = of_processes.len();
        let _ = match count {
            1 => write!(
                summary,
                " Beside these a process died in a container that went on."
            ),
            _ => write!(
                summary,
                " Beside these {count} processes died in containers that went on."
            ),
        };
    }
    let wrong = ends.iter().filter(|death| {
        let report = death.kubernetes_will_report.as_ref();
        report.is_some_and(|report| report.wrong)
    });
    let wrong = wrong.count();
    if wrong > 0 {
        let _ = write!(
            summary,
            " What Kubernetes reports is wrong for {wrong} of {}.",
            ends.len()
        );
    }
}

#[expect(clippy::cast_precision_loss, reason = "a time for a person")]
fn to_seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

/// Deaths that are alike, most frequent first, then by their first.
fn group<'a>(deaths: &[&'a Death]) -> Vec<(String, Vec<&'a Death>)> {
    let names: BTreeSet<_> = deaths.iter().map(|death| &death.container).collect();
    let mut groups: BTreeMap<String, (usize, Vec<&Death>)> = BTreeMap::new();
    for (index, death) in deaths.iter().enumerate() {
        let mut what = kind(death);
        if names.len() > 1
            && let Some(name) = &death.container
        {
            let _ = write!(what, " of {name}");
        }
        let (_, group) = groups.entry(what).or_insert_with(|| (index, Vec::new()));
        group.push(death);
    }
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by_key(|(_, (first, deaths))| (std::cmp::Reverse(deaths.len()), *first));
    groups
        .into_iter()
        .map(|(what, (_, deaths))| (what + &growth(&deaths), deaths))
        .collect()
}

/// The typical growth before OOM kills that are alike.
fn growth(deaths: &[&Death]) -> String {
    let rates = deaths
        .iter()
        .filter(|death| is_oom(death))
        .filter_map(|death| death.lead_up.growth_bytes_per_s);
    let rates: Vec<f64> = rates.filter(|rate| *rate > 0.0).collect();
    median(rates).map_or(String::new(), |rate| {
        format!(" growing {}", label::rate(rate))
    })
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

fn is_oom(death: &Death) -> bool {
    matches!(death.cause, DeathCause::OomKill | DeathCause::OomGroup)
}

/// What a death was, in a few words that deaths alike share.
fn kind(death: &Death) -> String {
    let signal = || death.signal.as_deref().unwrap_or("no signal seen");
    let mut what = match death.cause {
        DeathCause::OomKill | DeathCause::OomGroup => return oom(death),
        DeathCause::RuntimeStop => "stop by the runtime".to_owned(),
        DeathCause::RuntimeStopGraceExpired => "kill after the grace period".to_owned(),
        DeathCause::Eviction => "eviction".to_owned(),
        DeathCause::LivenessKill => "liveness kill".to_owned(),
        DeathCause::UserspaceOomKiller => "kill by a userspace OOM killer".to_owned(),
        DeathCause::KilledByProcess => format!("kill by another process ({})", signal()),
        DeathCause::CgroupKill => "kill by cgroup.kill".to_owned(),
        DeathCause::Crash => format!("crash ({})", signal()),
        DeathCause::Seccomp => "seccomp kill".to_owned(),
        DeathCause::ResourceLimit => format!("resource limit ({})", signal()),
        DeathCause::InitDied => "death with its first process".to_owned(),
        DeathCause::OwnSignal => format!("signal of its own ({})", signal()),
        DeathCause::AppExit => "exit".to_owned(),
        DeathCause::Unknown => "death of unknown cause".to_owned(),
    };
    if matches!(death.cause, DeathCause::AppExit | DeathCause::Unknown)
        && let Some(code) = death.exit_code
    {
        let _ = write!(what, " with code {code}");
    }
    if let Some(held_up) = death.lead_up.held_up_by {
        what.push_str(match held_up {
            HeldUp::ReclaimStall => " during reclaim stall",
            HeldUp::MemoryThrottling => " during memory.high throttling",
            HeldUp::CpuThrottling => " during CPU throttling",
            HeldUp::CpuPressure => " during CPU pressure",
            HeldUp::IoPressure => " during I/O pressure",
        });
    }
    what
}

fn oom(death: &Death) -> String {
    let mut what = match death.scope {
        Some(Scope::Container) => "container OOM",
        Some(Scope::Pod) => "pod OOM",
        Some(Scope::QosSlice) => "QoS class OOM",
        Some(Scope::Kubepods) => "kubepods OOM",
        Some(Scope::Slice) => "slice OOM",
        Some(Scope::Node) => "node OOM",
        Some(Scope::Cpuset) => "cpuset OOM",
        Some(Scope::Mempolicy) => "memory policy OOM",
        Some(Scope::Sysrq) => "OOM kill by sysrq",
        Some(Scope::Unknown) | None => "OOM",
    }
    .to_owned();
    if let Some(limit) = death.limit_bytes {
        let _ = write!(what, " at {}", label::bytes(limit));
    }
    what
}

/// Of each group the commands of its latest death, those of the most frequent group first.
fn next_steps(grouped: &[(String, Vec<&Death>)]) -> Vec<String> {
    let mut steps: Vec<String> = Vec::new();
    let latest = grouped.iter().filter_map(|(_, deaths)| deaths.last());
    for step in latest.flat_map(|death| &death.next_steps) {
        if steps.len() < COMMANDS && !steps.contains(step) {
            steps.push(step.clone());
        }
    }
    steps
}
