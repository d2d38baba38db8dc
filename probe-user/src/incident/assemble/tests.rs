//! Sequences of records as `__oom_kill_process()` makes them, and what must come out.

use bytemuck::{Pod, Zeroable, bytes_of};
use bytes::Bytes;
use probe_common::wire::{Header, Kill, LimitLevel, MarkVictim, OomDecision, Reap, VERSION, kind};
use proptest::prelude::*;

use super::{super::fold::FOLD_NS, incident::MAX_LISTED, *};

/// Hooks as on a kernel that allows all of them.
const ALL: Hooks = Hooks {
    end: true,
    kernel_kill: true,
};
/// Tracepoints only.
const TRACEPOINTS: Hooks = Hooks {
    end: false,
    kernel_kill: true,
};
const MARKS_ONLY: Hooks = Hooks {
    end: false,
    kernel_kill: false,
};

/// The thread whose allocation failed, where it is no victim.
const TRIGGER: u32 = 7;
const MS: u64 = 1_000_000;

/// A record as the kernel side writes it.
pub(in crate::incident) fn record<T: Pod>(
    kind: u16,
    time_boot_ns: u64,
    body: &T,
    sections: &[(u16, &[u8])],
) -> Record {
    let mut bytes = vec![0; size_of::<Header>()];
    bytes.extend_from_slice(bytes_of(body));
    for (tag, content) in sections {
        let section = wire::Section {
            tag: *tag,
            truncated: 0,
            len: u32::try_from(content.len()).unwrap(),
        };
        bytes.extend_from_slice(bytes_of(&section));
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
    let header = Header {
        version: VERSION,
        kind,
        len: u32::try_from(bytes.len()).unwrap(),
        time_boot_ns,
        ..Header::zeroed()
    };
    bytes[..size_of::<Header>()].copy_from_slice(bytes_of(&header));
    Record::decode(&Bytes::from(bytes)).unwrap()
}

/// A single-threaded process with an mm of its own; `pid` is also when it started.
fn task(pid: u32) -> wire::Task {
    wire::Task {
        pid,
        tid: pid,
        start_boot_ns: u64::from(pid),
        mm: u64::from(pid) << 12,
        ..wire::Task::zeroed()
    }
}

fn sharing(pid: u32, mm_of: u32) -> wire::Task {
    wire::Task {
        mm: task(mm_of).mm,
        ..task(pid)
    }
}

fn decision(time: u64, trigger: u32, victim: u32) -> Record {
    let body = OomDecision {
        victim: task(victim),
        trigger: task(trigger),
        ..OomDecision::zeroed()
    };
    record(kind::OOM_DECISION, time, &body, &[])
}

fn kill_of(time: u64, sender_tid: u32, target: wire::Task) -> Record {
    let body = Kill {
        target,
        sender_tid,
        result: 0,
    };
    record(
        kind::KERNEL_KILL,
        time,
        &body,
        &[(section::VICTIM_PATH, b"c\0")],
    )
}

fn kill(time: u64, sender_tid: u32, target: u32) -> Record {
    kill_of(time, sender_tid, task(target))
}

fn mark_of(time: u64, trigger: u32, victim: wire::Task, levels: &[LimitLevel]) -> Record {
    let body = MarkVictim {
        victim,
        trigger: task(trigger),
        in_oom_group: 1,
        mm_users: 1,
    };
    let levels = bytemuck::cast_slice(levels);
    let sections = [
        (section::LIMIT_LEVELS, levels),
        (section::VICTIM_PATH, &b"c\0"[..]),
    ];
    record(kind::MARK_VICTIM, time, &body, &sections)
}

fn mark(time: u64, trigger: u32, victim: u32) -> Record {
    mark_of(time, trigger, task(victim), &[])
}

fn end(time: u64, trigger_tid: u32, chosen: u32) -> Record {
    end_for(time, trigger_tid, chosen, u32::from(chosen != 0), 99)
}

fn end_for(time: u64, trigger_tid: u32, chosen: u32, returned: u32, limit: u64) -> Record {
    let body = OomEnd {
        trigger_tid,
        returned,
        chosen,
        limit_cgroup_id: limit,
        ..OomEnd::zeroed()
    };
    record(kind::OOM_END, time, &body, &[])
}

fn exit(time: u64, pid: u32) -> Record {
    exit_of(time, pid, u64::from(pid))
}

fn exit_of(time: u64, pid: u32, start_boot_ns: u64) -> Record {
    let body = wire::Exit {
        pid,
        tid: pid,
        exit_code: 9,
        pad: 0,
        start_boot_ns,
    };
    record(kind::EXIT, time, &body, &[])
}

fn reap(time: u64, tid: u32) -> Record {
    record(kind::REAP, time, &Reap { tid, stage: 1 }, &[])
}

/// What came out, in order.
#[derive(Default)]
struct Out {
    opened: Vec<u64>,
    closed: Vec<Incident>,
    settled: Vec<Incident>,
}

impl Out {
    fn take(&mut self, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::Opened(number) => self.opened.push(number),
                Step::Closed(incident) => self.closed.push(*incident),
                Step::Settled(incident) => self.settled.push(*incident),
            }
        }
    }
}

