//! Memory pressure in the stream: what is sampled and counted becomes events.

mod inquiry;
mod ledger;

use std::{collections::BTreeMap, path::Path, rc::Rc, time::Duration};

use probe_common::wire::{LimitHit, LimitLevel, LimitTotals, StallTotals, level, section, stall};
use tokio::{
    task::{JoinError, JoinSet},
    time::{Instant, sleep_until},
};

use self::{
    inquiry::{Inquiries, Looks},
    ledger::{Counter, Ledger, Value},
};
use super::Daemon;
use crate::{
    event::{
        Before, Body, Cgroup, LeakSuspect, LimitEvent, MemcgLimit, Process, ReclaimStall,
        StallKind, label, text,
    },
    identity::{hierarchy::Hierarchies, names::Resolver},
    incident::{
        assemble::Incident,
        evidence::LimitOwner,
        limit::NO_LIMIT_PAGES,
        who::{Identities, Who},
    },
    kernel::{
        ladder::Signal,
        pressure::{MemcgPressure, count},
    },
    node::{clock, slabinfo},
    pressure::{
        AtKill, Look, Pressure,
        leak::{Detector, Leak, Options as LeakOptions, Subject as Leaking},
        psi_trigger::Subject,
    },
    ring::decode::Record,
    triage,
    verdict::pressure::Stalls,
};

/// Between two looks at the slab caches: reading them takes a lock that allocations take too.
const SLAB_NS: u64 = 10_000_000_000;

/// Kinds of stall as the programs and as events name them, and how each signal is called.
const KINDS: [(u32, StallKind, Signal); 4] = [
    (
        stall::DIRECT_RECLAIM,
        StallKind::DirectReclaim,
        Signal::DirectReclaim,
    ),
    (
        stall::MEMCG_RECLAIM,
        StallKind::MemcgReclaim,
        Signal::MemcgReclaim,
    ),
    (
        stall::HIGH_THROTTLE,
        StallKind::HighThrottle,
        Signal::HighThrottle,
    ),
    (stall::COMPACTION, StallKind::Compaction, Signal::Compaction),
];

/// Everything the daemon keeps about memory pressure.
pub(super) struct Lookout {
    pub(super) sampling: Pressure,
    leaks: Detector,
    ledger: Ledger,
    inquiries: Inquiries,
    /// At most one.
    looking: JoinSet<Option<Looks>>,
    /// Events whose names are looked up.
    naming: JoinSet<Vec<About>>,
    next_slab_ns: u64,
    /// Cgroups that were not watched or not read, as last told.
    shortfall: u64,
}

/// Limit hits of one cgroup.
struct Counted<'a> {
    totals: &'a LimitTotals,
    /// At the hit; `None` takes the last sample.
    usage_bytes: Option<u64>,
    /// `memory.max` and `memory.high` at the hit; `None` takes those last read.
    limit_bytes: [Option<u64>; 2],
    reclaim_ns: Option<u64>,
}

/// An event about somebody.
pub(super) struct About {
    who: Who,
    body: Body,
    boot_ns: u64,
}

impl Lookout {
    /// Begins to sample; `hooked` if limit hits come from a hook. `None` where there is no memory controller, or no `/proc/meminfo`.
    pub(super) fn new(
        hierarchies: Option<&Hierarchies>,
        proc: &Path,
        leak_window: Duration,
        hooked: bool,
    ) -> Option<Self> {
        let mut sampling = Pressure::new(hierarchies?, proc).ok()?;
        if hooked {
            sampling.hooked();
        }
        Some(Self {
            sampling,
            leaks: Detector::new(LeakOptions {
                window: leak_window,
                ..LeakOptions::default()
            }),
            ledger: Ledger::default(),
            inquiries: Inquiries::default(),
            looking: JoinSet::new(),
            naming: JoinSet::new(),
            next_slab_ns: 0,
            shortfall: 0,
        })
    }
}

/// Something to do about memory pressure.
pub(super) enum Seen {
    /// It is time to sample.
    Due,
    /// Tasks wait.
    Waiting(Subject),
    /// An inquiry is over; `None` if its task failed.
    Looked(Option<Looks>),
    /// Names were found.
    Named(Named),
}

type Named = Result<Vec<About>, JoinError>;

