use super::*;
use proptest::prelude::*;

fn decision(text: &str) -> Decision<'_> {
    match Line::parse(text.as_bytes()) {
        Some(Line::Decision(decision)) => decision,
        other => panic!("{other:?}"),
    }
}

fn killed(text: &[u8]) -> Killed<'_> {
    match Line::parse(text) {
        Some(Line::Killed(killed)) => killed,
        other => panic!("{other:?}"),
    }
}

#[test]
fn invoked_of_all_ages() {
    let new: &[u8] = b"java invoked oom-killer: gfp_mask=0x140cca(GFP_HIGHUSER_MOVABLE|__GFP_COMP), order=0, oom_score_adj=-998";
    let expected = Line::Invoked {
        comm: b"java",
        gfp_mask: Some(0x0014_0cca),
        gfp_flags: Some(b"GFP_HIGHUSER_MOVABLE|__GFP_COMP"),
        order: Some(0),
        oom_score_adj: Some(-998),
    };
    assert_eq!(Line::parse(new), Some(expected));
    let v4_18: &[u8] = b"a, order=7 invoked oom-killer: gfp_mask=0x6000c0(GFP_KERNEL), nodemask=(null), order=-1, oom_score_adj=0";
    let Some(Line::Invoked { comm, order, .. }) = Line::parse(v4_18) else {
        panic!("not recognised");
    };
    assert_eq!((comm, order), (&b"a, order=7"[..], Some(-1)));
    let v3_10: &[u8] = b"x invoked oom-killer: gfp_mask=0xd0, order=0, oom_score_adj=0";
    let Some(Line::Invoked {
        gfp_mask,
        gfp_flags,
        ..
    }) = Line::parse(v3_10)
    else {
        panic!("not recognised");
    };
    assert_eq!((gfp_mask, gfp_flags), (Some(0xd0), None));
}

#[test]
fn memcg_decision() {
    let decision = decision(
        "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=cri-1,mems_allowed=0-1,\
         oom_memcg=/kubepods/podu,task_memcg=/kubepods/podu/c,task=a b,(c)=,pid=8601,uid=1000",
    );
    assert_eq!(decision.constraint, Constraint::Memcg);
    assert_eq!(decision.limit_cgroup, Some(&b"/kubepods/podu"[..]));
    assert_eq!(decision.task_cgroup, Some(&b"/kubepods/podu/c"[..]));
    assert_eq!(decision.comm, b"a b,(c)=");
    assert_eq!((decision.tid, decision.uid), (8601, 1000));
}

#[test]
fn node_decisions() {
    let node = decision(
        "oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,\
         global_oom,task_memcg=/system.slice/x.service,task=hog,pid=7,uid=0",
    );
    assert_eq!(node.constraint, Constraint::None);
    assert_eq!(node.limit_cgroup, None);
    assert_eq!(node.task_cgroup, Some(&b"/system.slice/x.service"[..]));
    let no_controller = decision(
        "oom-kill:constraint=CONSTRAINT_CPUSET,nodemask=0,2,cpuset=a,mems_allowed=0,2,\
         global_oom,task=hog,pid=7,uid=0",
    );
    assert_eq!(no_controller.constraint, Constraint::Cpuset);
    assert_eq!(no_controller.task_cgroup, None);
}

#[test]
fn delimiters_in_names() {
    let hostile = decision(
        "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,\
         oom_memcg=/p,task_memcg=q,task_memcg=/p,task_memcg=q/c,task=,pid=1,uid=0,pid=9,uid=5",
    );
    assert_eq!(hostile.limit_cgroup, Some(&b"/p,task_memcg=q"[..]));
    assert_eq!(hostile.task_cgroup, Some(&b"/p,task_memcg=q/c"[..]));
    assert_eq!(hostile.comm, b",pid=1,uid=0");
    assert_eq!((hostile.tid, hostile.uid), (9, 5));
    let root = decision(
        "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,\
         oom_memcg=/,task_memcg=/c,task=x,task=y,pid=9,uid=5",
    );
    assert_eq!(root.task_cgroup, Some(&b"/c"[..]));
    assert_eq!(root.comm, b"x,task=y");
}

#[test]
fn killed_of_all_ages() {
    let new = killed(
        b"Memory cgroup out of memory: Killed process 8601 (a b,(c)=) total-vm:23036kB, \
          anon-rss:20352kB, file-rss:860kB, shmem-rss:0kB, UID:7 pgtables:80kB oom_score_adj:-5",
    );
    let expected = Killed {
        message: Some(b"Memory cgroup out of memory"),
        tid: 8601,
        comm: b"a b,(c)=",
        uid: Some(7),
        total_vm_bytes: Some(23036 << 10),
        anon_rss_bytes: Some(20352 << 10),
        file_rss_bytes: Some(860 << 10),
        shmem_rss_bytes: Some(0),
        pgtables_bytes: Some(80 << 10),
        oom_score_adj: Some(-5),
    };
    assert_eq!(new, expected);
    let allocating = killed(
        b"Out of memory (oom_kill_allocating_task): Killed process 3 () total-vm:) total-vm:\
          1kB, anon-rss:2kB, file-rss:3kB, shmem-rss:4kB, UID:0 pgtables:5kB oom_score_adj:0",
    );
    assert_eq!(
        allocating.message,
        Some(&b"Out of memory (oom_kill_allocating_task)"[..])
    );
    assert_eq!(allocating.comm, b") total-vm:");
    let v4_18 =
        killed(b"Killed process 5 (x) total-vm:1kB, anon-rss:2kB, file-rss:3kB, shmem-rss:4kB");
    assert_eq!((v4_18.message, v4_18.uid), (None, None));
    assert_eq!(v4_18.shmem_rss_bytes, Some(4096));
    let el8 = killed(
        b"Killed process 5 (x), UID 1000, total-vm:1kB, anon-rss:2kB, file-rss:3kB, shmem-rss:4kB",
    );
    assert_eq!((el8.comm, el8.uid), (&b"x"[..], Some(1000)));
}

