//! What an allocation was for, from its kernel stack.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the memory was for whose allocation failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AllocPath {
    /// A process touched its own memory: heap, stack, a private mapping.
    PageFault,
    /// Page cache of a file that was read, written or mapped.
    PageCache,
    /// A file in tmpfs, or other shared memory.
    Tmpfs,
    /// Swap-in of a page that had been swapped out.
    SwapIn,
    /// A kernel object charged to the cgroup.
    Slab,
    /// A socket buffer.
    Skb,
    /// Page tables.
    PageTable,
    /// Stack of a new thread or process.
    KernelStack,
    /// Buffer of a pipe.
    Pipe,
    /// Arguments and environment of a program that was being started.
    Exec,
    /// vmalloc.
    Vmalloc,
    /// Per-CPU memory.
    Percpu,
    /// eBPF map or program.
    Bpf,
    /// The limit itself was lowered (`memory.max` was written).
    LimitLowered,
    /// Nobody's allocation: sysrq-f.
    Sysrq,
    /// The stack was not taken, or does not tell.
    #[default]
    Unknown,
}

/// Function-name prefixes and what they mean; where two match, the first row counts.
///
/// The innermost frame that matches decides, so a function must not stand here if it is also on
/// the way to something else. This is why bare allocators (`alloc_pages`, `try_charge`), system
/// call entries and functions that copy from userspace (`tcp_sendmsg`) are missing: a page fault
/// may lie inside them.
const FRAMES: &[(&str, AllocPath)] = &[
    // Anonymous memory. File-backed faults reach `filemap_` or `shmem_` further in.
    ("do_anonymous_page", AllocPath::PageFault),
    ("do_huge_pmd_anonymous_page", AllocPath::PageFault),
    ("vma_alloc_anon_folio", AllocPath::PageFault),
    ("do_wp_page", AllocPath::PageFault),
    ("wp_page_copy", AllocPath::PageFault),
    ("do_cow_fault", AllocPath::PageFault),
    ("alloc_anon_folio", AllocPath::PageFault),
    ("folio_prealloc", AllocPath::PageFault),
    ("page_copy_prealloc", AllocPath::PageFault),
    ("handle_mm_fault", AllocPath::PageFault),
    ("mfill_atomic", AllocPath::PageFault),
    // Swapped-out memory of a process or of tmpfs comes back in.
    ("do_swap_page", AllocPath::SwapIn),
    ("swapin_readahead", AllocPath::SwapIn),
    ("swap_cluster_readahead", AllocPath::SwapIn),
    ("swap_vma_readahead", AllocPath::SwapIn),
    ("shmem_swapin", AllocPath::SwapIn),
    // tmpfs adds its own folios to the page cache, so `shmem_` frames come before any other.
    ("shmem_", AllocPath::Tmpfs),
    // Every file system's page cache goes through these.
    ("filemap_", AllocPath::PageCache),
    ("__filemap_", AllocPath::PageCache),
    ("add_to_page_cache", AllocPath::PageCache),
    ("__add_to_page_cache", AllocPath::PageCache),
    ("pagecache_get_page", AllocPath::PageCache),
    ("grab_cache_page", AllocPath::PageCache),
    ("page_cache_ra_", AllocPath::PageCache),
    ("page_cache_readahead", AllocPath::PageCache),
    ("generic_file_buffered_read", AllocPath::PageCache),
    ("grow_dev_folio", AllocPath::PageCache),
    ("grow_buffers", AllocPath::PageCache),
    // Socket buffers, and the pages they point to.
    ("__alloc_skb", AllocPath::Skb),
    ("alloc_skb_with_frags", AllocPath::Skb),
    ("sock_alloc_send_pskb", AllocPath::Skb),
    ("sk_page_frag_refill", AllocPath::Skb),
    ("skb_page_frag_refill", AllocPath::Skb),
    ("sk_stream_alloc_skb", AllocPath::Skb),
    ("tcp_stream_alloc_skb", AllocPath::Skb),
    ("mem_cgroup_charge_skmem", AllocPath::Skb),
    ("mem_cgroup_sk_charge", AllocPath::Skb),
    ("__sk_mem_raise_allocated", AllocPath::Skb),
    // Page tables.
    ("pte_alloc_one", AllocPath::PageTable),
    ("__pte_alloc", AllocPath::PageTable),
    ("__pmd_alloc", AllocPath::PageTable),
    ("__pud_alloc", AllocPath::PageTable),
    ("__p4d_alloc", AllocPath::PageTable),
    ("pgd_alloc", AllocPath::PageTable),
    ("copy_page_range", AllocPath::PageTable),
    // The stack of a new thread: vmalloc or slab, by configuration.
    ("alloc_thread_stack_node", AllocPath::KernelStack),
    ("memcg_charge_kernel_stack", AllocPath::KernelStack),
    ("pipe_write", AllocPath::Pipe),
    ("anon_pipe_write", AllocPath::Pipe),
    ("alloc_pipe_info", AllocPath::Pipe),
    ("get_arg_page", AllocPath::Exec),
    ("setup_arg_pages", AllocPath::Exec),
    ("__vmalloc_node_range", AllocPath::Vmalloc),
    ("vmalloc", AllocPath::Vmalloc),
    ("kmem_cache_alloc", AllocPath::Slab),
    ("__kmem_cache_alloc", AllocPath::Slab),
    ("__kmalloc", AllocPath::Slab),
    ("kmalloc", AllocPath::Slab),
    ("__kvmalloc", AllocPath::Slab),
    ("kvmalloc", AllocPath::Slab),
    ("___slab_alloc", AllocPath::Slab),
    ("allocate_slab", AllocPath::Slab),
    ("new_slab", AllocPath::Slab),
    ("obj_cgroup_charge", AllocPath::Slab),
    ("__memcg_slab_post_alloc_hook", AllocPath::Slab),
    ("pcpu_alloc", AllocPath::Percpu),
    ("bpf_map_area_alloc", AllocPath::Bpf),
    ("bpf_map_alloc", AllocPath::Bpf),
    ("map_create", AllocPath::Bpf),
    ("bpf_prog_alloc", AllocPath::Bpf),
    ("memory_max_write", AllocPath::LimitLowered),
    ("mem_cgroup_resize_max", AllocPath::LimitLowered),
    ("sysrq_handle_moom", AllocPath::Sysrq),
    ("moom_callback", AllocPath::Sysrq),
];

