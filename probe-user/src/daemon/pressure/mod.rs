//! Memory pressure in the stream: what is sampled and counted becomes events.

mod inquiry;
mod ledger;
mod tell;

use std::{collections::BTreeMap, path::Path, rc::Rc, time::Duration};

use probe_common::wire::{LimitHit, LimitLevel, level, section};
use tokio::{
    task::{JoinError, JoinSet},
    time::{Instant, sleep_until},
};

use self::{
    inquiry::{Inquiries, Looks},
    ledger::{AtHit, Ledger},
    tell::Counted,
};
use super::Daemon;
use crate::{
    event::{Before, Body, text},
    identity::hierarchy::Hierarchies,
    incident::{
        assemble::Incident,
        evidence::LimitOwner,
        limit::NO_LIMIT_PAGES,
        who::{Identities, Who},
    },
    kernel::pressure::MemcgPressure,
    node::{clock, slabinfo},
    pressure::{
        AtKill, Look, Pressure, Shortfall,
        leak::{Detector, Leak, Options as LeakOptions, Subject as Leaking},
        psi_trigger::Subject,
    },
    ring::decode::Record,
    triage,
    verdict::pressure::Stalls,
};

/// Between two looks at the slab caches: reading them takes a lock that allocations take too.
const SLAB_NS: u64 = 10_000_000_000;

/// Between two searches for cgroups that are gone without notice, as when the ring was full: what
/// is counted of them would take the room of others for ever.
const SWEEP_NS: u64 = 60_000_000_000;

/// What is taken for shortly before: samples of the node are a second apart, or more on a busy one.
const SHORTLY_NS: u64 = 3_000_000_000;

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
    next_sweep_ns: u64,
    /// What could not be sampled, as last told.
    shortfall: Shortfall,
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
            next_sweep_ns: clock::boot_ns() + SWEEP_NS,
            shortfall: Shortfall::default(),
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
        let page_bytes = self.context.page_bytes;
        let limit =
            |pages| (pages < NO_LIMIT_PAGES).then(|| u64::saturating_mul(pages, page_bytes));
        let usage_bytes = hit.usage_pages.saturating_mul(page_bytes);
        if let Some(lookout) = &mut self.lookout {
            lookout.sampling.limit_hit(&path, now_ns);
            let at_hit = AtHit {
                usage: usage_bytes,
                max: limit(hit.max_pages),
                high: limit(hit.high_pages),
            };
            lookout.ledger.hit(hit.memcg_id, at_hit);
        }
        let counted = Counted {
            totals: &hit.totals,
            usage_bytes: Some(usage_bytes),
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
        self.tell_last(id);
        if let Some(lookout) = &mut self.lookout {
            lookout.sampling.removed(path);
        }
    }

    /// Tells and forgets what is counted of a cgroup that is gone.
    fn tell_last(&mut self, id: u64) {
        if let Ok(Some(memcg)) = self.probe.pressure().memcg(id) {
            self.tell_memcg(&memcg, clock::boot_ns(), true);
            self.probe.pressure().forget(id);
        }
        if let Some(lookout) = &mut self.lookout {
            lookout.ledger.forget(id);
        }
    }

    /// Gives up what is counted of cgroups that are gone.
    fn sweep(&mut self, memcgs: &[MemcgPressure], now_ns: u64) {
        let (Some(lookout), Some(tree)) = (&mut self.lookout, &mut self.tree) else {
            return;
        };
        if now_ns < lookout.next_sweep_ns {
            return;
        }
        lookout.next_sweep_ns = now_ns + SWEEP_NS;
        let hierarchy = self.context.memory_hierarchy;
        let mut gone = Vec::new();
        for id in memcgs.iter().map(|memcg| memcg.memcg_id) {
            if tree.is_gone(hierarchy, id)
                && let Some(located) = tree.path(hierarchy, id)
            {
                tree.removed(hierarchy, id, &located.path);
                let is_reused = tree.id(hierarchy, &located.path).is_ok();
                gone.push((id, located.path, is_reused));
            }
        }
        for (id, path, is_reused) in gone {
            if is_reused {
                self.tell_last(id);
            } else {
                self.memcg_removed(id, &path);
            }
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
            max_unhooked: hits.map(|totals| totals.max_before),
        };
        let recorded = lookout.sampling.before(path, boot_ns, at_kill);
        recorded.or_else(|| unrecorded(level?, incident))
    }

    /// What the cgroup at `path` went through before `boot_ns`, as far as it was sampled.
    pub(super) fn before_death(&mut self, path: &[u8], boot_ns: u64) -> Option<Before> {
        let lookout = self.lookout.as_mut()?;
        lookout.sampling.before(path, boot_ns, AtKill::default())
    }

    /// How much memory was available on the node shortly before `boot_ns`.
    pub(super) fn available_before(&self, boot_ns: u64) -> Option<u64> {
        let lookout = self.lookout.as_ref()?;
        let since_ns = boot_ns.saturating_sub(SHORTLY_NS);
        lookout.sampling.least_available_bytes(since_ns..=boot_ns)
    }

    fn tell_shortfall(&mut self) {
        let Some(lookout) = &mut self.lookout else {
            return;
        };
        let now = lookout.sampling.shortfall();
        let more = now.more_than(&lookout.shortfall);
        lookout.shortfall = now;
        if more > 0 {
            self.outbox.lost("cgroup_not_sampled", more);
        }
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
