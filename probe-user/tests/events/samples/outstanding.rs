//! Objects that were not freed.

use oomprobe::event::{
    AgeCount, Body, CensusSocket, Event, Outstanding, OutstandingCgroup, OutstandingStack, Qos,
    Refusal, SkbGroup, TrackAccuracy,
};

use super::{cgroup, container, container_path, event, k8s};

fn held_by() -> SkbGroup {
    SkbGroup {
        skbs: 99_968,
        bytes: 127_959_040,
        own_bytes: 127_959_040,
        relative_error: 0.0,
        sockets: 1,
        queue: Some("receive".into()),
        socket: Some(CensusSocket {
            family: "packet".into(),
            kind: "raw".into(),
            protocol: "PACKET".into(),
            inode: Some(48_213),
            netns: 4_026_531_840,
            rcvbuf_bytes: 536_870_912,
            receive_skbs: 99_968,
        }),
        device: Some("lo".into()),
        destructor: Some("sock_rfree".into()),
        process: None,
        cgroup: Some(cgroup(7, &container_path('a'))),
        k8s: Some(k8s(Some("app"), Qos::Burstable)),
        container: Some(container('a')),
    }
}

fn outstanding() -> Outstanding {
    Outstanding {
        what: "skb".into(),
        duration_ms: 60_012,
        sample: 64,
        sample_asked: Some(8),
        objects: 101_248,
        young_objects: 1_216,
        min_age_ms: 1000,
        bytes: Some(128_040_960),
        followed_objects: 1563,
        slab_growth_objects: Some(100_112),
        ages: vec![
            AgeCount {
                from_s: 1,
                objects: 64,
            },
            AgeCount {
                from_s: 10,
                objects: 99_968,
            },
        ],
        stacks: vec![
            OutstandingStack {
                stack: vec![
                    "skb_clone+0x51".into(),
                    "packet_rcv+0x2f1".into(),
                    "dev_queue_xmit_nit+0x1a2".into(),
                    "udp_sendmsg+0xb21".into(),
                ],
                in_interrupt: false,
                cgroup: Some(cgroup(7, &container_path('a'))),
                k8s: Some(k8s(Some("app"), Qos::Burstable)),
                container: Some(container('a')),
                pid: Some(4711),
                comm: Some("feeder".into()),
                objects: 99_968,
                bytes: Some(127_959_040),
                oldest_s: 59.8,
                growth_objects_per_s: Some(1_666.1),
                held_by: vec![held_by()],
            },
            OutstandingStack {
                stack: vec!["napi_build_skb+0x1".into(), "handle_softirqs+0x2".into()],
                in_interrupt: true,
                pid: Some(0),
                comm: Some("swapper/0".into()),
                objects: 64,
                oldest_s: 1.2,
                ..OutstandingStack::default()
            },
        ],
        stacks_total: 9,
        cgroups: vec![OutstandingCgroup {
            cgroup: Some(cgroup(7, &container_path('a'))),
            k8s: Some(k8s(Some("app"), Qos::Burstable)),
            container: Some(container('a')),
            objects: 99_968,
            bytes: Some(127_959_040),
        }],
        accuracy: TrackAccuracy {
            allocated: 6_400_000,
            freed: 6_298_752,
            followed: 100_000,
            reused: 3,
            miss_ratio: Some(0.000_03),
            unknown_frees: 17,
            skipped_runs: Some(2),
            ..TrackAccuracy::default()
        },
        hooks: vec![
            "fentry:skb_release_head_state".into(),
            "fexit:skb_clone".into(),
        ],
        refused: vec![Refusal {
            hook: "fexit:__alloc_skb".into(),
            reason: "another hook sees the same".into(),
        }],
        blind_spots: vec![
            "bytes are those at the allocation".into(),
            "stacks of few objects: the table of 65536 filled up, so that one of 64 is followed and \
             not one of 8"
                .into(),
        ],
        map_bytes: Some(10 << 20),
    }
}

pub(crate) fn skb() -> Event {
    event(Body::SkbOutstanding(Box::new(outstanding())))
}

/// Names that a container or a module chose, and nothing that is known.
pub(crate) fn slab() -> Event {
    let mut slab = outstanding();
    slab.what = "evil\x1b[31m\ncache".into();
    slab.stacks[0].comm = Some("\u{202e}x\n".into());
    slab.stacks[0].k8s = None;
    slab.stacks[0].container = None;
    slab.stacks[0].cgroup = Some(cgroup(7, "/a\nb\x1b[2J"));
    slab.stacks[1].stack.clear();
    slab.stacks[1].in_interrupt = false;
    slab.cgroups[0] = OutstandingCgroup::default();
    slab.accuracy = TrackAccuracy {
        no_room: 12,
        busy: 3,
        stack_collisions: 4,
        bulk_cut: 5,
        ..TrackAccuracy::default()
    };
    slab.bytes = None;
    slab.map_bytes = None;
    slab.slab_growth_objects = None;
    event(Body::SlabOutstanding(Box::new(slab)))
}
