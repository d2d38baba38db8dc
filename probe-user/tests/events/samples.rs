//! Events as a node would make them.

use std::collections::BTreeMap;

use oomprobe::event::{
    AllocPath, Before, Body, Candidate, Cgroup, Confidence, Constraint, Container, Event, Gap, Gfp,
    Heartbeat, Host, K8s, K8sContainer, KernelFacts, Limit, LimitLevel, Loss, Memory, MemorySample,
    MemorySource, Named, Node, OomKill, OomOutcome, Outcome, Pod, ProbeStatus, Process, Qos,
    Refusal, ResolvedBy, Role, Rss, Scope, SignalStatus, Time, Trigger, Victim, VictimOutcome,
};
use oomprobe::verdict;

mod death;
mod pressure;
pub(crate) mod skb;

pub(crate) use death::deaths;
pub(crate) use pressure::pressure;
pub(crate) mod outstanding;
pub(crate) mod slab;
#[path = "triage_samples.rs"]
pub(crate) mod triage;

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;
const NOW: u64 = 1_763_690_534_123_456_789;
const UID: &str = "6a4ce4a0-ba47-11ea-b2a7-0cc47ac5979e";

pub(crate) fn event(body: Body) -> Event {
    let host = Host {
        name: Some("node-7".into()),
        boot_id: Some("0b1c2d3e-4f50-6172-8394-a5b6c7d8e9f0".into()),
    };
    Event::new(Time::from_unix_ns(NOW), 98_765_432_100, 42, host, body)
}

/// The event of a kill, with its verdict.
pub(crate) fn explained(mut kill: OomKill) -> Event {
    kill.verdict = verdict::oom_kill(&kill);
    event(Body::OomKill(Box::new(kill)))
}

pub(crate) fn process(comm: &str, pid: u32, anon: u64, adj: i32) -> Process {
    Process {
        pid: Some(pid),
        tid: Some(pid),
        ns_pid: Some(1),
        ppid: Some(1),
        start_time: Some(Time::from_unix_ns(NOW - 3_600_000_000_000)),
        comm: Some(comm.into()),
        cmdline: Some(vec![comm.into()]),
        uid: Some(1000),
        oom_score_adj: Some(adj),
        threads: Some(12),
        rss: Some(Rss {
            anon_bytes: anon,
            file_bytes: 4 * MIB,
            shmem_bytes: 0,
        }),
        rss_exact: Some(true),
        swap_bytes: Some(0),
        page_tables_bytes: Some(MIB),
        virtual_bytes: Some(4 * GIB),
    }
}

pub(crate) fn k8s(container: Option<&str>, qos: Qos) -> K8s {
    K8s {
        pod: Pod {
            name: Some("cart-7d9f8b6c5-x2x8q".into()),
            uid: Some(UID.into()),
        },
        namespace: Named {
            name: Some("shop".into()),
        },
        container: container.map(|name| K8sContainer {
            name: Some(name.into()),
            restart_count: Some(3),
        }),
        node: Named {
            name: Some("node-7".into()),
        },
        qos: Some(qos),
        resolved_by: Some(ResolvedBy::ContainerLogs),
        trusted: true,
        error: None,
    }
}

pub(crate) fn container(id: char) -> Container {
    Container {
        id: Some(id.to_string().repeat(64)),
        runtime: Some("containerd".into()),
        orchestrator: Some("kubernetes".into()),
        role: None,
    }
}

pub(crate) fn pod_path() -> String {
    let uid = UID.replace('-', "_");
    format!("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{uid}.slice")
}

pub(crate) fn container_path(id: char) -> String {
    format!(
        "{}/cri-containerd-{}.scope",
        pod_path(),
        id.to_string().repeat(64)
    )
}

pub(crate) fn cgroup(id: u64, path: &str) -> Cgroup {
    Cgroup {
        id: Some(id),
        path: Some(path.into()),
    }
}

pub(crate) fn level(id: u64, path: &str, usage: u64, limit: Option<u64>) -> LimitLevel {
    LimitLevel {
        cgroup: cgroup(id, path),
        usage_bytes: Some(usage),
        limit_bytes: limit,
        watermark_bytes: Some(usage),
        oom_group: Some(false),
        max_events: Some(17),
        ..LimitLevel::default()
    }
}