/// Waits until there is something to do. Dropped while it waits, it has lost nothing.
pub(super) async fn next(lookout: Option<&mut Lookout>) -> Seen {
    let Some(lookout) = lookout else {
        return std::future::pending().await;
    };
    let due = Instant::now() + lookout.sampling.due_in(clock::boot_ns());
    tokio::select! {
        biased;
        Some(named) = lookout.naming.join_next() => Seen::Named(named),
        Some(looks) = lookout.looking.join_next() => Seen::Looked(looks.ok().flatten()),
        () = sleep_until(due) => Seen::Due,
        subject = lookout.sampling.psi() => Seen::Waiting(subject),
    }
}

/// The next events whose names were found; `None` if none is waited for.
pub(super) async fn named(lookout: Option<&mut Lookout>) -> Option<Named> {
    lookout?.naming.join_next().await
}

impl Daemon {
    /// Does what there is to do.
    pub(super) fn seen(&mut self, seen: Seen) {
        match seen {
            Seen::Due => self.sample(),
            Seen::Waiting(subject) => self.under_pressure(subject),
            Seen::Looked(looks) => self.looked(looks),
            Seen::Named(named) => self.named(named),
        }
    }

    /// A record of a limit hit: told at once if it is the first of its cgroup.
    pub(super) fn limit_hit(&mut self, record: &Record, hit: &LimitHit) {
        let path = record
            .names(section::LIMIT_PATH)
            .unwrap_or_default()
            .path(0);
        let now_ns = record.header.time_boot_ns;
        if let Some(lookout) = &mut self.lookout {
            lookout.sampling.limit_hit(&path, now_ns);
        }
        let usage_bytes = hit.usage_pages.saturating_mul(self.context.page_bytes);
        let counted = Counted {
            totals: &hit.totals,
            usage_bytes: Some(usage_bytes),
            limit_bytes: [hit.max_pages, hit.high_pages].map(|pages| {
                (pages < NO_LIMIT_PAGES).then(|| pages.saturating_mul(self.context.page_bytes))
            }),
            reclaim_ns: None,
        };
        self.tell_hits(hit.memcg_id, Some(&path), &counted, now_ns, false);
    }

    /// Samples what is due.
    fn sample(&mut self) {
        let now_ns = clock::boot_ns();
        let Some(lookout) = &mut self.lookout else {
            return;
        };
        let tick = lookout.sampling.tick(now_ns);
        let hierarchy = self.context.memory_hierarchy;
        let mut leaks: Vec<(Option<Rc<[u8]>>, Leak)> = Vec::new();
        for Look {
            path,
            sample,
            settings,
        } in &tick.looks
        {
            // What an ancestor shows is what is inside it.
            if !lookout.sampling.is_leaf(path) {
                continue;
            }
            let id = self.tree.as_ref().map(|tree| tree.id(hierarchy, path));
            if let Some(Ok(id)) = id {
                let found = lookout.leaks.cgroup(id, sample, settings);
                leaks.extend(found.into_iter().map(|leak| (Some(Rc::clone(path)), leak)));
            }
        }
        if let Some(node) = &tick.node {
            leaks.extend(lookout.leaks.node(node).map(|leak| (None, leak)));
            if now_ns >= lookout.next_slab_ns {
                lookout.next_slab_ns = now_ns + SLAB_NS;
                let proc = self.options.host_root.join("proc");
                for cache in slabinfo::read(&proc).unwrap_or_default() {
                    let name = text(&cache.name).into_boxed_str();
                    let leak =
                        lookout
                            .leaks
                            .observe(Leaking::SlabCache(name), now_ns, cache.bytes, None);
                    leaks.extend(leak.map(|leak| (None, leak)));
                }
            }
        }
        for (path, leak) in leaks {
            self.tell_leak(path.as_deref(), leak, now_ns);
        }
        if tick.node.is_some() {
            self.tell_counted(now_ns, false);
            self.tell_shortfall();
        }
    }

    /// Tells what hooks counted, as far as it is due; all of it the `last` time.
    pub(super) fn tell_counted(&mut self, now_ns: u64, last: bool) {
        let Ok(memcgs) = self.probe.pressure().memcgs() else {
            self.outbox.lost("pressure_map_unreadable", 1);
            return;
        };
        for memcg in &memcgs {
            self.tell_memcg(memcg, now_ns, last);
        }
        if let Ok(node) = self.probe.pressure().node() {
            for (index, kind, signal) in KINDS {
                // Of the node only what is nobody's own limit.
                if matches!(kind, StallKind::DirectReclaim | StallKind::Compaction)
                    && let Some(totals) = node.get(index as usize)
                {
                    self.tell_stalls(0, None, kind, signal, totals, now_ns, last);
                }
            }
        }
    }

