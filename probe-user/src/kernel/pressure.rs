//! What the programs count of limit hits and stalls, read from their maps.

use std::collections::BTreeMap;

use aya::{
    Ebpf,
    maps::{HashMap, MapData, MapError, PerCpuArray},
};
use bytemuck::Zeroable as _;
use probe_common::wire::{LimitTotals, StallKey, StallTotals, stall};

use super::loader::{LoadError, map};

/// Kinds of stall that are counted per cgroup.
const KINDS: usize = stall::KSWAPD as usize;

/// Limit hits and stalls of one memory cgroup since oomprobe was attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemcgPressure {
    /// kernfs id.
    pub memcg_id: u64,
    /// Its limit hits; `None` if none was ever seen. With `first_boot_ns` 0 the kernel's counters
    /// are known, but not yet of a new hit.
    pub limit: Option<LimitTotals>,
    /// Its stalls, by [`stall`].
    pub stalls: [StallTotals; KINDS],
}

/// The maps of limit hits and stalls.
pub struct PressureMaps {
    limits: HashMap<MapData, u64, LimitTotals>,
    stalls: HashMap<MapData, StallKey, StallTotals>,
    node: PerCpuArray<MapData, StallTotals>,
}

impl PressureMaps {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, LoadError> {
        Ok(Self {
            limits: map(ebpf, "LIMITS", HashMap::try_from)?,
            stalls: map(ebpf, "STALLS", HashMap::try_from)?,
            node: map(ebpf, "NODE_STALLS", PerCpuArray::try_from)?,
        })
    }

    /// Every memory cgroup that hit its limit or stalled, by id. Some two system calls for each.
    pub fn memcgs(&self) -> Result<Vec<MemcgPressure>, MapError> {
        let mut memcgs = BTreeMap::new();
        let mut of = |id: u64, fill: &mut dyn FnMut(&mut MemcgPressure)| {
            fill(memcgs.entry(id).or_insert(MemcgPressure {
                memcg_id: id,
                limit: None,
                stalls: [StallTotals::zeroed(); KINDS],
            }));
        };
        for entry in &self.limits {
            let (id, totals) = entry?;
            of(id, &mut |memcg| memcg.limit = Some(totals));
        }
        for entry in &self.stalls {
            let (key, totals) = entry?;
            of(key.memcg_id, &mut |memcg| {
                if let Some(stalls) = memcg.stalls.get_mut(key.kind as usize) {
                    *stalls = totals;
                }
            });
        }
        Ok(memcgs.into_values().collect())
    }

    /// One memory cgroup; `None` if it neither hit its limit nor stalled.
    pub fn memcg(&self, memcg_id: u64) -> Result<Option<MemcgPressure>, MapError> {
        let limit = found(self.limits.get(&memcg_id, 0))?;
        let mut stalls = [StallTotals::zeroed(); KINDS];
        let mut any = limit.is_some();
        for (kind, stalls) in (0..).zip(&mut stalls) {
            let key = StallKey {
                memcg_id,
                kind,
                pad: 0,
            };
            if let Some(totals) = found(self.stalls.get(&key, 0))? {
                *stalls = totals;
                any = true;
            }
        }
        Ok(any.then_some(MemcgPressure {
            memcg_id,
            limit,
            stalls,
        }))
    }

    /// Stalls of the whole node, by [`stall`].
    pub fn node(&self) -> Result<[StallTotals; stall::COUNT as usize], MapError> {
        let mut node = [StallTotals::zeroed(); stall::COUNT as usize];
        for (kind, sum) in (0..).zip(&mut node) {
            for cpu in self.node.get(&kind, 0)?.iter() {
                add(sum, cpu);
            }
        }
        Ok(node)
    }

    /// Gives up what is known of a cgroup, so that others have room: for one that was removed.
    pub fn forget(&mut self, memcg_id: u64) {
        // Refused for what was never there.
        let _ = self.limits.remove(&memcg_id);
        for kind in 0..stall::KSWAPD {
            let key = StallKey {
                memcg_id,
                kind,
                pad: 0,
            };
            let _ = self.stalls.remove(&key);
        }
    }
}

fn found<T>(result: Result<T, MapError>) -> Result<Option<T>, MapError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

fn add(sum: &mut StallTotals, other: &StallTotals) {
    sum.total_ns += other.total_ns;
    sum.longest_ns = sum.longest_ns.max(other.longest_ns);
    sum.reclaimed_pages += other.reclaimed_pages;
    for (sum, other) in sum.histogram.iter_mut().zip(other.histogram) {
        *sum += other;
    }
}

/// Stalls counted in `totals`.
pub fn count(totals: &StallTotals) -> u64 {
    totals.histogram.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_added_up() {
        let mut sum = StallTotals::zeroed();
        for (total_ns, longest_ns, bucket) in [(5_000, 3_000, 1), (9_000, 9_000, 3), (400, 400, 0)]
        {
            let mut cpu = StallTotals {
                total_ns,
                longest_ns,
                reclaimed_pages: 7,
                ..StallTotals::zeroed()
            };
            cpu.histogram[bucket] = 2;
            add(&mut sum, &cpu);
        }
        assert_eq!((sum.total_ns, sum.longest_ns), (14_400, 9_000));
        assert_eq!((sum.reclaimed_pages, count(&sum)), (21, 6));
        assert_eq!(sum.histogram[..4], [2, 2, 0, 2]);
    }
}