fn feed(assembler: &mut Assembler, records: impl IntoIterator<Item = Record>) -> Out {
    let mut out = Out::default();
    for record in records {
        out.take(assembler.push(record));
    }
    out
}

fn roles(incident: &Incident) -> Vec<(u32, Role)> {
    let victims = incident.victims.iter();
    victims
        .map(|victim| (victim.task.pid, victim.role))
        .collect()
}

#[test]
fn a_kill_with_all_hooks() {
    let mut it = Assembler::new(ALL);
    let out = feed(
        &mut it,
        [
            decision(100, TRIGGER, 20),
            kill(101, TRIGGER, 20),
            mark(102, TRIGGER, 20),
            end(103, TRIGGER, 1),
            exit(104, 20),
        ],
    );
    assert_eq!(out.opened, [1]);
    let [closed] = &out.closed[..] else {
        panic!("{}", out.closed.len())
    };
    assert_eq!(roles(closed), [(20, Role::Chosen)]);
    assert_eq!(closed.ending(), Ending::Killed);
    assert_eq!(
        (closed.boot_ns, closed.victims[0].killed_boot_ns),
        (100, Some(101))
    );
    assert_eq!((closed.kernel_kills, it.kernel_kills()), (1, 1));
    assert_eq!(closed.trigger().map(|task| task.tid), Some(TRIGGER));
    assert_eq!(out.settled[0].victims[0].exited, Some((104, 9)));
    assert_eq!(it.deadline(), None);
}

#[test]
fn with_tracepoints_silence_ends_a_kill() {
    let mut it = Assembler::new(TRACEPOINTS);
    let mut out = feed(&mut it, [kill(100, TRIGGER, 20), mark(101, TRIGGER, 20)]);
    assert!(out.closed.is_empty());
    let deadline = it.deadline().unwrap();
    assert_eq!(deadline, 101 + QUIET_NS);
    out.take(it.tick(deadline - 1));
    assert!(out.closed.is_empty());
    out.take(it.tick(deadline));
    assert_eq!(roles(&out.closed[0]), [(20, Role::Chosen)]);
    assert_eq!(out.closed[0].victims[0].killed_boot_ns, Some(100));
    assert_eq!(it.kernel_kills(), 1);
}

#[test]
fn with_tracepoints_the_exit_of_the_trigger_ends_its_kill() {
    let mut it = Assembler::new(TRACEPOINTS);
    let out = feed(
        &mut it,
        [kill(100, 20, 20), mark(101, 20, 20), exit(102, 20)],
    );
    assert_eq!((out.closed.len(), out.settled.len()), (1, 1));
    assert_eq!(out.closed[0].victims[0].exited, Some((102, 9)));
}

#[test]
fn without_signals_a_mark_is_a_kill() {
    let mut it = Assembler::new(MARKS_ONLY);
    feed(&mut it, [mark(101, TRIGGER, 20), mark(102, TRIGGER, 21)]);
    let out = it.tick(101 + 5 * QUIET_NS);
    let Step::Closed(closed) = &out[0] else {
        panic!()
    };
    assert_eq!(roles(closed), [(20, Role::Chosen), (21, Role::Group)]);
}