    fn tell_memcg(&mut self, memcg: &MemcgPressure, now_ns: u64, last: bool) {
        let hierarchy = self.context.memory_hierarchy;
        let located = self
            .tree
            .as_mut()
            .and_then(|tree| tree.path(hierarchy, memcg.memcg_id));
        let path = located.map(|located| located.path);
        let path = path.as_deref();
        if let Some(totals) = &memcg.limit {
            let reclaim = memcg.stalls.get(stall::MEMCG_RECLAIM as usize);
            let counted = Counted {
                totals,
                usage_bytes: None,
                limit_bytes: [None; 2],
                reclaim_ns: reclaim.map(|reclaim| reclaim.total_ns),
            };
            self.tell_hits(memcg.memcg_id, path, &counted, now_ns, last);
        }
        for (index, kind, signal) in KINDS {
            if let Some(totals) = memcg.stalls.get(index as usize) {
                self.tell_stalls(memcg.memcg_id, path, kind, signal, totals, now_ns, last);
            }
        }
    }

    fn tell_hits(
        &mut self,
        id: u64,
        path: Option<&[u8]>,
        counted: &Counted<'_>,
        now_ns: u64,
        last: bool,
    ) {
        let Some(lookout) = &mut self.lookout else {
            return;
        };
        let totals = counted.totals;
        let source = self.context.hook_name(Signal::LimitHit).unwrap_or_default();
        for (event, kernel_count, before) in [
            (LimitEvent::Max, totals.max, totals.max_before),
            (LimitEvent::High, totals.high, totals.high_before),
        ] {
            // Known, but not seen to be hit.
            if totals.first_boot_ns == 0 {
                continue;
            }
            let count = kernel_count.saturating_sub(before);
            if let Some(path) = path {
                lookout.sampling.totals().hits(path, event, count);
                if event == LimitEvent::Max {
                    lookout.sampling.counted(path, count);
                }
            }
            let value = Value { count, total_ns: 0 };
            let Some(new) = lookout
                .ledger
                .due(id, Counter::Hits(event), value, now_ns, last)
            else {
                continue;
            };
            let now = path.and_then(|path| lookout.sampling.usage(path));
            let body = MemcgLimit {
                cgroup: cgroup(id, path),
                event,
                count,
                new: new.count,
                kernel_count: Some(kernel_count),
                reclaim_ns: counted.reclaim_ns,
                usage_bytes: counted.usage_bytes.or(now.map(|(usage, _)| usage)),
                limit_bytes: match event {
                    LimitEvent::Max => counted.limit_bytes[0]
                        .or_else(|| now.and_then(|(_, settings)| settings.own_max_bytes)),
                    LimitEvent::High => counted.limit_bytes[1]
                        .or_else(|| now.and_then(|(_, settings)| settings.high_bytes)),
                },
                last_trigger: (totals.last_tid != 0).then(|| last_trigger(totals)),
                source: source.clone(),
            };
            lookout.name(
                path,
                Body::MemcgLimit(body),
                now_ns,
                &self.resolver,
                self.node_name.clone(),
            );
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one of many numbers of one cgroup"
    )]
    fn tell_stalls(
        &mut self,
        id: u64,
        path: Option<&[u8]>,
        kind: StallKind,
        signal: Signal,
        totals: &StallTotals,
        now_ns: u64,
        last: bool,
    ) {
        let Some(lookout) = &mut self.lookout else {
            return;
        };
        let value = Value {
            count: count(totals),
            total_ns: totals.total_ns,
        };
        if value.count == 0 {
            return;
        }
        if id == 0 || path.is_some() {
            lookout
                .sampling
                .totals()
                .stalls(path, kind, value.count, value.total_ns);
        }
        let Some(new) = lookout
            .ledger
            .due(id, Counter::Stalls(kind), value, now_ns, last)
        else {
            return;
        };
        let reclaims = matches!(kind, StallKind::DirectReclaim | StallKind::MemcgReclaim);
        let body = ReclaimStall {
            cgroup: (id != 0).then(|| cgroup(id, path)),
            stall: kind,
            new: new.count,
            new_ns: new.total_ns,
            count: value.count,
            total_ns: value.total_ns,
            longest_ns: totals.longest_ns,
            histogram_us_log2: totals.histogram.to_vec(),
            reclaimed_pages: reclaims.then_some(totals.reclaimed_pages),
            source: self.context.hook_name(signal).unwrap_or_default(),
        };
        lookout.name(
            path,
            Body::ReclaimStall(body),
            now_ns,
            &self.resolver,
            self.node_name.clone(),
        );
    }

