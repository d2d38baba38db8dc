//! One socket buffer: what it says of who holds it.

use super::{
    layout::SkbLayout,
    memory::{Memory, half_at, is_kernel, word_at},
};

/// No buffer is charged with more; a number beyond is not a size.
const MAX_TRUESIZE_BYTES: u32 = 4 << 20;

/// How a buffer is linked to the next one of its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Link {
    /// By `next`.
    Next,
    /// By `tcp_tsorted_anchor`: TCP has sent it and waits for its acknowledgement.
    Sent,
}

/// A socket buffer as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Skb {
    /// Where it is.
    pub address: u64,
    /// Socket it is charged to, 0 if none.
    pub sk: u64,
    /// Device, 0 if none. Some queues keep other things in its place.
    pub dev: u64,
    /// Function that gives the charge back, 0 if none.
    pub destructor: u64,
    /// Start of its data.
    pub head: u64,
    /// How it hangs in its queue.
    pub link: Link,
    /// Next buffer or head of its queue by that link; 0 if none.
    pub next: u64,
    /// Bytes it is charged with.
    pub truesize_bytes: u32,
    /// Bytes from the start of its data to their `struct skb_shared_info`.
    end_bytes: u32,
    /// Others may share its data.
    is_cloned: bool,
}

impl Skb {
    /// The buffer in `bytes`, found at `address`; `None` if it cannot be one in use.
    pub fn parse(layout: &SkbLayout, address: u64, bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..layout.bytes)?;
        let word = |at| word_at(bytes, at);
        let (head, data) = (word(layout.head), word(layout.data));
        let (end, truesize) = (half_at(bytes, layout.end), half_at(bytes, layout.truesize));
        let is_sane = is_kernel(head)
            && (1..=MAX_TRUESIZE_BYTES).contains(&truesize)
            && end <= MAX_TRUESIZE_BYTES
            && data.wrapping_sub(head) <= u64::from(end)
            && half_at(bytes, layout.users) != 0;
        if !is_sane {
            return None;
        }
        let pointer = |at| {
            Some(word(at))
                .filter(|&value| is_kernel(value))
                .unwrap_or(0)
        };
        let mut skb = Self {
            address,
            // Fragments waiting for the others keep an offset there on older kernels.
            sk: pointer(layout.sk),
            dev: pointer(layout.dev),
            destructor: pointer(layout.destructor),
            head,
            link: Link::Next,
            next: pointer(layout.next),
            truesize_bytes: truesize,
            end_bytes: end,
            is_cloned: layout
                .cloned
                .is_none_or(|at| bytes.get(at).is_none_or(|byte| byte & 1 != 0)),
        };
        skb.take_anchor(layout, bytes);
        Some(skb)
    }

    /// TCP's own buffers have a list node where others have their destructor: it points to itself
    /// while the buffer waits to be sent, then to its neighbours.
    fn take_anchor(&mut self, layout: &SkbLayout, bytes: &[u8]) {
        let Some(at) = layout.tsorted else { return };
        let own = self.address + at as u64;
        let (next, prev) = (word_at(bytes, at), word_at(bytes, at + 8));
        if !is_kernel(next) || !is_kernel(prev) || next % 8 != 0 || prev % 8 != 0 {
            return;
        }
        if next == own && prev == own {
            self.destructor = 0;
        } else if prev == self.destructor && self.sk == 0 {
            // `next` is part of a tree node then, and so is what stands for the device.
            self.link = Link::Sent;
            self.next = next - at as u64;
            self.dev = 0;
        }
    }

    /// Whether two readings of one address are of one buffer in one place.
    pub fn is_same(&self, other: &Self) -> bool {
        let identity = |skb: &Self| {
            (
                skb.sk,
                skb.dev,
                skb.destructor,
                skb.head,
                skb.truesize_bytes,
            )
        };
        identity(self) == identity(other)
    }

    /// Number of buffers that share the data, at least 1.
    fn sharers(&self, memory: &impl Memory, layout: &SkbLayout) -> u64 {
        if !self.is_cloned {
            return 1;
        }
        let shared = self.head + u64::from(self.end_bytes);
        let dataref = memory.half(shared + layout.dataref as u64);
        // The upper half counts those that need no more than the payload.
        dataref.map_or(1, |dataref| u64::from(dataref & 0xffff).clamp(1, 64))
    }

    /// Bytes of memory that are this buffer's: what several share is split between them.
    pub fn own_bytes(&self, memory: &impl Memory, layout: &SkbLayout) -> u64 {
        let truesize = u64::from(self.truesize_bytes);
        let struct_bytes = (layout.bytes as u64).min(truesize);
        struct_bytes + (truesize - struct_bytes) / self.sharers(memory, layout)
    }
}

/// The buffers in use of a `struct sk_buff_fclones` at `address`.
///
/// The first half and its clone live and die apart; the reference count only says how many of
/// them live. If one does, it is the clone if TCP, whose all pairs are, has let go of the first and
/// the clone has a socket: a segment that was received on this machine and acknowledged.
pub fn pair(layout: &SkbLayout, address: u64, bytes: &[u8]) -> [Option<Skb>; 2] {
    let second = bytes.get(layout.skb2..).unwrap_or_default();
    let first = Skb::parse(layout, address, bytes);
    let second = Skb::parse(layout, address + layout.skb2 as u64, second);
    match (half_at(bytes, layout.fclone_ref), first, second) {
        (1, Some(first), Some(second)) => {
            // TCP clears the list node when it lets go of a buffer (`tcp_rtx_queue_unlink()`).
            let is_first_held = layout
                .tsorted
                .is_some_and(|at| word_at(bytes, at) != 0 || word_at(bytes, at + 8) != 0);
            if second.sk != 0 && !is_first_held {
                [None, Some(second)]
            } else {
                [Some(first), None]
            }
        }
        (1 | 2, first, second) => [first, second],
        _ => [None, None],
    }
}
