//! Verdict rules, one case a row.

use oomprobe::event::{
    AllocPath, Before, Cause, Cgroup, Confidence, Memory, MemorySource, Node, OomKill, Outcome,
    Role, Scope, Verdict,
};
use oomprobe::verdict::oom_kill;

use crate::samples::{
    GIB, MIB, candidate, container_kill, group_kill, leak_kill, level, memory, node_kill, pod_kill,
    process, tmpfs_kill,
};

fn with(mut kill: OomKill, change: impl FnOnce(&mut OomKill)) -> OomKill {
    change(&mut kill);
    kill
}

fn cmdline(kill: &mut OomKill, line: &[&str]) {
    let line = line.iter().map(|&word| word.to_owned()).collect();
    kill.victims[0].process.cmdline = Some(line);
}

struct Case {
    name: &'static str,
    kill: OomKill,
    cause: Cause,
    confidence: Confidence,
    /// Must stand in summary, evidence, next steps or Kubernetes' report.
    says: &'static [&'static str],
}

const fn case(
    name: &'static str,
    kill: OomKill,
    (cause, confidence): (Cause, Confidence),
    says: &'static [&'static str],
) -> Case {
    Case {
        name,
        kill,
        cause,
        confidence,
        says,
    }
}

const SURE: fn(Cause) -> (Cause, Confidence) = |cause| (cause, Confidence::High);
const LIKELY: fn(Cause) -> (Cause, Confidence) = |cause| (cause, Confidence::Medium);
const GUESS: fn(Cause) -> (Cause, Confidence) = |cause| (cause, Confidence::Low);

fn memcg_cases() -> Vec<Case> {
    vec![
        case(
            "container limit, anonymous",
            container_kill(),
            SURE(Cause::WorkingSetOverLimit),
            &[
                "its own limit (512 MiB)",
                "97 % of it is anonymous",
                "logs cart-7d9f8b6c5-x2x8q -c app --previous",
            ],
        ),
        case(
            "the same, split read late and mostly freed already: the victim's rss still tells",
            with(container_kill(), |kill| {
                kill.memory = memory(512 * MIB, 20 * MIB, 4 * MIB, 0, 8 * MIB, 0);
                kill.memory.source = Some(MemorySource::MemoryStat);
                kill.memory.read_delay_us = Some(9_000);
            }),
            LIKELY(Cause::WorkingSetOverLimit),
            &["96 % of it is anonymous memory"],
        ),
        case(
            "pod limit above several containers",
            pod_kill(),
            SURE(Cause::WorkingSetOverLimit),
            &[
                "the limit (1 GiB) all its containers share",
                "top pod cart-7d9f8b6c5-x2x8q --containers",
            ],
        ),
        case(
            "pod limit equal to its one container's",
            with(pod_kill(), |kill| {
                if let Some(limit) = &mut kill.limit {
                    limit.levels[0].limit_bytes = Some(GIB);
                }
            }),
            SURE(Cause::WorkingSetOverLimit),
            &["its container reached its limit (1 GiB), which its pod shares"],
        ),
        case(
            "pod limit filled by a sidecar that was spared",
            with(pod_kill(), |kill| {
                kill.victims[0].process = process("app", 4711, 100 * MIB, 999);
                kill.candidates.push(candidate(
                    process("leaky", 900, 850 * MIB, 900),
                    "sidecar",
                    's',
                ));
            }),
            LIKELY(Cause::Neighbour),
            &[
                "leaky (pid 900) in shop/cart-7d9f8b6c5-x2x8q/sidecar",
                "which was not killed",
                "chosen for its oom_score_adj 999",
            ],
        ),
        case(
            "ancestor limit: the container's own was far away",
            with(container_kill(), |kill| {
                kill.scope = Scope::QosSlice;
                let slice = level(
                    5,
                    "/kubepods.slice/kubepods-burstable.slice",
                    8 * GIB,
                    Some(8 * GIB),
                );
                kill.memory = memory(8 * GIB, 7 * GIB, 100 * MIB, 0, 100 * MIB, 0);
                if let Some(limit) = &mut kill.limit {
                    limit.levels[0].limit_bytes = Some(GIB);
                    limit.levels.push(slice.clone());
                    limit.level = slice;
                }
            }),
            SURE(Cause::WorkingSetOverLimit),
            &[
                "pods of its QoS class together",
                "own limit was not reached: 512 MiB used of 1 GiB",
                "kubectl top pod -A",
            ],
        ),
        case(
            "systemd service",
            with(container_kill(), |kill| {
                kill.scope = Scope::Slice;
                kill.victims[0].k8s = None;
                kill.victims[0].container = None;
                if let Some(limit) = &mut kill.limit {
                    limit.level.cgroup.path = Some("/system.slice/db.service".into());
                }
            }),
            SURE(Cause::WorkingSetOverLimit),
            &[
                "cgroup /system.slice/db.service reached its limit",
                "systemctl status db.service",
                "find /sys/fs/cgroup -name db.service",
            ],
        ),
    ]
}