    fn tell_leak(&mut self, path: Option<&[u8]>, leak: Leak, boot_ns: u64) {
        let Some(lookout) = &mut self.lookout else {
            return;
        };
        let id = match leak.subject {
            Leaking::Cgroup(id, _) => id,
            Leaking::SlabUnreclaimable | Leaking::SlabCache(_) => 0,
        };
        let own = path.map(|path| cgroup(id, Some(path)));
        let path = path.map(<[u8]>::to_vec);
        let (resolver, node_name) = (Rc::clone(&self.resolver), self.node_name.clone());
        lookout.naming.spawn_local(async move {
            let names = Identities::resolve(&resolver, node_name.as_deref(), path.clone()).await;
            let who = path.map(|path| names.of(&path)).unwrap_or_default();
            let label = own.as_ref().and_then(|own| {
                label::subject(who.k8s.as_ref(), who.container.as_ref(), Some(own))
            });
            let event: LeakSuspect = leak.event(own, label.as_deref());
            vec![About {
                who,
                body: Body::LeakSuspect(event),
                boot_ns,
            }]
        });
    }

    /// The kernel says that tasks of `subject` wait for memory.
    fn under_pressure(&mut self, subject: Subject) {
        let memcgs = || {
            let memcgs = self.probe.pressure().memcgs().unwrap_or_default();
            stalls_by_id(&memcgs)
        };
        let Some(lookout) = &mut self.lookout else {
            return;
        };
        if lookout.inquiries.wanted(subject, clock::boot_ns(), memcgs) {
            let host_root = self.options.host_root.clone();
            lookout.looking.spawn_local(inquiry::look_twice(host_root));
        }
    }

    /// Says why, as far as two looks show.
    fn looked(&mut self, looks: Option<Looks>) {
        let memcgs = self.probe.pressure().memcgs().unwrap_or_default();
        let Some(lookout) = &mut self.lookout else {
            return;
        };
        let now_ns = clock::boot_ns();
        let (subjects, stalls) = lookout.inquiries.take(now_ns, &stalls_by_id(&memcgs));
        let Some(Ok(looks)) = looks else {
            self.outbox.lost("pressure_not_looked_into", 1);
            return;
        };
        let (resolver, node_name) = (Rc::clone(&self.resolver), self.node_name.clone());
        lookout.naming.spawn_local(async move {
            let (first, second) = *looks;
            let node_name = node_name.as_deref();
            let findings =
                triage::pressure::findings(&first, &second, &stalls, &resolver, node_name).await;
            let paths = subjects.iter().flatten().map(|path| path.to_vec());
            let names = Identities::resolve(&resolver, node_name, paths).await;
            subjects
                .iter()
                .map(|subject| (subject, inquiry::event(subject, &first, &second, &findings)))
                .filter(|(_, pressure)| inquiry::is_news(pressure))
                .map(|(subject, pressure)| About {
                    who: subject
                        .as_ref()
                        .map(|path| names.of(path))
                        .unwrap_or_default(),
                    body: Body::Pressure(pressure),
                    boot_ns: now_ns,
                })
                .collect()
        });
    }

    /// Writes events whose names are known.
    pub(super) fn named(&mut self, named: Named) {
        let Ok(events) = named else {
            self.outbox.lost("event_task_failed", 1);
            return;
        };
        for About { who, body, boot_ns } in events {
            let filter = &self.options.filter;
            if filter.wants_about(who.k8s.as_ref(), who.container.as_ref()) {
                self.outbox.write_about(who, body, boot_ns);
            }
        }
    }

