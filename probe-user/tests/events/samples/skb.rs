//! Who holds socket buffers.

use oomprobe::event::queues::{Kind, Moved, Queue};
use oomprobe::event::{
    Body, CensusSocket, Event, HeldSocket, HolderMethod, NotRead, Qos, SkbBalance, SkbBefore,
    SkbCache, SkbCensus, SkbCreator, SkbExplained, SkbGroup, SkbHolder, SkbHolders, SkbQueue,
    SkbSource,
};
use oomprobe::verdict::holders;
use oomprobe::verdict::queues::{self, Owner};

use super::{GIB, MIB, cgroup, container, container_path, event, k8s, process};

/// Sockets of one process that hold so much, as two looks find them.
fn holder(comm: &str, family: &str, protocol: &str, skbs: u64, bytes: u64) -> SkbHolder {
    SkbHolder {
        process: Some(process(comm, 4242, MIB, 0)),
        cgroup: Some(cgroup(77, &container_path('a'))),
        k8s: Some(k8s(Some("agent"), Qos::BestEffort)),
        container: Some(container('a')),
        owners: 1,
        socket: HeldSocket {
            family: family.into(),
            kind: "raw".into(),
            protocol: protocol.into(),
            inode: 31_337,
            netns: 4_026_531_840,
            receive_skbs: Some(skbs),
            receive_bytes: Some(bytes),
            rcvbuf_bytes: Some(2 * GIB - 2),
            saturated: bytes > GIB,
            drops: Some(9),
            ..HeldSocket::default()
        },
        sockets: 1,
        skbs: Some(skbs),
        bytes,
        receive_bytes: bytes,
        saturated_sockets: u64::from(bytes > GIB),
        unread_sockets: Some(1),
        unread_bytes: Some(bytes),
        drops: Some(9),
        new_drops: Some(2),
        growth_bytes_per_s: Some(0.0),
        ..SkbHolder::default()
    }
}

fn report(holders: Vec<SkbHolder>) -> SkbHolders {
    let (objects, bytes) = holders.iter().fold((0, 0), |(objects, bytes), holder| {
        (objects + holder.skbs.unwrap_or(0), bytes + holder.bytes)
    });
    let mut report = SkbHolders {
        duration_ms: Some(2001),
        look_ms: 12,
        method: HolderMethod::OpenFiles,
        descriptors: 2210,
        holders_total: 14,
        balance: SkbBalance {
            slab_unreclaimable_bytes: Some(2 * GIB + 100 * MIB),
            slab_objects: Some(objects + 3000),
            noise_objects: Some(1400),
            slab_growth_objects: Some(-12),
            caches: vec![
                SkbCache {
                    name: "skbuff_head_cache".into(),
                    objects: Some(objects + 3000),
                    bytes: Some(406 * MIB),
                    shared_with: Vec::new(),
                },
                SkbCache {
                    name: "skbuff_fclone_cache".into(),
                    objects: Some(304),
                    bytes: Some(152 << 10),
                    shared_with: vec!["kmalloc-cg-512".into(), "pool_workqueue".into()],
                },
            ],
            explained_by: vec![SkbExplained {
                source: SkbSource::Sockets,
                objects: Some(objects),
                bytes,
            }],
            explained_objects: Some(objects),
            explained_bytes: bytes,
            explained_ratio: Some(0.9982),
            unexplained_objects: Some(3000),
        },
        ..SkbHolders::default()
    };
    for mut holder in holders {
        holder.verdict = holders::judge(&holder, report.duration_ms);
        report.findings.extend(holder.verdict.clone());
        report.holders.push(holder);
    }
    report
}

/// A capture that is never read, and a few that are well.
pub(crate) fn held() -> Event {
    let scope = holder("scope", "packet", "all", 1_660_000, 2_124_800_000);
    let mut web = holder("nginx", "inet", "tcp", 400, 3 * MIB);
    (web.sockets, web.owners, web.unread_bytes) = (312, 5, Some(0));
    let mut ids = holder("suricata", "packet", "ip", 0, 0);
    (ids.ring_bytes, ids.drops) = (256 * MIB, Some(0));
    let mut report = report(vec![scope, ids, web]);
    report.namespaces = 14;
    let queue = queued("veth42");
    report.findings.extend(queue.verdict.clone());
    report.queues = vec![queue];
    report.before = Some(Box::new(SkbBefore {
        age_ms: 12_300,
        balance: SkbBalance {
            slab_objects: Some(1_700_000),
            ..report.balance.clone()
        },
        gone: vec![holder("tcpdump", "packet", "all", 36_000, 46 * MIB)],
    }));
    report.census = Some(census("all", report.holders[0].skbs.unwrap_or(0)));
    event(Body::SkbHolders(Box::new(report)))
}

