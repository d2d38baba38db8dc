//! All memory of the node against what the kernel's counters name.

use std::path::Path;

use crate::event::{KernelBalance, SlabCache, text};
use crate::node::meminfo::Meminfo;
use crate::node::vmstat::Vmstat;
use crate::node::{slabinfo, vmallocinfo, zoneinfo};

/// Pages per processor by which the counters may be off: LRU batches not yet on their lists
/// (`PAGEVEC_SIZE` 31, six lists), and changes of the counters themselves that a processor keeps to
/// itself (`stat_threshold` 125, some ten counters).
const NOISE_PAGES_PER_CPU: u64 = 6 * 31 + 10 * 125;

/// What `/proc/meminfo` does not tell.
#[derive(Clone, Copy, Debug, Default)]
pub struct Beside {
    /// Bytes of a page.
    pub page_bytes: u64,
    /// Processors.
    pub cpus: u64,
    /// Free pages on lists of processors.
    pub per_cpu_pages: Option<u64>,
    /// `nr_zspages`: pages of zsmalloc, which zram and zswap store into.
    pub zspages: Option<u64>,
    /// `nr_memmap_pages`.
    pub memmap_pages: Option<u64>,
    /// Bytes that `VmallocUsed` and `KernelStack` both count.
    pub vmapped_stack_bytes: u64,
}

impl Beside {
    /// Reads all of it at once: some milliseconds, as the kernel counts through all its zones and
    /// areas. What cannot be read counts as nothing.
    pub fn read_all(proc: &Path, sys: &Path) -> Self {
        Self::read(
            sys,
            Vmstat::open(proc).ok().as_ref(),
            zoneinfo::per_cpu_pages(proc).ok(),
            &vmallocinfo::read(proc).unwrap_or_default(),
        )
    }

    /// Puts readings together.
    pub fn read(
        sys: &Path,
        vmstat: Option<&Vmstat>,
        per_cpu_pages: Option<u64>,
        areas: &[vmallocinfo::Holder],
    ) -> Self {
        let cpus = crate::node::host::possible_cpus(sys).unwrap_or(1);
        Self {
            page_bytes: rustix::param::page_size() as u64,
            cpus: cpus as u64,
            per_cpu_pages,
            zspages: vmstat.and_then(|vmstat| vmstat.get("nr_zspages")),
            memmap_pages: vmstat.and_then(|vmstat| vmstat.get("nr_memmap_pages")),
            vmapped_stack_bytes: vmallocinfo::stack_bytes(areas),
        }
    }
}

/// The balance; `None` without the counters that make up most of it.
pub fn of(meminfo: &Meminfo, beside: &Beside) -> Option<KernelBalance> {
    let pages = |count: Option<u64>| count.map(|count| count.saturating_mul(beside.page_bytes));
    let lru = [
        meminfo.active_bytes?,
        meminfo.inactive_bytes?,
        meminfo.unevictable_bytes?,
    ];
    let kernel_stack_bytes = meminfo.kernel_stack_bytes?;
    let vmalloc_bytes = meminfo
        .vmalloc_used_bytes
        .unwrap_or(0)
        .saturating_sub(beside.vmapped_stack_bytes.min(kernel_stack_bytes));
    let misc_reclaimable_bytes = meminfo
        .kernel_reclaimable_bytes
        .zip(meminfo.slab_reclaimable_bytes)
        .map(|(all, slab)| all.saturating_sub(slab));
    // zswap's own count includes what it keeps in zsmalloc.
    let compressed_bytes = pages(beside.zspages).max(meminfo.zswap_bytes);
    let gpu_bytes = match (meminfo.gpu_active_bytes, meminfo.gpu_reclaim_bytes) {
        (None, None) => None,
        (active, reclaim) => Some(active.unwrap_or(0).saturating_add(reclaim.unwrap_or(0))),
    };
    let mut balance = KernelBalance {
        total_bytes: meminfo.total_bytes?,
        free_bytes: meminfo.free_bytes?,
        per_cpu_free_bytes: pages(beside.per_cpu_pages),
        lru_bytes: lru.iter().fold(0, |sum, part| sum.saturating_add(*part)),
        slab_bytes: meminfo.slab_bytes?,
        misc_reclaimable_bytes,
        kernel_stack_bytes,
        page_tables_bytes: meminfo.page_tables_bytes?,
        sec_page_tables_bytes: meminfo.sec_page_tables_bytes,
        percpu_bytes: meminfo.percpu_bytes,
        vmalloc_bytes,
        hugetlb_bytes: meminfo.hugetlb_bytes,
        compressed_bytes,
        gpu_bytes,
        memmap_bytes: pages(beside.memmap_pages),
        bounce_bytes: meminfo.bounce_bytes,
        balloon_bytes: meminfo.balloon_bytes,
        unaccounted_bytes: 0,
        noise_bytes: (beside.cpus * NOISE_PAGES_PER_CPU).saturating_mul(beside.page_bytes),
    };
    let rest = i128::from(balance.total_bytes) - i128::from(named(&balance));
    balance.unaccounted_bytes =
        i64::try_from(rest).unwrap_or(if rest < 0 { i64::MIN } else { i64::MAX });
    Some(balance)
}

