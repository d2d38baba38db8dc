//! Which objects of a slab are in use (mm/slub.c).
//!
//! Free objects that a processor keeps for itself (its active slab, sheaves) are in use to the
//! slab, and so to the census: at most some hundreds per cache and processor.

use super::{
    caches::Cache,
    layout::{SlabLayout, SlabMark},
    memory::{Memory, Ram, half_at, word_at},
};

/// Times a slab that changes while it is read is read again.
const TRIES: u32 = 3;

/// What `struct slab` says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    cache: u64,
    freelist: u64,
    counters: u64,
}

impl Head {
    fn parse(layout: &SlabLayout, page: &[u8]) -> Self {
        Self {
            cache: word_at(page, layout.cache),
            freelist: word_at(page, layout.freelist),
            counters: word_at(page, layout.counters),
        }
    }

    const fn objects(self) -> u64 {
        self.counters >> 16 & 0x7fff
    }

    const fn in_use(self) -> u64 {
        self.counters & 0xffff
    }
}

/// Index of the cache the page described by `page` is the first page of a slab of.
pub fn cache_of(layout: &SlabLayout, caches: &[Cache], page: &[u8]) -> Option<usize> {
    let address = word_at(page, layout.cache);
    let index = caches.iter().position(|cache| cache.address == address)?;
    let is_slab = match layout.mark {
        SlabMark::Flag(bit) => word_at(page, layout.flags) & bit != 0,
        SlabMark::Type(kind) => half_at(page, layout.page_type) >> 24 == kind,
        SlabMark::Unknown => true,
    };
    is_slab.then_some(index)
}

/// Reads slabs into buffers that are used again.
#[derive(Debug, Default)]
pub struct SlabReader {
    bytes: Vec<u8>,
    page: Vec<u8>,
    is_free: Vec<bool>,
}

/// A slab as it was read.
#[derive(Debug)]
pub struct Slab<'a> {
    cache: &'a Cache,
    base: u64,
    bytes: &'a [u8],
    is_free: &'a [bool],
    /// It changed each time it was read, so that free objects may be among those in use.
    pub is_changing: bool,
}

impl<'a> Slab<'a> {
    /// Address and content of each object in use.
    pub fn live(&self) -> impl Iterator<Item = (u64, &'a [u8])> {
        let (cache, base) = (self.cache, self.base);
        // Never 0: `caches::find` refuses such a cache.
        let size = usize::try_from(cache.size_bytes).unwrap_or(usize::MAX);
        self.bytes
            .chunks_exact(size)
            .zip(self.is_free)
            .zip(0_u64..)
            .filter(|((_, is_free), _)| !**is_free)
            .map(move |((object, _), index)| {
                let pad = usize::try_from(cache.red_left_pad).unwrap_or(0);
                let address = base + index * cache.size_bytes + cache.red_left_pad;
                (address, object.get(pad..).unwrap_or_default())
            })
    }
}

impl SlabReader {
    /// Reads the slab of `cache` whose first page is `pfn`; `None` if it is not one any more.
    pub fn read<'a>(
        &'a mut self,
        memory: &impl Memory,
        ram: &Ram,
        layout: &SlabLayout,
        cache: &'a Cache,
        pfn: u64,
    ) -> Option<Slab<'a>> {
        let base = ram.page_address(pfn)?;
        self.page.resize(layout.bytes, 0);
        let mut head = self.head(memory, ram, layout, pfn)?;
        let mut is_changing = true;
        for _ in 0..TRIES {
            if head.cache != cache.address || head.objects() == 0 {
                return None;
            }
            let len = head.objects() * cache.size_bytes;
            // Longer than a slab of this cache can be: not a count of objects.
            if len > ram.page_bytes << cache.order {
                return None;
            }
            self.bytes.resize(usize::try_from(len).ok()?, 0);
            if !memory.read(base, &mut self.bytes) {
                return None;
            }
            let is_whole = self.mark_free(cache, base, head);
            let after = self.head(memory, ram, layout, pfn)?;
            if after == head && is_whole {
                is_changing = false;
                break;
            }
            head = after;
        }
        Some(Slab {
            cache,
            base,
            bytes: &self.bytes,
            is_free: &self.is_free,
            is_changing,
        })
    }

    fn head(
        &mut self,
        memory: &impl Memory,
        ram: &Ram,
        layout: &SlabLayout,
        pfn: u64,
    ) -> Option<Head> {
        memory
            .read(ram.page_struct(pfn), &mut self.page)
            .then(|| Head::parse(layout, &self.page))
    }

    /// Follows the freelist; `false` if it is not one of this slab or does not end.
    fn mark_free(&mut self, cache: &Cache, base: u64, head: Head) -> bool {
        self.is_free.clear();
        self.is_free
            .resize(usize::try_from(head.objects()).unwrap_or(0), false);
        let first = base + cache.red_left_pad;
        let mut object = head.freelist;
        for _ in head.in_use()..head.objects() {
            if object == 0 {
                return true;
            }
            let from_first = object.wrapping_sub(first);
            let index = usize::try_from(from_first / cache.size_bytes).unwrap_or(usize::MAX);
            let Some(is_free) = self.is_free.get_mut(index) else {
                return false;
            };
            if !from_first.is_multiple_of(cache.size_bytes) || *is_free {
                return false;
            }
            *is_free = true;
            let at = object + cache.free_offset;
            let within = usize::try_from(at - base).unwrap_or(usize::MAX);
            let stored = word_at(&self.bytes, within);
            object = cache
                .random
                .map_or(stored, |random| stored ^ random ^ at.swap_bytes());
        }
        object == 0
    }
}
