//! Joins events that are about one death, and finds what led up to it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use super::collect::{Ended, Of, Saw, Sign};
use super::digest::{End, Kill};
use super::{ContainerStory, Death, HeldUp, LeadUp};
use crate::event::{DeathCause, LimitEvent, ProcessRole, StallKind, Time};

/// How far back growth and hits of limits belong to a death.
const LEAD_UP: Duration = Duration::from_secs(600);
/// How far back stalls and pressure do: a probe fails within a few periods, by default 3 × 10 s.
const NEAR: Duration = Duration::from_secs(60);
/// How long a victim takes to die, where no incident joins the two.
const DYING: Duration = Duration::from_secs(30);
/// Processes of a container are gone this soon after its first one.
const TOGETHER: Duration = Duration::from_secs(5);
/// Waiting this long within `NEAR` holds a program up, ms.
const HELD_UP_MS: f64 = 1000.0;
const MOST_SAID: usize = 3;

/// Every death once, oldest first, with its lead-up.
pub(super) fn deaths(
    kills: VecDeque<Kill>,
    ends: VecDeque<End>,
    outcomes: &HashMap<String, Ended>,
    mut signs: Vec<Sign>,
) -> Vec<Death> {
    let mut joined: Vec<(Death, bool)> = join(kills, ends, outcomes);
    joined.sort_by_key(|(death, _)| death.time);
    fold_those_taken_along(&mut joined);
    signs.sort_by_key(|sign| sign.time);
    let mut last_ends: HashMap<Option<String>, Time> = HashMap::new();
    for (death, has_before) in &mut joined {
        let last_end = last_ends.get(&death.container).copied();
        let is_first = death.role == Some(ProcessRole::Init);
        death.restarted_after_ms = last_end
            .filter(|_| is_first)
            .and_then(|end| death.started_at?.since(end))
            .and_then(|pause| u64::try_from(pause.as_millis()).ok());
        lead_up(death, *has_before, last_end, &signs);
        if death.container_ended == Some(true) {
            last_ends.insert(death.container.clone(), death.time);
        }
    }
    joined.into_iter().map(|(death, _)| death).collect()
}

/// The containers in these deaths.
pub(super) fn containers(deaths: &[Death]) -> Vec<ContainerStory> {
    let mut containers: BTreeMap<&Option<String>, ContainerStory> = BTreeMap::new();
    for death in deaths {
        let of = containers.entry(&death.container).or_default();
        match death.container_ended {
            Some(true) => of.ends += 1,
            Some(false) => of.survived += 1,
            None => {}
        }
        of.restart_count = of.restart_count.max(death.restart_count);
    }
    let named = containers.into_iter().map(|(name, story)| ContainerStory {
        name: name.clone(),
        ..story
    });
    named.collect()
}

/// One entry for a kill and the deaths of its victims; and whether its event knew what came before.
fn join(
    kills: VecDeque<Kill>,
    ends: VecDeque<End>,
    outcomes: &HashMap<String, Ended>,
) -> Vec<(Death, bool)> {
    let mut by_incident: HashMap<String, Vec<usize>> = HashMap::new();
    let mut by_pid: HashMap<u32, Vec<usize>> = HashMap::new();
    let mut kills: Vec<Kill> = kills.into();
    for (index, kill) in kills.iter_mut().enumerate() {
        if let Some(incident) = &kill.death.incident {
            by_incident.entry(incident.clone()).or_default().push(index);
            if let Some(ended) = outcomes.get(incident) {
                settle(&mut kill.death, *ended);
            }
        }
        for pid in kill.victims.iter().filter_map(|(pid, _)| *pid) {
            by_pid.entry(pid).or_default().push(index);
        }
    }
    let mut own: Vec<(Death, bool)> = Vec::new();
    let mut own_by_incident: HashMap<(String, Option<String>), usize> = HashMap::new();
    for end in ends {
        let found = match &end.death.incident {
            Some(incident) => by_incident.get(incident).and_then(|indices| {
                let mut indices = indices.iter().copied();
                indices.find(|&index| is_same_container(&kills[index].death, &end.death))
            }),
            None => end
                .pid
                .and_then(|pid| by_pid.get(&pid))
                .and_then(|indices| {
                    let mut indices = indices.iter().copied();
                    indices.find(|&index| is_victim(&kills[index], &end))
                }),
        };
        if let Some(index) = found {
            add(&mut kills[index].death, end.death);
            continue;
        }
        // The kill itself is not in the capture: its victims are still one death.
        if let Some(incident) = &end.death.incident {
            let key = (incident.clone(), end.death.container.clone());
            if let Some(&index) = own_by_incident.get(&key) {
                own[index].0.others += 1;
                add(&mut own[index].0, end.death);
                continue;
            }
            own_by_incident.insert(key, own.len());
        }
        own.push((end.death, end.has_before));
    }
    own.extend(kills.into_iter().map(|kill| (kill.death, kill.has_before)));
    own
}

