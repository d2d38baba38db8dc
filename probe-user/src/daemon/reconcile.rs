//! Compares what was seen with what the kernel counted: a gap is an event.

use std::collections::BTreeMap;

use crate::{
    event::{Gap, text},
    incident::{
        assemble::{Incident, Role, Victim},
        evidence::Collector,
        explain::Context,
        limit::is_ancestor,
    },
    node::{
        clock,
        memcg::{Events, MemcgFiles, Version},
        vmstat::Vmstat,
    },
};

/// Limit owners whose `memory.events` are compared: those that killed last.
const MAX_OWNERS: usize = 64;

/// A kernel counter beside our own count.
#[derive(Debug)]
struct Compared {
    /// The kernel's value and ours when they last agreed.
    kernel: u64,
    seen: u64,
    /// ns since boot of that.
    since_boot_ns: u64,
    /// What the kernel had counted beyond the base when they disagreed at the last check.
    suspect: Option<u64>,
    /// Ours was ahead at the last check.
    ahead: bool,
}

impl Compared {
    const fn new(kernel: u64, seen: u64, since_boot_ns: u64) -> Self {
        Self {
            kernel,
            seen,
            since_boot_ns,
            suspect: None,
            ahead: false,
        }
    }

    /// Compares. What the kernel had counted at the last check and is not seen by this one is a
    /// gap: expected, seen, since when. Kills since then may still be on their way.
    fn check(&mut self, kernel: u64, seen: u64, now: u64) -> Option<(u64, u64, u64)> {
        let expected = kernel.saturating_sub(self.kernel);
        let ours = seen.saturating_sub(self.seen);
        if expected == ours || (expected < ours && self.ahead) {
            // Kills from before the base was taken were still in the ring: were they kept as an
            // advance, as many others could go missing unnoticed.
            *self = Self::new(kernel, seen, now);
            return None;
        }
        self.ahead = expected < ours;
        if self.ahead {
            self.suspect = None;
            return None;
        }
        match self.suspect.replace(expected) {
            Some(suspect) if ours < suspect => {
                let since = self.since_boot_ns;
                *self = Self::new(self.kernel.saturating_add(suspect), seen, now);
                Some((suspect, ours, since))
            }
            _ => None,
        }
    }
}

/// Everything that is compared.
pub(super) struct Reconciler {
    vmstat: Option<Vmstat>,
    at_start: Option<u64>,
    node: Option<Compared>,
    owners: BTreeMap<Vec<u8>, Owner>,
}

struct Owner {
    files: Option<MemcgFiles>,
    compared: Option<Compared>,
    /// Kills of processes in its subtree, whoever's limit it was.
    seen: u64,
    order: u64,
}

impl Reconciler {
    pub(super) fn new(mut vmstat: Option<Vmstat>, now: u64) -> Self {
        let kernel = vmstat.as_mut().and_then(read);
        Self {
            at_start: kernel,
            node: kernel.map(|kernel| Compared::new(kernel, 0, now)),
            vmstat,
            owners: BTreeMap::new(),
        }
    }

    /// OOM kills the kernel counted since the start.
    pub(super) fn kernel_kills(&mut self) -> Option<u64> {
        let at_start = self.at_start?;
        Some(
            self.vmstat
                .as_mut()
                .and_then(read)?
                .saturating_sub(at_start),
        )
    }

    /// Notes the kills of an incident and watches the owner of its limit from then on.
    pub(super) fn saw(&mut self, incident: &Incident, owner: Option<&[u8]>) {
        self.count(&incident.victims);
        // In a group kill the kernel counts the chosen victim twice.
        let counted = incident
            .victims
            .iter()
            .filter(|victim| counts(victim))
            .count();
        let listed = u64::try_from(counted).unwrap_or(u64::MAX);
        let more = incident.kernel_kills.saturating_sub(listed);
        if let Some(first) = incident.victims.first() {
            let path = first.cgroup.path(0);
            for (owner, counted) in &mut self.owners {
                counted.seen += if is_ancestor(owner, &path) { more } else { 0 };
            }
        }
        let Some(owner) = owner else { return };
        if !self.owners.contains_key(owner) {
            if self.owners.len() >= MAX_OWNERS {
                let oldest = self
                    .owners
                    .iter()
                    .min_by_key(|(_, o)| o.order)
                    .map(|(path, _)| path.clone());
                oldest.and_then(|path| self.owners.remove(&path));
            }
            let entry = Owner {
                files: None,
                compared: None,
                seen: 0,
                order: incident.number,
            };
            self.owners.insert(owner.to_owned(), entry);
        } else if let Some(entry) = self.owners.get_mut(owner) {
            entry.order = incident.number;
        }
    }

