//! Why the kernel says that tasks wait for memory: two looks at the whole node, as triage takes
//! them, and what they show.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::PathBuf,
    time::Duration,
};

use probe_common::wire::stall;

use crate::{
    event::{Cgroup, Finding, Pressure, text},
    kernel::pressure::MemcgPressure,
    node::Error,
    pressure::{
        psi_trigger::Subject,
        sample::{CgroupSample, Detail, NodeSample},
    },
    triage::{
        PARTS,
        collect::{Look, Node},
        pressure::StallsById,
    },
    verdict::pressure::Stalls,
};

/// Between the two looks: long enough for rates, short enough to see what is going on now.
const SPAN: Duration = Duration::from_secs(5);

/// Between two inquiries about one subject, ns.
const PAUSE_NS: u64 = 15_000_000_000;

/// Pressure that is over by the time of the looks is told only if something was found all the same.
const LEAST_RATIO: f64 = 0.01;

/// Subjects remembered: the node, and cgroups with a trigger.
const MAX_SUBJECTS: usize = 64;

const NS_PER_MS: u64 = 1_000_000;

/// Position of memory in [`NodeSample::psi_some_us`].
const MEMORY: usize = 1;

/// The two looks.
pub(in super::super) type Looks = Result<Box<(Look, Look)>, Error>;

/// Who waits, and since when who was told.
#[derive(Default)]
pub(super) struct Inquiries {
    /// Of the inquiry that is running.
    subjects: BTreeSet<Subject>,
    /// Stalls when it began, by kernfs id.
    stalls: BTreeMap<u64, Stalls>,
    told_ns: BTreeMap<Subject, u64>,
}

impl Inquiries {
    /// Tasks of `subject` wait. True if an inquiry has to begin; `stalls` are those so far.
    pub(super) fn wanted(
        &mut self,
        subject: Subject,
        now_ns: u64,
        stalls: impl FnOnce() -> BTreeMap<u64, Stalls>,
    ) -> bool {
        let told = self.told_ns.get(&subject);
        if told.is_some_and(|told| now_ns < told.saturating_add(PAUSE_NS)) {
            return false;
        }
        let is_first = self.subjects.is_empty();
        if is_first {
            self.stalls = stalls();
        }
        self.subjects.insert(subject);
        is_first
    }

    /// The inquiry is over: who it was about, and stalls meanwhile.
    pub(super) fn take(
        &mut self,
        now_ns: u64,
        stalls: &BTreeMap<u64, Stalls>,
    ) -> (BTreeSet<Subject>, StallsById) {
        let subjects = std::mem::take(&mut self.subjects);
        if self.told_ns.len() >= MAX_SUBJECTS {
            self.told_ns
                .retain(|_, told| now_ns < told.saturating_add(PAUSE_NS));
        }
        self.told_ns
            .extend(subjects.iter().map(|subject| (subject.clone(), now_ns)));
        let first = std::mem::take(&mut self.stalls);
        let meanwhile = stalls.iter().map(|(id, now)| {
            let before = first.get(id).copied().unwrap_or_default();
            let since = Stalls {
                direct_reclaim_ns: now
                    .direct_reclaim_ns
                    .saturating_sub(before.direct_reclaim_ns),
                memcg_reclaim_ns: now.memcg_reclaim_ns.saturating_sub(before.memcg_reclaim_ns),
                high_throttle_ns: now.high_throttle_ns.saturating_sub(before.high_throttle_ns),
                refault_wait_ns: now.refault_wait_ns.saturating_sub(before.refault_wait_ns),
            };
            (*id, since)
        });
        (subjects, HashMap::from_iter(meanwhile.collect::<Vec<_>>()))
    }
}

/// Stalls as verdicts take them.
pub(super) fn stalls_of(memcg: &MemcgPressure) -> Stalls {
    let [direct, own, high, _, refault] = &memcg.stalls;
    const {
        assert!(stall::DIRECT_RECLAIM == 0 && stall::MEMCG_RECLAIM == 1);
        assert!(stall::HIGH_THROTTLE == 2 && stall::REFAULT_WAIT == 4);
    }
    Stalls {
        direct_reclaim_ns: direct.total_ns,
        memcg_reclaim_ns: own.total_ns,
        high_throttle_ns: high.total_ns,
        refault_wait_ns: refault.total_ns,
    }
}

/// Looks twice. Reading all cgroups of a big node takes a while: not on this thread.
pub(super) async fn look_twice(host_root: PathBuf) -> Option<Looks> {
    let first = tokio::task::spawn_blocking(move || {
        let mut node = Node::open(&host_root);
        let look = node.look();
        (node, look)
    });
    let (mut node, mut first) = first.await.ok()?;
    for _ in 1..PARTS {
        tokio::time::sleep(SPAN / PARTS).await;
        if let Ok(first) = &mut first {
            // A few files of a few cgroups.
            node.again(first);
        }
    }
    tokio::time::sleep(SPAN / PARTS).await;
    let second = tokio::task::spawn_blocking(move || node.look());
    let second = second.await.ok()?;
    Some(first.and_then(|first| Ok(Box::new((first, second?)))))
}

