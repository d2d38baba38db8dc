//! From an incident, its evidence and its identities to the public event.

use std::{borrow::Cow, collections::BTreeMap};

use probe_common::wire::{self, LimitLevel as WireLevel, has, level, section};

use super::{
    assemble::{Ending, Incident, Role as WireRole, Victim as WireVictim},
    evidence::{Evidence, LimitOwner},
    limit::{FoundBy, NO_LIMIT_PAGES, is_ancestor},
    who::{Identities, Who},
};
use crate::{
    event::{
        AllocPath, Candidate, Cgroup, Constraint, Gfp, Limit, LimitLevel, Memory, MemorySource,
        Node, OomKill, OomOutcome, Outcome, Process, Psi, PsiResource, PsiWindow, Role, Rss, Scope,
        Time, Trigger, Victim, VictimOutcome, text,
    },
    identity::hierarchy::UNIFIED,
    kernel::ladder::{Hook, Signal},
    node::{
        clock::BootClock,
        memcg::{MemcgReading, Version},
        meminfo::Meminfo,
        oom_score,
        psi::{Pressure, Stall},
    },
    ring::decode::{Body, comm},
    verdict,
};

/// Candidates in an event.
const CANDIDATES: usize = 10;

/// Programs whose children are the first process of a container.
const RUNTIME_MONITORS: &[&[u8]] = &[b"containerd-shim", b"conmon", b"crio-conmon"];

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

    fn bytes(&self, pages: u64) -> u64 {
        pages.saturating_mul(self.page_bytes)
    }

    fn pages(&self, pages: i64) -> u64 {
        self.bytes(u64::try_from(pages).unwrap_or(0))
    }

    fn hook(&self, signal: Signal) -> Option<String> {
        let (_, hook) = self.hooks.iter().find(|(served, _)| *served == signal)?;
        hook.map(|hook| hook.to_string())
    }

    /// Unique over boots.
    pub fn incident_id(&self, incident: &Incident) -> String {
        let boot = self.boot_id.as_deref().unwrap_or("unknown");
        let boot = boot.split('-').next().unwrap_or(boot);
        format!("{boot}-{}", incident.boot_ns)
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
        .or_else(|| log.and_then(|log| log.message.as_deref()).map(text));
    let limit = evidence
        .limit
        .as_ref()
        .map(|owner| limit(context, owner, identities));
    let mut kill = OomKill {
        incident: context.incident_id(incident),
        scope: scope(evidence.limit.as_ref(), identities, constraint, order),
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
            .map(|(reading, delay)| memory(context, incident, evidence, reading, *delay))
            .unwrap_or_default(),
        limit,
        victims: victims(incident)
            .iter()
            .map(|victim| self::victim(context, victim, evidence, identities))
            .collect(),
        trigger: trigger(context, incident, evidence, identities, order, stack),
        candidates: evidence
            .candidates
            .iter()
            .map(|(task, path)| {
                candidate(
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
            .map(|(meminfo, delay)| node(context, evidence, meminfo, *delay))
            .unwrap_or_default(),
        hooks: hooks(context, incident, evidence),
        ..OomKill::default()
    };
    kill.verdict = verdict::oom_kill(&kill);
    kill
}

/// The event for the end of an incident.
pub fn oom_outcome(
    context: &Context,
    incident: &Incident,
    is_alive: impl Fn(&wire::Task) -> bool,
    usage_before_bytes: Option<u64>,
    usage_after_bytes: Option<u64>,
    container_survived: Option<bool>,
) -> OomOutcome {
    OomOutcome {
        incident: context.incident_id(incident),
        late_victims: u32::try_from(incident.victims.len().saturating_sub(incident.on_time))
            .unwrap_or(u32::MAX),
        victims: incident
            .victims
            .iter()
            .map(|victim| {
                let exit = victim.exited.map(|(_, status)| status);
                let signal = exit
                    .map(|status| status & 0x7f)
                    .filter(|signal| *signal != 0);
                VictimOutcome {
                    process: process(context, &victim.task, None),
                    exited_at: victim.exited.map(|(boot_ns, _)| context.time(boot_ns)),
                    reaped_at: victim.reaped_boot_ns.map(|boot_ns| context.time(boot_ns)),
                    kill_to_exit_ms: victim
                        .exited
                        .zip(victim.killed_boot_ns)
                        .map(|((exited, _), killed)| millis(exited.saturating_sub(killed))),
                    exit_code: exit
                        .filter(|_| signal.is_none())
                        .map(|status| (status >> 8) & 0xff),
                    signal,
                    still_alive: victim.exited.is_none() && is_alive(&victim.task),
                }
            })
            .collect(),
        limit_usage_bytes: usage_after_bytes,
        freed_bytes: usage_before_bytes
            .zip(usage_after_bytes)
            .map(|(before, after)| {
                i64::try_from(before)
                    .unwrap_or(i64::MAX)
                    .saturating_sub_unsigned(after)
            }),
        container_survived,
    }
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

/// ns as ms, to the microsecond.
fn millis(ns: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "below 2^53 µs: 285 years")]
    let us = (ns / 1000) as f64;
    us / 1000.0
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
    owner: Option<&LimitOwner>,
    identities: &Identities,
    constraint: Option<Constraint>,
    order: Option<i32>,
) -> Scope {
    if order == Some(-1) {
        return Scope::Sysrq;
    }
    let Some(owner) = owner else {
        return match constraint {
            Some(Constraint::Cpuset) => Scope::Cpuset,
            Some(Constraint::MemoryPolicy) => Scope::Mempolicy,
            // None told: no limit was found where one would show, see `limit::infer`.
            Some(Constraint::None) | None => Scope::Node,
            // A limit was hit, but not seen whose.
            Some(Constraint::Memcg) => Scope::Unknown,
        };
    };
    let path = owner.path();
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

fn cgroup(id: u64, path: &[u8]) -> Cgroup {
    Cgroup {
        id: (id != 0).then_some(id),
        path: Some(text(path)),
    }
}

fn limit_level(context: &Context, level: &WireLevel, path: &[u8]) -> LimitLevel {
    let bounded = |pages: u64| (pages < NO_LIMIT_PAGES).then(|| context.bytes(pages));
    let has = |bit: u64| level.flags & bit != 0;
    let local = |count: u64| has(level::HAS_LOCAL_EVENTS).then_some(count);
    // One counter with two meanings: v2 counts swap alone, v1 memory and swap together.
    let counter = has(level::HAS_SWAP).then_some((level.swap_pages, level.swap_max_pages));
    let is_v2 = context.memory_hierarchy == UNIFIED;
    let swap = counter.filter(|_| is_v2);
    let memsw = counter.filter(|_| !is_v2);
    let swapped = memsw.map(|(both, _)| both.saturating_sub(level.usage_pages));
    LimitLevel {
        cgroup: cgroup(level.id, path),
        usage_bytes: Some(context.bytes(level.usage_pages)),
        limit_bytes: bounded(level.max_pages),
        watermark_bytes: Some(context.bytes(level.watermark_pages)),
        swap_usage_bytes: swap
            .map(|(usage, _)| usage)
            .or(swapped)
            .map(|pages| context.bytes(pages)),
        swap_limit_bytes: swap.and_then(|(_, max)| bounded(max)),
        memsw_usage_bytes: memsw.map(|(usage, _)| context.bytes(usage)),
        memsw_limit_bytes: memsw.and_then(|(_, max)| bounded(max)),
        oom_group: Some(has(level::OOM_GROUP)),
        max_events: local(level.local_max),
        oom_events: local(level.local_oom),
        oom_kill_events: local(level.local_oom_kill),
    }
}

fn limit(context: &Context, owner: &LimitOwner, identities: &Identities) -> Limit {
    let who = identities.of(owner.path());
    Limit {
        level: owner
            .level()
            .map(|level| limit_level(context, level, owner.path()))
            .unwrap_or_default(),
        k8s: who.k8s,
        container: who.container,
        levels: owner
            .levels
            .iter()
            .map(|(level, path)| limit_level(context, level, path))
            .collect(),
        found_by: Some(owner.found_by.name().to_owned()),
    }
}

fn memory(
    context: &Context,
    incident: &Incident,
    evidence: &Evidence,
    reading: &MemcgReading,
    delay_ns: u64,
) -> Memory {
    let stat = &reading.stat;
    // Usage at the decision; the parts are of a moment later.
    let total = evidence
        .limit
        .as_ref()
        .and_then(LimitOwner::level)
        .map_or(reading.usage_bytes, |level| {
            context.bytes(level.usage_pages)
        });
    let rss = incident
        .victims
        .iter()
        .find(|victim| victim.task.has & has::MM != 0)
        .map(|victim| context.pages(victim.task.rss_anon_pages + victim.task.rss_shmem_pages));
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    let ratio = rss
        .filter(|_| total > 0)
        .map(|rss| rss as f64 / total as f64);
    // What the chosen victim held was charged; it may be freed by the time of the read.
    let held = |pages: fn(&wire::Task) -> i64| {
        let task = incident.victims.first().map(|victim| &victim.task)?;
        (task.has & has::MM != 0).then(|| context.pages(pages(task)).min(total))
    };
    let anon = stat.anon_bytes.max(held(|task| task.rss_anon_pages));
    // Mapped shared memory may be charged elsewhere: only what there is room for was charged here.
    let room = total.saturating_sub(anon.unwrap_or(0) + stat.file_bytes.unwrap_or(0));
    let shmem = stat
        .shmem_bytes
        .max(held(|task| task.rss_shmem_pages).map(|held| held.min(room)));
    let freed = (anon.unwrap_or(0) - stat.anon_bytes.unwrap_or(0))
        + (shmem.unwrap_or(0) - stat.shmem_bytes.unwrap_or(0));
    Memory {
        anon_bytes: anon,
        file_bytes: stat
            .file_bytes
            .map(|file| file.saturating_sub(stat.shmem_bytes.unwrap_or(0))),
        shmem_bytes: shmem,
        slab_reclaimable_bytes: stat.slab_reclaimable_bytes,
        slab_unreclaimable_bytes: stat.slab_unreclaimable_bytes,
        kernel_stack_bytes: stat.kernel_stack_bytes,
        page_tables_bytes: stat
            .page_tables_bytes
            .map(|tables| tables + stat.sec_page_tables_bytes.unwrap_or(0)),
        sock_bytes: stat.sock_bytes,
        percpu_bytes: stat.percpu_bytes,
        vmalloc_bytes: stat.vmalloc_bytes,
        kernel_other_bytes: match stat.version {
            Version::V1 => stat.kernel_bytes,
            Version::V2 => stat.kernel_other_bytes(),
        },
        swap_bytes: stat.swap_bytes,
        total_bytes: Some(total),
        unexplained_bytes: Some(stat.unexplained_bytes(total).saturating_sub_unsigned(freed)),
        victim_rss_ratio: ratio,
        source: Some(MemorySource::MemoryStat),
        read_delay_us: Some(delay_ns / 1000),
    }
}

fn process(context: &Context, task: &wire::Task, evidence: Option<&Evidence>) -> Process {
    let has = |bit: u32| task.has & bit != 0;
    let signed = |bit: u32, pages: i64| has(bit).then(|| context.pages(pages));
    Process {
        pid: (task.pid != 0).then_some(task.pid),
        tid: (task.tid != 0).then_some(task.tid),
        ns_pid: has(has::NS_PID).then_some(task.ns_pid),
        ppid: has(has::TASK).then_some(task.ppid),
        start_time: (task.start_boot_ns != 0).then(|| context.time(task.start_boot_ns)),
        comm: has(has::TASK).then(|| text(comm(task))),
        cmdline: evidence.and_then(|evidence| evidence.cmdlines.get(&task.pid).cloned()),
        uid: has(has::CRED).then_some(task.uid),
        oom_score_adj: has(has::SIGNAL).then_some(task.oom_score_adj),
        threads: has(has::SIGNAL).then_some(task.threads),
        rss: has(has::MM).then(|| Rss {
            anon_bytes: context.pages(task.rss_anon_pages),
            file_bytes: context.pages(task.rss_file_pages),
            shmem_bytes: context.pages(task.rss_shmem_pages),
        }),
        rss_exact: has(has::MM).then_some(has(has::RSS_EXACT)),
        swap_bytes: signed(has::MM, task.swap_pages),
        page_tables_bytes: has(has::MM).then_some(task.pgtables_bytes),
        virtual_bytes: has(has::MM).then(|| context.bytes(task.total_vm_pages)),
    }
}

/// Whether a victim is the first process of its container; `None` outside containers, and where
/// neither its pid namespace nor its parent tells.
pub fn container_init(task: &wire::Task, who: &Who, parent: Option<&[u8]>) -> Option<bool> {
    who.container.as_ref()?;
    is_init(task, parent)
}

/// Whether a process that is in a container is its first.
pub fn is_init(task: &wire::Task, parent: Option<&[u8]>) -> Option<bool> {
    if parent.is_some_and(|parent| RUNTIME_MONITORS.iter().any(|name| parent.starts_with(name))) {
        return Some(true);
    }
    if task.has & has::NS_PID == 0 || task.ns_level == 0 {
        return parent.map(|_| false);
    }
    Some(task.ns_pid == 1)
}

fn victim(
    context: &Context,
    victim: &WireVictim,
    evidence: &Evidence,
    identities: &Identities,
) -> Victim {
    let path = victim.cgroup.path(0);
    let who = identities.of(&path);
    let parent = evidence.parents.get(&victim.task.pid).map(Vec::as_slice);
    Victim {
        container_init: container_init(&victim.task, &who, parent),
        process: process(context, &victim.task, Some(evidence)),
        cgroup: Some(cgroup(victim.task.memcg_id, &path)),
        k8s: who.k8s,
        container: who.container,
        role: match victim.role {
            WireRole::Chosen => Role::Chosen,
            WireRole::Group => Role::Group,
            WireRole::SharesMm => Role::SharesMm,
            WireRole::AlreadyExiting => Role::AlreadyExiting,
        },
        killed_at: victim.killed_boot_ns.map(|boot_ns| context.time(boot_ns)),
        exited_at: victim.exited.map(|(boot_ns, _)| context.time(boot_ns)),
        reaped_at: victim.reaped_boot_ns.map(|boot_ns| context.time(boot_ns)),
    }
}

fn trigger(
    context: &Context,
    incident: &Incident,
    evidence: &Evidence,
    identities: &Identities,
    order: Option<i32>,
    stack: Vec<String>,
) -> Option<Trigger> {
    let task = incident.trigger()?;
    let path = incident
        .context()?
        .names(section::TRIGGER_PATH)
        .unwrap_or_default()
        .path(0);
    let who = identities.of(&path);
    let mask = decision(incident)
        .map(|decision| decision.gfp_mask)
        .or_else(|| evidence.log.as_ref()?.trigger.as_ref()?.gfp_mask);
    let mut gfp = mask.map(Gfp::from_mask);
    // The log has the kernel's own names for every bit.
    let logged = evidence
        .log
        .as_ref()
        .and_then(|log| log.trigger.as_ref()?.gfp_flags.as_deref());
    if let (Some(gfp), Some(flags)) = (&mut gfp, logged) {
        gfp.flags = Some(text(flags));
    }
    Some(Trigger {
        process: process(context, task, Some(evidence)),
        cgroup: Some(cgroup(task.memcg_id, &path)),
        k8s: who.k8s,
        container: who.container,
        order,
        gfp,
        path: AllocPath::of_stack(&stack),
        stack,
    })
}

fn candidate(
    context: &Context,
    incident: &Incident,
    evidence: &Evidence,
    identities: &Identities,
    task: &wire::Task,
    path: Option<&[u8]>,
) -> Candidate {
    let who = path.map(|path| identities.of(path)).unwrap_or_default();
    let total = total_pages(context, incident, evidence);
    Candidate {
        process: process(context, task, None),
        cgroup: path.map(|path| cgroup(task.memcg_id, path)),
        k8s: who.k8s,
        container: who.container,
        points: oom_score::points(task, total, context.page_bytes),
    }
}

fn node(context: &Context, evidence: &Evidence, meminfo: &Meminfo, delay_ns: u64) -> Node {
    let [cpu, memory, io] = &evidence.pressure;
    let file = meminfo.cached_bytes.map(|cached| {
        (cached + meminfo.buffers_bytes.unwrap_or(0))
            .saturating_sub(meminfo.shmem_bytes.unwrap_or(0))
    });
    Node {
        mem_total_bytes: meminfo.total_bytes,
        mem_free_bytes: meminfo.free_bytes,
        mem_available_bytes: meminfo.available_bytes,
        watermark_min_bytes: evidence
            .watermark_min_pages
            .map(|pages| context.bytes(pages)),
        swap_total_bytes: meminfo.swap_total_bytes,
        swap_free_bytes: meminfo.swap_free_bytes,
        anon_bytes: meminfo.anon_bytes,
        file_bytes: file,
        shmem_bytes: meminfo.shmem_bytes,
        slab_reclaimable_bytes: meminfo.slab_reclaimable_bytes,
        slab_unreclaimable_bytes: meminfo.slab_unreclaimable_bytes,
        kernel_stack_bytes: meminfo.kernel_stack_bytes,
        page_tables_bytes: meminfo.page_tables_bytes,
        psi: evidence.pressure.iter().any(Option::is_some).then(|| Psi {
            cpu: cpu.map(resource),
            memory: memory.map(resource),
            io: io.map(resource),
        }),
        read_delay_us: Some(delay_ns / 1000),
    }
}

fn resource(pressure: Pressure) -> PsiResource {
    PsiResource {
        some: window(pressure.some),
        full: pressure.full.map(window),
    }
}

fn window(stall: Stall) -> PsiWindow {
    PsiWindow {
        avg10_percent: stall.avg10_percent,
        avg60_percent: stall.avg60_percent,
        avg300_percent: stall.avg300_percent,
        total_us: stall.total_us,
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
        .hook(Signal::OomDecision)
        .filter(|_| incident.decision.is_some());
    let mark = context.hook(Signal::VictimMark);
    let kill = context.hook(Signal::KernelKill);
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
        put("candidates", context.hook(Signal::Candidates));
    }
    put(
        "end",
        context
            .hook(Signal::OomEnd)
            .filter(|_| incident.end.is_some()),
    );
    out
}

#[cfg(test)]
mod tests;