/// Whoever the kernel signals twice, and however marks repeat, `memory.events` counts
/// `__oom_kill_process()` calls: the chosen twice and each other member once.
#[test]
fn a_group_counts_its_chosen_victim_twice() {
    for (hooks, repeated_mark) in [(ALL, false), (ALL, true), (TRACEPOINTS, false)] {
        let mut it = Assembler::new(hooks);
        let mut records = Vec::new();
        if hooks.end {
            records.push(decision(100, TRIGGER, 20));
        }
        records.extend([
            kill(101, TRIGGER, 20),
            mark(102, TRIGGER, 20),
            kill(103, TRIGGER, 21),
            mark(104, TRIGGER, 21),
            kill(105, TRIGGER, 20),
        ]);
        // A hook on `mark_oom_victim()` sees the second call, the tracepoint does not.
        records.extend(repeated_mark.then(|| mark(106, TRIGGER, 20)));
        records.extend([kill(107, TRIGGER, 22), mark(108, TRIGGER, 22)]);
        if hooks.end {
            records.push(end(109, TRIGGER, 1));
        }
        let mut out = feed(&mut it, records);
        out.take(it.tick(109 + QUIET_NS));
        let [closed] = &out.closed[..] else {
            panic!("{hooks:?}: {}", out.closed.len())
        };
        let expected = [(20, Role::Chosen), (21, Role::Group), (22, Role::Group)];
        assert_eq!(roles(closed), expected, "{hooks:?}");
        assert_eq!(
            (closed.kernel_kills, it.kernel_kills()),
            (4, 4),
            "{hooks:?}"
        );
    }
}

#[test]
fn processes_that_share_the_mm_are_not_counted() {
    let mut it = Assembler::new(ALL);
    let out = feed(
        &mut it,
        [
            decision(100, TRIGGER, 20),
            kill(101, TRIGGER, 20),
            mark(102, TRIGGER, 20),
            kill_of(103, TRIGGER, sharing(21, 20)),
            end(110, TRIGGER, 1),
        ],
    );
    assert_eq!(
        roles(&out.closed[0]),
        [(20, Role::Chosen), (21, Role::SharesMm)]
    );
    assert_eq!(it.kernel_kills(), 1);
}

/// Both are members of the group, so both are taken again; each signals the other for the mm.
#[test]
fn members_of_a_group_that_share_the_mm_count_once_each() {
    let chosen_again = [
        kill(104, TRIGGER, 20),
        kill_of(105, TRIGGER, sharing(21, 20)),
    ];
    let member = [
        kill_of(106, TRIGGER, sharing(21, 20)),
        mark_of(107, TRIGGER, sharing(21, 20), &[]),
        kill(108, TRIGGER, 20),
    ];
    let orders: [Vec<Record>; 2] = [
        chosen_again.iter().chain(&member).cloned().collect(),
        member.iter().chain(&chosen_again).cloned().collect(),
    ];
    for order in orders {
        let mut it = Assembler::new(ALL);
        let start = [
            decision(100, TRIGGER, 20),
            kill(101, TRIGGER, 20),
            mark(102, TRIGGER, 20),
            kill_of(103, TRIGGER, sharing(21, 20)),
        ];
        let out = feed(
            &mut it,
            start.into_iter().chain(order).chain([end(120, TRIGGER, 1)]),
        );
        assert_eq!(
            roles(&out.closed[0]),
            [(20, Role::Chosen), (21, Role::Group)]
        );
        assert_eq!((out.closed[0].kernel_kills, it.kernel_kills()), (3, 3));
    }
}

#[test]
fn a_mark_without_a_signal_is_no_kill() {
    // `out_of_memory()` lets a dying caller use reserves: no decision, an end by the other ring.
    let mut it = Assembler::new(ALL);
    let out = feed(
        &mut it,
        [mark(100, 20, 20), end_for(101, 20, 0, 1, 99), exit(102, 20)],
    );
    assert_eq!(roles(&out.closed[0]), [(20, Role::AlreadyExiting)]);
    assert_eq!(out.closed[0].ending(), Ending::Unknown);
    assert_eq!(
        (out.closed.len(), out.settled.len(), it.kernel_kills()),
        (1, 1, 0)
    );
    // `oom_kill_process()` does the same with a victim that it finds dying.
    let out = feed(
        &mut it,
        [
            decision(200, TRIGGER, 30),
            mark(201, TRIGGER, 30),
            end(202, TRIGGER, 1),
        ],
    );
    assert_eq!(roles(&out.closed[0]), [(30, Role::AlreadyExiting)]);
    assert_eq!(it.kernel_kills(), 0);
}