/// A cache as events tell of it.
pub fn slab_cache(cache: &slabinfo::Cache) -> SlabCache {
    SlabCache {
        name: text(&cache.name),
        bytes: cache.bytes,
        objects: cache.objects,
    }
}

/// All that a counter names.
fn named(balance: &KernelBalance) -> u64 {
    let known = [
        balance.free_bytes,
        balance.lru_bytes,
        balance.slab_bytes,
        balance.kernel_stack_bytes,
        balance.page_tables_bytes,
        balance.vmalloc_bytes,
    ];
    let told = [
        balance.per_cpu_free_bytes,
        balance.misc_reclaimable_bytes,
        balance.sec_page_tables_bytes,
        balance.percpu_bytes,
        balance.hugetlb_bytes,
        balance.compressed_bytes,
        balance.gpu_bytes,
        balance.memmap_bytes,
        balance.bounce_bytes,
    ];
    known
        .into_iter()
        .chain(told.into_iter().flatten())
        .fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal: 1000 kB\nMemFree: 400 kB\nActive: 100 kB\nInactive: 50 kB\n\
        Unevictable: 10 kB\nKReclaimable: 70 kB\nSlab: 110 kB\nSReclaimable: 60 kB\n\
        SUnreclaim: 50 kB\nKernelStack: 16 kB\nPageTables: 14 kB\nVmallocUsed: 40 kB\n\
        Percpu: 20 kB\nHugetlb: 100 kB\nZswap: 8 kB\n";

    fn balance(text: &str, beside: &Beside) -> Option<KernelBalance> {
        of(&Meminfo::parse(text.as_bytes()).unwrap(), beside)
    }

    #[test]
    fn each_byte_is_counted_once() {
        let beside = Beside {
            page_bytes: 4096,
            cpus: 2,
            per_cpu_pages: Some(5),
            zspages: Some(1),
            memmap_pages: None,
            vmapped_stack_bytes: 16 << 10,
        };
        let balance = balance(MEMINFO, &beside).unwrap();
        // Stacks lie in vmalloc areas, and what zswap counts is stored in zsmalloc.
        let named = 400 + 20 + 160 + 110 + 10 + 16 + 14 + (40 - 16) + 20 + 100 + 8;
        assert_eq!(balance.unaccounted_bytes, (1000 - named) << 10);
        assert_eq!(balance.noise_bytes, 2 * 1436 * 4096);
    }

    #[test]
    fn torn_readings_leave_a_negative_rest_and_missing_ones_none() {
        let torn = MEMINFO.replace("MemTotal: 1000", "MemTotal: 500");
        assert!(
            balance(&torn, &Beside::default())
                .unwrap()
                .unaccounted_bytes
                < 0
        );
        let short = MEMINFO.replace("Slab: 110 kB\n", "");
        assert_eq!(balance(&short, &Beside::default()), None);
    }

    #[test]
    fn this_machine_is_mostly_accounted_for() {
        let meminfo = Meminfo::read(Path::new("/proc")).unwrap();
        let beside = Beside::read_all(Path::new("/proc"), Path::new("/sys"));
        let balance = of(&meminfo, &beside).unwrap();
        let noise = i64::try_from(balance.noise_bytes).unwrap();
        let total = i64::try_from(balance.total_bytes).unwrap();
        assert!(balance.unaccounted_bytes >= -noise, "{balance:?}");
        assert!(balance.unaccounted_bytes < total / 4, "{balance:?}");
    }
}
