//! From readings to queues.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::super::assemble;
use super::super::link::Link;
use super::super::neighbour::{Table, Unresolved};
use super::super::nfqueue::{Instance, NETLINK_NETFILTER, Socket};
use super::super::owners::{Owners, TunFile};
use super::super::protocols::Sockstat;
use super::super::qdisc::Qdisc;
use super::super::reading::Reading;
use crate::event::queues::{Copy, Kind, Moved};

fn reading(at: Instant) -> Reading {
    Reading {
        at: Some(at),
        ..Reading::default()
    }
}

fn instance(packets: u64, numbered: u32, full_drops: u64, socket_drops: u64) -> Instance {
    Instance {
        queue: 5,
        port_id: 7,
        packets,
        copy: Copy::Packet,
        full_drops,
        socket_drops,
        numbered,
    }
}

#[test]
fn verdicts_are_what_came_and_is_not_there() {
    let start = Instant::now();
    let table = [
        // Nothing came, nothing left.
        (
            instance(1000, 1000, 0, 0),
            instance(1000, 1000, 0, 0),
            (0, 0),
        ),
        // 24 came, none left, and the rest found it full.
        (
            instance(1000, 1000, 0, 0),
            instance(1024, 1024, 90, 0),
            (0, 90),
        ),
        // 500 came and left.
        (
            instance(1000, 1000, 3, 4),
            instance(1000, 1500, 3, 4),
            (500, 0),
        ),
        // 500 came; the socket took 100 of them.
        (
            instance(0, 1000, 0, 0),
            instance(100, 1500, 0, 400),
            (0, 400),
        ),
        // The counter of 32 bits starts over.
        (instance(10, u32::MAX, 0, 0), instance(10, 9, 0, 0), (10, 0)),
        // Read while it changed.
        (instance(10, 10, 0, 0), instance(20, 15, 0, 0), (0, 0)),
    ];
    for (before, after, (left, dropped)) in table {
        let first = Reading {
            nfqueues: vec![before.clone()],
            ..reading(start)
        };
        let socket = |port_id, inode| Socket {
            protocol: NETLINK_NETFILTER,
            port_id,
            rmem_bytes: 4096,
            inode,
        };
        let second = Reading {
            nfqueues: vec![after.clone()],
            sockets: vec![socket(8, 98), socket(7, 99)],
            ..reading(start + Duration::from_millis(500))
        };
        let owners = Owners {
            sockets: BTreeMap::from([(98, vec![1]), (99, vec![42, 43])]),
            ..Owners::default()
        };
        let [queue] = assemble::namespace(1000, &first, Some(&second), &owners)
            .try_into()
            .unwrap();
        let moved = Moved {
            interval_ms: 500,
            packets_before: Some(before.packets),
            left_packets: left,
            dropped_packets: dropped,
        };
        assert_eq!(queue.moved, Some(moved));
        assert_eq!(
            (queue.netns, queue.packets),
            (Some(1000), Some(after.packets))
        );
        assert_eq!(queue.owners, [42, 43]);
        let [once] = assemble::namespace(1000, &second, None, &owners)
            .try_into()
            .unwrap();
        assert_eq!(once.moved, None);
    }
}

/// A tun device of which the qdisc sent, and readers took, so many.
fn tun(at: Instant, sent: u64, read: u64, dropped: u64) -> Reading {
    Reading {
        links: vec![Link {
            ifindex: 3,
            name: b"tun0".to_vec(),
            is_tun: true,
            tx_queue_len: Some(500),
            tx_packets: Some(read),
            tx_dropped: Some(dropped),
        }],
        qdiscs: vec![Qdisc {
            ifindex: 3,
            discipline: b"pfifo_fast".to_vec(),
            sent,
            ..Qdisc::default()
        }],
        ..reading(at)
    }
}

