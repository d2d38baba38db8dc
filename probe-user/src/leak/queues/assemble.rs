//! From readings to queues: pure.

use std::collections::BTreeMap;
use std::time::Duration;

use super::link::Link;
use super::neighbour::Table;
use super::nfqueue::{Instance, NETLINK_NETFILTER, Socket};
use super::owners::{Owners, TunFile};
use super::qdisc::{self, Qdisc};
use super::reading::Reading;
use crate::event::queues::{Kind, Moved, Queue};
use crate::event::text;

/// The queues of one namespace, but for those of tun devices.
pub(super) fn namespace(
    inode: u64,
    first: &Reading,
    second: Option<&Reading>,
    owners: &Owners,
) -> Vec<Queue> {
    let latest = second.unwrap_or(first);
    let interval = interval(first, second);
    let mut queues = Vec::new();
    for nfqueue in latest.nfqueues.iter().filter(|queue| queue.packets > 0) {
        let before = first
            .nfqueues
            .iter()
            .find(|before| (before.queue, before.port_id) == (nfqueue.queue, nfqueue.port_id));
        let moved = before
            .zip(interval)
            .map(|(before, interval)| verdicts(before, nfqueue, interval));
        let socket = latest.sockets.iter().find(|socket| {
            (socket.protocol, socket.port_id) == (NETLINK_NETFILTER, nfqueue.port_id)
        });
        queues.push(Queue {
            moved,
            ..one_nfqueue(nfqueue, socket, owners)
        });
    }
    for qdisc in latest.qdiscs.iter().filter(|qdisc| qdisc.packets > 0) {
        let before = first.qdiscs.iter().find(|before| {
            (before.ifindex, before.handle, &before.discipline)
                == (qdisc.ifindex, qdisc.handle, &qdisc.discipline)
        });
        let moved = before
            .zip(interval)
            .map(|(before, interval)| sent(before, qdisc, interval));
        queues.push(Queue {
            moved,
            ..one_qdisc(qdisc, &latest.links)
        });
    }
    queues.extend(fragments(first));
    queues.extend(tcp(first, owners));
    queues.extend(neighbours(first));
    for queue in &mut queues {
        queue.netns = Some(inode);
    }
    queues
}

fn interval(first: &Reading, second: Option<&Reading>) -> Option<Duration> {
    Some(second?.at?.saturating_duration_since(first.at?))
}

fn moved(interval: Duration, packets_before: Option<u64>, left: u64, dropped: u64) -> Moved {
    Moved {
        interval_ms: u64::try_from(interval.as_millis()).unwrap_or(u64::MAX),
        packets_before,
        left_packets: left,
        dropped_packets: dropped,
    }
}

fn one_nfqueue(nfqueue: &Instance, socket: Option<&Socket>, owners: &Owners) -> Queue {
    let kind = Kind::Nfqueue {
        queue: nfqueue.queue,
        port_id: nfqueue.port_id,
        socket_inode: socket.map(|socket| socket.inode),
        socket_rmem_bytes: socket.map(|socket| socket.rmem_bytes),
        copy: nfqueue.copy,
        socket_drops: nfqueue.socket_drops,
        numbered: nfqueue.numbered.into(),
    };
    let pids = socket.and_then(|socket| owners.sockets.get(&socket.inode));
    Queue {
        packets: Some(nfqueue.packets),
        drops: Some(nfqueue.full_drops.saturating_add(nfqueue.socket_drops)),
        owners: pids.cloned().unwrap_or_default(),
        ..Queue::new(kind)
    }
}

/// Every packet that got a number is queued, was dropped by the socket, or left with a verdict.
fn verdicts(before: &Instance, after: &Instance, interval: Duration) -> Moved {
    let numbered = u64::from(after.numbered.wrapping_sub(before.numbered));
    let socket_drops = after.socket_drops.saturating_sub(before.socket_drops);
    let left = (before.packets.saturating_add(numbered))
        .saturating_sub(after.packets.saturating_add(socket_drops));
    let dropped = socket_drops.saturating_add(after.full_drops.saturating_sub(before.full_drops));
    moved(interval, Some(before.packets), left, dropped)
}

