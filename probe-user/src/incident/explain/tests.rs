//! Events from hand-made incidents.

use std::path::Path;

use bytemuck::Zeroable;
use probe_common::wire::{
    LimitLevel as WireLevel, MarkVictim, OomDecision, OomEnd, Task, has, kind, level,
};

use super::{
    memory::{limit_level, memory},
    process::container_init,
    *,
};
use crate::{
    event::{Container, Role},
    identity::names::Resolver,
    incident::{
        assemble::{Assembler, Hooks, Step, tests::record},
        who::Who,
    },
    node::memcg::{MemcgReading, MemoryStat, Version},
    ring::decode::Record,
};

const POD: &str = "/kubepods/burstable/pod6a4ce4a0-ba47-11ea-b2a7-0cc47ac5979e";
const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const PAGE: u64 = 4096;

fn context(memory_hierarchy: u32) -> Context {
    Context {
        clock: BootClock::now(),
        page_bytes: PAGE,
        boot_id: Some("1b4e28ba-2fa1-11d2".to_owned()),
        memory_hierarchy,
        hooks: vec![
            (Signal::OomDecision, Some(Hook::FEntry("oom_kill_process"))),
            (Signal::VictimMark, Some(Hook::TpBtf("mark_victim"))),
            (Signal::SignalSent, Some(Hook::TpBtf("signal_generate"))),
            (Signal::OomEnd, Some(Hook::FExit("out_of_memory"))),
        ],
    }
}

fn task(pid: u32) -> Task {
    Task {
        has: has::TASK | has::SIGNAL | has::MM,
        pid,
        tid: pid,
        start_boot_ns: u64::from(pid),
        rss_anon_pages: 75,
        ..Task::zeroed()
    }
}

/// Names leaf first, as a record has them.
fn names(path: &str) -> Vec<u8> {
    let names = path.split('/').rev().filter(|name| !name.is_empty());
    names
        .flat_map(|name| [name.as_bytes(), b"\0"].concat())
        .collect()
}

fn decision_of(order: i32, constraint: u32, path: &str) -> Record {
    let body = OomDecision {
        victim: task(20),
        trigger: task(7),
        order,
        constraint,
        ..OomDecision::zeroed()
    };
    let path = names(path);
    record(
        kind::OOM_DECISION,
        100,
        &body,
        &[(section::VICTIM_PATH, &path)],
    )
}

fn end(chosen: u32, limit_cgroup_id: u64) -> Record {
    let body = OomEnd {
        trigger: task(7),
        trigger_tid: 7,
        chosen,
        // CONSTRAINT_MEMCG.
        constraint: if limit_cgroup_id == 0 { 0 } else { 3 },
        limit_cgroup_id,
        ..OomEnd::zeroed()
    };
    record(kind::OOM_END, 200, &body, &[])
}

fn incident(records: impl IntoIterator<Item = Record>) -> Incident {
    let mut assembler = Assembler::new(Hooks {
        end: true,
        kernel_kill: false,
    });
    let mut steps: Vec<Step> = records
        .into_iter()
        .flat_map(|r| assembler.push(r))
        .collect();
    steps.extend(assembler.finish(300));
    let closed = steps.into_iter().find_map(|step| match step {
        Step::Closed(incident) => Some(*incident),
        _ => None,
    });
    closed.unwrap()
}

fn killed() -> Incident {
    let mark = MarkVictim {
        victim: task(20),
        trigger: task(7),
        ..MarkVictim::zeroed()
    };
    let mark = record(
        kind::MARK_VICTIM,
        110,
        &mark,
        &[(section::VICTIM_PATH, &names("/a"))],
    );
    incident([decision_of(0, 3, "/a"), mark, end(1, 5)])
}

fn owner(path: &str, level: WireLevel) -> LimitOwner {
    LimitOwner {
        index: 0,
        found_by: FoundBy::OomControl,
        levels: vec![(level, path.into())],
    }
}