/// What filled the limit is not the process.
fn makeup_cases() -> Vec<Case> {
    vec![
        case(
            "tmpfs, and a child paid",
            tmpfs_kill(),
            SURE(Cause::Tmpfs),
            &[
                "98 % of it is files in tmpfs",
                "container lives on",
                "exec cart-7d9f8b6c5-x2x8q -c app -- df -h",
            ],
        ),
        case(
            "page cache: one step less sure, as clean cache is given back",
            with(container_kill(), |kill| {
                kill.victims[0].process = process("dd", 1, MIB, 985);
                kill.memory = memory(512 * MIB, 10 * MIB, 480 * MIB, 0, 10 * MIB, 0);
            }),
            LIKELY(Cause::PageCache),
            &[
                "94 % of it is page cache that could not be given back",
                "memory.stat",
            ],
        ),
        case(
            "slab",
            with(container_kill(), |kill| {
                kill.victims[0].process = process("find", 1, MIB, 985);
                kill.memory = memory(512 * MIB, 10 * MIB, 20 * MIB, 0, 470 * MIB, 0);
            }),
            SURE(Cause::KernelMemory),
            &[
                "mostly unreclaimable slab",
                "slabtop",
                "explains <1 % of it",
            ],
        ),
        case(
            "socket buffers",
            with(container_kill(), |kill| {
                kill.victims[0].process = process("recv", 1, MIB, 985);
                kill.memory = memory(512 * MIB, 10 * MIB, 20 * MIB, 0, 10 * MIB, 460 * MIB);
            }),
            SURE(Cause::Sockets),
            &["90 % of it is socket buffers", "sockstat"],
        ),
        case(
            "largest part below half, but twice any other",
            with(container_kill(), |kill| {
                kill.victims[0].process = process("mix", 1, MIB, 985);
                kill.memory = memory(
                    500 * MIB,
                    100 * MIB,
                    100 * MIB,
                    240 * MIB,
                    30 * MIB,
                    30 * MIB,
                );
            }),
            LIKELY(Cause::Tmpfs),
            &["48 % of it is files in tmpfs"],
        ),
        case(
            "whole container killed",
            group_kill(),
            SURE(Cause::WorkingSetOverLimit),
            &[
                "and 11 more killed",
                "killed all 12 processes",
                "the whole cgroup was killed",
            ],
        ),
    ]
}

fn jvm_cases() -> Vec<Case> {
    vec![
        case(
            "JVM heap nearly the limit",
            with(container_kill(), |kill| {
                cmdline(kill, &["java", "-Xmx480m", "-jar", "a.jar"]);
            }),
            SURE(Cause::WorkingSetOverLimit),
            &[
                "leaves no room",
                "480 MiB (-Xmx480m): 94 % of the limit of 512 MiB",
                "RAMPercentage",
            ],
        ),
        case(
            "JVM heap as a share, set through the environment of the command line",
            with(container_kill(), |kill| {
                cmdline(
                    kill,
                    &["env", "JAVA_TOOL_OPTIONS=-XX:MaxRAMPercentage=95.0", "java"],
                );
            }),
            SURE(Cause::WorkingSetOverLimit),
            &["(-XX:MaxRAMPercentage=95.0): 95 % of the limit"],
        ),
    ]
}

