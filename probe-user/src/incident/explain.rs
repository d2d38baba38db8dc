//! From an incident, its evidence and its identities to the public event.

mod logged;
mod memory;
mod outcome;
mod process;

pub use logged::nothing_killable;
pub use outcome::oom_outcome;
pub use process::{is_init, process};

use std::{borrow::Cow, collections::BTreeMap};

use probe_common::wire::{self, section};

use super::{
    assemble::{Ending, Incident, Role as WireRole, Victim as WireVictim},
    evidence::{Evidence, LimitOwner},
    limit::{FoundBy, is_ancestor},
    who::Identities,
};
use crate::{
    event::{Cgroup, Constraint, OomKill, Outcome, Scope, Time, text},
    kernel::ladder::{Hook, Signal},
    node::{clock::BootClock, oom_score},
    ring::decode::Body,
    verdict,
};

/// Candidates in an event.
const CANDIDATES: usize = 10;

/// What is the same for all events of a run.
#[derive(Clone, Debug)]
pub struct Context {
    /// Boot time to wall clock.
    pub clock: BootClock,
    /// `sysconf(_SC_PAGESIZE)`.
    pub page_bytes: u64,
    /// Boot id, for ids of incidents.
    pub boot_id: Option<String>,
    /// Hierarchy of the memory controller; 0 is cgroup v2.
    pub memory_hierarchy: u32,
    /// Which hook serves each signal.
    pub hooks: Vec<(Signal, Option<Hook>)>,
}

impl Context {
    /// Wall-clock time of ns since boot.
    pub fn time(&self, boot_ns: u64) -> Time {
        let since = self
            .clock
            .wall_time(boot_ns)
            .duration_since(std::time::UNIX_EPOCH);
        Time::from_unix_ns(since.map_or(0, |since| {
            u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
        }))
    }

    /// Bytes of `pages`.
    pub(super) fn bytes(&self, pages: u64) -> u64 {
        pages.saturating_mul(self.page_bytes)
    }

    fn pages(&self, pages: i64) -> u64 {
        self.bytes(u64::try_from(pages).unwrap_or(0))
    }

    /// The hook that serves `signal`, as events write it.
    pub fn hook_name(&self, signal: Signal) -> Option<String> {
        let (_, hook) = self.hooks.iter().find(|(served, _)| *served == signal)?;
        hook.map(|hook| hook.to_string())
    }

    /// Unique over boots.
    pub fn incident_id(&self, incident: &Incident) -> String {
        self.incident_id_at(incident.boot_ns)
    }

    fn incident_id_at(&self, boot_ns: u64) -> String {
        let boot = self.boot_id.as_deref().unwrap_or("unknown");
        let boot = boot.split('-').next().unwrap_or(boot);
        format!("{boot}-{boot_ns}")
    }
}

/// Paths of all cgroups an event about `incident` names.
pub fn paths(incident: &Incident, evidence: &Evidence) -> Vec<Vec<u8>> {
    let mut paths: Vec<Vec<u8>> = victims(incident)
        .iter()
        .map(|victim| victim.cgroup.path(0))
        .collect();
    if let Some(names) = incident
        .context()
        .and_then(|r| r.names(section::TRIGGER_PATH))
    {
        paths.push(names.path(0));
    }
    if let Some(owner) = &evidence.limit {
        paths.push(owner.path().to_owned());
    }
    paths.extend(
        evidence
            .candidates
            .iter()
            .filter_map(|(_, path)| path.clone()),
    );
    paths
}

/// Keeps the worst candidates of the limit's domain, so that only those are looked up further.
pub fn choose_candidates(context: &Context, incident: &Incident, evidence: &mut Evidence) {
    let total_pages = total_pages(context, incident, evidence);
    let domain = evidence.limit.as_ref().map(|owner| owner.path().to_owned());
    let mut rows: BTreeMap<u32, (wire::Task, Option<Vec<u8>>)> = BTreeMap::new();
    for (task, path) in evidence.candidates.drain(..) {
        let inside = match (&domain, &path) {
            (Some(domain), Some(path)) => is_ancestor(domain, path),
            (Some(_), None) => false,
            (None, _) => true,
        };
        if inside {
            rows.entry(task.pid).or_insert((task, path));
        }
    }
    // The victim as it was when it was chosen, not as it is dying.
    for victim in &incident.victims {
        if matches!(victim.role, WireRole::Chosen | WireRole::Group) {
            rows.insert(victim.task.pid, (victim.task, Some(victim.cgroup.path(0))));
        }
    }
    let points = |task: &wire::Task| oom_score::points(task, total_pages, context.page_bytes);
    let mut rows: Vec<_> = rows.into_values().collect();
    rows.sort_by_key(|(task, _)| std::cmp::Reverse(points(task)));
    rows.truncate(CANDIDATES);
    evidence.candidates = rows;
}

