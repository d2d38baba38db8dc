//! What was counted and found becomes events; who it is about is looked up first.

use std::rc::Rc;

use probe_common::wire::{LimitTotals, StallTotals, stall};

use super::{
    About, Lookout,
    ledger::{Counter, Value},
};
use crate::{
    daemon::Daemon,
    event::{
        Body, Cgroup, LeakSuspect, LimitEvent, MemcgLimit, Process, ReclaimStall, StallKind, label,
        text,
    },
    identity::names::Resolver,
    incident::who::Identities,
    kernel::{
        ladder::Signal,
        pressure::{MemcgPressure, count},
    },
    pressure::leak::{Leak, Subject as Leaking},
};

/// Kinds of stall as the programs and as events name them, and how each signal is called.
const KINDS: [(u32, StallKind, Signal); 5] = [
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
    (
        stall::REFAULT_WAIT,
        StallKind::RefaultWait,
        Signal::RefaultWait,
    ),
];

/// Limit hits of one cgroup.
pub(super) struct Counted<'a> {
    pub(super) totals: &'a LimitTotals,
    /// At the hit; `None` takes the last sample.
    pub(super) usage_bytes: Option<u64>,
    pub(super) reclaim_ns: Option<u64>,
}

impl Daemon {
    /// Tells what hooks counted, as far as it is due; all of it the `last` time.
    pub(in super::super) fn tell_counted(&mut self, now_ns: u64, last: bool) {
        let Ok(memcgs) = self.probe.pressure().memcgs() else {
            self.outbox.lost("pressure_map_unreadable", 1);
            return;
        };
        for memcg in &memcgs {
            self.tell_memcg(memcg, now_ns, last);
        }
        self.sweep(&memcgs, now_ns);
        if let Ok(node) = self.probe.pressure().node() {
            let is_hooked = self.probe.hook(Signal::Kswapd).is_some();
            if let (Some(lookout), true) = (&mut self.lookout, is_hooked) {
                let kswapd = &node[stall::KSWAPD as usize];
                lookout.sampling.totals().kswapd(kswapd.total_ns);
            }
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

    pub(super) fn tell_memcg(&mut self, memcg: &MemcgPressure, now_ns: u64, last: bool) {
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

    pub(super) fn tell_hits(
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
            let value = Value {
                count,
                ..Value::default()
            };
            let Some(new) = lookout
                .ledger
                .due(id, Counter::Hits(event), value, now_ns, last)
            else {
                continue;
            };
            let looked = path.and_then(|path| lookout.sampling.usage(path));
            let at_hit = lookout.ledger.at_hit(id);
            let usage_bytes = counted
                .usage_bytes
                .or(looked.map(|(usage, _)| usage))
                .or(at_hit.map(|at_hit| at_hit.usage));
            let settings = looked.map(|(_, settings)| settings);
            let limit_bytes = match event {
                LimitEvent::Max => at_hit
                    .and_then(|at_hit| at_hit.max)
                    .or(settings.and_then(|settings| settings.own_max_bytes)),
                LimitEvent::High => at_hit
                    .and_then(|at_hit| at_hit.high)
                    .or(settings.and_then(|settings| settings.high_bytes)),
            };
            let body = MemcgLimit {
                cgroup: cgroup(id, path),
                event,
                count,
                new: new.count,
                kernel_count: Some(kernel_count),
                reclaim_ns: counted.reclaim_ns,
                usage_bytes,
                limit_bytes,
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
            pages: totals.reclaimed_pages,
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
            reclaimed_pages: reclaims.then_some(new.pages),
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

    pub(super) fn tell_leak(&mut self, path: Option<&[u8]>, leak: Leak, boot_ns: u64) {
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