fn node_cases() -> Vec<Case> {
    vec![
        case(
            "node full, BestEffort pays for a Guaranteed pod",
            node_kill(),
            SURE(Cause::NodeExhausted),
            &[
                "58 MiB free of 16 GiB",
                "no swap",
                "1000 (BestEffort) over postgres",
                "-997 (Guaranteed)",
                "Burstable (2 to 999",
                "kubectl describe node node-7",
            ],
        ),
        case(
            "node full of unreclaimable slab",
            with(node_kill(), |kill| {
                kill.node.slab_unreclaimable_bytes = Some(10 * GIB);
            }),
            LIKELY(Cause::KernelMemory),
            &["63 % of the node is kernel memory", "oomprobe slab"],
        ),
        case(
            "node full of tmpfs",
            with(node_kill(), |kill| kill.node.shmem_bytes = Some(9 * GIB)),
            LIKELY(Cause::Tmpfs),
            &["56 % of the node is tmpfs"],
        ),
        case(
            "node, without its numbers",
            with(node_kill(), |kill| kill.node = Node::default()),
            GUESS(Cause::NodeExhausted),
            &["the node ran out of memory"],
        ),
        case(
            "cpuset: other NUMA nodes may be free",
            with(node_kill(), |kill| {
                kill.scope = Scope::Cpuset;
                kill.node.mem_available_bytes = Some(9 * GIB);
            }),
            LIKELY(Cause::NodeExhausted),
            &[
                "NUMA nodes its cpuset allows",
                "together 9 GiB is available",
                "node*/meminfo",
            ],
        ),
    ]
}

fn unknown_cases() -> Vec<Case> {
    vec![
        case(
            "nothing is known",
            OomKill::default(),
            GUESS(Cause::Unknown),
            &["not known", "journalctl"],
        ),
        case(
            "the victim's sockets were closed before memory.stat was read",
            with(container_kill(), |kill| {
                kill.victims[0].process = process("x", 1, MIB, 985);
                kill.memory = memory(512 * MIB, 100 * MIB, 10 * MIB, 0, 10 * MIB, 0);
                kill.memory.read_usage_bytes = Some(122 * MIB);
            }),
            GUESS(Cause::Unknown),
            &[
                "76 % of the charge was given back before it could be read",
                "freed before it was read (390 MiB)",
            ],
        ),
        case(
            "half of the charge is in no counter",
            with(container_kill(), |kill| {
                kill.victims[0].process = process("x", 1, MIB, 985);
                kill.memory = memory(512 * MIB, 100 * MIB, 10 * MIB, 0, 10 * MIB, 0);
            }),
            GUESS(Cause::Unknown),
            &["77 % of the charge is in no counter"],
        ),
        case(
            "no part dominates",
            with(container_kill(), |kill| {
                kill.victims[0].process = process("x", 1, MIB, 985);
                kill.memory = memory(
                    500 * MIB,
                    170 * MIB,
                    160 * MIB,
                    150 * MIB,
                    10 * MIB,
                    10 * MIB,
                );
            }),
            GUESS(Cause::Unknown),
            &["no single kind of memory dominates"],
        ),
        case(
            "no split, a victim of half the limit, nothing else",
            with(container_kill(), |kill| {
                kill.victims[0].process = process("x", 1, 256 * MIB, 985);
                kill.memory = Memory::default();
            }),
            GUESS(Cause::Unknown),
            &["explains 50 % of it (256 MiB)"],
        ),
        case(
            "node OOM while memory was available: fragmentation, or freed since",
            with(node_kill(), |kill| {
                kill.node.mem_available_bytes = Some(6 * GIB);
            }),
            GUESS(Cause::Unknown),
            &["yet 6 GiB of memory was available", "order 0"],
        ),
        case(
            "sysrq: nobody's limit, and that is certain",
            with(node_kill(), |kill| kill.scope = Scope::Sysrq),
            SURE(Cause::Unknown),
            &[
                "somebody asked the kernel for it (sysrq-f)",
                "journalctl -k -g sysrq",
            ],
        ),
        case(
            "only marked",
            with(container_kill(), |kill| {
                kill.outcome = Outcome::MarkedExiting;
                kill.victims[0].role = Role::AlreadyExiting;
            }),
            GUESS(Cause::Unknown),
            &["Not a kill: java (pid 4711)", "no process was killed"],
        ),
        case(
            "an earlier victim is still dying",
            with(container_kill(), |kill| {
                kill.outcome = Outcome::AbortedVictimDying;
                kill.victims.clear();
            }),
            GUESS(Cause::Unknown),
            &["Nobody killed this time"],
        ),
        case(
            "nobody may be killed, but what fills the limit is seen",
            with(tmpfs_kill(), |kill| {
                kill.outcome = Outcome::NothingKillable;
                kill.victims.clear();
            }),
            SURE(Cause::Tmpfs),
            &["Nobody killed", "no process may be killed"],
        ),
    ]
}

