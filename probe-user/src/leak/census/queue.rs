//! Which queue a buffer hangs in that does not say so itself: follow its list to the head.
//!
//! Buffers received for UDP have neither socket nor device, and those of AF_UNIX name the socket
//! that sent them. Their lists are circles through the head, which is a member of the socket that
//! holds them.
//!
//! A buffer that was freed is kept at hand for the next one, and may still point to what followed it
//! in the kernel's list of buffers to free (`skb_attempt_defer_free()`), by now in somebody's queue.
//! So a buffer is in a list only if the one that follows points back to it.

use std::{collections::HashMap, time::Instant};

use serde::Serialize;

use super::{
    caches::{Cache, Objects},
    layout::Layout,
    memory::{self, Memory, Ram, word_at},
    skb::{Link, Skb},
    slab,
    socket::Directory,
};

/// Most looks at buffers that were not found by themselves, and at what lists end in; bounds memory.
const MAX_STEPS: usize = 1 << 20;
/// The clock is read this often.
const STEPS_PER_LOOK: usize = 256;
/// Pages of buffers that are remembered for the next buffer of a list: neighbours in a list were often
/// allocated together, by one of a few CPUs.
const RECENT_PAGES: usize = 64;
/// Protocols that have a second queue for the reader: UDP and UDP-Lite.
const UDP: [u16; 2] = [17, 136];
const TCP: u16 = 6;

/// A queue of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Queue {
    /// `sk_receive_queue`, or UDP's `reader_queue`: received, and not read.
    Receive,
    /// `sk_write_queue`: not sent yet.
    Write,
    /// `tsorted_sent_queue`: sent by TCP, and not acknowledged.
    Sent,
    /// `sk_error_queue`: messages about errors, timestamps and zero-copy sends, not read.
    Error,
}

impl Queue {
    /// Its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Receive => "receive",
            Self::Write => "write",
            Self::Sent => "sent",
            Self::Error => "error",
        }
    }
}

/// Where a list of buffers ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Head {
    /// In this socket.
    Socket(u64, Queue),
    /// At an address that is part of no socket.
    Other(u64),
    /// Not found: the list changed, or ends nowhere.
    Unknown,
    /// There was no time to look.
    NotReached,
}

/// How far a list was followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// To this address, the first that is no buffer.
    At(u64),
    /// To where it goes nowhere, or it is being followed.
    Nowhere,
    /// Not to its end: time was up.
    NotReached,
}

/// A buffer whose queue is to be found.
#[derive(Clone, Copy, Debug)]
pub struct Pending {
    /// Where it is.
    pub address: u64,
    /// What it is linked to.
    pub next: u64,
    /// By which link.
    pub link: Link,
}

impl From<&Skb> for Pending {
    fn from(skb: &Skb) -> Self {
        Self {
            address: skb.address,
            next: skb.next,
            link: skb.link,
        }
    }
}

/// A buffer that was found by itself.
#[derive(Debug)]
struct Found {
    /// What it is linked to.
    next: u64,
    /// Where its list ends, once that is known or being found out.
    end: Option<End>,
}

/// Follows lists, each link once: every walk starts at a buffer that was found by itself, and ends at
/// the latest at the next one whose end is known.
#[derive(Debug)]
pub struct Queues<'a, M> {
    memory: &'a M,
    ram: &'a Ram,
    layout: &'a Layout,
    caches: &'a [Cache],
    found: HashMap<u64, Found>,
    heads: HashMap<(u64, Link), Head>,
    /// Whether the page holds buffers.
    pages: HashMap<u64, bool>,
    recent: Recent,
    until: Instant,
    steps: usize,
    is_over: bool,
}

impl<'a, M: Memory> Queues<'a, M> {
    /// Follows lists until `until`.
    pub fn new(
        memory: &'a M,
        ram: &'a Ram,
        layout: &'a Layout,
        caches: &'a [Cache],
        pending: &[Pending],
        until: Instant,
    ) -> Self {
        Self {
            memory,
            ram,
            layout,
            caches,
            found: pending
                .iter()
                .map(|pending| {
                    let next = pending.next;
                    (pending.address, Found { next, end: None })
                })
                .collect(),
            heads: HashMap::new(),
            pages: HashMap::new(),
            recent: Recent::new(ram.page_bytes),
            until,
            steps: 0,
            is_over: false,
        }
    }