fn is_same_container(a: &Death, b: &Death) -> bool {
    match (&a.container_id, &b.container_id) {
        (Some(a), Some(b)) => a == b,
        _ => a.container == b.container || a.container.is_none() || b.container.is_none(),
    }
}

/// Pids are reused: the start or the moment must agree too.
fn is_victim(kill: &Kill, end: &End) -> bool {
    let is_soon = end
        .death
        .time
        .since(kill.death.time)
        .is_some_and(|took| took <= DYING);
    is_soon
        && kill.victims.iter().any(|(pid, start)| {
            *pid == end.pid
                && match (start, end.death.started_at) {
                    (Some(kill), Some(end)) => *kill == end,
                    _ => true,
                }
        })
}

fn settle(death: &mut Death, ended: Ended) {
    if death.container_ended != Some(true)
        && let Some(survived) = ended.container_survived
    {
        death.container_ended = Some(!survived);
        if !survived {
            // What the kill said of Kubernetes was said of a container that lives on.
            death.kubernetes_will_report = None;
        }
    }
    death.others += u64::from(ended.late_victims);
}

/// What the death of a victim tells beyond the kill.
fn add(kill: &mut Death, end: Death) {
    let is_first = end.role == Some(ProcessRole::Init);
    kill.container_ended = match (kill.container_ended, end.container_ended) {
        (Some(true), _) | (_, Some(true)) => Some(true),
        (kill, end) => end.or(kill),
    };
    kill.others = kill.others.max(end.others);
    if kill.container.is_none() {
        kill.container = end.container;
    }
    kill.container_id = kill.container_id.take().or(end.container_id);
    kill.restart_count = kill.restart_count.or(end.restart_count);
    kill.role = kill.role.or(end.role);
    kill.runtime_reason = kill.runtime_reason.take().or(end.runtime_reason);
    if is_first {
        kill.role = Some(ProcessRole::Init);
        kill.process = end.process;
        kill.started_at = end.started_at.or(kill.started_at);
        kill.lifetime_ms = end.lifetime_ms.or(kill.lifetime_ms);
        kill.exit_code = end.exit_code;
        kill.signal = end.signal;
    }
    // Written later, when the runtime had answered.
    if end.kubernetes_will_report.is_some() {
        kill.kubernetes_will_report = end.kubernetes_will_report;
    }
}

/// Processes that had to go with their container's first are a number of its death.
fn fold_those_taken_along(joined: &mut Vec<(Death, bool)>) {
    let mut ends: HashMap<String, Vec<(Time, usize)>> = HashMap::new();
    let mut taken: Vec<Option<usize>> = vec![None; joined.len()];
    for (index, (death, _)) in joined.iter().enumerate() {
        if let (Some(true), Some(id)) = (death.container_ended, &death.container_id)
            && !was_taken_along(death)
        {
            ends.entry(id.clone())
                .or_default()
                .push((death.time, index));
        }
    }
    for (index, (death, _)) in joined.iter().enumerate() {
        if !was_taken_along(death) {
            continue;
        }
        let of_container = death.container_id.as_ref().and_then(|id| ends.get(id));
        taken[index] = of_container.and_then(|ends| {
            let near = ends.iter().find(|(time, _)| {
                let apart = time.since(death.time).or_else(|| death.time.since(*time));
                apart.is_some_and(|apart| apart <= TOGETHER)
            });
            near.map(|&(_, end)| end)
        });
    }
    for (index, end) in taken.iter().enumerate() {
        if let Some(end) = *end {
            let more = joined[index].0.others + 1;
            joined[end].0.others += more;
        }
    }
    let mut kept = taken.iter().map(Option::is_none);
    joined.retain(|_| kept.next().unwrap_or(true));
}