#[test]
fn lines_around_a_kill() {
    let unlimited = Usage {
        usage_bytes: 1024,
        limit: Limit::Unlimited,
        failcnt: 0,
    };
    let cases: &[(&str, Option<Line<'_>>)] = &[
        (
            "memory+swap: usage 1kB, limit 9007199254740988kB, failcnt 0",
            Some(Line::Usage(Counter::MemorySwap, unlimited)),
        ),
        (
            "Memory cgroup stats for /a b:",
            Some(Line::StatsOf { cgroup: b"/a b" }),
        ),
        (
            "Tasks in /a are going to be killed due to memory.oom.group set",
            Some(Line::Group { cgroup: b"/a" }),
        ),
        (
            "Task in /a/b killed as a result of limit of /a",
            Some(Line::TaskOfLimit {
                task_cgroup: b"/a/b",
                limit_cgroup: b"/a",
            }),
        ),
        ("Task in /a/b killed as a result of limit of ", None),
        (
            "Memory cgroup out of memory: Kill process 5 (x) score 984 or sacrifice child",
            Some(Line::Sacrifice {
                message: b"Memory cgroup out of memory",
            }),
        ),
        (
            "Out of memory: OOM victim 5 (a) b) is already exiting. Skip killing the task",
            Some(Line::AlreadyExiting {
                message: b"Out of memory",
                tid: 5,
                comm: b"a) b",
            }),
        ),
        (
            "oom_reaper: reaped process 5 (x), now anon-rss:1kB, file-rss:0kB, shmem-rss:2kB",
            Some(Line::Reaped {
                tid: 5,
                anon_rss_bytes: 1024,
                file_rss_bytes: 0,
                shmem_rss_bytes: 2048,
            }),
        ),
        (
            "oom_reaper: unable to reap pid:5 (x)",
            Some(Line::NotReaped { tid: 5 }),
        ),
        (
            "Out of memory and no killable processes...",
            Some(Line::NoKillable),
        ),
        (
            "CPU: 1 UID: 0 PID: 8601 Comm: a PID: 7 Not tainted 6.18.44",
            Some(Line::StackOf { tid: 8601 }),
        ),
        (
            "CPU: 1 PID: 8601 Comm: a Not tainted 5.10",
            Some(Line::StackOf { tid: 8601 }),
        ),
        ("sysrq: Manual OOM execution", Some(Line::SysrqOom)),
        ("sysrq: SysRq : Manual OOM execution", Some(Line::SysrqOom)),
        ("EXT4-fs (vda): mounted filesystem", None),
        ("oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null)", None),
    ];
    for (text, expected) in cases {
        assert_eq!(Line::parse(text.as_bytes()), *expected, "{text}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_taken(text: Vec<u8>) {
        let _ = Line::parse(&text);
    }

    #[test]
    fn any_cut_of_a_line_is_taken(cut in 0usize..400, from in 0usize..400, byte: u8) {
        for line in include_str!("../testdata/v1-6.18.kmsg").lines() {
            let mut text = line.as_bytes()[from.min(line.len())..].to_vec();
            text.truncate(cut);
            let _ = Line::parse(&text);
            text.push(byte);
            let _ = Line::parse(&text);
        }
    }

    #[test]
    fn any_name_survives(comm in prop::collection::vec(1u8.., 0..=15), pid in 1u32.., uid: u32) {
        let mut text = b"Out of memory: Killed process ".to_vec();
        text.extend(format!("{pid} (").bytes());
        text.extend(&comm);
        text.extend(format!(") total-vm:1kB, anon-rss:2kB, file-rss:3kB, shmem-rss:4kB, \
            UID:{uid} pgtables:5kB oom_score_adj:6").bytes());
        let line = killed(&text);
        prop_assert_eq!((line.tid, line.comm, line.uid), (pid, &comm[..], Some(uid)));

        let mut text = b"oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,\
            mems_allowed=0,oom_memcg=/a,task_memcg=/a/b,task=".to_vec();
        text.extend(&comm);
        text.extend(format!(",pid={pid},uid={uid}").bytes());
        let Some(Line::Decision(line)) = Line::parse(&text) else {
            return Err(TestCaseError::fail("not recognised"));
        };
        prop_assert_eq!((line.tid, line.comm, line.uid), (pid, &comm[..], uid));
        prop_assert_eq!(line.task_cgroup, Some(&b"/a/b"[..]));
    }
}
