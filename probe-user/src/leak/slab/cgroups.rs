//! Kernel memory by the cgroup it is charged to.

use std::collections::HashMap;

use crate::event::CgroupKernelMemory;
use crate::identity::hierarchy::{Hierarchies, Mode};
use crate::node::memcg::{MemoryStat, Version};
use crate::node::text;
use crate::pressure::sample::Detail;
use crate::triage::cgroups::Unit;

use super::caches::{difference, per_second};

/// The `top` cgroups with most kernel memory, by two looks.
pub(super) fn top(
    hierarchies: &Hierarchies,
    first: &[Unit],
    last: &[Unit],
    seconds: f64,
    top: usize,
) -> Vec<CgroupKernelMemory> {
    let before: HashMap<u64, u64> = first
        .iter()
        .filter_map(|unit| Some((unit.id, kernel_bytes(unit.sample.detail.as_ref()?)?)))
        .collect();
    let mut units: Vec<(u64, &Unit)> = last
        .iter()
        .filter_map(|unit| Some((kernel_bytes(unit.sample.detail.as_ref()?)?, unit)))
        .filter(|(bytes, _)| *bytes > 0)
        .collect();
    units.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.path.cmp(&b.1.path)));
    units
        .into_iter()
        .take(top)
        .map(|(bytes, unit)| {
            let stat = stat(hierarchies, unit);
            CgroupKernelMemory {
                cgroup: unit.cgroup(),
                k8s: None,
                container: None,
                kernel_bytes: bytes,
                growth_bytes_per_s: before
                    .get(&unit.id)
                    .map(|then| per_second(difference(bytes, *then), seconds)),
                slab_reclaimable_bytes: stat.slab_reclaimable_bytes,
                slab_unreclaimable_bytes: stat.slab_unreclaimable_bytes,
                percpu_bytes: stat.percpu_bytes,
                vmalloc_bytes: stat.vmalloc_bytes,
                kernel_stack_bytes: stat.kernel_stack_bytes,
                page_tables_bytes: stat.page_tables_bytes,
                sock_bytes: unit.sample.detail.and_then(|detail| detail.sock_bytes),
            }
        })
        .collect()
}

/// All of it, or the parts that kernels without a total tell.
fn kernel_bytes(detail: &Detail) -> Option<u64> {
    detail.kernel_bytes.or_else(|| {
        let slab = [
            detail.slab_reclaimable_bytes,
            detail.slab_unreclaimable_bytes,
        ];
        slab.into_iter().flatten().reduce(u64::saturating_add)
    })
}

/// `memory.stat`; nothing is known of a cgroup that is gone.
fn stat(hierarchies: &Hierarchies, unit: &Unit) -> MemoryStat {
    let version = match hierarchies.mode {
        Mode::Unified => Version::V2,
        Mode::Legacy | Mode::Hybrid => Version::V1,
    };
    let dir = hierarchies.memory.directory(&unit.path);
    let stat = dir.and_then(|dir| {
        text::parse_file(dir.join("memory.stat"), &mut Vec::new(), |content| {
            MemoryStat::parse(version, content)
        })
        .ok()
    });
    stat.unwrap_or(MemoryStat::empty(version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_total_slab_stands_for_kernel_memory() {
        let mut detail = Detail::default();
        assert_eq!(kernel_bytes(&detail), None);
        detail.slab_reclaimable_bytes = Some(3);
        detail.slab_unreclaimable_bytes = Some(4);
        assert_eq!(kernel_bytes(&detail), Some(7));
        detail.kernel_bytes = Some(100);
        assert_eq!(kernel_bytes(&detail), Some(100));
    }
}