/// The event for a closed incident.
pub fn oom_kill(
    context: &Context,
    incident: &Incident,
    evidence: &Evidence,
    identities: &Identities,
    stack: Vec<String>,
) -> OomKill {
    let decision = decision(incident);
    let log = evidence.log.as_ref();
    let constraint = decision
        .and_then(|decision| constraint(decision.constraint))
        // An invocation that ends early has not set it.
        .or_else(|| incident.end.and_then(|end| constraint(end.constraint)))
        .or_else(|| log.and_then(|log| log.constraint).map(from_log))
        .or_else(|| evidence.limit.as_ref().map(|_| Constraint::Memcg));
    let order = decision
        .map(|decision| decision.order)
        .or_else(|| incident.end.map(|end| end.order))
        .or_else(|| log?.trigger.as_ref()?.order);
    let message = incident
        .context()
        .and_then(|record| record.message())
        .map(text)
        .or_else(|| log.and_then(|log| log.message.as_deref()).map(text))
        // The one message for a memcg (`out_of_memory()`, mm/oom_kill.c).
        .or_else(|| {
            (constraint == Some(Constraint::Memcg))
                .then(|| "Memory cgroup out of memory".to_owned())
        });
    let limit = evidence
        .limit
        .as_ref()
        .map(|owner| memory::limit(context, owner, identities));
    let mut kill = OomKill {
        incident: context.incident_id(incident),
        scope: scope(
            evidence.limit.as_ref().map(LimitOwner::path),
            identities,
            constraint,
            order,
        ),
        constraint,
        message,
        outcome: match incident.ending() {
            Ending::Killed => Outcome::Killed,
            Ending::NothingKillable => Outcome::NothingKillable,
            Ending::Unknown => Outcome::MarkedExiting,
        },
        memory: evidence
            .memory
            .as_ref()
            .map(|(reading, delay)| memory::memory(context, incident, evidence, reading, *delay))
            .unwrap_or_default(),
        limit,
        folded: incident.folded,
        victims: victims(incident)
            .iter()
            .map(|victim| process::victim(context, victim, evidence, identities))
            .collect(),
        trigger: process::trigger(context, incident, evidence, identities, order, stack),
        candidates: evidence
            .candidates
            .iter()
            .map(|(task, path)| {
                process::candidate(
                    context,
                    incident,
                    evidence,
                    identities,
                    task,
                    path.as_deref(),
                )
            })
            .collect(),
        node: evidence
            .node
            .as_ref()
            .map(|(meminfo, delay)| memory::node(context, evidence, meminfo, *delay))
            .unwrap_or_default(),
        before: evidence.before.clone(),
        hooks: hooks(context, incident, evidence),
        ..OomKill::default()
    };
    kill.verdict = verdict::oom_kill(&kill);
    kill
}

/// Everyone killed or marked; else whom the decision named and the kernel then found dead.
fn victims(incident: &Incident) -> Cow<'_, [WireVictim]> {
    match (decision(incident), incident.context()) {
        (Some(decision), Some(record)) if incident.victims.is_empty() => {
            Cow::Owned(vec![WireVictim {
                task: decision.victim,
                cgroup: record.names(section::VICTIM_PATH).unwrap_or_default(),
                dfl_cgroup: record.names(section::VICTIM_DFL_PATH),
                role: WireRole::AlreadyExiting,
                killed_boot_ns: None,
                exited: None,
                reaped_boot_ns: None,
            }])
        }
        _ => Cow::Borrowed(&incident.victims),
    }
}

fn decision(incident: &Incident) -> Option<&wire::OomDecision> {
    match &incident.decision.as_ref()?.body {
        Body::OomDecision(decision) => Some(decision),
        _ => None,
    }
}

fn constraint(value: u32) -> Option<Constraint> {
    // `enum oom_constraint` (include/linux/oom.h): the same in every kernel.
    Some(match value {
        0 => Constraint::None,
        1 => Constraint::Cpuset,
        2 => Constraint::MemoryPolicy,
        3 => Constraint::Memcg,
        _ => return None,
    })
}