fn partial_cases() -> Vec<Case> {
    let no_split = |kill: &mut OomKill| kill.memory = Memory::default();
    vec![
        case(
            "no split, but the victim is the limit",
            with(container_kill(), no_split),
            LIKELY(Cause::WorkingSetOverLimit),
            &["96 % of it is the victim's own memory"],
        ),
        case(
            "no split, a small victim, the allocation was a file in tmpfs",
            with(tmpfs_kill(), no_split),
            GUESS(Cause::Tmpfs),
            &["little of it is the victim's"],
        ),
        case(
            "no split, a small victim, the allocation was a socket buffer",
            with(tmpfs_kill(), |kill| {
                no_split(kill);
                if let Some(trigger) = &mut kill.trigger {
                    trigger.path = AllocPath::Skb;
                }
            }),
            GUESS(Cause::Sockets),
            &["filling a socket buffer"],
        ),
        case(
            "whose limit is not known: less sure",
            with(container_kill(), |kill| kill.scope = Scope::Unknown),
            LIKELY(Cause::WorkingSetOverLimit),
            &["whose limit was hit is not known"],
        ),
        case(
            "names not resolved: the UID finds the pod",
            with(container_kill(), |kill| {
                if let Some(k8s) = &mut kill.victims[0].k8s {
                    k8s.pod.name = None;
                    k8s.namespace.name = None;
                }
                kill.victims[0].container_init = None;
            }),
            SURE(Cause::WorkingSetOverLimit),
            &[
                "in pod 6a4ce4a0-ba47-11ea-b2a7-0cc47ac5979e/app",
                "| grep 6a4ce4a0",
                "could not be seen",
            ],
        ),
    ]
}