/// A split as the kernel program would read it, with all parts known.
pub(crate) fn memory(total: u64, anon: u64, file: u64, shmem: u64, slab: u64, sock: u64) -> Memory {
    let explained = anon + file + shmem + slab + sock;
    Memory {
        anon_bytes: Some(anon),
        file_bytes: Some(file),
        shmem_bytes: Some(shmem),
        slab_reclaimable_bytes: Some(0),
        slab_unreclaimable_bytes: Some(slab),
        kernel_stack_bytes: Some(0),
        page_tables_bytes: Some(0),
        sock_bytes: Some(sock),
        percpu_bytes: Some(0),
        vmalloc_bytes: Some(0),
        kernel_other_bytes: Some(0),
        swap_bytes: Some(0),
        total_bytes: Some(total),
        unexplained_bytes: Some(i64::try_from(total).unwrap() - i64::try_from(explained).unwrap()),
        victim_rss_ratio: None,
        source: Some(MemorySource::Kernel),
        read_delay_us: Some(0),
        read_usage_bytes: Some(total),
    }
}

pub(crate) fn node() -> Node {
    Node {
        mem_total_bytes: Some(16 * GIB),
        mem_free_bytes: Some(9 * GIB),
        mem_available_bytes: Some(11 * GIB),
        watermark_min_bytes: Some(64 * MIB),
        swap_total_bytes: Some(0),
        swap_free_bytes: Some(0),
        slab_reclaimable_bytes: Some(400 * MIB),
        slab_unreclaimable_bytes: Some(200 * MIB),
        read_delay_us: Some(800),
        ..Node::default()
    }
}

pub(crate) fn victim(process: Process, owner: &str, id: char, init: bool) -> Victim {
    Victim {
        process,
        cgroup: Some(cgroup(u64::from(id), &container_path(id))),
        k8s: Some(k8s(Some(owner), Qos::Burstable)),
        container: Some(container(id)),
        role: Role::Chosen,
        container_init: Some(init),
        killed_at: Some(Time::from_unix_ns(NOW)),
        exited_at: None,
        reaped_at: None,
    }
}

pub(crate) fn candidate(process: Process, owner: &str, id: char) -> Candidate {
    Candidate {
        process,
        cgroup: Some(cgroup(u64::from(id), &container_path(id))),
        k8s: Some(k8s(Some(owner), Qos::Burstable)),
        container: Some(container(id)),
        points: Some(100_000),
    }
}

/// java, the first process of `app`, filled the container's 512 MiB with anonymous memory.
pub(crate) fn container_kill() -> OomKill {
    let java = process("java", 4711, 490 * MIB, 985);
    let own = level(
        u64::from('a'),
        &container_path('a'),
        512 * MIB,
        Some(512 * MIB),
    );
    let pod = level(90, &pod_path(), 513 * MIB, None);
    OomKill {
        incident: "0b1c2d3e-98765432100".into(),
        scope: Scope::Container,
        constraint: Some(Constraint::Memcg),
        message: Some("Memory cgroup out of memory".into()),
        outcome: Outcome::Killed,
        limit: Some(Limit {
            level: own.clone(),
            k8s: Some(k8s(Some("app"), Qos::Burstable)),
            container: Some(container('a')),
            levels: vec![own, pod],
            found_by: Some("oom_control".into()),
        }),
        memory: memory(512 * MIB, 498 * MIB, 4 * MIB, 0, 8 * MIB, 0),
        victims: vec![victim(java.clone(), "app", 'a', true)],
        trigger: Some(Trigger {
            process: java.clone(),
            cgroup: Some(cgroup(u64::from('a'), &container_path('a'))),
            k8s: Some(k8s(Some("app"), Qos::Burstable)),
            container: Some(container('a')),
            order: Some(0),
            gfp: Some(Gfp::from_mask(0xcc0)),
            path: AllocPath::PageFault,
            stack: vec!["try_charge_memcg".into(), "do_anonymous_page".into()],
        }),
        candidates: vec![
            candidate(java, "app", 'a'),
            candidate(process("sh", 4700, MIB, 985), "app", 'a'),
        ],
        node: node(),
        hooks: BTreeMap::from([("decision".into(), "fentry:oom_kill_process".into())]),
        ..OomKill::default()
    }
}

/// The limit is the pod's, above `app` and `sidecar`.
pub(crate) fn pod_kill() -> OomKill {
    let mut kill = container_kill();
    let pod = level(90, &pod_path(), GIB, Some(GIB));
    kill.scope = Scope::Pod;
    kill.memory = memory(GIB, 1000 * MIB, 4 * MIB, 0, 8 * MIB, 0);
    kill.limit = Some(Limit {
        level: pod.clone(),
        k8s: Some(k8s(None, Qos::Burstable)),
        container: None,
        levels: vec![
            level(u64::from('a'), &container_path('a'), 512 * MIB, None),
            pod,
        ],
        found_by: Some("oom_control".into()),
    });
    kill
}

