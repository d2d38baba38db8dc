//! Objects from allocation to free: the table behind `oomprobe skb --track` and `slab --track`.
//!
//! A plain hash: an LRU gives up what is oldest, and that is the leak. Which objects are followed
//! follows from the address alone, so that an object is followed for all of its life or not at all,
//! both sides agree without asking each other, and counts can be scaled up. When the table fills up,
//! user space makes the sample sparser and takes out what is no longer in it. The stack is what costs:
//! only followed objects have one, and where most are followed, most get one that was taken before.

use core::{arch::asm, cell::UnsafeCell};

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_NOEXIST, bpf_map_def, bpf_map_type::BPF_MAP_TYPE_STACK_TRACE},
    helpers::{
        bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_stackid,
        generated::bpf_ktime_get_boot_ns,
    },
    macros::map,
    maps::{Array, HashMap, PerCpuArray},
};
use probe_common::outstanding::{
    Count, GOLDEN, MAX_LAST_STACKS, OWN_STACK_BITS, Outstanding, TRACK_FRAMES, Tracking, hash,
};

use crate::kernel::{Access, Probed, Task};

/// What is followed; frozen.
#[unsafe(no_mangle)]
pub static TRACKING: Tracking = Tracking::NONE;

/// An object is followed if these bits of its address' hash are zero. Set before anything is attached,
/// and only ever to more bits.
#[map]
static SAMPLE_MASK: Array<u32> = Array::with_max_entries(1, 0);

/// Objects by address. Made larger by those who follow.
#[map]
static OUTSTANDING: HashMap<u64, Outstanding> = HashMap::with_max_entries(1, 0);

/// Counts by [`Count`].
#[map]
static TRACK_COUNTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Count::LEN, 0);

/// `aya_ebpf::maps::StackTrace` is always 127 frames deep: four times the memory.
#[repr(transparent)]
struct Stacks(UnsafeCell<bpf_map_def>);

// SAFETY: the kernel's own, addressed and never read. The cell puts it in the writable section that all
// maps are in.
unsafe impl Sync for Stacks {}

/// Stacks of allocations. Made larger by those who follow.
#[unsafe(no_mangle)]
#[unsafe(link_section = "maps")]
static TRACK_STACKS: Stacks = Stacks(UnsafeCell::new(bpf_map_def {
    type_: BPF_MAP_TYPE_STACK_TRACE,
    key_size: 4,
    value_size: (TRACK_FRAMES * 8) as u32,
    max_entries: 1,
    map_flags: 0,
    id: 0,
    pinning: 0,
}));

/// The last stacks that were taken, each in one word, so that an interrupt finds all of it or nothing:
/// who ran and where, as a hash, and below it the key of the stack. Made larger by those who follow.
#[map]
static LAST_STACKS: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

const EEXIST: i64 = -17;
const E2BIG: i64 = -7;
const ENOENT: i64 = -2;

/// An object has a stack of its own, however many are followed, if these bits of its address' hash are
/// zero.
const OWN_STACK_MASK: u32 = (1 << OWN_STACK_BITS) - 1;

/// Argument `index` of the function, or its return value behind the last, as a number: the verifier
/// knows what it points to, refuses arithmetic with such pointers, and older ones refuse to load those
/// that are not to a struct.
#[inline(always)]
pub fn argument<C: EbpfContext>(ctx: &C, index: usize) -> u64 {
    // SAFETY: any address may be probed.
    unsafe { Probed::load((ctx.as_ptr() as *const u64).add(index).cast()) }
}

