//! The census on synthetic memory: a node of a few hundred pages whose content is known, intact
//! and hostile.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use proptest::prelude::*;

use super::{
    Census, Options,
    caches::{Cache, Objects, Symbols},
    layout::{
        CacheLayout, DeviceLayout, HotdataLayout, Layout, SkbLayout, SlabLayout, SlabMark,
        SockLayout,
    },
    memory::{Memory, Ram, RamSegment},
    queue::Queue,
    report::Group,
    scan::Scan,
};

const PAGE: u64 = 4096;
const DIRECT: u64 = 0xffff_8880_0000_0000;
const VMEMMAP: u64 = 0xffff_ea00_0000_0000;
/// A function, outside of memory.
const SOCK_RFREE: u64 = 0xffff_ffff_8123_4560;
/// Where caches, sockets and the like are put: pages that are no slabs of buffers.
const OBJECTS_PFN: u64 = 300;
const PAGES: u64 = 512;
const HEAD_CACHE: u64 = DIRECT + OBJECTS_PFN * PAGE;
const PAIR_CACHE: u64 = HEAD_CACHE + 0x400;
const SECRET: u64 = 0x1234_5678_9abc_def0;
const TRUESIZE: u32 = 1280;

/// As on 6.12.
const LAYOUT: Layout = Layout {
    slab: SlabLayout {
        bytes: 64,
        cache: 8,
        freelist: 32,
        counters: 40,
        flags: 0,
        page_type: 48,
        mark: SlabMark::Type(0xf5),
    },
    cache: CacheLayout {
        name: 96,
        list: 104,
        size: 24,
        object_size: 28,
        offset: 40,
        oo: 52,
        random: Some(184),
        red_left_pad: Some(88),
    },
    skb: SkbLayout {
        bytes: 232,
        next: 0,
        prev: 8,
        dev: 16,
        sk: 24,
        destructor: 96,
        head: 200,
        data: 208,
        end: 192,
        truesize: 216,
        users: 220,
        cloned: Some(126),
        tsorted: Some(88),
        skb2: 232,
        fclone_ref: 464,
        dataref: 32,
    },
    sock: SockLayout {
        bytes: 776,
        family: 16,
        state: 18,
        prot: 40,
        net: 48,
        kind: 572,
        protocol: 574,
        rcvbuf: 244,
        sndbuf: 372,
        rmem: 192,
        receive_queue: 168,
        write_queue: 400,
        error_queue: 144,
        socket: 288,
        reader_queue: Some(1088),
        tsorted_sent_queue: Some(1664),
        cgroup: Some(672),
        qlen: 16,
        prot_name: 408,
        socket_sk: 24,
        inode: 192,
        net_inum: 136,
        cgroup_kn: 256,
        kn_id: 96,
    },
    device: DeviceLayout {
        name: 304,
        ifindex: 224,
        net: 280,
    },
    hotdata: HotdataLayout {
        skbuff_cache: Some(352),
        skbuff_fclone_cache: Some(360),
        skb_small_head_cache: None,
    },
};

type OnRead = Box<dyn Fn(&Fake, u64)>;

/// Memory that is only where something was written; the rest cannot be read.
#[derive(Default)]
struct Fake {
    pages: RefCell<HashMap<u64, Vec<u8>>>,
    unreadable: HashSet<u64>,
    /// Called before each read with the address, to change what is read.
    on_read: Option<OnRead>,
    reads: Cell<u64>,
}

impl Fake {
    fn write(&self, address: u64, bytes: &[u8]) {
        let mut pages = self.pages.borrow_mut();
        for (at, &byte) in (address..).zip(bytes) {
            let page = pages
                .entry(at / PAGE)
                .or_insert_with(|| vec![0; usize::try_from(PAGE).unwrap()]);
            page[usize::try_from(at % PAGE).unwrap()] = byte;
        }
    }

    fn put(&self, address: u64, at: usize, word: u64) {
        self.write(address + at as u64, &word.to_ne_bytes());
    }

    fn put_half(&self, address: u64, at: usize, half: u32) {
        self.write(address + at as u64, &half.to_ne_bytes());
    }
}