fn one_qdisc(qdisc: &Qdisc, links: &[Link]) -> Queue {
    let link = links.iter().find(|link| link.ifindex == qdisc.ifindex);
    let limit_packets = match qdisc.discipline.as_slice() {
        // It takes as many as the device says, in each of three bands.
        b"pfifo_fast" => link.and_then(|link| Some(u64::from(link.tx_queue_len?) * 3)),
        _ => qdisc.settings.limit_packets,
    };
    let kind = Kind::Qdisc {
        discipline: text(&qdisc.discipline),
        handle: qdisc::handle(qdisc.handle),
        delay_ns: qdisc.settings.delay_ns,
    };
    Queue {
        device: link.map(|link| text(&link.name)),
        packets: Some(qdisc.packets.into()),
        bytes: Some(qdisc.bytes.into()),
        limit_packets,
        limit_bytes: qdisc.settings.limit_bytes,
        drops: Some(qdisc.drops.into()),
        ..Queue::new(kind)
    }
}

fn sent(before: &Qdisc, after: &Qdisc, interval: Duration) -> Moved {
    moved(
        interval,
        Some(before.packets.into()),
        after.sent.saturating_sub(before.sent),
        after.drops.saturating_sub(before.drops).into(),
    )
}

fn fragments(reading: &Reading) -> impl Iterator<Item = Queue> {
    let families = [
        (4, reading.ipv4, reading.fragments_limit_bytes),
        (6, reading.ipv6, reading.fragments6_limit_bytes),
    ];
    families.into_iter().filter_map(|(ip, stat, limit_bytes)| {
        let bytes = stat.fragments_bytes.filter(|&bytes| bytes > 0)?;
        let datagrams = stat.fragmented.unwrap_or(0);
        Some(Queue {
            bytes: Some(bytes),
            limit_bytes,
            ..Queue::new(Kind::Fragments { ip, datagrams })
        })
    })
}

fn tcp(reading: &Reading, owners: &Owners) -> Vec<Queue> {
    let mut queues = Vec::new();
    let orphans = reading.tcp.orphans;
    if orphans.unacknowledged_bytes > 0 {
        queues.push(Queue {
            bytes: Some(orphans.unacknowledged_bytes),
            ..Queue::new(Kind::TcpOrphans {
                sockets: orphans.sockets,
            })
        });
    }
    for (&port, unaccepted) in &reading.tcp.unaccepted {
        if unaccepted.received_bytes > 0 {
            let pids = unaccepted
                .listener_inode
                .and_then(|inode| owners.sockets.get(&inode));
            queues.push(Queue {
                bytes: Some(unaccepted.received_bytes),
                owners: pids.cloned().unwrap_or_default(),
                ..Queue::new(Kind::TcpUnaccepted {
                    port,
                    sockets: unaccepted.sockets,
                    listener_inode: unaccepted.listener_inode,
                })
            });
        }
    }
    queues
}

fn neighbours(reading: &Reading) -> impl Iterator<Item = Queue> {
    reading.unresolved.iter().map(|unresolved| {
        let settings = |ifindex| {
            reading
                .neighbour_tables
                .iter()
                .find(move |table| (table.family, table.ifindex) == (unresolved.family, ifindex))
        };
        let table = settings(Some(unresolved.ifindex)).or_else(|| settings(None));
        let limit_bytes = table.and_then(|table| table.queue_limit_bytes);
        let link = reading
            .links
            .iter()
            .find(|link| link.ifindex == unresolved.ifindex);
        Queue {
            device: link.map(|link| text(&link.name)),
            limit_bytes: limit_bytes
                .map(|limit| u64::from(limit).saturating_mul(unresolved.entries)),
            ..Queue::new(Kind::NeighbourUnresolved {
                entries: unresolved.entries,
            })
        }
    })
}