#[test]
fn a_decision_may_find_its_victim_gone() {
    let mut it = Assembler::new(ALL);
    let out = feed(&mut it, [decision(100, TRIGGER, 20), end(101, TRIGGER, 1)]);
    assert!(out.closed[0].victims.is_empty());
    assert_eq!(out.closed[0].ending(), Ending::Unknown);
    assert_eq!(it.deadline(), None, "there is nobody to wait for");
}

#[test]
fn with_tracepoints_a_dying_trigger_is_not_part_of_its_own_kill() {
    let mut it = Assembler::new(TRACEPOINTS);
    let mut out = feed(
        &mut it,
        [
            kill(100, TRIGGER, 20),
            mark(101, TRIGGER, 20),
            mark(102, TRIGGER, TRIGGER),
        ],
    );
    out.take(it.finish(200));
    let all: Vec<_> = out.closed.iter().map(roles).collect();
    assert_eq!(
        all,
        [
            vec![(20, Role::Chosen)],
            vec![(TRIGGER, Role::AlreadyExiting)]
        ]
    );
}

#[test]
fn fruitless_invocations_are_folded_by_limit() {
    let mut it = Assembler::new(ALL);
    let mut out = Out::default();
    for nth in 0..1000 {
        out.take(it.push(end_for(100 + nth, TRIGGER, 0, 0, 99)));
    }
    out.take(it.push(end_for(2000, TRIGGER, 0, 0, 98)));
    out.take(it.push(end_for(100 + FOLD_NS, TRIGGER, 0, 0, 99)));
    let folded: Vec<_> = out.closed.iter().map(|incident| incident.folded).collect();
    assert_eq!(folded, [0, 0, 999]);
    assert!(
        out.closed
            .iter()
            .all(|incident| incident.ending() == Ending::NothingKillable)
    );
    assert!(out.settled.is_empty());
}

#[test]
fn aborted_and_helped_invocations_are_none() {
    let mut it = Assembler::new(ALL);
    let records = [end(100, TRIGGER, 2), end_for(101, TRIGGER, 0, 1, 99)];
    assert!(feed(&mut it, records).closed.is_empty());
}

/// Ends that chose nobody come by the other ring: in no order with the open incident.
#[test]
fn ends_of_the_other_ring_leave_the_open_incident_alone() {
    let mut it = Assembler::new(ALL);
    let out = feed(
        &mut it,
        [
            decision(100, TRIGGER, 20),
            end_for(90, 8, 0, 0, 50),
            // Of the same thread, but of a call before.
            end_for(95, TRIGGER, 0, 1, 99),
            end(96, TRIGGER, 2),
            kill(101, TRIGGER, 20),
            mark(102, TRIGGER, 20),
            end(103, TRIGGER, 1),
        ],
    );
    let endings: Vec<_> = out.closed.iter().map(Incident::ending).collect();
    assert_eq!(endings, [Ending::NothingKillable, Ending::Killed]);
    assert_eq!(roles(&out.closed[1]), [(20, Role::Chosen)]);
    assert_eq!(it.open().map(|open| open.number), None);
}

#[test]
fn incidents_of_different_triggers_stay_apart() {
    for hooks in [ALL, TRACEPOINTS] {
        let mut it = Assembler::new(hooks);
        let mut records = Vec::new();
        for (time, trigger, victim) in [(100, 7, 20), (110, 8, 21)] {
            if hooks.end {
                records.push(decision(time, trigger, victim));
            }
            records.extend([
                kill(time + 1, trigger, victim),
                mark(time + 2, trigger, victim),
            ]);
            if hooks.end {
                records.push(end(time + 3, trigger, 1));
            }
        }
        let mut out = feed(&mut it, records);
        out.take(it.finish(200));
        let all: Vec<_> = out.closed.iter().map(roles).collect();
        assert_eq!(
            all,
            [vec![(20, Role::Chosen)], vec![(21, Role::Chosen)]],
            "{hooks:?}"
        );
        assert_eq!(
            (out.opened, it.kernel_kills()),
            (vec![1, 2], 2),
            "{hooks:?}"
        );
    }
}