impl Memory for Fake {
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        self.reads.set(self.reads.get() + 1);
        assert!(self.reads.get() < 5_000_000, "it does not end");
        if let Some(on_read) = &self.on_read {
            on_read(self, address);
        }
        let pages = self.pages.borrow();
        for (at, byte) in (0..).zip(into) {
            let Some(at) = address.checked_add(at) else {
                return false;
            };
            match pages.get(&(at / PAGE)) {
                Some(page) if !self.unreadable.contains(&(at / PAGE)) => {
                    *byte = page[usize::try_from(at % PAGE).unwrap()];
                }
                _ => return false,
            }
        }
        true
    }
}

/// What is to be put into memory of a buffer.
#[derive(Clone, Copy, Default)]
struct Buffer {
    sk: u64,
    dev: u64,
    destructor: u64,
    next: u64,
    /// Number of buffers that share the data; 0 if it was never cloned.
    sharers: u32,
}

fn received(sk: u64) -> Buffer {
    Buffer {
        sk,
        destructor: SOCK_RFREE,
        ..Buffer::default()
    }
}

/// A node under construction.
struct Node {
    memory: Fake,
    ram: Ram,
    caches: Vec<Cache>,
    sockets: u64,
}

impl Node {
    fn new() -> Self {
        let cache = |name, objects, address, size_bytes, order, random| Cache {
            name,
            objects,
            address,
            size_bytes,
            object_bytes: size_bytes - 16,
            free_offset: size_bytes / 2,
            random,
            red_left_pad: 0,
            order,
        };
        let node = Self {
            memory: Fake::default(),
            ram: Ram {
                segments: vec![RamSegment {
                    first_pfn: 0,
                    pages: PAGES,
                    address: DIRECT,
                }],
                vmemmap: VMEMMAP,
                page_struct_bytes: 64,
                page_bytes: PAGE,
            },
            caches: vec![
                cache(
                    "skbuff_head_cache",
                    Objects::Skb,
                    HEAD_CACHE,
                    256,
                    0,
                    Some(SECRET),
                ),
                cache(
                    "skbuff_fclone_cache",
                    Objects::Pair,
                    PAIR_CACHE,
                    512,
                    1,
                    None,
                ),
            ],
            sockets: 0,
        };
        let blank = vec![0; usize::try_from(PAGES * 64).unwrap()];
        node.memory.write(VMEMMAP, &blank);
        node
    }

    fn page(pfn: u64) -> u64 {
        DIRECT + pfn * PAGE
    }

    /// Makes a slab of `cache` at `pfn`; objects that are not `live` are on its freelist.
    fn slab(&self, cache: usize, pfn: u64, live: &[bool]) {
        let Cache {
            address,
            size_bytes,
            free_offset,
            random,
            ..
        } = self.caches[cache];
        let page = VMEMMAP + pfn * 64;
        let mut first = 0;
        for (index, _) in (0_u64..).zip(live).filter(|(_, live)| !**live) {
            let object = Self::page(pfn) + index * size_bytes;
            let at = object + free_offset;
            let stored = random.map_or(first, |random| first ^ random ^ at.swap_bytes());
            self.memory.put(at, 0, stored);
            first = object;
        }
        let in_use = live.iter().filter(|live| **live).count() as u64;
        self.memory.put(page, LAYOUT.slab.cache, address);
        self.memory.put(page, LAYOUT.slab.freelist, first);
        self.memory.put(
            page,
            LAYOUT.slab.counters,
            in_use | ((live.len() as u64) << 16),
        );
        self.memory
            .put_half(page, LAYOUT.slab.page_type, 0xf5 << 24);
        // All of it is memory, also where nothing was written.
        let end = Self::page(pfn) + live.len() as u64 * size_bytes - 1;
        for at in [Self::page(pfn) + PAGE - 1, end] {
            self.memory.write(at, &[0]);
        }
    }