/// The event about one of the subjects.
pub(super) fn event(
    subject: &Subject,
    first: &Look,
    second: &Look,
    findings: &[Finding],
) -> Pressure {
    let (cgroup, shares, own) = match subject {
        None => {
            let shares = Shares::of_node(&first.node, &second.node);
            (None, Some(shares), findings.to_vec())
        }
        Some(path) => {
            let unit = |look: &Look| {
                let unit = look.units.iter().find(|unit| unit.path == **path)?;
                Some((unit.id, unit.sample))
            };
            let units = unit(first).zip(unit(second));
            let cgroup = Cgroup {
                id: units.map(|((id, _), _)| id),
                path: Some(text(path)),
            };
            let own = findings.iter().filter(|finding| {
                let about = finding.cgroup.as_ref();
                about.is_some_and(|about| about.is(&cgroup) || is_inside(about, &cgroup))
            });
            let own = own.cloned().collect();
            let shares = units.map(|((_, first), (_, second))| Shares::of(&first, &second));
            (Some(cgroup), shares, own)
        }
    };
    let shares = shares.unwrap_or_default();
    Pressure {
        cgroup,
        resource: "memory".to_owned(),
        some_ratio: shares.some,
        full_ratio: shares.full,
        window_ms: shares.window_ms,
        findings: own,
    }
}

/// Shares of the time between two looks in which tasks waited for memory.
#[derive(Debug, Default, PartialEq)]
struct Shares {
    some: Option<f64>,
    full: Option<f64>,
    window_ms: u64,
}

impl Shares {
    fn of_node(first: &NodeSample, second: &NodeSample) -> Self {
        let elapsed_ns = second.boot_ns.saturating_sub(first.boot_ns);
        let of =
            |total: fn(&NodeSample) -> Option<u64>| ratio(total(first), total(second), elapsed_ns);
        Self {
            some: of(|node| node.psi_some_us[MEMORY]),
            full: of(|node| node.psi_full_us[MEMORY]),
            window_ms: elapsed_ns / NS_PER_MS,
        }
    }

    /// A walk through a big tree takes a while, so that each cgroup has a window of its own.
    fn of(first: &CgroupSample, second: &CgroupSample) -> Self {
        let elapsed_ns = second.boot_ns.saturating_sub(first.boot_ns);
        let of = |total: fn(&Detail) -> Option<u64>| {
            ratio(total(&first.detail?), total(&second.detail?), elapsed_ns)
        };
        Self {
            some: of(|detail| detail.psi_some_us),
            full: of(|detail| detail.psi_full_us),
            window_ms: elapsed_ns / NS_PER_MS,
        }
    }
}

/// Share of the time that a counter of microseconds rose by.
fn ratio(before_us: Option<u64>, after_us: Option<u64>, elapsed_ns: u64) -> Option<f64> {
    let us = after_us?.checked_sub(before_us?)?;
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    let ratio = us as f64 * 1000.0 / elapsed_ns.max(1) as f64;
    Some(ratio.min(1.0))
}

/// Whether there is something to tell.
pub(super) fn is_news(pressure: &Pressure) -> bool {
    !pressure.findings.is_empty()
        || pressure
            .some_ratio
            .is_some_and(|ratio| ratio >= LEAST_RATIO)
}

fn is_inside(inner: &Cgroup, outer: &Cgroup) -> bool {
    let (Some(inner), Some(outer)) = (&inner.path, &outer.path) else {
        return false;
    };
    inner
        .strip_prefix(outer.as_str())
        .is_some_and(|rest| rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    #[test]
    fn shares_are_of_the_time_between_the_looks_at_the_cgroup_itself() {
        let look = |boot_ns, psi_some_us| CgroupSample {
            boot_ns,
            usage_bytes: 0,
            detail: Some(Detail {
                psi_some_us: Some(psi_some_us),
                ..Detail::default()
            }),
        };
        let shares = Shares::of(&look(7_000_000_000, 100), &look(11_000_000_000, 2_000_100));
        let expected = Shares {
            some: Some(0.5),
            full: None,
            window_ms: 4_000,
        };
        assert_eq!(shares, expected);
    }

    #[test]
    fn one_inquiry_serves_all_who_wait_and_none_is_asked_about_again_at_once() {
        let mut inquiries = Inquiries::default();
        let pod: Subject = Some(Rc::from(&b"/pod"[..]));
        let stalls = |ns| {
            BTreeMap::from([(
                7,
                Stalls {
                    memcg_reclaim_ns: ns,
                    ..Stalls::default()
                },
            )])
        };
        assert!(inquiries.wanted(None, 0, || stalls(5)));
        assert!(!inquiries.wanted(pod.clone(), 1, BTreeMap::new));
        let (subjects, meanwhile) = inquiries.take(10, &stalls(8));
        assert_eq!(subjects, BTreeSet::from([None, pod.clone()]));
        assert_eq!(meanwhile.get(&7).map(|s| s.memcg_reclaim_ns), Some(3));
        assert!(!inquiries.wanted(pod, 11, BTreeMap::new));
        assert!(inquiries.wanted(None, 10 + PAUSE_NS, BTreeMap::new));
    }
}