/// What the paths alone tell: there is no runtime and there are no logs.
fn identities(paths: &[&str]) -> Identities {
    let root = tempfile::tempdir().unwrap();
    let resolver = std::rc::Rc::new(Resolver::new(root.path(), Some(Path::new("/nonexistent"))));
    let paths = paths.iter().map(|path| path.as_bytes().to_vec());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async { Identities::resolve(&resolver, None, paths).await })
}

#[test]
fn scope_follows_the_owner_of_the_limit() {
    let container = format!("{POD}/{ID}");
    let rows = [
        (container.as_str(), Scope::Container),
        (POD, Scope::Pod),
        ("/kubepods/burstable", Scope::QosSlice),
        ("/kubepods", Scope::Kubepods),
        ("/kubepods.slice", Scope::Kubepods),
        ("/system.slice/x.service", Scope::Slice),
    ];
    let identities = identities(&rows.map(|(path, _)| path));
    for (path, expected) in rows {
        let owner = owner(path, WireLevel::zeroed());
        assert_eq!(
            scope(
                Some(owner.path()),
                &identities,
                Some(Constraint::Memcg),
                Some(0)
            ),
            expected,
            "{path}"
        );
    }
}

#[test]
fn scope_without_an_owner_follows_the_constraint() {
    let rows = [
        (Some(Constraint::None), 0, Scope::Node),
        (Some(Constraint::Cpuset), 0, Scope::Cpuset),
        (Some(Constraint::MemoryPolicy), 0, Scope::Mempolicy),
        (Some(Constraint::Memcg), 0, Scope::Unknown),
        (Some(Constraint::None), -1, Scope::Sysrq),
        (None, 0, Scope::Node),
    ];
    for (constraint, order, expected) in rows {
        let found = scope(None, &Identities::default(), constraint, Some(order));
        assert_eq!(found, expected, "{constraint:?} {order}");
    }
}

#[test]
fn a_swap_counter_is_of_its_hierarchy() {
    let level = WireLevel {
        usage_pages: 80,
        max_pages: 100,
        swap_pages: 90,
        swap_max_pages: 90,
        flags: level::HAS_SWAP,
        ..WireLevel::zeroed()
    };
    let v2 = limit_level(&context(0), &level, b"/a");
    assert_eq!(
        (v2.swap_usage_bytes, v2.swap_limit_bytes),
        (Some(90 * PAGE), Some(90 * PAGE))
    );
    assert_eq!((v2.memsw_usage_bytes, v2.memsw_limit_bytes), (None, None));
    let v1 = limit_level(&context(4), &level, b"/a");
    assert_eq!(
        (v1.swap_usage_bytes, v1.swap_limit_bytes),
        (Some(10 * PAGE), None)
    );
    assert_eq!(
        (v1.memsw_usage_bytes, v1.memsw_limit_bytes),
        (Some(90 * PAGE), Some(90 * PAGE))
    );
    let unread = limit_level(&context(4), &WireLevel { flags: 0, ..level }, b"/a");
    assert_eq!(
        (unread.swap_usage_bytes, unread.memsw_usage_bytes),
        (None, None)
    );
}

#[test]
fn memory_is_split_into_disjoint_parts() {
    let stat = format!(
        "anon {}\nfile {}\nshmem {}\n",
        40 * PAGE,
        30 * PAGE,
        20 * PAGE
    );
    let reading = MemcgReading {
        usage_bytes: 90 * PAGE,
        stat: MemoryStat::parse(Version::V2, stat.as_bytes()).unwrap(),
    };
    let level = WireLevel {
        usage_pages: 100,
        ..WireLevel::zeroed()
    };
    let evidence = Evidence {
        limit: Some(owner("/a", level)),
        ..Evidence::default()
    };
    let memory = memory(&context(0), &killed(), &evidence, &reading, 5_000);
    assert_eq!(
        (memory.file_bytes, memory.shmem_bytes),
        (Some(10 * PAGE), Some(20 * PAGE))
    );
    assert_eq!(
        (memory.total_bytes, memory.read_delay_us),
        (Some(100 * PAGE), Some(5))
    );
    assert_eq!(memory.victim_rss_ratio, Some(0.75));
}

