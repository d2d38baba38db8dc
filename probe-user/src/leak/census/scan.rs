//! The census itself: clusters of pages in random order, slabs among them, buffers in those.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::{
    Options,
    caches::{Cache, Objects},
    estimate::{Coverage, Shuffle, Sum},
    layout::Layout,
    memory::{Memory, Ram, RamSegment},
    queue::{Head, Pending, Queue, Queues},
    report::{CacheCount, Census, Count, Group, Progress, Reader},
    skb::{self, Link, Skb},
    slab::{self, SlabReader},
    socket::{self, Directory},
};

/// Pages whose descriptors are read at once: 4 KiB of `struct page`, what the kernel copies in one
/// go. Reading one of them would cost about as much.
const CLUSTER_PAGES: u64 = 64;
/// The clock is read after so many clusters.
const CLUSTERS_PER_LOOK: u64 = 16;
/// How often progress is told.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);
/// Most buffers whose queues are looked for; bounds memory.
const MAX_PENDING: usize = 1 << 20;
/// Most kinds of holders; bounds memory.
const MAX_GROUPS: usize = 1 << 16;
/// Buffers of a group that are looked at again.
const WITNESSES: usize = 4;
/// Senders' own sockets: what they have sent is held by whoever does not read.
const AF_UNIX: u16 = 1;

/// What holds a buffer. Addresses, 0 for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Key {
    destructor: u64,
    sk: u64,
    dev: u64,
    queue: Option<Queue>,
    list: u64,
}

/// Buffers of one holder.
#[derive(Debug, Default)]
struct Held {
    sum: Sum,
    witnesses: Vec<Skb>,
}

/// A buffer whose queue is to be found, and what to add once it is.
#[derive(Debug)]
struct Later {
    skb: Skb,
    dev: u64,
    cluster: u64,
    own_bytes: u64,
}

/// What was found so far.
pub(super) struct Scan<'a, M> {
    memory: &'a M,
    ram: &'a Ram,
    layout: &'a Layout,
    caches: &'a [Cache],
    directory: Directory<'a, M>,
    reader: SlabReader,
    per_cache: Vec<(Sum, Sum)>,
    held: HashMap<Key, Held>,
    later: Vec<Later>,
    /// Buffers whose queue there was no time to find, or no room to remember.
    unfollowed: Sum,
    all: Sum,
    sampled_pages: u64,
    hit_pages: u64,
    changing_slabs: u64,
}

impl<'a, M: Memory> Scan<'a, M> {
    /// Nothing yet.
    pub(super) fn new(
        memory: &'a M,
        ram: &'a Ram,
        layout: &'a Layout,
        caches: &'a [Cache],
    ) -> Self {
        Self {
            memory,
            ram,
            layout,
            caches,
            directory: Directory::new(memory, layout),
            reader: SlabReader::default(),
            per_cache: vec![Default::default(); caches.len()],
            held: HashMap::new(),
            later: Vec::new(),
            unfollowed: Sum::default(),
            all: Sum::default(),
            sampled_pages: 0,
            hit_pages: 0,
            changing_slabs: 0,
        }
    }

    /// Takes the census, for which time runs since `asked`. `name` gives the kernel functions at some
    /// addresses.
    pub(super) fn all_of(
        mut self,
        options: &Options,
        asked: Instant,
        progress: &mut dyn FnMut(Progress),
        name: &mut dyn FnMut(&[u64]) -> Vec<Option<String>>,
    ) -> Census {
        let started = Instant::now();
        let sixth = options.time_limit / 6;
        let coverage = self.all(options, (asked + sixth * 4).max(started + sixth), progress);
        self.find_queues((asked + options.time_limit).max(Instant::now() + sixth));
        self.report(options, coverage, started, name)
    }