    fn buffer(&self, address: u64, buffer: Buffer) {
        let (memory, skb) = (&self.memory, &LAYOUT.skb);
        // Data of its own, on pages that need not exist.
        let head = DIRECT + (400 + address % 64) * PAGE;
        memory.put(address, skb.next, buffer.next);
        memory.put(address, skb.dev, buffer.dev);
        memory.put(address, skb.sk, buffer.sk);
        memory.put(address, skb.destructor, buffer.destructor);
        memory.put(address, skb.head, head);
        memory.put(address, skb.data, head + 64);
        memory.put_half(address, skb.end, 704);
        memory.put_half(address, skb.truesize, TRUESIZE);
        memory.put_half(address, skb.users, 1);
        if buffer.sharers > 0 {
            memory.write(address + skb.cloned.unwrap() as u64, &[1]);
            memory.put_half(head + 704, skb.dataref, buffer.sharers);
        }
    }

    /// A full slab of plain buffers at `pfn`; gives their addresses.
    fn full_slab(&self, pfn: u64, buffer: Buffer) -> Vec<u64> {
        self.slab(0, pfn, &[true; 16]);
        let addresses: Vec<u64> = (0..16).map(|at| Self::page(pfn) + at * 256).collect();
        for &address in &addresses {
            self.buffer(address, buffer);
        }
        addresses
    }

    /// A socket; gives its address. Its inode is 1000 and its number.
    fn socket(&mut self, family: u16, protocol: u16) -> u64 {
        let base = Self::page(OBJECTS_PFN + 1 + self.sockets * 2);
        let (sk, socket, prot) = (base, base + 0xa00, base + 0xc00);
        let (net, cgroup, kn) = (base + 0xe80, base + 0x1000, base + 0x1800);
        let (memory, layout) = (&self.memory, &LAYOUT.sock);
        memory.write(sk + layout.family as u64, &family.to_ne_bytes());
        memory.write(sk + layout.kind as u64, &2_u16.to_ne_bytes());
        memory.write(sk + layout.protocol as u64, &protocol.to_ne_bytes());
        memory.put(sk, layout.prot, prot);
        memory.write(prot + layout.prot_name as u64, b"TEST\0");
        memory.put(sk, layout.net, net);
        memory.put_half(net, layout.net_inum, 0xf000_0001);
        memory.put(sk, layout.socket, socket);
        memory.put(socket, layout.socket_sk, sk);
        memory.put(socket, layout.inode, 1000 + self.sockets);
        memory.put(sk, layout.cgroup.unwrap(), cgroup);
        memory.put(cgroup, layout.cgroup_kn, kn);
        memory.put(kn, layout.kn_id, 77);
        memory.put_half(sk, layout.rcvbuf, 212_992);
        memory.put(sk, layout.receive_queue, sk + layout.receive_queue as u64);
        self.sockets += 1;
        sk
    }

    /// Links the buffers to each other and the last to `head`, both ways.
    fn link(&self, buffers: &[u64], head: u64) {
        let following = buffers.iter().skip(1).chain(std::iter::once(&head));
        for (&buffer, &next) in buffers.iter().zip(following) {
            self.memory.put(buffer, LAYOUT.skb.next, next);
            self.memory.put(next, LAYOUT.skb.prev, buffer);
        }
    }

    fn census_with(&self, options: &Options) -> Census {
        self.scan()
            .all_of(options, Instant::now(), &mut |_| {}, &mut names)
    }

    fn scan(&self) -> Scan<'_, Fake> {
        Scan::new(&self.memory, &self.ram, &LAYOUT, &self.caches)
    }

    fn census(&self) -> Census {
        let census = self.census_with(&Options::full());
        assert!(census.full);
        census
    }
}

fn names(addresses: &[u64]) -> Vec<Option<String>> {
    let name = |&at| (at == SOCK_RFREE).then(|| "sock_rfree".to_owned());
    addresses.iter().map(name).collect()
}

fn inode(group: &Group) -> Option<u64> {
    group.socket.as_ref()?.inode
}

