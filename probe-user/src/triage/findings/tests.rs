use super::*;
use crate::event::{
    ConntrackTable, Cpu, NodeMemory, NodePressure, OomHistory, Process, Reclaim, SkbBalance,
    SlabCache,
};

const GIB: u64 = 1 << 30;

fn pressure(resource: &str, some: f64, full: f64) -> NodePressure {
    NodePressure {
        resource: resource.to_owned(),
        some_ratio: Some(some),
        full_ratio: Some(full),
        some_60s_ratio: Some(some),
        full_60s_ratio: Some(full),
    }
}

fn disk(percent_free: u64, kubelet: bool) -> Disk {
    Disk {
        paths: vec!["/var/lib/kubelet".into(), "/".into()],
        total_bytes: 100 * GIB,
        available_bytes: percent_free * GIB,
        inodes: Some(100),
        inodes_available: Some(50),
        threshold_percent: if kubelet { 10 } else { 3 },
        kubelet,
    }
}

/// Everything runs at its limit, and nothing is wrong: a parallel build of twice as many jobs as
/// processors, a copy that keeps the disk busy, a page cache that fills all memory, swap full of
/// what nobody needs, kills of yesterday.
fn busy() -> Triage {
    Triage {
        memory: NodeMemory {
            total_bytes: Some(64 * GIB),
            available_bytes: Some(8 * GIB),
            free_bytes: Some(GIB / 4),
            swap_total_bytes: Some(GIB),
            swap_free_bytes: Some(0),
            committed_bytes: Some(200 * GIB),
            commit_limit_bytes: Some(33 * GIB),
            overcommit_mode: Some(0),
            slab_unreclaimable_bytes: Some(4 * GIB),
            ..NodeMemory::default()
        },
        pressure: vec![
            pressure("cpu", 0.97, 0.0),
            pressure("memory", 0.02, 0.0),
            pressure("io", 0.95, 0.9),
        ],
        reclaim: Reclaim {
            kswapd_scanned_per_s: Some(50_000.0),
            ..Reclaim::default()
        },
        cpu: Cpu {
            cpus: Some(8),
            load1: Some(18.0),
            running: Some(16),
            blocked: Some(2),
            throttled: vec![throttled(20, 50)],
            ..Cpu::default()
        },
        oom: OomHistory {
            kills_since_boot: Some(40),
            kills_now: Some(0),
            uptime_s: 90 * 86_400,
            recent: vec![kill(86_400)],
        },
        conntrack: Some(ConntrackTable {
            count: 200_000,
            max: 262_144,
        }),
        disks: vec![disk(11, true), disk(4, false)],
        ..Triage::default()
    }
}

fn throttled(throttled_periods: u64, periods: u64) -> Throttled {
    Throttled {
        cgroup: Cgroup {
            id: Some(1),
            path: Some("/system.slice/b'uild.service".into()),
        },
        periods,
        throttled_periods,
        throttled_ratio: f64::from(u32::try_from(throttled_periods).unwrap())
            / f64::from(u32::try_from(periods).unwrap()),
        throttled_ms: 12.0,
        ..Throttled::default()
    }
}

fn kill(age_s: u64) -> RecentKill {
    RecentKill {
        age_s,
        process: Process {
            pid: Some(7),
            comm: Some("java".into()),
            ..Process::default()
        },
        victims: 1,
        limit_cgroup: Some(Cgroup {
            id: None,
            path: Some("/shop".into()),
        }),
        ..RecentKill::default()
    }
}

fn with(change: impl FnOnce(&mut Triage)) -> Triage {
    let mut triage = busy();
    change(&mut triage);
    triage
}

#[test]
fn a_busy_node_is_healthy_and_so_is_one_that_tells_nothing() {
    assert_eq!(of(&busy()), []);
    assert_eq!(of(&Triage::default()), []);
}

/// Name, finding, node, and words that the finding must say.
type Case = (&'static str, FindingId, Triage, &'static str);

