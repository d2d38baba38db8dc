//! Compares what was seen with what the kernel counted: a gap is an event.

use std::collections::BTreeMap;

use crate::{
    event::{Gap, text},
    incident::{
        assemble::{Incident, Role},
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
    /// They disagreed at the last check too: it is not a kill in flight.
    suspicious: bool,
}

impl Compared {
    /// Compares; a difference that stays for two checks is a gap, and the new base.
    fn check(&mut self, kernel: u64, seen: u64, now: u64) -> Option<(u64, u64, u64)> {
        let expected = kernel.saturating_sub(self.kernel);
        let ours = seen.saturating_sub(self.seen);
        if expected <= ours {
            // Ours may run ahead by one: the signal comes before the kernel counts.
            if expected == ours {
                *self = Self {
                    kernel,
                    seen,
                    since_boot_ns: now,
                    suspicious: false,
                };
            }
            return None;
        }
        if !self.suspicious {
            self.suspicious = true;
            return None;
        }
        let since = self.since_boot_ns;
        *self = Self {
            kernel,
            seen,
            since_boot_ns: now,
            suspicious: false,
        };
        Some((expected, ours, since))
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
            node: kernel.map(|kernel| Compared {
                kernel,
                seen: 0,
                since_boot_ns: now,
                suspicious: false,
            }),
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
        for victim in incident
            .victims
            .iter()
            .filter(|v| v.killed_boot_ns.is_some())
        {
            if matches!(victim.role, Role::Chosen | Role::Group) {
                let path = victim.cgroup.path(0);
                for (owner, counted) in &mut self.owners {
                    counted.seen += u64::from(is_ancestor(owner, &path));
                }
            }
        }
        // In a group kill the kernel counts the chosen victim twice.
        let twice = incident.kernel_kills.saturating_sub(
            incident
                .victims
                .iter()
                .filter(|v| v.killed_boot_ns.is_some() && v.role != Role::SharesMm)
                .count()
                .try_into()
                .unwrap_or(0),
        );
        if let Some(first) = incident.victims.first() {
            let path = first.cgroup.path(0);
            for (owner, counted) in &mut self.owners {
                counted.seen += if is_ancestor(owner, &path) { twice } else { 0 };
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
        if let (Some(node), Some(kernel)) = (&mut self.node, self.vmstat.as_mut().and_then(read)) {
            if let Some(found) = node.check(kernel, seen, now) {
                gaps.push(gap("/proc/vmstat oom_kill".to_owned(), found));
            }
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
            let compared = owner.compared.get_or_insert(Compared {
                kernel,
                seen: owner.seen,
                since_boot_ns: now,
                suspicious: false,
            });
            if let Some(found) = compared.check(kernel, owner.seen, now) {
                gaps.push(gap(format!("{}/memory.events oom_kill", text(path)), found));
            }
            true
        });
        gaps
    }
}

fn read(vmstat: &mut Vmstat) -> Option<u64> {
    vmstat.refresh().ok()?;
    vmstat.oom_kill()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compared() -> Compared {
        Compared {
            kernel: 10,
            seen: 0,
            since_boot_ns: 1,
            suspicious: false,
        }
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

    #[test]
    fn ours_ahead_waits_for_the_kernel() {
        let mut it = compared();
        assert_eq!(it.check(10, 1, 5), None);
        assert_eq!(it.check(11, 1, 6), None);
        assert_eq!((it.kernel, it.seen), (11, 1));
    }
}