fn was_taken_along(death: &Death) -> bool {
    death.cause == DeathCause::InitDied && death.role != Some(ProcessRole::Init)
}

/// Adds what the signs before a death say.
fn lead_up(death: &mut Death, has_before: bool, last_end: Option<Time>, signs: &[Sign]) {
    let end = death.time;
    let earliest = |span: Duration| {
        let span = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        let start = Time::from_unix_ns(end.unix_ns().saturating_sub(span));
        last_end.map_or(start, |last| last.max(start))
    };
    let (far, near) = (earliest(LEAD_UP), earliest(NEAR));
    let first = signs.partition_point(|sign| sign.time < far);
    let behind = signs.partition_point(|sign| sign.time <= end);
    let mut seen = Seen::default();
    for sign in signs.get(first..behind).into_iter().flatten().rev() {
        let is_its_own = match &sign.of {
            Of::Container(name) => Some(name) == death.container.as_ref(),
            Of::Pod | Of::Node => true,
        };
        if is_its_own {
            seen.look(sign, sign.time >= near);
        }
    }
    let lead_up = &mut death.lead_up;
    if !has_before {
        lead_up.max_hits = seen.max_hits;
        lead_up.high_hits = seen.high_hits;
        lead_up.stall_ms = seen.stall_ms;
    }
    lead_up.growth_bytes_per_s = lead_up.growth_bytes_per_s.or(seen.growth_bytes_per_s);
    lead_up.node_stall_ms = seen.node_stall_ms;
    lead_up.ooms_without_kill = seen.ooms_without_kill;
    lead_up.held_up_by = held_up(lead_up, &seen);
    lead_up.said = seen.said;
}

fn held_up(lead_up: &LeadUp, seen: &Seen) -> Option<HeldUp> {
    let is_long = |ms: Option<f64>| ms.is_some_and(|ms| ms >= HELD_UP_MS);
    if is_long(seen.throttled_ms) {
        return Some(HeldUp::MemoryThrottling);
    }
    if lead_up.thrashed == Some(true)
        || is_long(lead_up.stall_ms)
        || is_long(seen.stall_ms)
        || is_long(lead_up.node_stall_ms)
    {
        return Some(HeldUp::ReclaimStall);
    }
    if lead_up.cpu_throttled.is_some_and(|cpu| cpu.held_up()) {
        return Some(HeldUp::CpuThrottling);
    }
    seen.held_up_by
}

/// What signs add up to.
#[derive(Default)]
struct Seen {
    growth_bytes_per_s: Option<f64>,
    max_hits: Option<u64>,
    high_hits: Option<u64>,
    stall_ms: Option<f64>,
    throttled_ms: Option<f64>,
    node_stall_ms: Option<f64>,
    ooms_without_kill: u64,
    held_up_by: Option<HeldUp>,
    said: Vec<String>,
}

impl Seen {
    /// Looks at the signs, newest first.
    fn look(&mut self, sign: &Sign, is_near: bool) {
        match &sign.what {
            Saw::Hits(event, new) => {
                let hits = match event {
                    LimitEvent::Max => &mut self.max_hits,
                    LimitEvent::High => &mut self.high_hits,
                };
                *hits = Some(hits.unwrap_or(0).saturating_add(*new));
            }
            Saw::Stall { kind, ms } if is_near => {
                let sum = match (&sign.of, kind) {
                    (Of::Node, _) => &mut self.node_stall_ms,
                    (_, StallKind::HighThrottle) => &mut self.throttled_ms,
                    _ => &mut self.stall_ms,
                };
                *sum = Some(sum.unwrap_or(0.0) + ms);
            }
            Saw::Pressure { held_up, said } if is_near => {
                self.held_up_by = self.held_up_by.or(*held_up);
                self.say(said.as_deref());
            }
            Saw::Leak {
                growth_bytes_per_s,
                said,
            } => {
                self.growth_bytes_per_s.get_or_insert(*growth_bytes_per_s);
                self.say(Some(said));
            }
            Saw::OomWithoutKill => self.ooms_without_kill += 1,
            Saw::Stall { .. } | Saw::Pressure { .. } => {}
        }
    }

    fn say(&mut self, said: Option<&str>) {
        if let Some(said) = said
            && self.said.len() < MOST_SAID
            && !self.said.iter().any(|other| other == said)
        {
            self.said.push(said.to_owned());
        }
    }
}