/// An object was allocated at `address`. `site` tells allocations apart that a thread makes at the same
/// depth of its stack: who called, where the hook tells that, or else which hook it is.
#[inline(always)]
pub fn born<C: EbpfContext>(ctx: &C, site: u64, address: u64, bytes: impl FnOnce() -> u32) {
    if address == 0 {
        return;
    }
    add(Count::Allocated, 1);
    let hash = hash(address);
    if !is_followed(hash) {
        return;
    }
    let stack_id = stack(ctx, site, hash & OWN_STACK_MASK == 0);
    let memcg = Task::<Probed>::current()
        .and_then(Task::memory_css)
        .and_then(|css| css.cgroup())
        .and_then(|cgroup| cgroup.kn())
        .and_then(|kn| kn.id());
    let object = Outstanding {
        // SAFETY: the helper has no preconditions.
        since_boot_ns: unsafe { bpf_ktime_get_boot_ns() },
        memcg_id: memcg.unwrap_or(0),
        stack_id,
        bytes: bytes(),
        tgid: (bpf_get_current_pid_tgid() >> 32) as u32,
        pad: 0,
        comm: bpf_get_current_comm().unwrap_or_default(),
    };
    match OUTSTANDING.insert(address, object, BPF_NOEXIST.into()) {
        Ok(()) => add(Count::Followed, 1),
        // Whoever gets the address of a live object has shown that it was freed.
        Err(error) if i64::from(error) == EEXIST => {
            add(Count::Reused, 1);
            add(Count::Followed, 1);
            if let Some(old) = OUTSTANDING.get_ptr_mut(address) {
                // SAFETY: an element of the map; who reads it meanwhile may find half of it old.
                unsafe { *old = object }
            }
        }
        Err(error) if i64::from(error) == E2BIG => add(Count::NoRoom, 1),
        Err(_) => add(Count::Busy, 1),
    }
}

/// The object at `address` is freed.
#[inline(always)]
pub fn gone(address: u64) {
    add(Count::Freed, 1);
    if !is_followed(hash(address)) {
        return;
    }
    match OUTSTANDING.remove(address) {
        Ok(()) => add(Count::Ended, 1),
        Err(error) if i64::from(error) == ENOENT => add(Count::UnknownFree, 1),
        Err(_) => add(Count::Busy, 1),
    }
}

/// Whether an object with this hash is followed.
#[inline(always)]
fn is_followed(hash: u32) -> bool {
    let Some(mask) = SAMPLE_MASK.get_ptr(0) else {
        return false;
    };
    // SAFETY: an element of the map, which is never torn.
    hash & unsafe { *mask } == 0
}

/// Key of the stack there is, or a negative error; unless it is to be its own, of the one that this
/// thread had when it last allocated here.
#[inline(always)]
fn stack<C: EbpfContext>(ctx: &C, site: u64, is_own: bool) -> i32 {
    let who = who(ctx, site);
    let Some(last) = LAST_STACKS.get_ptr_mut(who as u32 % MAX_LAST_STACKS) else {
        return EEXIST as i32;
    };
    // SAFETY: the slot is this CPU's own and 8 bytes long.
    let known = unsafe { *last };
    if !is_own && known >> 32 == who >> 32 {
        return known as i32;
    }
    // SAFETY: the map is one of stacks; the context is the program's own.
    let stack_id =
        unsafe { bpf_get_stackid(ctx.as_ptr(), (&raw const TRACK_STACKS).cast_mut().cast(), 0) };
    if stack_id == EEXIST {
        add(Count::StackCollision, 1);
    } else if stack_id < 0 {
        add(Count::StackFailed, 1);
    } else {
        // SAFETY: as above.
        unsafe { *last = who >> 32 << 32 | stack_id as u64 }
    }
    stack_id as i32
}

/// Thread, depth of its stack and site, as a hash.
#[inline(always)]
fn who<C: EbpfContext>(ctx: &C, site: u64) -> u64 {
    let depth: u64;
    // The context of all of these programs lies on the kernel stack. A pointer is made a number by
    // copying half of it; other arithmetic with it is refused.
    // SAFETY: no memory is touched.
    unsafe { asm!("w0 = w1", in("r1") ctx.as_ptr(), lateout("r0") depth, options(nostack)) };
    let thread = bpf_get_current_pid_tgid() << 32;
    (thread ^ depth ^ site.rotate_left(16)).wrapping_mul(GOLDEN)
}

/// Counts `more`.
#[inline(always)]
pub fn add(count: Count, more: u64) {
    if let Some(count) = TRACK_COUNTS.get_ptr_mut(count as u32) {
        // SAFETY: the slot is this CPU's own and 8 bytes long.
        unsafe { *count += more }
    }
}