    /// The head of the list `pending` is in.
    pub fn head(&mut self, sockets: &mut Directory<'_, M>, pending: &Pending) -> Head {
        let end = match self.end(pending) {
            End::At(end) if self.points_back(pending) => end,
            End::At(_) | End::Nowhere => return Head::Unknown,
            End::NotReached => return Head::NotReached,
        };
        if let Some(&head) = self.heads.get(&(end, pending.link)) {
            return head;
        }
        if !self.may_step() {
            return Head::NotReached;
        }
        let head = self.identify(sockets, end, pending.link);
        self.heads.insert((end, pending.link), head);
        head
    }

    /// Where the list ends that `pending` is in.
    fn end(&mut self, pending: &Pending) -> End {
        let mut path = Vec::new();
        let mut next = pending.address;
        // A circle of buffers none of which was found by itself comes back to one of the walk, which is
        // remembered after 1, 2, 4, 8 … steps (R. P. Brent).
        let (mut passed, mut steps, mut lap) = (0, 0_usize, 1);
        let end = loop {
            if next == 0 || next == passed {
                break End::Nowhere;
            }
            if steps == lap {
                (passed, steps, lap) = (next, 0, lap * 2);
            }
            steps += 1;
            next = if let Some(found) = self.found.get_mut(&next) {
                if let Some(end) = found.end {
                    break end;
                }
                // Coming back to a buffer of this very path finds this: a circle without a head.
                found.end = Some(End::Nowhere);
                path.push(next);
                found.next
            } else if !self.may_step() {
                break End::NotReached;
            } else if !self.recent.has(next) && !self.is_buffer(next) {
                break End::At(next);
            } else if let Some(following) = self.follow(next, pending.link) {
                following
            } else {
                break End::Nowhere;
            };
        };
        for at in path {
            if let Some(found) = self.found.get_mut(&at) {
                found.end = Some(end);
            }
        }
        end
    }

    /// Whether there is time to look at one thing more.
    fn may_step(&mut self) -> bool {
        let is_due = self.steps.is_multiple_of(STEPS_PER_LOOK);
        self.steps += 1;
        self.is_over |= self.steps > MAX_STEPS || (is_due && Instant::now() > self.until);
        !self.is_over
    }

    /// What the buffer at `address` is linked to.
    fn follow(&mut self, address: u64, link: Link) -> Option<u64> {
        let (next, _, back) = self.members(link)?;
        let next = self.recent.pointer(self.memory, address + next)?;
        Some(next.wrapping_sub(back))
    }

    /// Whether what follows `pending` is linked to it too: a buffer, or the head of the list.
    fn points_back(&mut self, pending: &Pending) -> bool {
        let Some((_, prev, back)) = self.members(pending.link) else {
            return false;
        };
        let previous = self
            .recent
            .pointer(self.memory, pending.next.wrapping_add(prev));
        previous == Some(pending.address + back)
    }

    /// Offsets of a link: to the next, to the previous one, and of what both point to.
    fn members(&self, link: Link) -> Option<(u64, u64, u64)> {
        let skb = &self.layout.skb;
        match link {
            Link::Next => Some((skb.next as u64, skb.prev as u64, 0)),
            Link::Sent => {
                let anchor = skb.tsorted? as u64;
                Some((anchor, anchor + 8, anchor))
            }
        }
    }

    /// Whether `address` is in a slab of buffers.
    fn is_buffer(&mut self, address: u64) -> bool {
        let Some(pfn) = self.ram.pfn(address) else {
            return false;
        };
        if let Some(&is_buffer) = self.pages.get(&pfn) {
            return is_buffer;
        }
        let mut page = vec![0; self.layout.slab.bytes];
        let highest = self.caches.iter().map(|cache| cache.order).max();
        // Only the first page of a slab says so, and slabs are aligned to their size.
        let is_buffer = (0..=highest.unwrap_or(0)).any(|order| {
            let first = pfn & !((1 << order) - 1);
            self.memory.read(self.ram.page_struct(first), &mut page)
                && slab::cache_of(&self.layout.slab, self.caches, &page).is_some_and(|index| {
                    let cache = &self.caches[index];
                    let objects = word_at(&page, self.layout.slab.counters) >> 16 & 0x7fff;
                    let bytes = objects * cache.size_bytes;
                    cache.objects != Objects::Data && (pfn - first) * self.ram.page_bytes < bytes
                })
        });
        self.pages.insert(pfn, is_buffer);
        is_buffer
    }