/// Read late and all at once: there was no tick in between.
#[test]
fn with_tracepoints_one_thread_may_trigger_kill_after_kill() {
    for gone in [exit(105, 20), reap(105, 20)] {
        let mut it = Assembler::new(TRACEPOINTS);
        let mut out = feed(
            &mut it,
            [
                kill(100, TRIGGER, 20),
                mark(101, TRIGGER, 20),
                gone,
                kill(200, TRIGGER, 21),
                mark(201, TRIGGER, 21),
            ],
        );
        out.take(it.finish(300));
        let all: Vec<_> = out.closed.iter().map(roles).collect();
        assert_eq!(all, [vec![(20, Role::Chosen)], vec![(21, Role::Chosen)]]);
    }
}

/// Without `memory.oom.group` each mark is an invocation of its own, even if the victim before has
/// not been seen to exit.
#[test]
fn with_tracepoints_only_a_group_has_several_victims() {
    let alone = |time, victim| {
        let body = MarkVictim {
            victim: task(victim),
            trigger: task(TRIGGER),
            in_oom_group: 0,
            mm_users: 1,
        };
        record(
            kind::MARK_VICTIM,
            time,
            &body,
            &[(section::VICTIM_PATH, b"c\0")],
        )
    };
    let mut it = Assembler::new(TRACEPOINTS);
    let out = feed(
        &mut it,
        [
            kill(100, TRIGGER, 20),
            alone(101, 20),
            kill(102, TRIGGER, 21),
            alone(103, 21),
        ],
    );
    // Without waiting: nobody else can follow.
    let all: Vec<_> = out.closed.iter().map(roles).collect();
    assert_eq!(all, [vec![(20, Role::Chosen)], vec![(21, Role::Chosen)]]);
    assert_eq!(it.kernel_kills(), 2);
}

/// The kernel prints its report before it kills those who share the mm: on a slow console the
/// victim is gone by then.
#[test]
fn with_tracepoints_a_twin_is_killed_after_the_victim_is_gone() {
    let mark = MarkVictim {
        victim: task(20),
        trigger: task(TRIGGER),
        in_oom_group: 0,
        mm_users: 2,
    };
    let mut it = Assembler::new(TRACEPOINTS);
    let mut out = feed(
        &mut it,
        [
            kill(100, TRIGGER, 20),
            record(
                kind::MARK_VICTIM,
                101,
                &mark,
                &[(section::VICTIM_PATH, b"c\0")],
            ),
            exit(105, 20),
            kill_of(2 * MS, TRIGGER, sharing(21, 20)),
        ],
    );
    out.take(it.tick(2 * MS + QUIET_NS));
    let all: Vec<_> = out.closed.iter().map(roles).collect();
    assert_eq!(all, [vec![(20, Role::Chosen), (21, Role::SharesMm)]]);
    assert_eq!(it.kernel_kills(), 1);
}

/// A pid namespace that goes down signals all in it by the same kind of SIGKILL.
#[test]
fn signals_of_others_do_not_end_a_group_kill() {
    let mut it = Assembler::new(TRACEPOINTS);
    let mut out = feed(
        &mut it,
        [
            kill(100, TRIGGER, 20),
            mark(101, TRIGGER, 20),
            kill(102, 20, 40),
            kill(103, TRIGGER, 21),
            mark(104, TRIGGER, 21),
        ],
    );
    out.take(it.finish(200));
    let [closed] = &out.closed[..] else {
        panic!("{}", out.closed.len())
    };
    assert_eq!(roles(closed), [(20, Role::Chosen), (21, Role::Group)]);
    assert_eq!(it.kernel_kills(), 2);
}