fn from_log(constraint: crate::node::kmsg::Constraint) -> Constraint {
    use crate::node::kmsg::Constraint as Logged;
    match constraint {
        Logged::None => Constraint::None,
        Logged::Cpuset => Constraint::Cpuset,
        Logged::MemoryPolicy => Constraint::MemoryPolicy,
        Logged::Memcg => Constraint::Memcg,
    }
}

fn scope(
    owner: Option<&[u8]>,
    identities: &Identities,
    constraint: Option<Constraint>,
    order: Option<i32>,
) -> Scope {
    if order == Some(-1) {
        return Scope::Sysrq;
    }
    let Some(path) = owner else {
        return match constraint {
            Some(Constraint::Cpuset) => Scope::Cpuset,
            Some(Constraint::MemoryPolicy) => Scope::Mempolicy,
            // None told: no limit was found where one would show, see `limit::infer`.
            Some(Constraint::None) | None => Scope::Node,
            // A limit was hit, but not seen whose.
            Some(Constraint::Memcg) => Scope::Unknown,
        };
    };
    match identities.of(path).claim {
        Some(claim) if claim.container_id.is_some() => Scope::Container,
        Some(claim) if claim.pod_uid.is_some() => Scope::Pod,
        Some(claim) if claim.qos.is_some() => Scope::QosSlice,
        _ => {
            let leaf = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
            let leaf = leaf.strip_suffix(b".slice").unwrap_or(leaf);
            if leaf == b"kubepods" || leaf.ends_with(b"-kubepods") {
                Scope::Kubepods
            } else {
                Scope::Slice
            }
        }
    }
}

/// What the domain may use, pages: what points are relative to.
fn total_pages(context: &Context, incident: &Incident, evidence: &Evidence) -> u64 {
    if let Some(decision) = decision(incident) {
        return decision.total_pages;
    }
    if let Some(level) = evidence.limit.as_ref().and_then(LimitOwner::level) {
        return level.max_pages;
    }
    let node = evidence.node.as_ref().map(|(meminfo, _)| meminfo);
    let ram = node.and_then(|meminfo| meminfo.total_bytes).unwrap_or(0);
    let swap = node
        .and_then(|meminfo| meminfo.swap_total_bytes)
        .unwrap_or(0);
    (ram + swap) / context.page_bytes.max(1)
}

pub(super) fn cgroup(id: u64, path: &[u8]) -> Cgroup {
    Cgroup {
        id: (id != 0).then_some(id),
        path: Some(text(path)),
    }
}

/// Which hook gave what.
fn hooks(context: &Context, incident: &Incident, evidence: &Evidence) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    let mut put = |datum: &str, source: Option<String>| {
        if let Some(source) = source {
            out.insert(datum.to_owned(), source);
        }
    };
    let decision = context
        .hook_name(Signal::OomDecision)
        .filter(|_| incident.decision.is_some());
    let mark = context.hook_name(Signal::VictimMark);
    let kill = context.hook_name(Signal::SignalSent);
    put(
        "victims",
        if kill.is_some() {
            mark.clone()
                .zip(kill)
                .map(|(mark, kill)| format!("{mark} {kill}"))
        } else {
            mark.clone()
        },
    );
    put("trigger", decision.clone().or_else(|| mark.clone()));
    let logged = || evidence.log.as_ref().map(|_| "kmsg".to_owned());
    put("constraint", decision.clone().or_else(logged));
    if let Some(owner) = &evidence.limit {
        put(
            "limit",
            match owner.found_by {
                FoundBy::OomControl => decision.clone(),
                FoundBy::OomLock | FoundBy::CounterAtMax => mark,
                FoundBy::Kmsg => Some("kmsg".to_owned()),
            },
        );
    }
    if evidence.memory.is_some() {
        put("memory", Some("memory.stat".to_owned()));
    }
    if evidence.node.is_some() {
        put("node", Some("/proc/meminfo".to_owned()));
    }
    if !evidence.candidates.is_empty() {
        put("candidates", context.hook_name(Signal::Candidates));
    }
    put(
        "end",
        context
            .hook_name(Signal::OomEnd)
            .filter(|_| incident.end.is_some()),
    );
    out
}

#[cfg(test)]
mod tests;