/// The queues of proxies, which are not per namespace: `tables` are those of any.
pub(super) fn proxies(tables: &[Table]) -> impl Iterator<Item = Queue> {
    tables.iter().filter_map(|table| {
        let packets = table.proxy_packets.filter(|&packets| packets > 0)?;
        Some(Queue {
            packets: Some(packets.into()),
            ..Queue::new(Kind::NeighbourProxy {
                table: text(&table.name),
            })
        })
    })
}

/// The queues of tun devices that a process has open. `netns_of` tells the namespace of a
/// process: where a device of that name is looked for first.
pub(super) fn tuns(
    readings: &BTreeMap<u64, (Reading, Option<Reading>)>,
    files: &[TunFile],
    netns_of: impl Fn(u32) -> Option<u64>,
) -> Vec<Queue> {
    let mut queues: BTreeMap<_, (u64, Vec<u32>)> = BTreeMap::new();
    for file in files {
        let netns = home(readings, &file.device, netns_of(file.pid));
        let (count, pids) = queues.entry((netns, file.device.as_slice())).or_default();
        *count += 1;
        if pids.last() != Some(&file.pid) {
            pids.push(file.pid);
        }
    }
    let queues = queues
        .into_iter()
        .map(|((netns, device), (files, owners))| {
            let readings = netns.and_then(|netns| readings.get(&netns));
            let queue = match readings {
                Some((first, second)) => one_tun(device, files, first, second.as_ref()),
                None => Queue::new(Kind::Tun {
                    files,
                    read_packets: None,
                }),
            };
            Queue {
                netns,
                device: Some(text(device)),
                owners,
                ..queue
            }
        });
    queues.collect()
}

/// The namespace of a tun device: that of the process, or the only one with such a device.
fn home(
    readings: &BTreeMap<u64, (Reading, Option<Reading>)>,
    device: &[u8],
    of_process: Option<u64>,
) -> Option<u64> {
    let mut with = readings
        .iter()
        .filter_map(|(&netns, (first, _))| tun(first, device).is_some().then_some(netns));
    let first = with.next()?;
    let rest: Vec<u64> = with.collect();
    if rest.is_empty() {
        return Some(first);
    }
    of_process.filter(|netns| *netns == first || rest.contains(netns))
}

fn tun<'a>(reading: &'a Reading, name: &[u8]) -> Option<&'a Link> {
    reading
        .links
        .iter()
        .find(|link| link.is_tun && link.name == name)
}

fn one_tun(device: &[u8], files: u64, first: &Reading, second: Option<&Reading>) -> Queue {
    let latest = second.unwrap_or(first);
    let Some(link) = tun(latest, device) else {
        return Queue::new(Kind::Tun {
            files,
            read_packets: None,
        });
    };
    let limit = link
        .tx_queue_len
        .map(|len| u64::from(len).saturating_mul(files));
    let before = tun(first, device).and_then(|link| Some((link.tx_packets?, link.tx_dropped?)));
    let after = link.tx_packets.zip(link.tx_dropped);
    let moved = before.zip(after).zip(interval(first, second)).map(
        |(((read_before, dropped_before), (read, dropped)), interval)| {
            moved(
                interval,
                queued(first, device).filter(|&packets| limit.is_none_or(|limit| packets <= limit)),
                read.saturating_sub(read_before),
                dropped.saturating_sub(dropped_before),
            )
        },
    );
    Queue {
        // A segmented packet counts as several in the qdisc: more than fits is no answer.
        packets: queued(latest, device)
            .filter(|&packets| limit.is_none_or(|limit| packets <= limit)),
        limit_packets: limit,
        drops: link.tx_dropped,
        moved,
        ..Queue::new(Kind::Tun {
            files,
            read_packets: link.tx_packets,
        })
    }
}

/// What the qdisc gave to a tun device and was neither read nor dropped.
fn queued(reading: &Reading, device: &[u8]) -> Option<u64> {
    let link = tun(reading, device)?;
    let qdisc = reading
        .qdiscs
        .iter()
        .find(|qdisc| qdisc.ifindex == link.ifindex)?;
    qdisc
        .sent
        .checked_sub(link.tx_packets?.checked_add(link.tx_dropped?)?)
}
