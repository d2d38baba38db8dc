//! `memory.stat`: what the memory charged to a cgroup consists of.
//!
//! Keys: Documentation/admin-guide/cgroup-v2.rst "memory.stat" and
//! Documentation/admin-guide/cgroup-v1/memory.rst "stat file".

use super::super::text::{self, ParseError};
use super::Version;

/// Fields with the key that each version has for them, `""` for none: no key is empty.
macro_rules! memory_stat {
    ($($(#[$doc:meta])* $field:ident: v2 $v2:literal, v1 $v1:literal;)*) => {
        /// The parts of a cgroup's memory, its descendants included, in bytes. `None` where the
        /// kernel does not print the key.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct MemoryStat {
            /// Whose keys these are.
            pub version: Version,
            $($(#[$doc])* pub $field: Option<u64>,)*
        }

        impl MemoryStat {
            /// Nothing known.
            pub const fn empty(version: Version) -> Self {
                Self { version, $($field: None,)* }
            }

            /// Takes one `key value` pair; keys that are not a part of memory are passed over.
            pub(in super::super) fn set(&mut self, key: &[u8], value: u64) {
                match self.version {
                    Version::V2 => { $(if key == $v2.as_bytes() { self.$field = Some(value); })* }
                    Version::V1 => { $(if key == $v1.as_bytes() { self.$field = Some(value); })* }
                }
            }
        }
    };
}

memory_stat! {
    /// Anonymous memory that is mapped, transparent huge pages included.
    anon_bytes: v2 "anon", v1 "total_rss";
    /// Page cache: [`Self::shmem_bytes`] and [`Self::swap_cached_bytes`] included.
    file_bytes: v2 "file", v1 "total_cache";
    /// tmpfs, shared memory, shared anonymous mappings.
    shmem_bytes: v2 "shmem", v1 "total_shmem";
    /// Files that are mapped.
    file_mapped_bytes: v2 "file_mapped", v1 "total_mapped_file";
    /// Files waiting to be written back.
    file_dirty_bytes: v2 "file_dirty", v1 "total_dirty";
    /// Files being written back.
    file_writeback_bytes: v2 "file_writeback", v1 "total_writeback";
    /// Page cache that is given up first; usage less this is the working set.
    inactive_file_bytes: v2 "inactive_file", v1 "total_inactive_file";
    /// Both in memory and in swap (5.12; v1: 6.5).
    swap_cached_bytes: v2 "swapcached", v1 "total_swapcached";
    /// All kernel memory but sockets (5.18); on v1 `memory.kmem.usage_in_bytes`, which is not part
    /// of `memory.stat`.
    kernel_bytes: v2 "kernel", v1 "";
    /// Kernel stacks.
    kernel_stack_bytes: v2 "kernel_stack", v1 "";
    /// Page tables of processes (5.11).
    page_tables_bytes: v2 "pagetables", v1 "";
    /// Page tables of KVM and IOMMU (6.1).
    sec_page_tables_bytes: v2 "sec_pagetables", v1 "";
    /// Per-CPU allocations.
    percpu_bytes: v2 "percpu", v1 "";
    /// Socket buffers; on v1 `memory.kmem.tcp.usage_in_bytes`, which has a counter of its own and
    /// is not charged to `memory.usage_in_bytes`.
    sock_bytes: v2 "sock", v1 "";
    /// vmalloc areas (5.16).
    vmalloc_bytes: v2 "vmalloc", v1 "";
    /// Slab that shrinks under pressure: dentries, inodes.
    slab_reclaimable_bytes: v2 "slab_reclaimable", v1 "";
    /// Slab that does not.
    slab_unreclaimable_bytes: v2 "slab_unreclaimable", v1 "";
    /// Memory that holds compressed swap; part of [`Self::kernel_bytes`] (5.19).
    zswap_bytes: v2 "zswap", v1 "";
    /// Huge pages, where the mount option `memory_hugetlb_accounting` charges them (6.12).
    hugetlb_bytes: v2 "hugetlb", v1 "";
    /// In swap (v1; `memory.swap.current` on v2). Not part of usage.
    swap_bytes: v2 "", v1 "total_swap";
}

impl MemoryStat {
    /// Parses the content of `memory.stat`.
    pub fn parse(version: Version, content: &[u8]) -> Result<Self, ParseError> {
        let mut stat = Self::empty(version);
        text::flat_keyed(content, |key, value| stat.set(key, value))?;
        Ok(stat)
    }

    /// Slab of both sorts.
    pub fn slab_bytes(&self) -> Option<u64> {
        self.slab_reclaimable_bytes?
            .checked_add(self.slab_unreclaimable_bytes?)
    }

    /// Sum of the kernel memory that is told by kind, without sockets.
    fn kernel_parts_bytes(&self) -> u64 {
        sum(&[
            self.kernel_stack_bytes,
            self.page_tables_bytes,
            self.sec_page_tables_bytes,
            self.percpu_bytes,
            self.vmalloc_bytes,
            self.slab_reclaimable_bytes,
            self.slab_unreclaimable_bytes,
            self.zswap_bytes,
        ])
    }

    /// Kernel memory that is not told by kind: page allocations of drivers, BPF, pipes, …
    /// `None` before 5.18 and on v1, where the total or the parts are not known.
    pub fn kernel_other_bytes(&self) -> Option<u64> {
        match self.version {
            Version::V2 => Some(self.kernel_bytes?.saturating_sub(self.kernel_parts_bytes())),
            Version::V1 => None,
        }
    }

    /// What the parts add up to, each byte counted once:
    /// anon + (file − swap cache) + kernel + sock + hugetlb.
    ///
    /// - `file` includes `shmem`, and everything `file_*` is a view on it.
    /// - A page of the swap cache is counted in `file` and, while mapped, in `anon` too; the
    ///   kernel does not tell how many are mapped, so `file`'s share is left out.
    /// - `kernel` includes stacks, page tables, percpu, vmalloc, slab and zswap. Before 5.18 they
    ///   are added up; on 5.10 page tables, vmalloc and all other kernel pages have no key and
    ///   stay unexplained.
    /// - On v1 sockets are not charged to the memory counter.
    pub fn explained_bytes(&self) -> u64 {
        let file = self
            .file_bytes
            .unwrap_or(0)
            .saturating_sub(self.swap_cached_bytes.unwrap_or(0));
        let kernel = self
            .kernel_bytes
            .unwrap_or_else(|| self.kernel_parts_bytes());
        let sock = match self.version {
            Version::V2 => self.sock_bytes,
            Version::V1 => None,
        };
        sum(&[
            self.anon_bytes,
            Some(file),
            Some(kernel),
            sock,
            self.hugetlb_bytes,
        ])
    }

    /// `usage_bytes` (`memory.current`, `memory.usage_in_bytes`) less [`Self::explained_bytes`].
    ///
    /// A healthy cgroup has a small rest: each CPU charges 64 pages ahead. It is negative if the
    /// statistics were read later than the usage and memory grew in between.
    pub fn unexplained_bytes(&self, usage_bytes: u64) -> i64 {
        let rest = i128::from(usage_bytes) - i128::from(self.explained_bytes());
        i64::try_from(rest).unwrap_or(if rest < 0 { i64::MIN } else { i64::MAX })
    }
}

fn sum(parts: &[Option<u64>]) -> u64 {
    parts
        .iter()
        .flatten()
        .fold(0, |total, &part| total.saturating_add(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys of mm/memcontrol.c as 5.10 prints them: no `kernel`, `pagetables`, `vmalloc`.
    const V5_10: &str = "anon 10000000\nfile 2000000\nkernel_stack 16384\npercpu 4096\nsock 8192\n\
        shmem 500000\nfile_mapped 100000\nfile_dirty 4096\nfile_writeback 0\nanon_thp 2097152\n\
        inactive_anon 9000000\nactive_anon 1500000\ninactive_file 1000000\nactive_file 500000\n\
        unevictable 0\nslab_reclaimable 300000\nslab_unreclaimable 200000\nslab 500000\n\
        workingset_refault_anon 0\nworkingset_refault_file 7\npgfault 4000\npgmajfault 1\n";

    const V6_1: &str = "anon 10000000\nfile 2000000\nkernel 900000\nkernel_stack 16384\n\
        pagetables 40960\nsec_pagetables 0\npercpu 4096\nsock 8192\nvmalloc 12288\nshmem 500000\n\
        zswap 100000\nzswapped 400000\nfile_mapped 100000\nfile_dirty 4096\nfile_writeback 0\n\
        swapcached 8192\nanon_thp 2097152\nfile_thp 0\nshmem_thp 0\ninactive_anon 9000000\n\
        active_anon 1500000\ninactive_file 1000000\nactive_file 500000\nunevictable 0\n\
        slab_reclaimable 300000\nslab_unreclaimable 200000\nslab 500000\npgfault 4000\n";

    /// 6.12 and later: `hugetlb` where the mount option accounts it, more counters.
    const V6_12_HUGETLB: &str = "anon 10000000\nfile 2000000\nkernel 900000\nkernel_stack 16384\n\
        pagetables 40960\nsec_pagetables 0\npercpu 4096\nsock 8192\nvmalloc 12288\nshmem 500000\n\
        zswap 0\nzswapped 0\nfile_mapped 100000\nfile_dirty 4096\nfile_writeback 0\nswapcached 0\n\
        slab_reclaimable 300000\nslab_unreclaimable 200000\nhugetlb 2097152\nslab 500000\n\
        workingset_refault_anon 0\npgdemote_kswapd 0\npswpin 0\nzswpin 0\nthp_swpout 0\n";

    /// 7.x adds `zswap_incomp` and more events, and renames nothing.
    const V7: &str = "anon 10000000\nfile 2000000\nkernel 900000\nkernel_stack 16384\n\
        pagetables 40960\nsec_pagetables 0\npercpu 4096\nsock 8192\nvmalloc 12288\nshmem 500000\n\
        zswap 100000\nzswapped 400000\nzswap_incomp 4096\nfile_mapped 100000\nfile_dirty 4096\n\
        file_writeback 0\nswapcached 8192\nslab_reclaimable 300000\nslab_unreclaimable 200000\n\
        slab 500000\npgdemote_proactive 0\npgsteal_proactive 0\nnuma_task_migrated 0\n";

    fn v2(content: &str) -> MemoryStat {
        MemoryStat::parse(Version::V2, content.as_bytes()).unwrap()
    }

    #[test]
    fn v5_10_adds_up_the_parts_it_has() {
        let stat = v2(V5_10);
        assert_eq!(stat.kernel_bytes, None);
        assert_eq!(stat.page_tables_bytes, None);
        assert_eq!(stat.kernel_other_bytes(), None);
        let explained = 10_000_000 + 2_000_000 + 16384 + 4096 + 500_000 + 8192;
        assert_eq!(stat.explained_bytes(), explained);
        assert_eq!(stat.unexplained_bytes(explained + 40960), 40960);
    }

    #[test]
    fn kernel_is_the_total_where_there_is_one() {
        for content in [V6_1, V7] {
            let stat = v2(content);
            // Neither slab, zswap, vmalloc, shmem nor the swap cache is counted twice.
            let explained = 10_000_000 + (2_000_000 - 8192) + 900_000 + 8192;
            assert_eq!(stat.explained_bytes(), explained);
            let parts = 16384 + 40960 + 4096 + 12288 + 500_000 + 100_000;
            assert_eq!(stat.kernel_other_bytes(), Some(900_000 - parts));
            assert_eq!(stat.slab_bytes(), Some(500_000));
        }
    }

    #[test]
    fn real_files_leave_a_small_rest() {
        // A cgroup with a sleeping process and a file in tmpfs, in guests with one CPU.
        let guests = [
            (7_417_856, include_str!("testdata/v2-5.10.stat")),
            (7_516_160, include_str!("testdata/v2-6.1.stat")),
            (7_483_392, include_str!("testdata/v2-6.12.stat")),
            (7_639_040, include_str!("testdata/v2-7.3.stat")),
        ];
        for (usage, content) in guests {
            let stat = v2(content);
            assert!(stat.anon_bytes.unwrap() >= 5 << 20);
            assert_eq!(stat.shmem_bytes, stat.file_bytes);
            let rest = stat.unexplained_bytes(usage);
            let charged_ahead = 64 * 4096;
            assert!((0..=charged_ahead).contains(&rest), "{rest}");
        }
    }

    #[test]
    fn hugetlb_is_a_part_of_its_own() {
        let explained = 10_000_000 + 2_000_000 + 900_000 + 8192 + 2_097_152;
        assert_eq!(v2(V6_12_HUGETLB).explained_bytes(), explained);
    }

    #[test]
    fn v1_takes_the_hierarchical_keys_and_leaves_sockets_out() {
        let content = b"cache 1\nrss 2\nshmem 3\nswap 4\nhierarchical_memory_limit 20971520\n\
            total_cache 4096\ntotal_rss 20860928\ntotal_shmem 0\ntotal_mapped_file 0\n\
            total_swap 8192\ntotal_swapcached 0\n";
        let mut stat = MemoryStat::parse(Version::V1, content).unwrap();
        assert_eq!(stat.anon_bytes, Some(20_860_928));
        assert_eq!(stat.swap_bytes, Some(8192));
        assert_eq!(stat.kernel_bytes, None);
        stat.kernel_bytes = Some(110_592);
        stat.sock_bytes = Some(1 << 20);
        assert_eq!(stat.explained_bytes(), 4096 + 20_860_928 + 110_592);
        assert_eq!(stat.kernel_other_bytes(), None);
        assert_eq!(stat.unexplained_bytes(20_971_520), -4096);
    }

    #[test]
    fn extremes_do_not_overflow() {
        let content = format!("anon {0}\nfile {0}\nkernel {0}\n", u64::MAX);
        let stat = v2(&content);
        assert_eq!(stat.explained_bytes(), u64::MAX);
        assert_eq!(stat.unexplained_bytes(0), i64::MIN);
        let nothing = MemoryStat::empty(Version::V2);
        assert_eq!(nothing.unexplained_bytes(u64::MAX), i64::MAX);
    }
}
