//! What kernels really tell: a process filled queues as `tests/queues` does, in a guest of
//! `cargo xtask vm`, for 6.18-fc on a machine without modules, and kept the answers. Netlink messages are in hexadecimal; the dumps are of
//! qdiscs, devices, neighbours and their tables.

use std::io::BufReader;
use std::time::{Duration, Instant};

use super::super::netlink::{self, Error};
use super::super::nfqueue::{self, NETLINK_NETFILTER};
use super::super::protocols;
use super::super::tcp::Unowned;
use super::super::{link, neighbour, qdisc, tcp};
use crate::event::queues::Copy;

pub(super) const KERNELS: [(&str, &[u8]); 4] = [
    ("5.10", include_bytes!("../testdata/5.10.txt")),
    ("6.1", include_bytes!("../testdata/6.1.txt")),
    ("6.18-fc", include_bytes!("../testdata/6.18-fc.txt")),
    ("7.3", include_bytes!("../testdata/7.3.txt")),
];

/// The part of a capture under this heading.
pub(super) fn section<'a>(capture: &'a [u8], name: &str) -> &'a [u8] {
    let heading = format!("== {name}\n");
    let find = |text: &[u8], what: &[u8]| text.windows(what.len()).position(|at| at == what);
    let start = find(capture, heading.as_bytes()).expect(name) + heading.len();
    let rest = &capture[start..];
    let end = find(rest, b"== ").unwrap_or(rest.len());
    &rest[..end]
}

/// The netlink messages of a part.
pub(super) fn dump(capture: &[u8], name: &str) -> Vec<u8> {
    let digits: Vec<u8> = section(capture, name)
        .iter()
        .filter_map(|byte| u8::try_from(char::from(*byte).to_digit(16)?).ok())
        .collect();
    digits
        .chunks(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect()
}

/// What `parse` makes of each message of a type.
pub(super) fn parsed<T>(
    datagram: &[u8],
    answer: u16,
    parse: impl Fn(&[u8]) -> Result<T, Error>,
) -> Result<Vec<T>, Error> {
    let mut found = Vec::new();
    netlink::messages(datagram, 1, &mut |kind, payload| {
        if kind == answer {
            found.push(parse(payload)?);
        }
        Ok(())
    })?;
    Ok(found)
}

pub(super) fn connections(file: &[u8], to: &mut Unowned) -> std::io::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(600);
    tcp::add(&mut BufReader::new(file), deadline, to)
}

#[test]
fn nfqueue_and_its_socket() {
    for (kernel, capture) in KERNELS {
        let queues = nfqueue::parse(section(capture, "/proc/net/netfilter/nfnetlink_queue"));
        let [queue] = queues.unwrap().try_into().unwrap();
        // A probe of the orphaned connection may be among them.
        assert!((2000..=2001).contains(&queue.packets), "{kernel}");
        assert_eq!(
            (queue.queue, u64::from(queue.numbered)),
            (0, queue.packets),
            "{kernel}"
        );
        assert_eq!((queue.full_drops, queue.socket_drops), (0, 0));
        assert_eq!(queue.copy, Copy::Meta);

        let sockets = nfqueue::parse_sockets(section(capture, "/proc/net/netlink")).unwrap();
        let socket = sockets
            .iter()
            .find(|socket| socket.protocol == NETLINK_NETFILTER && socket.port_id == queue.port_id)
            .unwrap();
        assert!(
            socket.rmem_bytes > 2000 * 256 && socket.inode > 0,
            "{kernel}"
        );
    }
}

#[test]
fn fragments_and_softnet() {
    for (kernel, capture) in KERNELS {
        let stat = protocols::parse_sockstat(section(capture, "/proc/net/sockstat")).unwrap();
        assert_eq!(stat.fragmented, Some(1), "{kernel}");
        assert!(stat.fragments_bytes > Some(500), "{kernel}");
        assert_eq!(stat.tcp_sockets, Some(6), "{kernel}");
        assert!(stat.tcp_memory_pages > Some(500), "{kernel}");
        let stat = protocols::parse_sockstat(section(capture, "/proc/net/sockstat6")).unwrap();
        assert_eq!(
            (stat.fragmented, stat.fragments_bytes),
            (Some(0), Some(0)),
            "{kernel}"
        );
        assert_eq!(stat.tcp_sockets, Some(0), "{kernel}");

        let cpus = protocols::parse_softnet(section(capture, "/proc/net/softnet_stat")).unwrap();
        assert_eq!(
            cpus.iter().map(|cpu| cpu.cpu).collect::<Vec<_>>(),
            [0, 1],
            "{kernel}"
        );
        assert!(
            cpus.iter().all(|cpu| cpu.packets == Some(0)),
            "{kernel}: {cpus:?}"
        );
    }
}