/// The node is full; the BestEffort pod pays although a Guaranteed one is bigger.
pub(crate) fn node_kill() -> OomKill {
    let batch = process("batch", 812, 600 * MIB, 1000);
    let mut victim = victim(batch.clone(), "worker", 'b', true);
    victim.k8s = Some(K8s {
        pod: Pod {
            name: Some("nightly-28x".into()),
            uid: Some(UID.into()),
        },
        qos: Some(Qos::BestEffort),
        ..k8s(Some("worker"), Qos::BestEffort)
    });
    let mut big = candidate(process("postgres", 700, 9 * GIB, -997), "db", 'c');
    big.k8s = Some(K8s {
        pod: Pod {
            name: Some("pg-0".into()),
            uid: Some(UID.into()),
        },
        ..k8s(Some("db"), Qos::Guaranteed)
    });
    let mut same = candidate(batch, "worker", 'b');
    same.k8s.clone_from(&victim.k8s);
    OomKill {
        scope: Scope::Node,
        constraint: Some(Constraint::None),
        message: Some("Out of memory".into()),
        limit: None,
        memory: Memory::default(),
        victims: vec![victim],
        candidates: vec![same, big],
        node: Node {
            mem_free_bytes: Some(58 * MIB),
            mem_available_bytes: Some(40 * MIB),
            ..node()
        },
        ..container_kill()
    }
}

/// The same container grew by 8 MiB/s for 40 s, then hit its limit for 4.2 s.
pub(crate) fn leak_kill() -> OomKill {
    let samples = (0..45).rev().map(|s| {
        let usage = (512 * MIB).min((512 + 4 * 8 - 8 * s) * MIB);
        MemorySample {
            before_ms: f64::from(u32::try_from(s).unwrap()) * 1e3 + 200.0,
            usage_bytes: usage,
            anon_bytes: Some(usage - 12 * MIB),
            file_bytes: Some(4 * MIB),
            shmem_bytes: Some(0),
            slab_bytes: Some(8 * MIB),
            swap_bytes: Some(0),
            max_events: Some(if s < 4 { 312 } else { 0 }),
            ..MemorySample::default()
        }
    });
    OomKill {
        before: Some(Before {
            samples: samples.collect(),
            first_limit_hit_ms: Some(4_200.0),
            max_hits: Some(312),
            high_hits: Some(0),
            stall_ms: Some(5_304.0),
            refaults: Some(18_211),
            growth_bytes_per_s: Some(8_388_608.0),
            growth_confidence: Some(Confidence::High),
            half_to_limit_ms: Some(32_000.0),
            cpu_throttled: None,
            thrashed: Some(true),
            span_ms: 44_200.0,
        }),
        ..container_kill()
    }
}

/// `memory.oom.group` took the whole container.
pub(crate) fn group_kill() -> OomKill {
    let mut kill = container_kill();
    for pid in 0..11 {
        let mut sibling = victim(
            process("gunicorn", 4800 + pid, 40 * MIB, 985),
            "app",
            'a',
            false,
        );
        sibling.role = Role::Group;
        kill.victims.push(sibling);
    }
    kill.victims[0].process = process("gunicorn", 4711, 60 * MIB, 985);
    kill
}

/// Files in a memory-backed emptyDir filled the limit; a small process was killed for it.
pub(crate) fn tmpfs_kill() -> OomKill {
    let mut kill = container_kill();
    let dd = process("dd", 4900, 2 * MIB, 985);
    kill.victims = vec![victim(dd.clone(), "app", 'a', false)];
    kill.candidates = vec![candidate(dd.clone(), "app", 'a')];
    kill.memory = memory(512 * MIB, 6 * MIB, MIB, 500 * MIB, 2 * MIB, 0);
    if let Some(trigger) = &mut kill.trigger {
        trigger.process = dd;
        trigger.path = AllocPath::Tmpfs;
    }
    kill
}