#[test]
fn buffers_in_use_are_counted_by_socket() {
    let mut node = Node::new();
    let (one, other) = (node.socket(17, 0), node.socket(16, 0));
    for pfn in [3, 64, 130] {
        node.full_slab(pfn, received(one));
    }
    let live: Vec<bool> = (0..16).map(|at| at % 3 == 0).collect();
    node.slab(0, 200, &live);
    for at in (0..16).filter(|at| at % 3 == 0) {
        node.buffer(Node::page(200) + at * 256, received(other));
    }
    let census = node.census();
    assert_eq!((census.hit_pages, census.changing_slabs), (4, 0));
    assert_eq!(census.caches[0].objects, 48 + 6);
    assert_eq!(census.caches[0].not_buffers, 0);
    let [first, second] = &census.groups[..] else {
        panic!("{:?}", census.groups)
    };
    assert_eq!((inode(first), first.objects), (Some(1000), 48));
    assert_eq!((inode(second), second.objects), (Some(1001), 6));
    assert_eq!(first.bytes, 48 * u64::from(TRUESIZE));
    assert_eq!(first.own_bytes, first.bytes);
    assert_eq!(first.destructor.as_deref(), Some("sock_rfree"));
    let facts = first.socket.as_ref().unwrap();
    assert_eq!(
        (facts.netns_inode, facts.cgroup_id, facts.rcvbuf_bytes),
        (0xf000_0001, Some(77), 212_992)
    );
    assert_eq!((census.other.objects, census.moving.objects), (0, 0));
}

#[test]
fn what_nobody_listed_is_added_up() {
    let mut node = Node::new();
    for pfn in 1..=4 {
        let sk = node.socket(17, 0);
        node.full_slab(pfn, received(sk));
    }
    let census = node.census_with(&Options {
        max_groups: 1,
        ..Options::full()
    });
    assert_eq!((census.groups.len(), census.other.groups), (1, 3));
    assert_eq!(census.other.objects, 48);
}

#[test]
fn shared_data_is_split_between_those_that_share_it() {
    let mut node = Node::new();
    let sk = node.socket(17, 0);
    let buffer = Buffer {
        sharers: 2,
        ..received(sk)
    };
    node.full_slab(5, buffer);
    let group = &node.census().groups[0];
    assert_eq!(group.bytes, 16 * 1280);
    assert_eq!(group.own_bytes, 16 * (232 + (1280 - 232) / 2));
}

#[test]
fn lists_are_followed_to_the_socket_that_holds_them() {
    let mut node = Node::new();
    let (udp, reader, sender, unix) = (
        node.socket(2, 17),
        node.socket(2, 17),
        node.socket(1, 0),
        node.socket(1, 0),
    );
    let layout = &LAYOUT.sock;
    let queue = |sk: u64, at: usize| sk + at as u64;
    let buffers = node.full_slab(1, Buffer::default());
    node.link(&buffers, queue(udp, layout.receive_queue));
    let buffers = node.full_slab(2, Buffer::default());
    node.link(&buffers, queue(reader, layout.reader_queue.unwrap()));
    let buffers = node.full_slab(3, received(sender));
    node.link(&buffers[..10], queue(unix, layout.receive_queue));
    node.link(&buffers[10..], 0);
    let census = node.census();
    let objects = |inode_wanted| {
        let group = census
            .groups
            .iter()
            .find(|group| inode(group) == Some(inode_wanted))?;
        Some((group.objects, group.queue))
    };
    assert_eq!(objects(1000), Some((16, Some(Queue::Receive))));
    assert_eq!(objects(1001), Some((16, Some(Queue::Receive))));
    assert_eq!(
        objects(1003),
        Some((10, Some(Queue::Receive))),
        "the reader"
    );
    assert_eq!(
        objects(1002),
        Some((6, None)),
        "the sender, as far as is known"
    );
}

#[test]
fn lists_are_followed_through_what_the_sample_left_out() {
    let mut node = Node::new();
    let udp = node.socket(2, 17);
    let mut buffers = Vec::new();
    for pfn in [1, 65, 129, 193] {
        buffers.extend(node.full_slab(pfn, Buffer::default()));
    }
    node.link(&buffers, udp + LAYOUT.sock.receive_queue as u64);
    for seed in 0..8 {
        let census = node.census_with(&Options {
            max_pages: Some(256),
            seed,
            ..Options::full()
        });
        for group in &census.groups {
            assert_eq!(inode(group), Some(1000), "seed {seed}");
        }
    }
}