    /// Looks at the buffers at these addresses only.
    pub(super) fn these(
        mut self,
        addresses: &[u64],
        options: &Options,
        name: &mut dyn FnMut(&[u64]) -> Vec<Option<String>>,
    ) -> Census {
        let started = Instant::now();
        let mut bytes = vec![0; self.layout.skb.bytes];
        for &address in addresses {
            if self.memory.read(address, &mut bytes)
                && let Some(skb) = Skb::parse(&self.layout.skb, address, &bytes)
            {
                self.buffer(0, skb);
            }
        }
        self.find_queues(started + options.time_limit);
        let all = Coverage { taken: 1, all: 1 };
        self.report(options, all, started, name)
    }

    /// Clusters in random order, until all are done or it is `end`.
    fn all(
        &mut self,
        options: &Options,
        end: Instant,
        progress: &mut dyn FnMut(Progress),
    ) -> Coverage {
        // A slab is aligned to its size, so that a cluster as large holds all of it or nothing.
        let highest = self.caches.iter().map(|cache| cache.order).max();
        let cluster_pages = CLUSTER_PAGES.max(1 << highest.unwrap_or(0));
        let clusters = Clusters::new(self.ram, cluster_pages);
        let total_pages = self.ram.pages();
        let wanted = options.max_pages.map_or(clusters.count, |pages| {
            pages.div_ceil(cluster_pages).min(clusters.count)
        });
        let shuffle = Shuffle::new(clusters.count, options.seed);
        let mut bytes = Vec::new();
        let mut told = Instant::now();
        let mut taken = 0;
        while taken < wanted {
            if taken % CLUSTERS_PER_LOOK == 0 {
                let now = Instant::now();
                if now >= end {
                    break;
                }
                if now - told >= PROGRESS_EVERY {
                    told = now;
                    progress(Progress {
                        sampled_pages: self.sampled_pages,
                        wanted_pages: total_pages.min(wanted * cluster_pages),
                        objects: self.all.objects,
                    });
                }
            }
            let cluster = shuffle.get(taken);
            if let Some((first_pfn, pages)) = clusters.get(cluster) {
                self.cluster(cluster, first_pfn, pages, &mut bytes);
            }
            taken += 1;
        }
        Coverage {
            taken,
            all: clusters.count,
        }
    }

    fn cluster(&mut self, cluster: u64, first_pfn: u64, pages: u64, bytes: &mut Vec<u8>) {
        self.sampled_pages += pages;
        let page_bytes = self.layout.slab.bytes;
        bytes.resize(usize::try_from(pages).unwrap_or(0) * page_bytes, 0);
        // Descriptors that cannot be read are those of no memory.
        if !self.memory.read(self.ram.page_struct(first_pfn), bytes) {
            return;
        }
        for (page, pfn) in bytes.chunks_exact(page_bytes).zip(first_pfn..) {
            if let Some(index) = slab::cache_of(&self.layout.slab, self.caches, page) {
                self.slab(cluster, index, pfn);
            }
        }
    }

    fn slab(&mut self, cluster: u64, index: usize, pfn: u64) {
        let cache = &self.caches[index];
        let mut reader = std::mem::take(&mut self.reader);
        let layout = &self.layout.slab;
        if let Some(slab) = reader.read(self.memory, self.ram, layout, cache, pfn) {
            self.hit_pages += 1;
            self.changing_slabs += u64::from(slab.is_changing);
            for (address, object) in slab.live() {
                self.object(cluster, index, address, object);
            }
        }
        self.reader = reader;
    }

    fn object(&mut self, cluster: u64, index: usize, address: u64, object: &[u8]) {
        let layout = &self.layout.skb;
        let skbs = match self.caches[index].objects {
            Objects::Skb => [Skb::parse(layout, address, object), None],
            Objects::Pair => skb::pair(layout, address, object),
            Objects::Data => {
                self.per_cache[index].0.add(cluster, 0, 0);
                return;
            }
        };
        let (in_use, not_buffers) = &mut self.per_cache[index];
        in_use.add(cluster, 0, 0);
        if skbs == [None, None] {
            not_buffers.add(cluster, 0, 0);
        }
        for skb in skbs.into_iter().flatten() {
            self.buffer(cluster, skb);
        }
    }

