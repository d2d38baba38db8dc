//! Objects of one slab cache, or of one size of `kmalloc()`, from allocation to free.
//!
//! match-proto: tracepoints `kmem_cache_alloc(unsigned long call_site, const void *ptr, struct
//! kmem_cache *s, …)` (before 6.0 sizes instead of the cache), `kmem_cache_free(unsigned long
//! call_site, const void *ptr, …)`, `kmalloc(unsigned long call_site, const void *ptr, …, size_t
//! bytes_req, size_t bytes_alloc, …)`, `kfree(unsigned long call_site, const void *ptr)`
//! (include/trace/events/kmem.h); `void *kmem_cache_alloc(struct kmem_cache *s, gfp_t flags)`,
//! `kmem_cache_alloc_node(…, int node)`, `kmem_cache_alloc_bulk(struct kmem_cache *s, gfp_t flags,
//! size_t size, void **p)`, `kmem_cache_free_bulk(struct kmem_cache *s, size_t size, void **p)`
//! (mm/slub.c).
//!
//! Bulk operations have no tracepoint.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::{
    EbpfContext,
    helpers::generated::bpf_probe_read_kernel_str,
    macros::{fentry, fexit, map, raw_tracepoint},
    maps::{Array, HashMap, PerCpuArray},
    programs::{FEntryContext, FExitContext, RawTracePointContext},
};
use probe_common::{
    layout::ABSENT,
    outstanding::{CACHE_NAME_LEN, Count, MAX_BULK},
};

use crate::{
    kernel::{Access, Probed, layout},
    outstanding::{TRACKING, add, argument, born, gone},
};

/// Caches by their address: 1 if it is the one that is followed. Its name is compared once.
#[map]
static CACHES: HashMap<u64, u8> = HashMap::with_max_entries(1, 0);

/// Functions that an object comes from, where none tells who called it.
#[derive(Clone, Copy)]
enum Site {
    Alloc = 1,
    Node = 2,
    Bulk = 3,
}

/// The cache that is followed, once it was seen: most that is asked for is of this one.
#[map]
static WANTED: Array<u64> = Array::with_max_entries(1, 0);

/// Where a name is read to.
#[map]
static CACHE_NAME: PerCpuArray<[u8; CACHE_NAME_LEN]> = PerCpuArray::with_max_entries(1, 0);

#[raw_tracepoint(tracepoint = "kmem_cache_alloc")]
fn kmc_alloc_rt(ctx: RawTracePointContext) -> i32 {
    allocated(&ctx, ctx.arg(0), ctx.arg(2), ctx.arg(1));
    0
}

#[raw_tracepoint(tracepoint = "kmem_cache_free")]
fn kmc_free_rt(ctx: RawTracePointContext) -> i32 {
    // Without the cache, frees of all caches: those of others find nothing.
    if layout!(kmem_cache_free__has_cache) != 1 || is_wanted(ctx.arg(2)) {
        gone(ctx.arg(1));
    }
    0
}

#[fexit(function = "kmem_cache_alloc")]
fn kmc_alloc_fx(ctx: FExitContext) -> i32 {
    allocated(
        &ctx,
        Site::Alloc as u64,
        argument(&ctx, 0),
        argument(&ctx, 2),
    );
    0
}

#[fexit(function = "kmem_cache_alloc_node")]
fn kmc_node_fx(ctx: FExitContext) -> i32 {
    allocated(
        &ctx,
        Site::Node as u64,
        argument(&ctx, 0),
        argument(&ctx, 3),
    );
    0
}

#[fexit(function = "kmem_cache_alloc_bulk")]
fn kmc_bulk_fx(ctx: FExitContext) -> i32 {
    let (cache, size, objects) = (argument(&ctx, 0), argument(&ctx, 2), argument(&ctx, 3));
    // The number of them, before it was a `bool`: the rest of its register is anything.
    let made = argument(&ctx, 4);
    if (made as u32 == size as u32 || made as u8 == 1) && is_wanted(cache) {
        let bytes = object_bytes(cache);
        for index in 0..MAX_BULK as u64 {
            if index >= size {
                return 0;
            }
            born(&ctx, Site::Bulk as u64, element(objects, index), || bytes);
        }
        add(Count::BulkCut, size.saturating_sub(MAX_BULK as u64));
    }
    0
}