#[test]
fn what_there_was_no_time_to_follow_is_not_of_nobody() {
    let mut node = Node::new();
    let (udp, sender) = (node.socket(2, 17), node.socket(1, 0));
    let buffers = node.full_slab(1, Buffer::default());
    node.link(&buffers, udp + LAYOUT.sock.receive_queue as u64);
    let charged = node.full_slab(2, received(sender));
    node.link(&charged, udp + LAYOUT.sock.receive_queue as u64);
    let single = node.full_slab(3, Buffer::default());
    let now = Options {
        time_limit: Duration::ZERO,
        ..Options::full()
    };
    let known = [buffers[0], buffers[1], charged[0], single[0]];
    let census = node.scan().these(&known, &now, &mut names);
    assert_eq!(
        (census.unfollowed.groups, census.unfollowed.objects),
        (1, 2)
    );
    let mut groups: Vec<_> = census
        .groups
        .iter()
        .map(|group| (inode(group), group.queue, group.objects))
        .collect();
    groups.sort_unstable();
    // One that is in no list needs no time.
    assert_eq!(groups, [(None, None, 1), (Some(1001), None, 1)]);
    let census = node.scan().these(&known, &Options::full(), &mut names);
    assert_eq!(census.unfollowed.objects, 0);
    assert!(census.groups.iter().any(|group| inode(group) == Some(1000)));
}

#[test]
fn what_tcp_has_sent_is_told_by_its_own_list() {
    let mut node = Node::new();
    let tcp = node.socket(2, 6);
    let anchor = LAYOUT.skb.tsorted.unwrap();
    let head = tcp + LAYOUT.sock.tsorted_sent_queue.unwrap() as u64;
    node.slab(1, 8, &[true; 16]);
    let pairs: Vec<u64> = (0..16).map(|at| Node::page(8) + at * 512).collect();
    for (at, &pair) in pairs.iter().enumerate() {
        let anchor_of = |pair: Option<&u64>| pair.map_or(head, |pair| pair + anchor as u64);
        node.buffer(pair, Buffer::default());
        node.memory.put(pair, anchor, anchor_of(pairs.get(at + 1)));
        let before = at.checked_sub(1).and_then(|at| pairs.get(at));
        node.memory.put(pair, anchor + 8, anchor_of(before));
        node.memory.put_half(pair, LAYOUT.skb.fclone_ref, 1);
    }
    node.memory.put(head, 8, pairs[15] + anchor as u64);
    let census = node.census();
    assert_eq!(census.caches[1].objects, 16);
    let [group] = &census.groups[..] else {
        panic!("{:?}", census.groups)
    };
    assert_eq!(
        (inode(group), group.queue, group.objects),
        (Some(1000), Some(Queue::Sent), 16)
    );
    assert_eq!(group.destructor, None);
}

#[test]
fn of_a_pair_the_one_that_lives_is_counted() {
    let mut node = Node::new();
    let (one, other) = (node.socket(2, 6), node.socket(2, 6));
    node.slab(1, 8, &[true; 16]);
    for at in 0..16 {
        let pair = Node::page(8) + at * 512;
        let clone = pair + LAYOUT.skb.skb2 as u64;
        // The first was let go of: no destructor, no list.
        node.buffer(pair, Buffer::default());
        node.buffer(clone, received(other));
        let head = node.memory.word(pair + LAYOUT.skb.head as u64).unwrap();
        node.memory.put(clone, LAYOUT.skb.head, head);
        node.memory.put(clone, LAYOUT.skb.data, head + 64);
        let references = if at < 4 { 2 } else { 1 };
        if at < 4 {
            node.buffer(pair, received(one));
        }
        node.memory
            .put_half(pair, LAYOUT.skb.fclone_ref, references);
    }
    let census = node.census();
    let mut counts: Vec<_> = census
        .groups
        .iter()
        .map(|group| (inode(group), group.objects))
        .collect();
    counts.sort_unstable();
    assert_eq!(counts, [(Some(1000), 4), (Some(1001), 16)]);
}