/// What was recorded before the kill: each row changes the leak.
#[expect(clippy::too_many_lines, reason = "a table")]
fn lead_up_cases() -> Vec<Case> {
    let before =
        |change: fn(&mut Before)| with(leak_kill(), |kill| change(kill.before.as_mut().unwrap()));
    vec![
        case(
            "steady growth for 40 s",
            leak_kill(),
            LIKELY(Cause::Leak),
            &[
                "97 % of it is anonymous memory",
                "grew steadily by 8 MiB/s for 40 s",
                "first hit 4.2 s before the kill, 312 hits of the limit in the last 44 s",
                "usage grew by 8 MiB/s in the ten seconds before that",
                "it thrashed before it was killed: tasks waited for memory 12 % of the time",
            ],
        ),
        case(
            "the same in nine seconds",
            before(|before| {
                before.samples.retain(|sample| sample.before_ms < 13_500.0);
                before.thrashed = Some(false);
            }),
            SURE(Cause::WorkingSetOverLimit),
            &["it did not thrash before"],
        ),
        case(
            "a plateau, then a step to the limit",
            before(|before| {
                for sample in &mut before.samples {
                    if sample.before_ms > 9_000.0 {
                        sample.anon_bytes = Some(300 * MIB);
                    }
                }
            }),
            SURE(Cause::WorkingSetOverLimit),
            &[],
        ),
        case(
            "a saw that came too near",
            before(|before| {
                for (index, sample) in before.samples.iter_mut().enumerate() {
                    let tooth = u64::try_from(index % 12).unwrap() * 20;
                    sample.anon_bytes = Some((200 + tooth) * MIB);
                }
            }),
            SURE(Cause::WorkingSetOverLimit),
            &[],
        ),
        case(
            "half the limit in a moment",
            before(|before| before.half_to_limit_ms = Some(320.0)),
            SURE(Cause::Spike),
            &["half of the limit was taken within 320 ms"],
        ),
        case(
            "the same told by two samples alone",
            before(|before| {
                before.half_to_limit_ms = None;
                before.samples.drain(..before.samples.len() - 2);
                before.samples[0].usage_bytes = 100 * MIB;
                before.samples[0].before_ms = 900.0;
            }),
            SURE(Cause::Spike),
            &["half of the limit was taken within 700 ms"],
        ),
        case(
            "younger than a sample: only what the kernel counted",
            before(|before| {
                *before = Before {
                    max_hits: Some(3),
                    span_ms: 400.0,
                    ..Before::default()
                };
            }),
            SURE(Cause::WorkingSetOverLimit),
            &["3 hits of the limit in the last 400 ms"],
        ),
        case(
            "tmpfs stays tmpfs however fast it came",
            with(tmpfs_kill(), |kill| {
                kill.before = leak_kill().before;
                kill.before.as_mut().unwrap().half_to_limit_ms = Some(100.0);
            }),
            SURE(Cause::Tmpfs),
            &["first hit 4.2 s before"],
        ),
        case(
            "a JVM that spiked has no room either",
            with(leak_kill(), |kill| {
                cmdline(kill, &["java", "-Xmx500m"]);
                kill.before.as_mut().unwrap().half_to_limit_ms = Some(100.0);
            }),
            SURE(Cause::Spike),
            &["the JVM heap setting leaves no room"],
        ),
        case(
            "a full node is a full node; the record is evidence",
            with(node_kill(), |kill| {
                kill.before = leak_kill().before;
            }),
            SURE(Cause::NodeExhausted),
            &["usage grew by 8 MiB/s"],
        ),
    ]
}

