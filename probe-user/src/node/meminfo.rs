//! `/proc/meminfo` (Documentation/filesystems/proc.rst).

use std::path::Path;

use super::text::{self, Error, ParseError, TextFile};

macro_rules! meminfo {
    ($($(#[$doc:meta])* $field:ident = $key:literal * $unit:literal),* $(,)?) => {
        /// Memory of the node. Sizes in bytes, huge page counts in pages; `None` where the kernel
        /// does not print the line.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Meminfo {
            $($(#[$doc])* pub $field: Option<u64>,)*
        }

        impl Meminfo {
            fn set(&mut self, key: &[u8], value: u64) {
                $(if key == $key.as_bytes() {
                    self.$field = value.checked_mul($unit);
                })*
            }
        }
    };
}

meminfo! {
    /// RAM the kernel manages.
    total_bytes = "MemTotal" * 1024,
    /// Not used for anything.
    free_bytes = "MemFree" * 1024,
    /// Estimate of what new processes could get without swapping.
    available_bytes = "MemAvailable" * 1024,
    /// Block device caches.
    buffers_bytes = "Buffers" * 1024,
    /// Page cache, tmpfs included, swap cache not.
    cached_bytes = "Cached" * 1024,
    /// In memory and in swap.
    swap_cached_bytes = "SwapCached" * 1024,
    /// Pages of processes, page cache and tmpfs that were used lately.
    active_bytes = "Active" * 1024,
    /// The same that were not.
    inactive_bytes = "Inactive" * 1024,
    /// Cannot be reclaimed.
    unevictable_bytes = "Unevictable" * 1024,
    /// Locked by `mlock`.
    mlocked_bytes = "Mlocked" * 1024,
    /// Swap space.
    swap_total_bytes = "SwapTotal" * 1024,
    /// Swap space not used.
    swap_free_bytes = "SwapFree" * 1024,
    /// Memory that holds compressed swap (5.19).
    zswap_bytes = "Zswap" * 1024,
    /// What that memory would be uncompressed (5.19).
    zswapped_bytes = "Zswapped" * 1024,
    /// Waiting to be written back.
    dirty_bytes = "Dirty" * 1024,
    /// Being written back.
    writeback_bytes = "Writeback" * 1024,
    /// Anonymous pages that are mapped.
    anon_bytes = "AnonPages" * 1024,
    /// Files that are mapped.
    mapped_bytes = "Mapped" * 1024,
    /// tmpfs and shared memory.
    shmem_bytes = "Shmem" * 1024,
    /// Slab and other kernel memory that shrinks under pressure (4.20).
    kernel_reclaimable_bytes = "KReclaimable" * 1024,
    /// Slab: [`Self::slab_reclaimable_bytes`] and [`Self::slab_unreclaimable_bytes`].
    slab_bytes = "Slab" * 1024,
    /// Slab that shrinks under pressure.
    slab_reclaimable_bytes = "SReclaimable" * 1024,
    /// Slab that does not.
    slab_unreclaimable_bytes = "SUnreclaim" * 1024,
    /// Kernel stacks.
    kernel_stack_bytes = "KernelStack" * 1024,
    /// Page tables of processes.
    page_tables_bytes = "PageTables" * 1024,
    /// Page tables of KVM and IOMMU (6.1).
    sec_page_tables_bytes = "SecPageTables" * 1024,
    /// Most that may be committed under strict overcommit.
    commit_limit_bytes = "CommitLimit" * 1024,
    /// Promised to processes, used or not.
    committed_bytes = "Committed_AS" * 1024,
    /// vmalloc areas that are in use.
    vmalloc_used_bytes = "VmallocUsed" * 1024,
    /// Per-CPU allocations.
    percpu_bytes = "Percpu" * 1024,
    /// Buffers for devices that reach low addresses only.
    bounce_bytes = "Bounce" * 1024,
    /// In use by GPU drivers (7.0).
    gpu_active_bytes = "GPUActive" * 1024,
    /// Kept by GPU drivers, given back under pressure (7.0).
    gpu_reclaim_bytes = "GPUReclaim" * 1024,
    /// Known to be broken.
    hardware_corrupted_bytes = "HardwareCorrupted" * 1024,
    /// Taken by the hypervisor (6.16).
    balloon_bytes = "Balloon" * 1024,
    /// Transparent huge pages.
    anon_huge_pages_bytes = "AnonHugePages" * 1024,
    /// Huge pages of the default size in the pool.
    huge_pages_total = "HugePages_Total" * 1,
    /// Of those, not allocated.
    huge_pages_free = "HugePages_Free" * 1,
    /// Of those, promised.
    huge_pages_reserved = "HugePages_Rsvd" * 1,
    /// Size of a huge page.
    huge_page_size_bytes = "Hugepagesize" * 1024,
    /// Huge pages of all sizes.
    hugetlb_bytes = "Hugetlb" * 1024,
}

impl Meminfo {
    /// Parses the content of the file. Unknown lines are passed over.
    pub fn parse(content: &[u8]) -> Result<Self, ParseError> {
        let mut meminfo = Self::default();
        for (line, content) in text::lines(content) {
            let (key, value) = text::cut(content, b":")
                .and_then(|(key, rest)| {
                    let number = rest.strip_suffix(b"kB").unwrap_or(rest);
                    Some((key, text::decimal(number)?))
                })
                .ok_or(ParseError {
                    line,
                    expected: "\"Key: number [kB]\"",
                })?;
            meminfo.set(key, value);
        }
        Ok(meminfo)
    }

    /// Reads `<proc>/meminfo` once.
    pub fn read(proc: &Path) -> Result<Self, Error> {
        text::parse_file(proc.join("meminfo"), &mut Vec::new(), Self::parse)
    }

    /// Swap space in use.
    pub fn swap_used_bytes(&self) -> Option<u64> {
        self.swap_total_bytes?.checked_sub(self.swap_free_bytes?)
    }
}

/// `/proc/meminfo` kept open.
#[derive(Debug)]
pub struct MeminfoFile {
    file: TextFile,
    buf: Vec<u8>,
}

impl MeminfoFile {
    /// Opens `<proc>/meminfo`.
    pub fn open(proc: &Path) -> Result<Self, Error> {
        Ok(Self {
            file: TextFile::open(proc.join("meminfo"))?,
            buf: Vec::with_capacity(text::BUFFER_LEN),
        })
    }

    /// Reads the present values.
    pub fn read(&mut self) -> Result<Meminfo, Error> {
        self.file.parse(&mut self.buf, Meminfo::parse)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_this_machine() {
        let mut file = MeminfoFile::open(Path::new("/proc")).unwrap();
        for _ in 0..2 {
            let meminfo = file.read().unwrap();
            let total = meminfo.total_bytes.unwrap();
            assert!(total > 64 << 20);
            assert!(meminfo.available_bytes.unwrap() < total);
            assert_eq!(
                meminfo.slab_bytes.unwrap(),
                meminfo.slab_reclaimable_bytes.unwrap() + meminfo.slab_unreclaimable_bytes.unwrap()
            );
            assert!(meminfo.swap_used_bytes().is_some());
        }
    }

    #[test]
    fn kilobytes_become_bytes_and_counts_stay_counts() {
        let meminfo = Meminfo::parse(
            b"MemTotal:       24682416 kB\nActive(anon):       1600 kB\nHugePages_Total:       7\n",
        )
        .unwrap();
        assert_eq!(meminfo.total_bytes, Some(24_682_416 << 10));
        assert_eq!(meminfo.huge_pages_total, Some(7));
        assert_eq!(meminfo.available_bytes, None);
        assert_eq!(meminfo.swap_used_bytes(), None);
    }

    #[test]
    fn a_broken_line_is_named() {
        let error = Meminfo::parse(b"MemTotal: 1 kB\nMemFree: 2 MB\n").unwrap_err();
        assert_eq!(error.line, 2);
    }
}