    /// Notes victims that became known after [`Self::saw`].
    pub(super) fn saw_late(&mut self, incident: &Incident) {
        self.count(incident.victims.get(incident.on_time..).unwrap_or_default());
    }

    fn count(&mut self, victims: &[Victim]) {
        for victim in victims.iter().filter(|victim| counts(victim)) {
            let path = victim.cgroup.path(0);
            for (owner, counted) in &mut self.owners {
                counted.seen += u64::from(is_ancestor(owner, &path));
            }
        }
    }

    /// Compares, if nothing is in flight.
    pub(super) fn check(
        &mut self,
        seen: u64,
        quiet: bool,
        collector: &Collector,
        context: &Context,
    ) -> Vec<Gap> {
        let mut gaps = Vec::new();
        if !quiet {
            return gaps;
        }
        let now = clock::boot_ns();
        let gap = |counter: String, (expected, seen, since): (u64, u64, u64)| Gap {
            counter,
            expected,
            seen,
            missing: expected.saturating_sub(seen),
            since: Some(context.time(since)),
        };
        if let (Some(node), Some(kernel)) = (&mut self.node, self.vmstat.as_mut().and_then(read))
            && let Some(found) = node.check(kernel, seen, now)
        {
            gaps.push(gap("/proc/vmstat oom_kill".to_owned(), found));
        }
        self.owners.retain(|path, owner| {
            if owner.files.is_none() {
                owner.files = collector
                    .directory(path)
                    .and_then(|dir| MemcgFiles::open(&dir, Version::of(&dir)?).ok());
            }
            // v1 counts a kill at the victim's own cgroup only: nothing to compare at the owner.
            let Some(Ok(Events::V2 { total, .. })) = owner.files.as_mut().map(MemcgFiles::events)
            else {
                return false;
            };
            let Some(kernel) = total.oom_kill else {
                return false;
            };
            let compared = owner
                .compared
                .get_or_insert(Compared::new(kernel, owner.seen, now));
            if let Some(found) = compared.check(kernel, owner.seen, now) {
                gaps.push(gap(format!("{}/memory.events oom_kill", text(path)), found));
            }
            true
        });
        gaps
    }
}

/// Whether the kernel counts it as an OOM kill.
fn counts(victim: &Victim) -> bool {
    victim.killed_boot_ns.is_some() && matches!(victim.role, Role::Chosen | Role::Group)
}

fn read(vmstat: &mut Vmstat) -> Option<u64> {
    vmstat.refresh().ok()?;
    vmstat.oom_kill()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compared() -> Compared {
        Compared::new(10, 0, 1)
    }

    #[test]
    fn agreement_moves_the_base() {
        let mut it = compared();
        assert_eq!(it.check(12, 2, 5), None);
        assert_eq!((it.kernel, it.seen, it.since_boot_ns), (12, 2, 5));
    }

    #[test]
    fn a_kill_in_flight_is_no_gap() {
        let mut it = compared();
        assert_eq!(it.check(11, 0, 5), None);
        assert_eq!(it.check(11, 1, 6), None);
        assert_eq!(it.check(11, 1, 7), None);
    }

    #[test]
    fn a_difference_that_stays_is_reported_once() {
        let mut it = compared();
        assert_eq!(it.check(13, 1, 5), None);
        assert_eq!(it.check(13, 1, 6), Some((3, 1, 1)));
        assert_eq!(it.check(13, 1, 7), None);
        assert_eq!(it.check(13, 1, 8), None);
    }

    /// In a burst some kill is in flight at every check, but never the same.
    #[test]
    fn a_burst_is_no_gap() {
        let mut it = compared();
        for round in 1..100 {
            assert_eq!(it.check(10 + 7 * round, 7 * round - 1, round), None);
        }
        assert_eq!(
            it.check(10 + 7 * 99, 7 * 99 - 1, 100),
            Some((7 * 99, 7 * 99 - 1, 1))
        );
    }

    #[test]
    fn ours_ahead_hides_no_later_gap() {
        let mut it = compared();
        assert_eq!(it.check(10, 1, 5), None);
        assert_eq!(it.check(10, 1, 6), None);
        assert_eq!(it.check(11, 1, 7), None);
        assert_eq!(it.check(11, 1, 8), Some((1, 0, 6)));
    }

    #[test]
    fn ours_ahead_waits_for_the_kernel() {
        let mut it = compared();
        assert_eq!(it.check(10, 1, 5), None);
        assert_eq!(it.check(11, 1, 6), None);
        assert_eq!((it.kernel, it.seen), (11, 1));
    }
}
