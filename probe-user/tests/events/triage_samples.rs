//! Looks at a node.

use oomprobe::event::{
    Body, Cgroup, Confidence, ConntrackTable, Cpu, Disk, Event, Finding, FindingId, NodeMemory,
    NodePressure, NotRead, OomHistory, Qos, RecentKill, Reclaim, Severity, SlabCache, Throttled,
    Time, TopCgroup, Triage,
};

use super::{GIB, MIB, NOW, cgroup, container, container_path, event, k8s, process};

fn pressure(resource: &str, some: f64, full: f64) -> NodePressure {
    NodePressure {
        resource: resource.into(),
        some_ratio: Some(some),
        full_ratio: Some(full),
        some_60s_ratio: Some(some / 2.0),
        full_60s_ratio: Some(full / 2.0),
    }
}

fn top(id: char, name: &str, usage: u64, limit: Option<u64>) -> TopCgroup {
    TopCgroup {
        cgroup: cgroup(u64::from(id), &container_path(id)),
        k8s: Some(k8s(Some(name), Qos::Burstable)),
        container: Some(container(id)),
        usage_bytes: usage,
        working_set_bytes: Some(usage - usage / 8),
        growth_bytes_per_s: Some(-4096.0),
        anon_bytes: Some(usage / 2),
        file_bytes: Some(usage / 4),
        shmem_bytes: Some(0),
        kernel_bytes: Some(usage / 8),
        slab_bytes: Some(usage / 16),
        sock_bytes: Some(64 << 10),
        swap_bytes: Some(0),
        limit_bytes: limit,
        limit_ratio: limit.map(|_| 0.98),
        effective_limit_bytes: limit,
        high_bytes: None,
        low_bytes: None,
        min_bytes: None,
        memory_some_ratio: Some(0.004),
        memory_full_ratio: Some(0.0),
        max_hits: Some(17),
        high_hits: Some(0),
        refaults_per_s: Some(12.5),
        oom_kills: Some(1),
    }
}

fn look() -> Triage {
    Triage {
        duration_ms: 5003,
        healthy: true,
        findings: vec![],
        memory: NodeMemory {
            total_bytes: Some(16 * GIB),
            available_bytes: Some(11 * GIB),
            free_bytes: Some(9 * GIB),
            anon_bytes: Some(4 * GIB),
            file_bytes: Some(2 * GIB),
            shmem_bytes: Some(120 * MIB),
            dirty_bytes: Some(3 * MIB),
            swap_total_bytes: Some(2 * GIB),
            swap_free_bytes: Some(GIB),
            committed_bytes: Some(9 * GIB),
            commit_limit_bytes: Some(10 * GIB),
            overcommit_mode: Some(0),
            slab_reclaimable_bytes: Some(400 * MIB),
            slab_unreclaimable_bytes: Some(200 * MIB),
            slab_caches: vec![SlabCache {
                name: "dentry".into(),
                bytes: 180 * MIB,
                objects: 900_000,
            }],
        },
        pressure: vec![
            pressure("cpu", 0.21, 0.0),
            pressure("memory", 0.0, 0.0),
            pressure("io", 0.004, 0.002),
        ],
        reclaim: Reclaim {
            kswapd_scanned_per_s: Some(0.0),
            direct_scanned_per_s: Some(0.0),
            reclaimed_per_s: Some(0.0),
            direct_stalls_per_s: Some(0.0),
            compact_stalls_per_s: Some(0.0),
            refaults_anon_per_s: None,
            refaults_file_per_s: Some(3.2),
            swap_in_per_s: Some(0.0),
            swap_out_per_s: Some(0.0),
            major_faults_per_s: Some(0.4),
        },
        cpu: Cpu {
            cpus: Some(8),
            load1: Some(2.1),
            load5: Some(1.95),
            load15: Some(1.8),
            running: Some(2),
            blocked: Some(0),
            throttled: vec![],
        },
        socket_buffers: None,
        oom: OomHistory {
            kills_since_boot: Some(0),
            kills_now: Some(0),
            uptime_s: 12 * 86_400,
            recent: vec![],
        },
        conntrack: Some(ConntrackTable {
            count: 1200,
            max: 262_144,
        }),
        disks: vec![Disk {
            paths: vec!["/var/lib/kubelet".into(), "/".into()],
            total_bytes: 100 * GIB,
            available_bytes: 62 * GIB,
            inodes: Some(6_000_000),
            inodes_available: Some(5_500_000),
            threshold_percent: 10,
            kubelet: true,
        }],
        top: vec![
            top('a', "app", 502 * MIB, Some(512 * MIB)),
            top('b', "sidecar", 40 * MIB, None),
        ],
        cgroups: 57,
        not_read: vec![],
    }
}