/// Names that try to take over the terminal and the shell.
pub(crate) fn hostile_kill() -> OomKill {
    let name = "\x1b]0;own\x07\n\u{202e}\u{9b}2J$(reboot)`id`';";
    let mut kill = container_kill();
    let path = format!("/{}\n/{name}", "x".repeat(255));
    kill.scope = Scope::Slice;
    kill.incident = name.into();
    if let Some(limit) = &mut kill.limit {
        limit.k8s = None;
        limit.level.cgroup.path = Some(path.clone());
        limit.levels.clear();
    }
    for victim in &mut kill.victims {
        victim.process.comm = Some(name.into());
        victim.cgroup = Some(cgroup(1, &path));
        victim.container = Some(Container {
            id: Some(name.into()),
            ..Container::default()
        });
        victim.k8s = Some(K8s {
            pod: Pod {
                name: Some(name.into()),
                uid: Some(name.into()),
            },
            namespace: Named {
                name: Some(name.into()),
            },
            container: Some(K8sContainer {
                name: Some(name.into()),
                restart_count: None,
            }),
            ..K8s::default()
        });
    }
    for candidate in &mut kill.candidates {
        candidate.process.comm = Some("\\xff\\xfe\x1b日本語日本語".into());
        candidate.process.pid = Some(u32::MAX);
    }
    kill
}

/// One event of every other kind.
pub(crate) fn others() -> Vec<Event> {
    let outcome = OomOutcome {
        incident: "0b1c2d3e-98765432100".into(),
        victims: vec![VictimOutcome {
            process: process("java", 4711, 490 * MIB, 985),
            exited_at: Some(Time::from_unix_ns(NOW + 12_000_000)),
            reaped_at: None,
            kill_to_exit_ms: Some(12.4),
            exit_code: None,
            signal: Some(9),
            still_alive: false,
        }],
        late_victims: 0,
        limit_usage_bytes: Some(20 * MIB),
        freed_bytes: Some(492 << 20),
        container_survived: Some(false),
    };
    let mut stuck = outcome.clone();
    stuck.victims[0].still_alive = true;
    stuck.victims.push(outcome.victims[0].clone());
    stuck.freed_bytes = Some(-4096);
    stuck.container_survived = None;
    let status = ProbeStatus {
        version: "0.1.0".into(),
        attached: true,
        signals: vec![
            SignalStatus {
                signal: "victim".into(),
                hook: Some("tp_btf:mark_victim".into()),
                refused: vec![],
            },
            SignalStatus {
                signal: "oom_decision".into(),
                hook: None,
                refused: vec![Refusal {
                    hook: "fentry:oom_kill_process".into(),
                    reason: "this kernel has no BPF trampolines".into(),
                }],
            },
        ],
        layout_absent: vec!["mem_cgroup.under_oom".into()],
        kernel: KernelFacts {
            release: Some("6.12.48+deb13-amd64".into()),
            machine: Some("x86_64".into()),
            cgroup: Some("v2".into()),
            features: BTreeMap::from([("fentry".into(), false)]),
        },
        ready_ms: Some(131.5),
    };
    let heartbeat = Heartbeat {
        uptime_s: 3600,
        events: BTreeMap::from([("oom_kill".into(), 3)]),
        lost: BTreeMap::from([("critical_ring_full".into(), 0)]),
        kernel_oom_kills: Some(3),
        seen_oom_kills: 3,
    };
    let loss = Loss {
        reason: "critical_ring_full".into(),
        count: 12,
        total: 40,
        ring: Some("critical".into()),
        hook: None,
    };
    let gap = Gap {
        counter: "/proc/vmstat oom_kill".into(),
        expected: 5,
        seen: 3,
        missing: 2,
        since: Some(Time::from_unix_ns(NOW - 60_000_000_000)),
    };
    vec![
        event(Body::ProbeStatus(status)),
        event(Body::OomOutcome(outcome)),
        event(Body::OomOutcome(stuck)),
        event(Body::Heartbeat(heartbeat)),
        event(Body::Loss(loss)),
        event(Body::Gap(gap)),
    ]
}

/// One event of every kind, and kills of every sort.
pub(crate) fn all() -> Vec<Event> {
    let kills = vec![
        container_kill(),
        pod_kill(),
        node_kill(),
        group_kill(),
        tmpfs_kill(),
        leak_kill(),
        hostile_kill(),
        OomKill::default(),
    ];
    kills
        .into_iter()
        .map(explained)
        .chain(others())
        .chain(pressure())
        .chain(deaths().into_iter().map(|(_, event)| event))
        .chain([triage::ill(), triage::healthy(), triage::hostile()])
        .chain([skb::held(), skb::nothing(), skb::hostile()])
        .chain([slab::ill(), slab::hostile()])
        .chain([outstanding::skb(), outstanding::slab()])
        .collect()
}