/// A queueing discipline that nothing comes out of.
fn queued(device: &str) -> SkbQueue {
    let queue = Queue {
        kind: Kind::Qdisc {
            discipline: "netem".into(),
            handle: "8001:".into(),
            delay_ns: Some(3_000_000_000),
        },
        netns: Some(4_026_532_177),
        device: Some(device.into()),
        packets: Some(3000),
        bytes: Some(3_126_000),
        limit_packets: Some(100_000),
        limit_bytes: None,
        drops: Some(0),
        moved: Some(Moved {
            interval_ms: 500,
            packets_before: Some(3000),
            left_packets: 0,
            dropped_packets: 0,
        }),
        owners: Vec::new(),
    };
    SkbQueue {
        verdict: queues::judge(&queue, Owner::default()),
        queue,
        process: None,
        cgroup: Some(cgroup(77, &container_path('a'))),
        k8s: Some(k8s(Some("agent"), Qos::BestEffort)),
        container: None,
    }
}

/// A sample of the slabs in which nearly all is of one socket.
fn census(name: &str, skbs: u64) -> SkbCensus {
    let group = |skbs: u64| SkbGroup {
        skbs,
        bytes: skbs * 1280,
        own_bytes: skbs * 1280,
        relative_error: 0.04,
        ..SkbGroup::default()
    };
    SkbCensus {
        relative_error: 0.041,
        total_pages: 16_777_216,
        sampled_pages: 3_250_000,
        slabs: 20_611,
        took_ms: 412,
        skbs: skbs + 3351,
        bytes: (skbs + 3351) * 1280,
        explained_skbs: skbs + 3000,
        unreferenced_skbs: 351,
        explained_ratio: Some(0.9998),
        groups: vec![
            SkbGroup {
                sockets: 1,
                socket: Some(CensusSocket {
                    family: "packet".into(),
                    kind: "raw".into(),
                    protocol: "PACKET".into(),
                    inode: Some(31_337),
                    netns: 4_026_531_840,
                    rcvbuf_bytes: 2 * GIB - 2,
                    receive_skbs: skbs,
                }),
                destructor: Some("sock_rfree".into()),
                process: Some(process("scope", 4242, MIB, 0)),
                cgroup: Some(cgroup(77, &container_path('a'))),
                k8s: Some(k8s(Some("agent"), Qos::BestEffort)),
                container: Some(container('a')),
                ..group(skbs)
            },
            SkbGroup {
                sockets: 14,
                socket: Some(CensusSocket {
                    family: "inet".into(),
                    kind: "dgram".into(),
                    protocol: "UDP".into(),
                    ..CensusSocket::default()
                }),
                device: Some(name.into()),
                destructor: Some("sock_wfree".into()),
                ..group(3000)
            },
            group(351),
        ],
        groups_total: 40,
        ..SkbCensus::default()
    }
}

/// Nothing but what is always there.
pub(crate) fn nothing() -> Event {
    let udev = holder("systemd-udevd", "netlink", "kobject_uevent", 3, 4096);
    event(Body::SkbHolders(Box::new(report(vec![udev]))))
}

/// Names from a node that is not to be trusted, and little that could be read.
pub(crate) fn hostile() -> Event {
    let name = "\x1b[2J\u{202e}x\n$(reboot)";
    let mut holder = holder(name, "unix", "stream", 90_000, 200 * MIB);
    holder.k8s = None;
    holder.container = None;
    holder.cgroup = Some(cgroup(78, &format!("/{name}.service")));
    holder.creator = Some(SkbCreator {
        cgroup: cgroup(79, &format!("/made/{name}")),
        ..SkbCreator::default()
    });
    let mut report = report(vec![holder]);
    report.method = HolderMethod::ProcNet;
    report.method_why = Some(format!("the kernel refused it: {name}"));
    report.balance = SkbBalance::default();
    report.not_read = vec![NotRead {
        what: name.into(),
        why: name.into(),
    }];
    report.queues = vec![queued(name)];
    report.census = Some(census(name, 90_000));
    event(Body::SkbHolders(Box::new(report)))
}