    /// A memory cgroup was removed: its last counts, and room for others.
    pub(super) fn memcg_removed(&mut self, id: u64, path: &[u8]) {
        let now_ns = clock::boot_ns();
        if let Ok(Some(memcg)) = self.probe.pressure().memcg(id) {
            self.tell_memcg(&memcg, now_ns, true);
            self.probe.pressure().forget(id);
        }
        if let Some(lookout) = &mut self.lookout {
            lookout.ledger.forget(id);
            lookout.sampling.removed(path);
        }
    }

    /// What led up to a kill by the limit of `owner`, or, for want of one, of the node.
    pub(super) fn before(
        &mut self,
        owner: Option<&LimitOwner>,
        incident: &Incident,
    ) -> Option<Before> {
        let boot_ns = incident.boot_ns;
        let lookout = self.lookout.as_mut()?;
        let Some(owner) = owner else {
            return Some(lookout.sampling.before_node(boot_ns));
        };
        let path = owner.path();
        let level = owner.level();
        let hits = level
            .and_then(|level| self.probe.pressure().memcg(level.id).ok().flatten())
            .and_then(|memcg| memcg.limit);
        if let Some(totals) = hits {
            let count = totals.max.saturating_sub(totals.max_before);
            lookout.sampling.counted(path, count);
        }
        let page_bytes = self.context.page_bytes;
        let at_kill = AtKill {
            limit_bytes: level
                .map(|level| level.max_pages)
                .filter(|&pages| pages < NO_LIMIT_PAGES)
                .map(|pages| pages.saturating_mul(page_bytes)),
            peak_bytes: level.map(|level| level.watermark_pages.saturating_mul(page_bytes)),
            max_events: level.and_then(local_max),
        };
        let recorded = lookout.sampling.before(path, boot_ns, at_kill);
        recorded.or_else(|| unrecorded(level?, incident))
    }

    fn tell_shortfall(&mut self) {
        let Some(lookout) = &mut self.lookout else {
            return;
        };
        let shortfall = lookout.sampling.shortfall();
        let now = shortfall.left_out + shortfall.failed_looks;
        let more = now.saturating_sub(lookout.shortfall);
        lookout.shortfall = lookout.shortfall.max(now);
        if more > 0 {
            self.outbox.lost("cgroup_not_sampled", more);
        }
    }
}

impl Lookout {
    /// Looks up whose the cgroup is, and has the event written then.
    fn name(
        &mut self,
        path: Option<&[u8]>,
        body: Body,
        boot_ns: u64,
        resolver: &Rc<Resolver>,
        node_name: Option<String>,
    ) {
        let (path, resolver) = (path.map(<[u8]>::to_vec), Rc::clone(resolver));
        self.naming.spawn_local(async move {
            let names = Identities::resolve(&resolver, node_name.as_deref(), path.clone()).await;
            let who = path.map(|path| names.of(&path)).unwrap_or_default();
            vec![About { who, body, boot_ns }]
        });
    }
}

/// Of a cgroup that was made, hit its limit and was removed before it was ever looked at: what the
/// kernel counted. It is as old as its victims, at least.
fn unrecorded(level: &LimitLevel, incident: &Incident) -> Option<Before> {
    let starts = incident
        .victims
        .iter()
        .map(|victim| victim.task.start_boot_ns);
    let start_ns = starts.filter(|start| *start != 0).min()?;
    let span = Duration::from_nanos(incident.boot_ns.saturating_sub(start_ns));
    Some(Before {
        max_hits: local_max(level),
        span_ms: span.as_secs_f64() * 1e3,
        ..Before::default()
    })
}

/// Hits of the hard limit since the cgroup was made.
fn local_max(level: &LimitLevel) -> Option<u64> {
    (level.flags & level::HAS_LOCAL_EVENTS != 0).then_some(level.local_max)
}

fn stalls_by_id(memcgs: &[MemcgPressure]) -> BTreeMap<u64, Stalls> {
    memcgs
        .iter()
        .map(|memcg| (memcg.memcg_id, inquiry::stalls_of(memcg)))
        .collect()
}

fn cgroup(id: u64, path: Option<&[u8]>) -> Cgroup {
    Cgroup {
        id: (id != 0).then_some(id),
        path: path.map(text),
    }
}

fn last_trigger(totals: &LimitTotals) -> Process {
    let comm = totals.last_comm.split(|byte| *byte == 0).next();
    Process {
        pid: Some(totals.last_pid),
        tid: Some(totals.last_tid),
        comm: comm.map(text),
        ..Process::default()
    }
}