/// On a slow console the members of a group are further apart than silence is long.
#[test]
fn late_members_of_a_group_are_reported_with_the_outcome() {
    let group = [LimitLevel {
        flags: wire::level::OOM_GROUP,
        ..LimitLevel::zeroed()
    }];
    let mut it = Assembler::new(TRACEPOINTS);
    let out = feed(
        &mut it,
        [
            kill(MS, TRIGGER, 20),
            mark_of(MS, TRIGGER, task(20), &group),
            kill(101 * MS, TRIGGER, 21),
            mark(101 * MS, TRIGGER, 21),
            exit(102 * MS, 20),
            kill(201 * MS, TRIGGER, 22),
            mark(201 * MS, TRIGGER, 22),
            exit(202 * MS, 21),
            exit(203 * MS, 22),
        ],
    );
    assert_eq!((out.closed.len(), out.settled.len()), (1, 1));
    assert_eq!(
        (out.settled[0].on_time, out.settled[0].victims.len()),
        (1, 3)
    );
    assert_eq!((out.settled[0].kernel_kills, it.kernel_kills()), (3, 3));
}

#[test]
fn exits_before_the_end_are_kept() {
    let mut it = Assembler::new(ALL);
    let out = feed(
        &mut it,
        [
            decision(100, TRIGGER, 20),
            kill(101, TRIGGER, 20),
            mark(102, TRIGGER, 20),
            exit(103, 20),
            end(104, TRIGGER, 1),
        ],
    );
    assert_eq!(out.closed[0].victims[0].exited, Some((103, 9)));
    assert_eq!(out.settled.len(), 1);
}

#[test]
fn a_victim_that_will_not_die_is_reported_in_time() {
    let mut it = Assembler::new(ALL);
    let records = [
        decision(100, TRIGGER, 20),
        kill(101, TRIGGER, 20),
        mark(102, TRIGGER, 20),
        end(103, TRIGGER, 1),
        reap(110, 20),
    ];
    let mut out = feed(&mut it, records);
    assert_eq!(it.deadline(), Some(103 + SETTLE_NS));
    out.take(it.tick(102 + SETTLE_NS));
    assert!(out.settled.is_empty());
    out.take(it.tick(103 + SETTLE_NS));
    let victim = &out.settled[0].victims[0];
    assert_eq!((victim.exited, victim.reaped_boot_ns), (None, Some(110)));
    assert_eq!(it.deadline(), None);
}

#[test]
fn a_lost_end_is_made_up_for() {
    let kill_of_trigger = |at: u64| [decision(at, 20, 20), kill(at, 20, 20), mark(at, 20, 20)];
    // By the exit of the trigger, by the next decision, by time.
    let mut it = Assembler::new(ALL);
    let out = feed(
        &mut it,
        kill_of_trigger(100).into_iter().chain([exit(200, 20)]),
    );
    assert_eq!((out.closed.len(), out.settled.len()), (1, 1));
    let mut it = Assembler::new(ALL);
    let out = feed(
        &mut it,
        kill_of_trigger(100)
            .into_iter()
            .chain([decision(200, 8, 21)]),
    );
    assert_eq!(roles(&out.closed[0]), [(20, Role::Chosen)]);
    let mut it = Assembler::new(ALL);
    feed(&mut it, kill_of_trigger(100));
    let deadline = it.deadline().unwrap();
    assert_eq!(deadline, 100 + SETTLE_NS);
    assert!(matches!(it.tick(deadline)[..], [Step::Closed(_)]));
}

#[test]
fn a_pid_in_use_again_is_another_process() {
    let mut it = Assembler::new(ALL);
    let mut out = feed(
        &mut it,
        [
            decision(100, TRIGGER, 20),
            kill(101, TRIGGER, 20),
            mark(102, TRIGGER, 20),
            end(103, TRIGGER, 1),
            exit_of(104, 20, 104),
        ],
    );
    assert!(out.settled.is_empty());
    out.take(it.push(exit(105, 20)));
    assert_eq!(out.settled[0].victims[0].exited, Some((105, 9)));
    // Nor is a signal to one the reason for the mark of the other.
    let mut it = Assembler::new(TRACEPOINTS);
    let later = wire::Task {
        start_boot_ns: 999,
        ..task(20)
    };
    feed(
        &mut it,
        [kill(100, TRIGGER, 20), mark_of(101, TRIGGER, later, &[])],
    );
    assert_eq!(it.kernel_kills(), 0);
}