fn memory_cases() -> Vec<Case> {
    use FindingId as Id;
    vec![
        (
            "kill an hour ago",
            Id::OomRecent,
            with(|t| t.oom.recent = vec![kill(3600), kill(90_000)]),
            "killed java (pid 7) 60 min ago",
        ),
        (
            "kill now, log unreadable",
            Id::OomRecent,
            with(|t| {
                t.oom.kills_now = Some(2);
                t.oom.recent.clear();
            }),
            "ran during this look, processes killed: 2",
        ),
        (
            "booted lately, log unreadable",
            Id::OomRecent,
            with(|t| {
                t.oom.recent.clear();
                t.oom.uptime_s = 600;
            }),
            "since boot 10 min ago, processes killed: 40",
        ),
        (
            "nothing available",
            Id::Overcommit,
            with(|t| t.memory.available_bytes = Some(GIB)),
            "MemAvailable 1 GiB of 64 GiB (2 %)",
        ),
        (
            "little available and swap full",
            Id::Overcommit,
            with(|t| t.memory.available_bytes = Some(5 * GIB)),
            "swap 0 B free of 1 GiB",
        ),
        (
            "strict overcommit at its limit",
            Id::Overcommit,
            with(|t| t.memory.overcommit_mode = Some(2)),
            "Committed_AS 200 GiB of CommitLimit 33 GiB",
        ),
        (
            "slab",
            Id::SlabUnreclaimable,
            with(|t| {
                t.memory.slab_unreclaimable_bytes = Some(8 * GIB);
                t.memory.slab_caches = vec![SlabCache {
                    name: "skbuff_head_cache".into(),
                    bytes: 6 * GIB,
                    objects: 1,
                }];
                t.socket_buffers = Some(SkbBalance {
                    slab_objects: Some(900),
                    explained_objects: Some(890),
                    explained_bytes: GIB,
                    ..SkbBalance::default()
                });
            }),
            "900 socket buffers in use, 890 of them in queues that were found, with 1 GiB",
        ),
    ]
}

fn other_cases() -> Vec<Case> {
    use FindingId as Id;
    vec![
        (
            "cpu",
            Id::CpuPressure,
            with(|t| t.cpu.load1 = Some(40.0)),
            "load 40.0 on 8 processors",
        ),
        (
            "io",
            Id::IoPressure,
            with(|t| t.cpu.blocked = Some(9)),
            "9 tasks wait for a disk",
        ),
        (
            "throttling",
            Id::CpuThrottling,
            with(|t| t.cpu.throttled = vec![throttled(40, 50), throttled(9, 9)]),
            r"-name 'b'\''uild.service'",
        ),
        (
            "kubelet's disk",
            Id::DiskPressure,
            with(|t| t.disks = vec![disk(9, true)]),
            "the kubelet's default threshold is 10 %",
        ),
        (
            "disk without a kubelet",
            Id::DiskPressure,
            with(|t| t.disks = vec![disk(2, false)]),
            "2 GiB free of 100 GiB",
        ),
        (
            "inodes",
            Id::DiskPressure,
            with(|t| t.disks[0].inodes_available = Some(4)),
            "4 inodes free of 100 (4 %)",
        ),
        (
            "conntrack",
            Id::ConntrackFull,
            with(|t| t.conntrack.as_mut().unwrap().count = 250_000),
            "250000 of 262144 connections (95 %)",
        ),
    ]
}

#[test]
fn each_fault_is_found_and_nothing_else() {
    for (name, id, triage, says) in memory_cases().into_iter().chain(other_cases()) {
        let found = of(&triage);
        let [finding] = &found[..] else {
            panic!("{name}: {found:#?}")
        };
        assert_eq!(finding.id, id, "{name}");
        let text = format!(
            "{}\n{}\n{}",
            finding.summary,
            finding.evidence.join("\n"),
            finding.next_steps.join("\n")
        );
        assert!(text.contains(says), "{name}: `{says}` is not in\n{text}");
        assert!(!finding.evidence.is_empty(), "{name}");
        assert!(!finding.next_steps.is_empty(), "{name}");
    }
}

#[test]
fn a_read_only_image_is_not_a_full_disk() {
    let mut image = disk(0, false);
    image.inodes_available = Some(0);
    assert_eq!(disk_pressure(&image), None);
}

#[test]
fn a_kill_comes_first_and_nothing_twice() {
    let triage = with(|t| {
        t.disks = vec![disk(1, true)];
        t.oom.recent = vec![kill(5)];
    });
    let twice = [of(&triage), of(&triage)].concat();
    let ids: Vec<_> = ranked(twice).iter().map(|finding| finding.id).collect();
    assert_eq!(ids, [FindingId::OomRecent, FindingId::DiskPressure]);
}

#[test]
fn names_of_cgroups_stay_out_of_commands_if_no_quote_holds_them() {
    let mut hostile = throttled(40, 50);
    hostile.cgroup.path = Some("/a\n$(reboot)".into());
    let finding = cpu_throttling(&hostile).unwrap();
    assert!(finding.next_steps.is_empty());
}
