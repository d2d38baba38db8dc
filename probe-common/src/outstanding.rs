//! Objects that were allocated and not freed yet: what is kept of each, and what is counted.

use crate::limits::COMM_LEN;

/// Frames of an allocation's kernel stack.
pub const TRACK_FRAMES: usize = 32;

/// One object of two to this many has a stack of its own, however many are followed; the others get
/// that of an earlier one of the same thread, at the same depth of its stack.
pub const OWN_STACK_BITS: u32 = 6;

/// Stacks that each processor remembers for that.
pub const MAX_LAST_STACKS: u32 = 1024;

/// Bytes of a cache's name, NUL included, that are compared.
pub const CACHE_NAME_LEN: usize = 32;

/// Objects that one bulk operation may have to be followed: more are not seen.
pub const MAX_BULK: usize = 64;

/// Bits that tell addresses and stacks apart: 2^64 by the golden ratio (Knuth, multiplicative hashing).
pub const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// Hash of an object's address. Its lowest bits decide whether the object is followed and whether it
/// has a stack of its own, so that those who are told by more bits are among those told by fewer.
pub const fn hash(address: u64) -> u32 {
    ((address >> 3).wrapping_mul(GOLDEN) >> 32) as u32
}

/// What is followed. Set and frozen before the programs are loaded. How much of it is not frozen: that
/// shrinks while the programs run.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct Tracking {
    /// Objects of `kmalloc()` of this many bytes are followed; 0 for those of the cache. A word, so that
    /// the name behind it is compared word by word.
    pub kmalloc_bytes: u64,
    /// Name of the cache, ended by a NUL unless it is longer.
    pub cache: [u8; CACHE_NAME_LEN],
}

impl Tracking {
    /// Nothing is followed.
    pub const NONE: Self = Self {
        kmalloc_bytes: 0,
        cache: [0; CACHE_NAME_LEN],
    };
}

/// One object, by its address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct Outstanding {
    /// When it was allocated (`CLOCK_BOOTTIME`).
    pub since_boot_ns: u64,
    /// kernfs id of the memory cgroup of the task that ran; 0 if unknown.
    pub memcg_id: u64,
    /// Key of its stack, or a negative error.
    pub stack_id: i32,
    /// Its bytes, what it points to included; 0 if unknown.
    pub bytes: u32,
    /// Process that ran.
    pub tgid: u32,
    /// Zero.
    pub pad: u32,
    /// Its name.
    pub comm: [u8; COMM_LEN],
}

/// What is counted, per CPU: indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Count {
    /// Objects allocated, followed or not.
    Allocated = 0,
    /// Objects freed, followed or not.
    Freed = 1,
    /// Objects taken up.
    Followed = 2,
    /// Objects taken up whose address was still there: the free before was missed.
    Reused = 3,
    /// Frees of objects that would be followed and were not there: older than oomprobe, or their
    /// allocation was missed.
    UnknownFree = 4,
    /// Objects there was no room for.
    NoRoom = 5,
    /// Objects or frees given up as another operation on the same part of the map was interrupted.
    Busy = 6,
    /// Stacks given up because another has the same place.
    StackCollision = 7,
    /// Stacks that could not be taken for another reason.
    StackFailed = 8,
    /// Objects of bulk operations larger than [`MAX_BULK`].
    BulkCut = 9,
    /// Objects taken up that were freed.
    Ended = 10,
}

impl Count {
    /// How many there are.
    pub const LEN: u32 = 11;
}

// SAFETY: all are `repr(C)`, hold only integers and have no padding (bytemuck checks that).
#[cfg(feature = "user")]
unsafe impl aya::Pod for Tracking {}
// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Outstanding {}
