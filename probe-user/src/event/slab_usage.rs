//! `slab_usage`: which kernel caches are big or grow, and where the rest of the kernel's memory is.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Cgroup, Container, Finding, K8s, NotRead};

/// The kernel's own memory over a few seconds: its object caches, what it charges to cgroups, and
/// what no counter of its names. Rates are over those seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SlabUsage {
    /// How long the look took, ms.
    pub duration_ms: u64,
    /// True if there is no finding.
    pub healthy: bool,
    /// What is wrong, most serious first.
    pub findings: Vec<Finding>,
    /// Slab that shrinks under pressure (`SReclaimable`).
    pub slab_reclaimable_bytes: Option<u64>,
    /// Slab that does not (`SUnreclaim`).
    pub slab_unreclaimable_bytes: Option<u64>,
    /// By how much the latter grew, bytes per second; negative if it shrank.
    pub slab_unreclaimable_growth_bytes_per_s: Option<f64>,
    /// The biggest caches, biggest first, then those that grew most.
    pub caches: Vec<SlabCacheUsage>,
    /// How many caches there are.
    pub caches_total: u64,
    /// The cgroups with most kernel memory charged to them, most first.
    pub cgroups: Vec<CgroupKernelMemory>,
    /// All of the node's memory against what the kernel's counters name.
    pub balance: Option<KernelBalance>,
    /// Who holds vmalloc areas, most first. Empty if `/proc/vmallocinfo` cannot be read.
    pub vmalloc: Vec<AllocationSite>,
    /// The kernel's own profile of allocations by place in its code (`/proc/allocinfo`).
    pub profile: AllocationProfile,
    /// Who allocated the objects of a cache, as the kernel tells where `slub_debug=U` is on; most
    /// first.
    pub traces: Vec<SlabTrace>,
    /// What could not be read, so that nothing is said about it.
    pub not_read: Vec<NotRead>,
}

/// One cache.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SlabCacheUsage {
    /// Its name. Caches that the kernel merged go by the name of the first.
    pub name: String,
    /// Other caches whose objects are in it too: the kernel merges caches of like objects. Null if
    /// that is not known.
    pub aliases: Option<Vec<String>>,
    /// True if it shrinks under pressure. Null if that is not known.
    pub reclaimable: Option<bool>,
    /// Bytes of its slabs, free objects included.
    pub bytes: u64,
    /// Objects in use. Free objects that single processors keep count as used.
    pub objects: u64,
    /// Bytes that one object takes, with padding.
    pub object_bytes: u64,
    /// By how much `bytes` grew, bytes per second; negative if it shrank. Null if the cache was made
    /// during the look.
    pub growth_bytes_per_s: Option<f64>,
    /// By how much `objects` grew, per second.
    pub growth_objects_per_s: Option<f64>,
}

/// Kernel memory that is charged to a cgroup, its descendants included. Null where the kernel does
/// not tell.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CgroupKernelMemory {
    /// The cgroup.
    pub cgroup: Cgroup,
    /// Its pod.
    pub k8s: Option<K8s>,
    /// Its container.
    pub container: Option<Container>,
    /// All of it but sockets. Before 5.18 on cgroup v2, the sum of the parts that are told.
    pub kernel_bytes: u64,
    /// By how much that grew, bytes per second; negative if it shrank.
    pub growth_bytes_per_s: Option<f64>,
    /// Slab that shrinks under pressure. Null on cgroup v1.
    pub slab_reclaimable_bytes: Option<u64>,
    /// Slab that does not. Null on cgroup v1.
    pub slab_unreclaimable_bytes: Option<u64>,
    /// Per-CPU memory: BPF maps, statistics.
    pub percpu_bytes: Option<u64>,
    /// vmalloc areas.
    pub vmalloc_bytes: Option<u64>,
    /// Kernel stacks.
    pub kernel_stack_bytes: Option<u64>,
    /// Page tables of processes.
    pub page_tables_bytes: Option<u64>,
    /// Socket buffers, by protocols that charge them at all: not packet and netlink sockets.
    pub sock_bytes: Option<u64>,
}

/// All memory of the node less everything that a counter of the kernel names. What is left was taken
/// page by page by the kernel: buffers of drivers, rings of packet sockets, a hypervisor's balloon,
/// ZFS. No slab view shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KernelBalance {
    /// RAM the kernel manages.
    pub total_bytes: u64,
    /// Not used for anything.
    pub free_bytes: u64,
    /// Free pages that single processors keep for themselves.
    pub per_cpu_free_bytes: Option<u64>,
    /// Pages of processes, page cache, tmpfs: all that is on an LRU list.
    pub lru_bytes: u64,
    /// Slab of both sorts.
    pub slab_bytes: u64,
    /// Kernel memory other than slab that shrinks under pressure.
    pub misc_reclaimable_bytes: Option<u64>,
    /// Kernel stacks.
    pub kernel_stack_bytes: u64,
    /// Page tables of processes.
    pub page_tables_bytes: u64,
    /// Page tables of KVM and IOMMU.
    pub sec_page_tables_bytes: Option<u64>,
    /// Per-CPU allocations.
    pub percpu_bytes: Option<u64>,
    /// vmalloc areas without kernel stacks, as far as these can be told apart.
    pub vmalloc_bytes: u64,
    /// Huge pages of the pool, used or not.
    pub hugetlb_bytes: Option<u64>,
    /// Memory that holds compressed pages: zswap, zram.
    pub compressed_bytes: Option<u64>,
    /// GPU drivers, as far as they tell.
    pub gpu_bytes: Option<u64>,
    /// Descriptions of pages that were added while the system ran.
    pub memmap_bytes: Option<u64>,
    /// Bounce buffers.
    pub bounce_bytes: Option<u64>,
    /// Taken by the hypervisor. Not subtracted: some balloons shrink `total_bytes` instead.
    pub balloon_bytes: Option<u64>,
    /// What is left. Negative if counters were read while they moved.
    pub unaccounted_bytes: i64,
    /// The rest may be off by so much, as the kernel adds some counters up per processor and only now
    /// and then.
    pub noise_bytes: u64,
}

/// A place in the kernel's code and what it allocated.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AllocationSite {
    /// Function, with the file and line where they are known.
    pub site: String,
    /// Bytes it holds.
    pub bytes: u64,
    /// Allocations it holds.
    pub count: u64,
    /// By how much the bytes grew, bytes per second. Null where that was not looked at.
    pub growth_bytes_per_s: Option<f64>,
}

/// The kernel's memory allocation profile.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AllocationProfile {
    /// Whether there is one.
    pub state: ProfileState,
    /// How to get one. Null if it is on, or cannot be had with this kernel.
    pub remedy: Option<String>,
    /// The biggest places, biggest first.
    pub sites: Vec<AllocationSite>,
}

/// Whether the kernel profiles its allocations (`CONFIG_MEM_ALLOC_PROFILING`, 6.10).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProfileState {
    /// This kernel cannot.
    #[default]
    NotBuilt,
    /// It could, and does not.
    Off,
    /// It does.
    On,
    /// It may, but oomprobe must not read it.
    Unreadable,
}

/// One allocation path of a cache that the kernel keeps (`slub_debug=U`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SlabTrace {
    /// The cache.
    pub cache: String,
    /// Objects that came from here and are still there.
    pub objects: u64,
    /// Who asked for them, as the kernel prints it.
    pub site: String,
    /// The way there, innermost first. Empty before 5.16.
    pub stack: Vec<String>,
}