#[test]
fn freed_buffers_that_point_into_a_queue_are_not_in_it() {
    let mut node = Node::new();
    let (capture, udp) = (node.socket(17, 0), node.socket(2, 17));
    let told = node.full_slab(1, received(capture));
    node.link(&told, capture + LAYOUT.sock.receive_queue as u64);
    let followed = node.full_slab(2, Buffer::default());
    node.link(&followed, udp + LAYOUT.sock.receive_queue as u64);
    let freed = node.full_slab(3, Buffer::default());
    for (at, &buffer) in freed.iter().enumerate() {
        let next = if at % 2 == 0 { told[at] } else { followed[at] };
        node.memory.put(buffer, LAYOUT.skb.next, next);
    }
    let census = node.census();
    let mut counts: Vec<_> = census
        .groups
        .iter()
        .map(|group| (inode(group), group.queue, group.objects))
        .collect();
    counts.sort_unstable();
    let received = Some(Queue::Receive);
    assert_eq!(
        counts,
        [
            (None, None, 16),
            (Some(1000), None, 16),
            (Some(1001), received, 16)
        ]
    );
}

#[test]
fn lists_without_an_end_are_given_up() {
    let mut node = Node::new();
    let sk = node.socket(2, 17);
    let circle = node.full_slab(1, Buffer::default());
    node.link(&circle, circle[3]);
    let itself = node.full_slab(2, Buffer::default());
    for &buffer in &itself {
        node.memory.put(buffer, LAYOUT.skb.next, buffer);
    }
    for (pfn, next) in [
        (3, 0x1000),
        (4, u64::MAX),
        (5, DIRECT + 450 * PAGE),
        (6, sk + 1),
        (7, DIRECT + PAGES * PAGE),
    ] {
        node.full_slab(
            pfn,
            Buffer {
                next,
                ..Buffer::default()
            },
        );
    }
    let census = node.census();
    let counted: u64 = census.groups.iter().map(|group| group.objects).sum();
    assert_eq!(counted, 7 * 16);
    assert!(census.groups.iter().all(|group| group.socket.is_none()));
}

#[test]
fn a_circle_that_the_sample_left_out_is_given_up() {
    let node = Node::new();
    let into = node.full_slab(1, Buffer::default());
    let circle = node.full_slab(65, Buffer::default());
    node.link(&circle, circle[3]);
    for &buffer in &into {
        node.memory.put(buffer, LAYOUT.skb.next, circle[0]);
    }
    for seed in 0..8 {
        let census = node.census_with(&Options {
            max_pages: Some(256),
            seed,
            ..Options::full()
        });
        assert_eq!(census.unfollowed.objects, 0, "seed {seed}");
        assert!(census.groups.iter().all(|group| group.socket.is_none()));
    }
}

#[test]
fn pages_that_are_no_slabs_any_more_do_not_count() {
    let mut node = Node::new();
    let sk = node.socket(17, 0);
    node.full_slab(1, received(sk));
    node.full_slab(2, received(sk));
    // Free pages keep what was in them.
    let page = VMEMMAP + 2 * 64;
    node.memory
        .put_half(page, LAYOUT.slab.page_type, 0xf0 << 24);
    // And one becomes something else while it is looked at.
    node.full_slab(70, received(sk));
    node.memory.on_read = Some(Box::new(|memory, address| {
        if address == Node::page(70) {
            memory.put(VMEMMAP + 70 * 64, LAYOUT.slab.cache, 0);
        }
    }));
    assert_eq!(node.census().groups[0].objects, 16);
    // Counts that no slab of this cache has.
    for counters in [0, u64::MAX, 17 << 16, 0x7fff << 16] {
        node.memory
            .put(VMEMMAP + 64, LAYOUT.slab.counters, counters);
        assert_eq!(node.census().groups, [], "{counters:#x}");
    }
}