    /// Of which socket `end` is a queue.
    fn identify(&self, sockets: &mut Directory<'_, M>, end: u64, link: Link) -> Head {
        let layout = &self.layout.sock;
        let candidates: &[(Option<usize>, Queue, &[u16])] = match link {
            Link::Next => &[
                (Some(layout.receive_queue), Queue::Receive, &[]),
                (layout.reader_queue, Queue::Receive, &UDP),
                (Some(layout.write_queue), Queue::Write, &[]),
                (Some(layout.error_queue), Queue::Error, &[]),
            ],
            Link::Sent => &[(layout.tsorted_sent_queue, Queue::Sent, &[TCP])],
        };
        let anchor = match link {
            Link::Next => 0,
            Link::Sent => self.layout.skb.tsorted.unwrap_or(0) as u64,
        };
        let head = end.wrapping_add(anchor);
        for &(offset, queue, protocols) in candidates {
            let Some(offset) = offset else { continue };
            let sk = head.wrapping_sub(offset as u64);
            let is_fitting = sockets
                .socket(sk)
                .is_some_and(|sock| protocols.is_empty() || protocols.contains(&sock.protocol));
            if is_fitting {
                return Head::Socket(sk, queue);
            }
        }
        Head::Other(head)
    }
}

/// Pages of buffers that were read last. To read a page of `/proc/kcore` takes hardly longer than to read a word.
#[derive(Debug)]
struct Recent {
    page_bytes: u64,
    /// Where each page starts; [`Self::NONE`] for none.
    starts: [u64; RECENT_PAGES],
    /// The pages, one behind the other.
    bytes: Vec<u8>,
}

impl Recent {
    /// No page starts here.
    const NONE: u64 = u64::MAX;

    fn new(page_bytes: u64) -> Self {
        let page = usize::try_from(page_bytes).unwrap_or(0);
        Self {
            page_bytes,
            starts: [Self::NONE; RECENT_PAGES],
            bytes: vec![0; page * RECENT_PAGES],
        }
    }

    /// Where the page of `address` starts, and where it is or would be kept.
    fn slot(&self, address: u64) -> (u64, usize) {
        let start = address & !(self.page_bytes - 1);
        let slot = start / self.page_bytes % RECENT_PAGES as u64;
        (start, usize::try_from(slot).unwrap_or(0))
    }

    /// Whether `address` is in one of them.
    fn has(&self, address: u64) -> bool {
        let (start, slot) = self.slot(address);
        self.starts[slot] == start
    }

    /// The kernel pointer at `address`.
    fn pointer(&mut self, memory: &impl Memory, address: u64) -> Option<u64> {
        let (start, slot) = self.slot(address);
        let page = usize::try_from(self.page_bytes).ok()?;
        let bytes = self.bytes.chunks_exact_mut(page).nth(slot)?;
        if self.starts[slot] != start {
            self.starts[slot] = Self::NONE;
            if !memory.read(start, bytes) {
                return memory.pointer(address);
            }
            self.starts[slot] = start;
        }
        let word = word_at(bytes, usize::try_from(address - start).ok()?);
        memory::is_kernel(word).then_some(word)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    const PAGE: u64 = 4096;
    const START: u64 = 0xffff_8880_0000_0000;

    /// Each word is its own address; of the third page only words can be read.
    struct Mirror {
        reads: RefCell<Vec<(u64, usize)>>,
    }

    impl Memory for Mirror {
        fn read(&self, address: u64, into: &mut [u8]) -> bool {
            self.reads.borrow_mut().push((address, into.len()));
            if address - START >= 2 * PAGE && into.len() > 8 {
                return false;
            }
            for (word, at) in into.chunks_exact_mut(8).zip((address..).step_by(8)) {
                word.copy_from_slice(&at.to_ne_bytes());
            }
            true
        }
    }

    #[test]
    fn neighbours_are_read_at_once() {
        let memory = Mirror {
            reads: RefCell::default(),
        };
        let mut recent = Recent::new(PAGE);
        for address in [8, 256, PAGE, PAGE - 8, 2 * PAGE - 8, 2 * PAGE + 16].map(|at| START + at) {
            assert_eq!(recent.pointer(&memory, address), Some(address));
        }
        let page = usize::try_from(PAGE).unwrap();
        let third = START + 2 * PAGE;
        assert_eq!(
            memory.reads.borrow()[..],
            [
                (START, page),
                (START + PAGE, page),
                (third, page),
                (third + 16, 8)
            ]
        );
    }
}