#[test]
fn tcp_connections_without_a_file() {
    for (kernel, capture) in KERNELS {
        let mut unowned = Unowned::default();
        connections(section(capture, "/proc/net/tcp"), &mut unowned).unwrap();
        connections(section(capture, "/proc/net/tcp6"), &mut unowned).unwrap();
        let unaccepted = unowned.unaccepted[&7001];
        assert_eq!(
            (unaccepted.sockets, unaccepted.received_bytes),
            (1, 20_000),
            "{kernel}"
        );
        assert!(unaccepted.listener_inode > Some(0));
        // The other one was accepted.
        assert_eq!(unowned.unaccepted[&7002].sockets, 0);
        assert_eq!(unowned.orphans.sockets, 1, "{kernel}");
        assert!(unowned.orphans.unacknowledged_bytes > 65_536, "{kernel}");
    }
}

#[test]
fn devices_and_their_qdiscs() {
    for (kernel, capture) in KERNELS {
        let links = parsed(&dump(capture, "link"), 16, link::parse).unwrap();
        let qdiscs = parsed(&dump(capture, "qdisc"), 36, qdisc::parse).unwrap();
        let of = |name: &[u8]| {
            let link = links.iter().find(|link| link.name == name).unwrap();
            let own = |qdisc: &&qdisc::Qdisc| qdisc.ifindex == link.ifindex;
            (link, qdiscs.iter().flatten().find(own))
        };
        let (link, qdisc) = of(b"oomq0");
        let qdisc = qdisc.unwrap();
        assert!(!link.is_tun, "{kernel}");
        // What IPv6 asks on a new device may be among them.
        assert!((3000..3010).contains(&qdisc.packets), "{kernel}");
        assert!(
            (2999 * 1042..3010 * 1042).contains(&qdisc.bytes),
            "{kernel}"
        );
        assert_eq!(qdisc::handle(qdisc.handle), "8001:");
        if qdisc.discipline == b"netem" {
            assert_eq!(qdisc.sent, 0);
            assert_eq!(qdisc.settings.limit_packets, Some(6000));
            assert_eq!(qdisc.settings.delay_ns, Some(3_000_000_000_000), "{kernel}");
        } else {
            assert_eq!(
                (qdisc.discipline.as_slice(), qdisc.sent),
                (b"tbf".as_slice(), 1)
            );
            assert_eq!(qdisc.settings.limit_bytes, Some(12_000_000), "{kernel}");
        }

        let (link, qdisc) = of(b"oomtun0");
        assert!(link.is_tun, "{kernel}");
        assert_eq!(link.tx_queue_len, Some(500));
        assert_eq!(link.tx_packets, Some(0));
        assert_eq!(
            qdisc.unwrap().sent - link.tx_dropped.unwrap(),
            500,
            "{kernel}"
        );
    }
}

#[test]
fn neighbours_and_tables() {
    for (kernel, capture) in KERNELS {
        let neighbours = parsed(&dump(capture, "neigh"), 28, neighbour::parse_neighbour).unwrap();
        let links = parsed(&dump(capture, "link"), 16, link::parse).unwrap();
        let device = links.iter().find(|link| link.name == b"oomq1").unwrap();
        let unresolved: Vec<_> = neighbours.into_iter().flatten().collect();
        assert_eq!(unresolved, [(2, device.ifindex)], "{kernel}");

        let tables = parsed(&dump(capture, "neightbl"), 64, neighbour::parse_table).unwrap();
        let arp: Vec<_> = tables
            .iter()
            .filter(|table| table.name == b"arp_cache")
            .collect();
        let of_device = |ifindex| {
            arp.iter()
                .find(move |table| table.ifindex == ifindex)
                .unwrap()
        };
        assert_eq!(of_device(None).proxy_packets, Some(0), "{kernel}");
        let limit = of_device(Some(device.ifindex)).queue_limit_bytes;
        assert!(
            (60_000..1_000_000).contains(&limit.unwrap()),
            "{kernel}: {limit:?}"
        );
    }
}