#[test]
fn a_tun_queue_is_what_was_sent_and_not_read() {
    let start = Instant::now();
    let file = |pid| TunFile {
        pid,
        device: b"tun0".to_vec(),
    };
    let files = [file(42), file(42), file(43)];
    let table = [
        (1000, 300, 200, Some(500)),
        (1000, 1000, 0, Some(0)),
        // Segmented packets are several to the qdisc.
        (90_000, 300, 200, None),
        // The qdisc was replaced.
        (10, 300, 200, None),
    ];
    for (sent, read, dropped, packets) in table {
        let later = start + Duration::from_millis(500);
        let readings = BTreeMap::from([(
            1000,
            (
                tun(start, sent, read, dropped),
                Some(tun(later, sent, read, dropped)),
            ),
        )]);
        let [queue] = assemble::tuns(&readings, &files, |_| Some(1000))
            .try_into()
            .unwrap();
        assert_eq!(queue.packets, packets);
        assert_eq!(queue.limit_packets, Some(1500), "a ring for each file");
        assert_eq!((queue.owners, queue.netns), (vec![42, 43], Some(1000)));
        assert_eq!(queue.moved.unwrap().left_packets, 0);
        let kind = Kind::Tun {
            files: 3,
            read_packets: Some(read),
        };
        assert_eq!(queue.kind, kind);
    }
}

#[test]
fn a_tun_device_is_looked_for_where_its_process_is() {
    let now = Instant::now();
    let files = [TunFile {
        pid: 42,
        device: b"tun0".to_vec(),
    }];
    let two = BTreeMap::from([
        (1000, (tun(now, 9, 0, 0), None)),
        (2000, (tun(now, 8, 0, 0), None)),
        (3000, (reading(now), None)),
    ]);
    let netns = |of_process| assemble::tuns(&two, &files, |_| of_process)[0].netns;
    assert_eq!(netns(Some(2000)), Some(2000));
    assert_eq!(netns(Some(1000)), Some(1000));
    // It was moved to one of the two, and which is not known.
    assert_eq!(netns(Some(3000)), None);
    let one = BTreeMap::from([
        (1000, (tun(now, 9, 0, 0), None)),
        (3000, (reading(now), None)),
    ]);
    assert_eq!(
        assemble::tuns(&one, &files, |_| Some(3000))[0].netns,
        Some(1000)
    );
}

#[test]
fn empty_queues_are_left_out() {
    let quiet = Reading {
        nfqueues: vec![instance(0, 900, 0, 0)],
        qdiscs: vec![Qdisc::default()],
        ipv4: Sockstat {
            fragmented: Some(0),
            fragments_bytes: Some(0),
            ..Sockstat::default()
        },
        ..reading(Instant::now())
    };
    assert_eq!(assemble::namespace(1, &quiet, None, &Owners::default()), []);
    let table = |packets| Table {
        name: b"arp_cache".to_vec(),
        proxy_packets: packets,
        ..Table::default()
    };
    let tables = [table(None), table(Some(0)), table(Some(12))];
    let proxies: Vec<_> = assemble::proxies(&tables)
        .map(|queue| queue.packets)
        .collect();
    assert_eq!(proxies, [Some(12)]);
}

#[test]
fn neighbours_have_the_limit_of_their_device() {
    let table = |ifindex, queue_limit_bytes| Table {
        family: 2,
        ifindex,
        queue_limit_bytes,
        ..Table::default()
    };
    let unresolved = |ifindex| Unresolved {
        family: 2,
        ifindex,
        entries: 10,
    };
    let first = Reading {
        unresolved: vec![unresolved(4), unresolved(5)],
        neighbour_tables: vec![table(None, Some(1000)), table(Some(4), Some(2000))],
        ..reading(Instant::now())
    };
    let queues = assemble::namespace(1, &first, None, &Owners::default());
    let limits: Vec<_> = queues.iter().map(|queue| queue.limit_bytes).collect();
    assert_eq!(limits, [Some(20_000), Some(10_000)]);
}