/// Killed, and while it is dying marked once more by a call of its own.
#[test]
fn an_exit_ends_all_that_wait_for_it() {
    let mut it = Assembler::new(ALL);
    let out = feed(
        &mut it,
        [
            decision(100, TRIGGER, 20),
            kill(101, TRIGGER, 20),
            mark(102, TRIGGER, 20),
            end(103, TRIGGER, 1),
            mark(104, 20, 20),
            end_for(105, 20, 0, 1, 99),
            exit(106, 20),
        ],
    );
    assert_eq!((out.closed.len(), out.settled.len()), (2, 2));
    assert_eq!(it.kernel_kills(), 1);
}

#[test]
fn a_flood_stays_bounded_and_every_incident_comes_out() {
    let mut it = Assembler::new(ALL);
    let mut out = Out::default();
    for nth in 0..10_000_u32 {
        let (time, pid) = (u64::from(nth) * 10, 100 + nth);
        let records = [
            decision(time, pid, pid),
            kill(time + 1, pid, pid),
            mark(time + 2, pid, pid),
            end(time + 3, pid, 1),
            // Has nothing to do with it.
            kill(time + 4, 1, 50_000 + nth),
        ];
        for record in records {
            out.take(it.push(record));
        }
        assert!(it.settling.len() <= MAX_SETTLING && it.pending_kills.len() <= MAX_PENDING_KILLS);
    }
    out.take(it.finish(1_000_000));
    assert_eq!((out.closed.len(), out.settled.len()), (10_000, 10_000));
    assert_eq!(it.kernel_kills(), 10_000);
}

#[test]
fn a_group_larger_than_the_list_is_counted() {
    let mut it = Assembler::new(ALL);
    let members = u32::try_from(MAX_LISTED).unwrap() + 5;
    let mut records = vec![decision(1, TRIGGER, 100)];
    for pid in 100..100 + members {
        records.extend([kill(2, TRIGGER, pid), mark(3, TRIGGER, pid)]);
    }
    records.push(end(4, TRIGGER, 1));
    let out = feed(&mut it, records);
    assert_eq!(
        (out.closed[0].victims.len(), out.closed[0].unlisted),
        (MAX_LISTED, 5)
    );
    assert_eq!(it.kernel_kills(), u64::from(members));
}

fn any_record() -> impl Strategy<Value = Record> {
    let time = prop_oneof![0..3 * SETTLE_NS, Just(u64::MAX)];
    let (thread, process) = (1..5_u32, 1..7_u32);
    (
        0..7_u8,
        time,
        thread,
        process.clone(),
        process,
        0..4_u32,
        0..2_u32,
    )
        .prop_map(
            |(which, time, thread, process, other, chosen, returned)| match which {
                0 => decision(time, thread, process),
                1 => kill_of(time, thread, sharing(process, other)),
                2 => kill(time, thread, process),
                3 => mark(time, thread, process),
                4 => end_for(time, thread, chosen, returned, u64::from(other)),
                5 => exit(time, process),
                _ => reap(time, process),
            },
        )
}

proptest! {
    #[test]
    fn any_sequence_is_joined(
        records in proptest::collection::vec(any_record(), 0..300),
        end in any::<bool>(),
        kernel_kill in any::<bool>(),
        tick in 1..20_usize,
    ) {
        let mut it = Assembler::new(Hooks { end, kernel_kill });
        let mut out = Out::default();
        let mut now = 0;
        for (index, record) in records.into_iter().enumerate() {
            now = now.max(record.header.time_boot_ns);
            out.take(it.push(record));
            if index % tick == 0 {
                out.take(it.tick(now));
                prop_assert!(it.deadline().is_none_or(|at| at > now || now == u64::MAX));
            }
            prop_assert!(it.settling.len() <= MAX_SETTLING);
            prop_assert!(it.pending_kills.len() <= MAX_PENDING_KILLS);
            prop_assert!(it.fold.len() <= 64);
        }
        out.take(it.finish(now));
        prop_assert!(it.open().is_none() && it.settling.is_empty());
        let mut numbers: Vec<_> = out.closed.iter().map(|incident| incident.number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        prop_assert_eq!(numbers.len(), out.closed.len());
        // Whatever opened is closed, and whoever was a victim has an outcome.
        prop_assert!(out.opened.iter().all(|number| numbers.binary_search(number).is_ok()));
        let with_victims = out.closed.iter().filter(|incident| !incident.victims.is_empty());
        prop_assert_eq!(with_victims.count(), out.settled.len());
    }
}