#[test]
fn freelists_that_lead_nowhere_are_noticed() {
    let live = [
        true, false, false, true, false, true, true, true, true, true, true, true, true, true,
        true, true,
    ];
    let object = |at: u64| Node::page(1) + at * 256;
    let slot = |at: u64| object(at) + 128;
    let scrambled = |at: u64, next: u64| next ^ SECRET ^ slot(at).swap_bytes();
    for next in [
        object(4),
        object(3) + 8,
        object(16),
        object(0) - 256,
        1,
        u64::MAX,
        0x7fff_0000,
    ] {
        let mut node = Node::new();
        let sk = node.socket(17, 0);
        node.full_slab(1, received(sk));
        node.slab(0, 1, &live);
        // The list is 4, 2, 1; it is cut after 4.
        node.memory.put(slot(4), 0, scrambled(4, next));
        let census = node.census();
        assert_eq!(census.changing_slabs, 1, "{next:#x}");
        let objects = census.caches[0].objects;
        assert!((13..=16).contains(&objects), "{next:#x}: {objects}");
    }
}

#[test]
fn what_has_moved_is_not_called_held() {
    let mut node = Node::new();
    let sk = node.socket(17, 0);
    let buffers = node.full_slab(1, received(sk));
    let looks = Cell::new(0);
    node.memory.on_read = Some(Box::new(move |memory, address| {
        if address == buffers[0] {
            looks.set(looks.get() + 1);
            if looks.get() == 2 {
                for &buffer in &buffers {
                    memory.put_half(buffer, LAYOUT.skb.users, 0);
                }
            }
        }
    }));
    let census = node.census();
    assert_eq!((census.groups.len(), census.moving.objects), (0, 16));
}

#[test]
fn pages_that_cannot_be_read_are_left_out() {
    let mut node = Node::new();
    let sk = node.socket(17, 0);
    for pfn in [1, 64, 128, 192] {
        node.full_slab(pfn, received(sk));
    }
    node.memory.unreadable.insert(Node::page(64) / PAGE);
    // Descriptors of pfns 128 to 191.
    node.memory.unreadable.insert((VMEMMAP + 128 * 64) / PAGE);
    let census = node.census();
    assert_eq!(census.groups[0].objects, 32);
    // Nor does a socket that is not there make one.
    node.memory.unreadable.insert(sk / PAGE);
    let census = node.census();
    assert_eq!(census.groups[0].socket, None);
    assert_eq!(census.groups[0].objects, 32);
}

#[test]
fn time_that_is_up_ends_it() {
    let mut node = Node::new();
    let sk = node.socket(17, 0);
    node.full_slab(1, received(sk));
    let census = node.census_with(&Options {
        time_limit: Duration::ZERO,
        ..Options::full()
    });
    assert!(!census.full);
    assert_eq!((census.sampled_pages, census.groups.len()), (0, 0));
}

#[test]
fn a_sample_stands_for_all() {
    const SEEDS: u64 = 70;
    let mut node = Node::new();
    let sk = node.socket(17, 0);
    for pfn in (0..256).filter(|pfn| pfn % 5 < 3) {
        node.full_slab(pfn, received(sk));
    }
    let truth = node.census().groups[0].objects;
    let mut sum = 0;
    for seed in 0..SEEDS {
        let options = Options {
            max_pages: Some(256),
            seed,
            ..Options::full()
        };
        let census = node.census_with(&options);
        assert_eq!((census.sampled_pages, census.total_pages), (256, PAGES));
        sum += census.groups.first().map_or(0, |group| group.objects);
    }
    // 4 of 8 clusters, half of which hold all: 70 ways to choose, mean within a few percent.
    assert!(
        sum.abs_diff(truth * SEEDS) * 5 < truth * SEEDS,
        "{} of {truth}",
        sum / SEEDS
    );
}