    fn buffer(&mut self, cluster: u64, skb: Skb) {
        let own_bytes = skb.own_bytes(self.memory, &self.layout.skb);
        self.all.add(cluster, skb.truesize_bytes.into(), own_bytes);
        let has_device = self.directory.device(skb.dev).is_some();
        let dev = if has_device { skb.dev } else { 0 };
        let family = self.directory.socket(skb.sk).map(|sock| sock.family);
        let is_told = match family {
            Some(family) => family != AF_UNIX,
            None => has_device,
        };
        let sk = if family.is_some() { skb.sk } else { 0 };
        if !is_told && skb.next != 0 {
            let later = Later {
                skb,
                dev,
                cluster,
                own_bytes,
            };
            if self.later.len() < MAX_PENDING {
                self.later.push(later);
            } else {
                self.found(&later, Head::NotReached);
            }
            return;
        }
        let destructor = if skb.link == Link::Sent {
            0
        } else {
            skb.destructor
        };
        let key = Key {
            destructor,
            sk,
            dev,
            ..Key::default()
        };
        self.add(key, cluster, skb, own_bytes);
    }

    fn add(&mut self, key: Key, cluster: u64, skb: Skb, own_bytes: u64) {
        // Beyond what is remembered, holders are one.
        let is_known = self.held.len() < MAX_GROUPS || self.held.contains_key(&key);
        let key = if is_known { key } else { Key::default() };
        let held = self.held.entry(key).or_default();
        held.sum.add(cluster, skb.truesize_bytes.into(), own_bytes);
        if held.witnesses.len() < WITNESSES {
            held.witnesses.push(skb);
        }
    }

    /// Finds the queues of buffers that do not say who holds them, until it is `end`.
    fn find_queues(&mut self, end: Instant) {
        let later = std::mem::take(&mut self.later);
        let pending: Vec<Pending> = later.iter().map(|later| (&later.skb).into()).collect();
        let mut queues = Queues::new(
            self.memory,
            self.ram,
            self.layout,
            self.caches,
            &pending,
            end,
        );
        for (later, pending) in later.iter().zip(&pending) {
            let head = queues.head(&mut self.directory, pending);
            self.found(later, head);
        }
    }

    /// Adds a buffer to what is known of its queue.
    fn found(&mut self, later: &Later, head: Head) {
        let &Later {
            skb,
            dev,
            cluster,
            own_bytes,
        } = later;
        // Whom it is charged to, if not who holds it, is known without its queue.
        if head == Head::NotReached && self.directory.socket(skb.sk).is_none() {
            self.unfollowed
                .add(cluster, skb.truesize_bytes.into(), own_bytes);
            return;
        }
        let key = Key {
            // What stands there is a list node.
            destructor: if skb.link == Link::Sent {
                0
            } else {
                skb.destructor
            },
            dev,
            ..Key::default()
        };
        let key = match head {
            Head::Socket(sk, queue) => Key {
                sk,
                queue: Some(queue),
                ..key
            },
            Head::Other(list) => Key {
                sk: skb.sk,
                list,
                ..key
            },
            Head::Unknown | Head::NotReached => Key { sk: skb.sk, ..key },
        };
        self.add(key, cluster, skb, own_bytes);
    }

    /// Whether a buffer is where and what it was.
    fn is_still(&self, skb: &Skb) -> bool {
        let mut bytes = vec![0; self.layout.skb.bytes];
        self.memory.read(skb.address, &mut bytes)
            && Skb::parse(&self.layout.skb, skb.address, &bytes).is_some_and(|now| now.is_same(skb))
    }