fn cases() -> Vec<Case> {
    [
        memcg_cases(),
        makeup_cases(),
        jvm_cases(),
        node_cases(),
        unknown_cases(),
        partial_cases(),
        lead_up_cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn all_text(verdict: &Verdict) -> String {
    let mut text = verdict.summary.clone();
    for part in verdict.evidence.iter().chain(&verdict.next_steps) {
        text.push('\n');
        text.push_str(part);
    }
    if let Some(report) = &verdict.kubernetes_will_report {
        text.push('\n');
        text.push_str(&report.why);
    }
    text
}

#[test]
fn table() {
    for case in cases() {
        let verdict = oom_kill(&case.kill);
        let found = (verdict.cause, verdict.confidence);
        assert_eq!(
            found,
            (case.cause, case.confidence),
            "{}: {verdict:#?}",
            case.name
        );
        let text = all_text(&verdict);
        for words in case.says {
            assert!(
                text.contains(words),
                "{}: `{words}` is not in\n{text}",
                case.name
            );
        }
    }
}

#[test]
fn every_verdict_says_what_to_do_next() {
    for case in cases() {
        let verdict = oom_kill(&case.kill);
        assert!(
            (1..=4).contains(&verdict.next_steps.len()),
            "{}: {verdict:#?}",
            case.name
        );
        assert!(!verdict.summary.contains('\n'));
        for step in &verdict.next_steps {
            assert!(!step.contains(char::is_control), "{}: {step}", case.name);
        }
    }
}

#[test]
fn what_kubernetes_will_report() {
    let report = |kill: &OomKill| oom_kill(kill).kubernetes_will_report.map(|r| r.oom_killed);
    let init = |init| {
        with(container_kill(), |kill| {
            kill.victims[0].container_init = init;
        })
    };
    assert_eq!(report(&init(Some(true))), Some(Some(true)));
    assert_eq!(report(&init(Some(false))), Some(Some(false)));
    assert_eq!(report(&init(None)), Some(None));
    assert_eq!(report(&group_kill()), Some(Some(true)));
    assert_eq!(
        report(&with(container_kill(), |kill| kill.victims[0].k8s = None)),
        None
    );
    // A sibling of the group decides, though the chosen process is a child.
    let group = with(group_kill(), |kill| {
        kill.victims[0].container_init = Some(false);
        kill.victims[5].container_init = Some(true);
    });
    assert_eq!(report(&group), Some(Some(true)));
    // Marked, not killed.
    let marked = with(container_kill(), |kill| {
        kill.outcome = Outcome::MarkedExiting;
    });
    assert_eq!(report(&marked), Some(Some(false)));
}

#[test]
fn a_heap_with_room_is_not_blamed() {
    for line in [
        &["java", "-Xmx256m"][..],
        &["java"],
        &["java", "-XX:MaxRAMPercentage=75.0"],
    ] {
        let kill = with(container_kill(), |kill| cmdline(kill, line));
        let verdict = oom_kill(&kill);
        assert!(!all_text(&verdict).contains("JVM"), "{verdict:#?}");
    }
}

#[test]
fn a_tight_heap_is_not_blamed_for_tmpfs_or_for_the_limit_of_others() {
    let line = &["java", "-Xmx500m"];
    let tmpfs = with(tmpfs_kill(), |kill| cmdline(kill, line));
    let slice = with(container_kill(), |kill| {
        cmdline(kill, line);
        kill.scope = Scope::QosSlice;
    });
    for kill in [tmpfs, slice] {
        let verdict = oom_kill(&kill);
        assert!(!all_text(&verdict).contains("JVM"), "{verdict:#?}");
    }
}

#[test]
fn a_bigger_process_of_the_same_container_is_no_neighbour() {
    let kill = with(container_kill(), |kill| {
        kill.victims[0].process = process("child", 4712, 100 * MIB, 985);
        kill.victims[0].cgroup = kill.candidates[0].cgroup.clone();
    });
    assert_eq!(oom_kill(&kill).cause, Cause::WorkingSetOverLimit);
}

#[test]
fn names_in_commands_stay_names() {
    let kill = with(container_kill(), |kill| {
        if let Some(k8s) = &mut kill.victims[0].k8s {
            k8s.pod.name = Some("$(reboot)'".into());
        }
        if let Some(limit) = &mut kill.limit {
            limit.level.cgroup = Cgroup {
                id: None,
                path: Some("/a/`id`\n".into()),
            };
        }
    });
    let steps = oom_kill(&kill).next_steps;
    assert!(
        steps[0].contains(r"describe pod '$(reboot)'\'''"),
        "{steps:#?}"
    );
    assert!(steps.iter().all(|step| !step.contains('`')), "{steps:#?}");
}

#[test]
fn memory_and_swap_together_are_full_only_with_swap_in_use() {
    for (swap, says) in [(0, false), (20 * MIB, true)] {
        let kill = with(container_kill(), |kill| {
            let level = &mut kill.limit.as_mut().unwrap().level;
            level.swap_usage_bytes = Some(swap);
            level.swap_limit_bytes = None;
            level.memsw_usage_bytes = Some(512 * MIB);
            level.memsw_limit_bytes = Some(512 * MIB);
        });
        let evidence = oom_kill(&kill).evidence.join("\n");
        assert_eq!(
            evidence.contains("memory and swap together"),
            says,
            "{evidence}"
        );
        assert!(!evidence.contains("its swap is full"), "{evidence}");
    }
}