pub(crate) fn healthy() -> Event {
    event(Body::Triage(Box::new(look())))
}

/// A kill lately, a container that its CPU limit holds up, and a kernel log that says no more.
pub(crate) fn ill() -> Event {
    let mut triage = look();
    let kill = RecentKill {
        time: Time::from_unix_ns(NOW - 720_000_000_000),
        age_s: 720,
        process: process("java", 4711, 490 * MIB, 985),
        victims: 1,
        cgroup: Some(cgroup(1, &container_path('a'))),
        k8s: Some(k8s(Some("app"), Qos::Burstable)),
        container: Some(container('a')),
        limit_cgroup: Some(cgroup(1, &container_path('a'))),
        message: Some("Memory cgroup out of memory".into()),
    };
    triage.oom.kills_since_boot = Some(1);
    triage.oom.recent = vec![kill];
    triage.cpu.throttled = vec![Throttled {
        cgroup: cgroup(2, &container_path('b')),
        k8s: Some(k8s(Some("sidecar"), Qos::Burstable)),
        container: Some(container('b')),
        periods: 50,
        throttled_periods: 41,
        throttled_ratio: 0.82,
        throttled_ms: 1911.2,
    }];
    triage.healthy = false;
    triage.findings = vec![
        Finding {
            id: FindingId::OomRecent,
            severity: Severity::Error,
            confidence: Confidence::High,
            cgroup: Some(cgroup(1, &container_path('a'))),
            summary: "the OOM killer killed java (pid 4711) in shop/cart-7d9f8b6c5-x2x8q/app 12 \
                      min ago"
                .into(),
            evidence: vec![
                "12 min ago: java (pid 4711) in shop/cart-7d9f8b6c5-x2x8q/app, 494 MiB, at its \
                 own limit"
                    .into(),
                "kills since boot, 12 days ago: 1".into(),
            ],
            next_steps: vec![
                "kubectl -n shop describe pod cart-7d9f8b6c5-x2x8q".into(),
                "oomprobe trace".into(),
            ],
        },
        Finding {
            id: FindingId::CpuThrottling,
            severity: Severity::Warn,
            confidence: Confidence::Medium,
            cgroup: Some(cgroup(2, &container_path('b'))),
            summary: "shop/cart-7d9f8b6c5-x2x8q/sidecar waits for its CPU limit in 82 % of its \
                      periods"
                .into(),
            evidence: vec!["throttled in 41 of 50 periods, for 1911 ms in all".into()],
            next_steps: vec![],
        },
    ];
    triage.not_read = vec![NotRead {
        what: "/proc/slabinfo".into(),
        why: "Permission denied (os error 13)".into(),
    }];
    triage.memory.slab_caches = vec![];
    event(Body::Triage(Box::new(triage)))
}

/// Names that try to take over the terminal, wherever a name can stand.
pub(crate) fn hostile() -> Event {
    let name = "\x1b]0;own\x07\n\u{202e}\u{9b}2J日本語";
    let path = format!("/{}\n/{name}", "x".repeat(255));
    let cgroup = Cgroup {
        id: None,
        path: Some(path),
    };
    let mut triage = look();
    for top in &mut triage.top {
        top.cgroup = cgroup.clone();
        (top.k8s, top.container) = (None, None);
        top.usage_bytes = u64::MAX;
        top.memory_some_ratio = None;
    }
    triage.memory.slab_caches[0].name = name.into();
    triage.disks[0].paths = vec![name.into()];
    triage.cpu.throttled = vec![Throttled {
        cgroup: cgroup.clone(),
        ..Throttled::default()
    }];
    triage.oom.recent = vec![RecentKill {
        process: process(name, u32::MAX, 0, 0),
        cgroup: Some(cgroup.clone()),
        ..RecentKill::default()
    }];
    triage.not_read = vec![NotRead {
        what: name.into(),
        why: name.into(),
    }];
    triage.findings = vec![
        Finding {
            summary: name.repeat(9),
            evidence: vec![name.into(); 9],
            next_steps: vec![name.into(); 9],
            cgroup: Some(cgroup),
            ..Finding::default()
        };
        9
    ];
    triage.healthy = false;
    event(Body::Triage(Box::new(triage)))
}
