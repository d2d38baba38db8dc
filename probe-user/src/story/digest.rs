//! What a story keeps of one event.

use crate::event::{
    Before, Confidence, Container, DeathCause, Event, FindingId, K8s, OomKill, Pressure, Process,
    ProcessDeath, ProcessRole, Role, Time, Victim, label,
};

use super::{Death, HeldUp, LeadUp};

/// Victims of one kill that a death may be joined with by pid.
pub(super) const MOST_VICTIMS: usize = 64;
/// A share of time from which tasks count as held up.
const HELD_UP_RATIO: f64 = 0.1;

/// A kill's victims in one container of the pod, as one death.
#[derive(Debug)]
pub(super) struct Kill {
    pub(super) death: Death,
    /// Pid and start of every victim.
    pub(super) victims: Vec<(Option<u32>, Option<Time>)>,
    /// Whether the event itself says how fast memory grew and how often the limit was hit.
    pub(super) has_before: bool,
}

/// A death that `process_death` tells of.
#[derive(Debug)]
pub(super) struct End {
    pub(super) death: Death,
    pub(super) pid: Option<u32>,
    /// As of a [`Kill`].
    pub(super) has_before: bool,
}

fn lifetime_ms(process: &Process, end: Time) -> Option<u64> {
    let lived = end.since(process.start_time?)?;
    u64::try_from(lived.as_millis()).ok()
}

/// Fields that kills and deaths have alike.
fn death_of(
    time: Time,
    process: Option<&Process>,
    k8s: Option<&K8s>,
    container: Option<&Container>,
) -> Death {
    Death {
        time,
        container: container_of(k8s, container),
        container_id: container.and_then(|container| container.id.clone()),
        restart_count: k8s.and_then(|k8s| k8s.container.as_ref()?.restart_count),
        process: process.map_or_else(|| "?".to_owned(), label::process),
        started_at: process.and_then(|process| process.start_time),
        lifetime_ms: process.and_then(|process| lifetime_ms(process, time)),
        ..Death::default()
    }
}

/// What a container is called over its restarts: its name, else the start of its id.
pub(super) fn container_of(k8s: Option<&K8s>, container: Option<&Container>) -> Option<String> {
    let named = k8s.and_then(|k8s| k8s.container.as_ref()?.name.clone());
    named
        .or_else(|| container?.role.clone())
        .or_else(|| Some(container?.id.as_ref()?.chars().take(12).collect()))
}

pub(super) fn kill(event: &Event, kill: &OomKill, victims: &[&Victim]) -> Option<Kill> {
    // Its end is the container's.
    let init = victims
        .iter()
        .find(|victim| victim.container_init == Some(true));
    let chosen = victims.iter().find(|victim| victim.role == Role::Chosen);
    let first = init.or(chosen).or(victims.first())?;
    let mut death = death_of(
        event.time,
        Some(&first.process),
        first.k8s.as_ref(),
        first.container.as_ref(),
    );
    let verdict = &kill.verdict;
    death.role = match first.container_init {
        Some(true) => Some(ProcessRole::Init),
        Some(false) => Some(ProcessRole::Child),
        None => None,
    };
    death.container_ended = init.map(|_| true);
    death.others = victims.len() as u64 - 1;
    death.incident = Some(kill.incident.clone());
    death.cause = if chosen.is_some() {
        DeathCause::OomKill
    } else {
        DeathCause::OomGroup
    };
    // That it was killed for want of memory is the kernel's word; why that was short is a reading.
    death.confidence = Confidence::High;
    death.scope = Some(kill.scope);
    death.limit_bytes = kill
        .limit
        .as_ref()
        .and_then(|limit| limit.level.limit_bytes);
    death.filled_by = Some(verdict.cause);
    death.summary.clone_from(&verdict.summary);
    death.evidence.clone_from(&verdict.evidence);
    death.exit_code = Some(137);
    death.signal = Some("SIGKILL".to_owned());
    death
        .kubernetes_will_report
        .clone_from(&verdict.kubernetes_will_report);
    death.next_steps.clone_from(&verdict.next_steps);
    death.lead_up = recorded(kill.before.as_ref());
    let ids = victims.iter().take(MOST_VICTIMS);
    Some(Kill {
        death,
        victims: ids
            .map(|victim| (victim.process.pid, victim.process.start_time))
            .collect(),
        has_before: kill.before.is_some(),
    })
}

pub(super) fn end(event: &Event, death: &ProcessDeath) -> End {
    let mut kept = death_of(
        event.time,
        event.process.as_ref(),
        event.k8s.as_ref(),
        event.container.as_ref(),
    );
    let verdict = &death.verdict;
    kept.role = death.role;
    kept.container_ended = match death.role {
        Some(ProcessRole::Init) => Some(true),
        _ => death.container_survived.map(|survived| !survived),
    };
    kept.others = death.others;
    kept.incident.clone_from(&death.incident);
    kept.cause = verdict.cause;
    kept.confidence = verdict.confidence;
    kept.summary.clone_from(&verdict.summary);
    kept.evidence.clone_from(&verdict.evidence);
    kept.exit_code = Some(death.exit_code);
    kept.signal = death.signal.as_ref().map(|signal| signal.name.clone());
    kept.lifetime_ms = death.lifetime_ms.or(kept.lifetime_ms);
    kept.kubernetes_will_report
        .clone_from(&verdict.kubernetes_will_report);
    kept.runtime_reason = death
        .runtime
        .as_ref()
        .and_then(|runtime| runtime.reason.clone());
    kept.next_steps.clone_from(&verdict.next_steps);
    kept.lead_up = recorded(death.before.as_ref());
    End {
        death: kept,
        pid: event.process.as_ref().and_then(|process| process.pid),
        has_before: death.before.is_some(),
    }
}

/// What an event itself says of what led up to it.
fn recorded(before: Option<&Before>) -> LeadUp {
    before.map_or_else(LeadUp::default, |before| LeadUp {
        growth_bytes_per_s: before.growth_bytes_per_s,
        max_hits: before.max_hits,
        high_hits: before.high_hits,
        stall_ms: before.stall_ms,
        thrashed: before.thrashed,
        cpu_throttled: before.cpu_throttled,
        ..LeadUp::default()
    })
}

pub(super) fn held_up(pressure: &Pressure) -> Option<HeldUp> {
    let found = pressure.findings.iter().find_map(|found| match found.id {
        FindingId::Thrashing | FindingId::SwapThrash => Some(HeldUp::ReclaimStall),
        FindingId::HighThrottling => Some(HeldUp::MemoryThrottling),
        FindingId::CpuThrottling => Some(HeldUp::CpuThrottling),
        FindingId::CpuPressure => Some(HeldUp::CpuPressure),
        FindingId::IoPressure => Some(HeldUp::IoPressure),
        _ => None,
    });
    let by_resource = || match pressure.resource.as_str() {
        "memory" => Some(HeldUp::ReclaimStall),
        "cpu" => Some(HeldUp::CpuPressure),
        "io" => Some(HeldUp::IoPressure),
        _ => None,
    };
    let is_much = pressure
        .some_ratio
        .is_some_and(|ratio| ratio >= HELD_UP_RATIO);
    found.or_else(|| by_resource().filter(|_| is_much))
}