impl AllocPath {
    /// Classifies a kernel stack of symbol names, innermost first. Offsets (`+0x10/0x20`) and
    /// compiler suffixes (`.isra.0`) may follow a name.
    pub fn of_stack<S: AsRef<str>>(frames: &[S]) -> Self {
        let mut known = frames
            .iter()
            .filter_map(|frame| Self::of_frame(frame.as_ref()));
        match known.next() {
            None => Self::Unknown,
            Some(path) if path.is_means() => known.find(|outer| outer.is_end()).unwrap_or(path),
            Some(path) => path,
        }
    }

    /// Whether a frame in the function of this name tells something.
    pub fn is_told_by(function: &str) -> bool {
        Self::of_frame(function).is_some()
    }

    fn of_frame(symbol: &str) -> Option<Self> {
        FRAMES
            .iter()
            .find(|(prefix, _)| symbol.starts_with(prefix))
            .map(|&(_, path)| path)
    }

    /// Says how memory was allocated rather than what for: a frame further out may know better.
    const fn is_means(self) -> bool {
        matches!(
            self,
            Self::Slab | Self::Vmalloc | Self::Percpu | Self::PageFault
        )
    }

    /// Says what the memory was for, whatever allocator served it.
    const fn is_end(self) -> bool {
        matches!(self, Self::Skb | Self::KernelStack | Self::Exec | Self::Bpf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stacks, innermost frame first.
    const STACKS: &[(&str, AllocPath)] = &[
        ("", AllocPath::Unknown),
        (
            "dump_stack out_of_memory __alloc_pages_slowpath",
            AllocPath::Unknown,
        ),
        (
            "try_charge_memcg charge_memcg __mem_cgroup_charge do_anonymous_page handle_mm_fault",
            AllocPath::PageFault,
        ),
        // A fault while data is copied into a file is the process's own memory.
        (
            "do_anonymous_page handle_mm_fault fault_in_readable shmem_file_write_iter",
            AllocPath::PageFault,
        ),
        (
            "__mem_cgroup_charge shmem_add_to_page_cache+0x1f/0x40 shmem_get_folio_gfp",
            AllocPath::Tmpfs,
        ),
        (
            "__filemap_add_folio __filemap_get_folio ext4_da_write_begin",
            AllocPath::PageCache,
        ),
        // A file-backed fault reads the file.
        (
            "page_cache_ra_unbounded filemap_fault __do_fault handle_mm_fault",
            AllocPath::PageCache,
        ),
        (
            "pte_alloc_one __pte_alloc do_anonymous_page handle_mm_fault",
            AllocPath::PageTable,
        ),
        (
            "obj_cgroup_charge kmem_cache_alloc_lru_noprof alloc_inode ext4_create",
            AllocPath::Slab,
        ),
        // anon_vma of a faulting process: a kernel object all the same.
        (
            "kmem_cache_alloc_noprof __anon_vma_prepare handle_mm_fault",
            AllocPath::Slab,
        ),
        (
            "__kmalloc_node_track_caller kmalloc_reserve __alloc_skb sock_alloc_send_pskb",
            AllocPath::Skb,
        ),
        (
            "__vmalloc_node_range alloc_thread_stack_node dup_task_struct",
            AllocPath::KernelStack,
        ),
        (
            "__vmalloc_node_range.isra.0 kvmalloc_node xt_alloc_table_info",
            AllocPath::Vmalloc,
        ),
        ("alloc_pages pipe_write vfs_write", AllocPath::Pipe),
        (
            "do_anonymous_page handle_mm_fault __get_user_pages get_arg_page",
            AllocPath::Exec,
        ),
        (
            "pcpu_alloc bpf_map_alloc_percpu array_map_alloc",
            AllocPath::Bpf,
        ),
        (
            "do_swap_page __handle_mm_fault handle_mm_fault",
            AllocPath::SwapIn,
        ),
        (
            "swap_cluster_readahead shmem_swapin_cluster shmem_swapin_folio",
            AllocPath::SwapIn,
        ),
        (
            "mem_cgroup_out_of_memory memory_max_write kernfs_fop_write_iter",
            AllocPath::LimitLowered,
        ),
        (
            "out_of_memory moom_callback process_one_work",
            AllocPath::Sysrq,
        ),
    ];

    #[test]
    fn stacks_of_real_allocations() {
        for (stack, expected) in STACKS {
            let frames: Vec<_> = stack.split_whitespace().collect();
            assert_eq!(AllocPath::of_stack(&frames), *expected, "{stack}");
        }
    }
}