#[test]
fn the_first_process_of_a_container() {
    type Row = (Task, Option<&'static [u8]>, Option<bool>);
    let inside = |ns_pid, ns_level| Task {
        has: has::NS_PID,
        ns_pid,
        ns_level,
        ..task(20)
    };
    let rows: [Row; 6] = [
        (inside(1, 1), None, Some(true)),
        (inside(9, 1), None, Some(false)),
        (inside(9, 1), Some(b"containerd-shim"), Some(true)),
        (inside(20, 0), Some(b"bash"), Some(false)),
        (inside(20, 0), None, None),
        (task(20), Some(b"conmon"), Some(true)),
    ];
    for (mut task, parent, expected) in rows {
        let parent = parent.unwrap_or_default();
        task.parent_comm[..parent.len()].copy_from_slice(parent);
        let who = Who {
            container: Some(Container::default()),
            ..Who::default()
        };
        assert_eq!(container_init(&task, &who), expected, "{parent:?}");
        assert_eq!(container_init(&task, &Who::default()), None);
    }
}

#[test]
fn hooks_name_what_served() {
    let evidence = Evidence {
        limit: Some(owner("/a", WireLevel::zeroed())),
        ..Evidence::default()
    };
    let hooks = hooks(&context(0), &killed(), &evidence);
    let of = |datum: &str| hooks.get(datum).map(String::as_str);
    assert_eq!(
        of("victims"),
        Some("tp_btf:mark_victim tp_btf:signal_generate")
    );
    assert_eq!(of("limit"), Some("fentry:oom_kill_process"));
    assert_eq!(of("end"), Some("fexit:out_of_memory"));
    assert_eq!((of("memory"), of("candidates")), (None, None));
}

#[test]
fn a_victim_found_dead_is_named() {
    let incident = incident([decision_of(0, 3, "/a"), end(1, 5)]);
    let event = oom_kill(
        &context(0),
        &incident,
        &Evidence::default(),
        &Identities::default(),
        Vec::new(),
    );
    assert_eq!(event.outcome, Outcome::MarkedExiting);
    assert_eq!(event.victims[0].process.pid, Some(20));
    assert_eq!(
        (event.victims[0].role, &event.victims[0].killed_at),
        (Role::AlreadyExiting, &None)
    );
    let path = event.victims[0]
        .cgroup
        .as_ref()
        .and_then(|cgroup| cgroup.path.as_deref());
    assert_eq!(path, Some("/a"));
}

#[test]
fn nothing_killable_under_a_limit_is_no_node_oom() {
    let incident = incident([end(0, 5)]);
    let event = oom_kill(
        &context(0),
        &incident,
        &Evidence::default(),
        &Identities::default(),
        Vec::new(),
    );
    assert_eq!(
        (event.outcome, event.constraint),
        (Outcome::NothingKillable, Some(Constraint::Memcg))
    );
    assert_eq!(event.scope, Scope::Unknown);
    let trigger = event.trigger.and_then(|trigger| trigger.process.pid);
    assert_eq!(trigger, Some(7));
}

#[test]
fn an_outcome_tells_how_victims_ended() {
    let mut incident = killed();
    incident.victims[0].killed_boot_ns = Some(1_000_000);
    for (status, alive, signal, code) in [
        (9, true, Some(9), None),
        (0x300, true, None, Some(3)),
        (0x8b, true, Some(11), None),
    ] {
        incident.victims[0].exited = Some((3_500_000, status));
        let outcome = oom_outcome(&context(0), &incident, |_| alive, Some(10), Some(30), None);
        let victim = &outcome.victims[0];
        assert_eq!(
            (victim.signal, victim.exit_code, victim.still_alive),
            (signal, code, false)
        );
        assert_eq!(victim.kill_to_exit_ms, Some(2.5));
        assert_eq!(outcome.freed_bytes, Some(-20));
    }
    // No exit was seen: whether it still is there is another question.
    incident.victims[0].exited = None;
    for alive in [true, false] {
        let outcome = oom_outcome(&context(0), &incident, |_| alive, None, None, None);
        assert_eq!(outcome.victims[0].still_alive, alive);
    }
}