#[test]
fn caches_are_found_by_variable_by_member_and_by_name() {
    let node = Node::new();
    let (variable, hotdata, list) = (HEAD_CACHE + 0x800, HEAD_CACHE + 0x900, HEAD_CACHE + 0xf00);
    let memory = &node.memory;
    let cache = &LAYOUT.cache;
    for (at, (address, name, size, order)) in [
        (HEAD_CACHE, "skbuff_head_cache", 256, 0),
        (PAIR_CACHE, "skbuff_fclone_cache", 512, 1),
    ]
    .into_iter()
    .enumerate()
    {
        memory.put_half(address, cache.size, size);
        memory.put_half(address, cache.object_size, size - 16);
        memory.put_half(address, cache.offset, size / 2);
        memory.put_half(address, cache.oo, (order << 16) | ((4096 << order) / size));
        memory.put(address, cache.random.unwrap(), SECRET);
        let text = list + 0x20 * (at as u64 + 1);
        memory.write(text, &[0; 64]);
        memory.write(text, name.as_bytes());
        memory.put(address, cache.name, text);
    }
    memory.put(variable, 0, HEAD_CACHE);
    memory.put(hotdata, LAYOUT.hotdata.skbuff_cache.unwrap(), HEAD_CACHE);
    let link = cache.list as u64;
    memory.put(list, 0, HEAD_CACHE + link);
    memory.put(HEAD_CACHE + link, 0, PAIR_CACHE + link);
    memory.put(PAIR_CACHE + link, 0, list);
    let find = |table: &str| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, table).unwrap();
        let symbols = Symbols::find(file.path()).unwrap();
        let caches = super::caches::find(memory, &node.ram, &LAYOUT, &symbols, None);
        caches.map(|caches| caches.iter().map(|cache| cache.address).collect::<Vec<_>>())
    };
    let by_variable = format!("{variable:x} D skbuff_head_cache\n");
    let by_member = format!("{hotdata:x} D net_hotdata\n");
    let by_name = format!("{list:x} D slab_caches\n");
    assert_eq!(find(&by_variable).unwrap(), [HEAD_CACHE]);
    assert_eq!(find(&by_member).unwrap(), [HEAD_CACHE]);
    assert_eq!(find(&by_name).unwrap(), [HEAD_CACHE, PAIR_CACHE]);
    assert!(find("").is_err());
    // A list that never comes back.
    memory.put(PAIR_CACHE + link, 0, PAIR_CACHE + link);
    assert_eq!(find(&by_name).unwrap(), [HEAD_CACHE, PAIR_CACHE]);
    memory.put_half(HEAD_CACHE, cache.size, 0);
    assert!(find(&by_variable).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Whatever is in memory: it ends, it does not panic, and it counts no more than there can be.
    #[test]
    fn garbage_is_survived(words in proptest::collection::vec((0_u64..16, any::<u64>()), 4096)) {
        let mut node = Node::new();
        let sk = node.socket(2, 17);
        let queue = sk + LAYOUT.sock.receive_queue as u64;
        for (at, &(kind, value)) in (0_u64..).zip(&words) {
            // Words that look like something, in slabs, their descriptors and the socket.
            let word = match kind {
                0 => HEAD_CACHE,
                1 => PAIR_CACHE,
                2..6 => DIRECT + value % (PAGES * PAGE),
                6 => DIRECT + (value % 16) * PAGE + (value % 16) * 256,
                7 => sk,
                8 => queue,
                9 => 0,
                10 => value % 4096,
                _ => value,
            };
            node.memory.put(Node::page(0) + at * 8, 0, word);
            if at % 16 == 0 {
                node.memory.put(sk, usize::try_from(value % 776).unwrap(), word);
            }
        }
        for (pfn, &(kind, value)) in (0_u64..8).zip(&words) {
            let objects = 1 + value % 16;
            let cache = usize::try_from(kind % 2).unwrap();
            let page = VMEMMAP + pfn * 64;
            node.memory.put(page, LAYOUT.slab.cache, node.caches[cache].address);
            node.memory.put(page, LAYOUT.slab.counters, (objects << 16) | (value % 20));
            node.memory.put(page, LAYOUT.slab.freelist, Node::page(pfn) + kind * 256);
            node.memory.put_half(page, LAYOUT.slab.page_type, 0xf5 << 24);
        }
        let census = node.census();
        let objects: u64 = census.caches.iter().map(|cache| cache.objects).sum();
        prop_assert!(objects <= 8 * 16);
    }
}