#[fentry(function = "kmem_cache_free_bulk")]
fn kmc_bulk_fe(ctx: FEntryContext) -> i32 {
    let (cache, size, objects): (u64, u64, u64) =
        (argument(&ctx, 0), argument(&ctx, 1), argument(&ctx, 2));
    // Without a cache, objects of any may be among them.
    if cache == 0 || is_wanted(cache) {
        for index in 0..MAX_BULK as u64 {
            if index >= size {
                return 0;
            }
            gone(element(objects, index));
        }
        add(Count::BulkCut, size.saturating_sub(MAX_BULK as u64));
    }
    0
}

#[raw_tracepoint(tracepoint = "kmalloc")]
fn kmalloc_rt(ctx: RawTracePointContext) -> i32 {
    kmalloc(&ctx);
    0
}

/// Older kernels have a tracepoint of its own for allocations on a node.
#[raw_tracepoint(tracepoint = "kmalloc_node")]
fn kmalloc_node_rt(ctx: RawTracePointContext) -> i32 {
    kmalloc(&ctx);
    0
}

#[raw_tracepoint(tracepoint = "kfree")]
fn kfree_rt(ctx: RawTracePointContext) -> i32 {
    let object: u64 = ctx.arg(1);
    if object != 0 {
        gone(object);
    }
    0
}

#[inline(always)]
fn kmalloc(ctx: &RawTracePointContext) {
    let (object, bytes): (u64, u64) = (ctx.arg(1), ctx.arg(3));
    // SAFETY: a static; the frozen map behind it is as large.
    let wanted = unsafe { read_volatile(&raw const TRACKING.kmalloc_bytes) };
    if bytes == wanted {
        born(ctx, ctx.arg(0), object, || wanted as u32);
    }
}

#[inline(always)]
fn allocated<C: EbpfContext>(ctx: &C, site: u64, cache: u64, object: u64) {
    if object != 0 && is_wanted(cache) {
        born(ctx, site, object, || object_bytes(cache));
    }
}

/// Element `index` of the array of pointers at `array`.
#[inline(always)]
fn element(array: u64, index: u64) -> u64 {
    // SAFETY: any address may be probed.
    unsafe { Probed::load(array.wrapping_add(index * 8) as *const u8) }
}

#[inline(always)]
fn object_bytes(cache: u64) -> u32 {
    let size = layout!(kmem_cache__size);
    if size == ABSENT {
        return 0;
    }
    // SAFETY: any address may be probed.
    unsafe { Probed::load(cache.wrapping_add(u64::from(size)) as *const u8) }
}

#[inline(always)]
fn is_wanted(cache: u64) -> bool {
    let Some(followed) = WANTED.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: an element of the map, which is never torn.
    if unsafe { *followed } == cache {
        return true;
    }
    if let Some(known) = CACHES.get_ptr(cache) {
        // SAFETY: a byte that is written once.
        return unsafe { *known } == 1;
    }
    let wanted = has_name(cache);
    if wanted {
        // SAFETY: as above.
        unsafe { *followed = cache }
    }
    // There is room for more caches than kernels have.
    let _ = CACHES.insert(cache, u8::from(wanted), 0);
    wanted
}

#[inline(always)]
fn has_name(cache: u64) -> bool {
    let name = layout!(kmem_cache__name);
    let Some(buffer) = CACHE_NAME.get_ptr_mut(0) else {
        return false;
    };
    if name == ABSENT {
        return false;
    }
    let buffer = buffer.cast::<u64>();
    let mut differs = 0u64;
    // SAFETY: any address may be probed; the buffer is this CPU's own and four words long, and each
    // byte behind the name is the zero that was there or what an earlier name left.
    unsafe {
        for word in 0..CACHE_NAME_LEN / 8 {
            write_volatile(buffer.add(word), 0);
        }
        let name: u64 = Probed::load(cache.wrapping_add(u64::from(name)) as *const u8);
        bpf_probe_read_kernel_str(buffer.cast(), CACHE_NAME_LEN as u32, name as *const _);
        let wanted = (&raw const TRACKING.cache).cast::<u64>();
        for word in 0..CACHE_NAME_LEN / 8 {
            differs |= read_volatile(buffer.add(word)) ^ read_volatile(wanted.add(word));
        }
    }
    differs == 0
}