    fn report(
        mut self,
        options: &Options,
        coverage: Coverage,
        started: Instant,
        name: &mut dyn FnMut(&[u64]) -> Vec<Option<String>>,
    ) -> Census {
        let count = |sum: &Sum| Count {
            groups: u64::from(sum.objects > 0),
            objects: coverage.estimate(sum.objects),
            bytes: coverage.estimate(sum.bytes),
        };
        let mut held: Vec<(Key, Held)> = std::mem::take(&mut self.held).into_iter().collect();
        held.sort_unstable_by_key(|(key, held)| (std::cmp::Reverse(held.sum.bytes), *key));
        let (mut listed, mut other, mut moving) = (Vec::new(), Count::default(), Count::default());
        for (key, held) in held {
            if listed.len() >= options.max_groups {
                other = other + count(&held.sum);
            } else if held.witnesses.iter().any(|skb| self.is_still(skb)) {
                listed.push((key, held.sum));
            } else {
                moving = moving + count(&held.sum);
            }
        }
        let addresses: Vec<u64> = listed.iter().map(|(key, _)| key.destructor).collect();
        let names = name(&addresses);
        let groups = listed
            .iter()
            .zip(names.into_iter().chain(std::iter::repeat(None)))
            .map(|((key, sum), name)| Group {
                destructor: name.filter(|_| key.destructor != 0),
                device: self.directory.device(key.dev).cloned(),
                queue: key.queue,
                // Read again: what is said of a socket should be of this moment.
                socket: socket::read_socket(self.memory, &self.layout.sock, key.sk),
                objects: coverage.estimate(sum.objects),
                bytes: coverage.estimate(sum.bytes),
                own_bytes: coverage.estimate(sum.own_bytes),
                relative_error: sum.relative_error(coverage),
            })
            .collect();
        let caches = self
            .caches
            .iter()
            .zip(&self.per_cache)
            .map(|(cache, (in_use, not_buffers))| CacheCount {
                name: cache.name,
                objects: coverage.estimate(in_use.objects),
                not_buffers: coverage.estimate(not_buffers.objects),
                object_bytes: cache.size_bytes,
                relative_error: in_use.relative_error(coverage),
            })
            .collect();
        Census {
            caches,
            groups,
            other,
            moving,
            unfollowed: count(&self.unfollowed),
            total_pages: self.ram.pages(),
            sampled_pages: self.sampled_pages,
            hit_pages: self.hit_pages,
            changing_slabs: self.changing_slabs,
            relative_error: self.all.relative_error(coverage),
            setup_ms: 0,
            took_ms: millis(started.elapsed()),
            full: coverage.taken == coverage.all,
            read_by: Reader::Kcore,
        }
    }
}

impl std::ops::Add for Count {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            groups: self.groups + other.groups,
            objects: self.objects + other.objects,
            bytes: self.bytes + other.bytes,
        }
    }
}

/// Whole milliseconds.
pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Memory cut into stretches of pages, each aligned to its length but at the ends of segments.
struct Clusters<'a> {
    segments: &'a [RamSegment],
    pages: u64,
    count: u64,
}

impl<'a> Clusters<'a> {
    fn new(ram: &'a Ram, pages: u64) -> Self {
        let segments = &ram.segments;
        let mut clusters = Self {
            segments,
            pages,
            count: 0,
        };
        clusters.count = segments
            .iter()
            .map(|segment| clusters.within(segment))
            .sum();
        clusters
    }

    /// Number of clusters that have pages of the segment.
    const fn within(&self, segment: &RamSegment) -> u64 {
        let end = segment.first_pfn + segment.pages;
        end.div_ceil(self.pages) - segment.first_pfn / self.pages
    }

    /// First page and number of pages of a cluster.
    fn get(&self, mut cluster: u64) -> Option<(u64, u64)> {
        for segment in self.segments {
            let within = self.within(segment);
            if cluster < within {
                let start = (segment.first_pfn / self.pages + cluster) * self.pages;
                let end = (start + self.pages).min(segment.first_pfn + segment.pages);
                let start = start.max(segment.first_pfn);
                return Some((start, end - start));
            }
            cluster -= within;
        }
        None
    }
}
