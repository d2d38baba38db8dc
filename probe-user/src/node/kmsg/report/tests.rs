use super::super::{RecordHeader, parse_record};
use super::*;
use crate::node::memcg::Limit;
use proptest::prelude::*;

/// Two kills in a v1 cgroup with a limit of 20 MiB, as Linux 6.18 logged them: `/dev/kmsg` as
/// read, not edited.
const V1_6_18: &str = include_str!("../testdata/v1-6.18.kmsg");

/// The same for v2, from guests with 256 MiB: a kill in `/pod` (limit 24 MiB), a group kill in
/// `/pod/g`, and a node OOM.
const V2: [(&str, &str); 4] = [
    ("5.10", include_str!("../testdata/v2-5.10.kmsg")),
    ("6.1", include_str!("../testdata/v2-6.1.kmsg")),
    ("6.12", include_str!("../testdata/v2-6.12.kmsg")),
    ("7.3", include_str!("../testdata/v2-7.3.kmsg")),
];

/// Feeds raw records of `/dev/kmsg`.
fn assemble(raw: &str) -> Vec<OomReport> {
    let mut assembler = Assembler::default();
    let mut reports = Vec::new();
    for line in raw.lines() {
        let mut text = Vec::new();
        let header = parse_record(line.as_bytes(), &mut text).unwrap();
        let record = Record {
            header,
            text: &text,
        };
        reports.extend(assembler.push(record));
    }
    reports.extend(assembler.finish());
    reports
}

/// Numbers the lines and feeds them as records of the kernel, a millisecond apart.
fn report(lines: &[&str]) -> Vec<OomReport> {
    let mut assembler = Assembler::default();
    let mut reports = Vec::new();
    for (number, line) in (1..).zip(lines) {
        reports.extend(assembler.push(kernel_record(number, line.as_bytes())));
    }
    reports.extend(assembler.finish());
    reports
}

fn kernel_record(seq: u64, text: &[u8]) -> Record<'_> {
    Record {
        header: RecordHeader {
            priority: 6,
            seq,
            time_us: seq * 1000,
            continuation: false,
        },
        text,
    }
}

const INVOKED: &str =
    "hog invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0";
const DECISION: &str = "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,\
    mems_allowed=0,oom_memcg=/pod,task_memcg=/pod/c,task=hog,pid=10,uid=0";

fn killed(tid: u32) -> String {
    format!(
        "Memory cgroup out of memory: Killed process {tid} (hog) total-vm:8kB, anon-rss:4kB, \
         file-rss:0kB, shmem-rss:0kB, UID:0 pgtables:4kB oom_score_adj:0"
    )
}

fn tids(report: &OomReport) -> Vec<u32> {
    report.victims.iter().map(|victim| victim.tid).collect()
}

#[test]
fn real_v1_kills() {
    let reports = assemble(V1_6_18);
    let [first, second] = &reports[..] else {
        panic!("{} reports", reports.len());
    };
    assert_eq!(first.time_us, 879_345_206);
    assert_eq!(first.seq, (344, 422));
    let trigger = first.trigger.as_ref().unwrap();
    assert_eq!(trigger.comm, b"a b,(c)=");
    assert_eq!(trigger.tid, Some(8601));
    assert_eq!(trigger.gfp_mask, Some(0xcc0));
    assert_eq!(trigger.gfp_flags.as_deref(), Some(&b"GFP_KERNEL"[..]));
    assert_eq!(trigger.order, Some(0));
    assert_eq!(first.constraint, Some(Constraint::Memcg));
    assert_eq!(first.limit_cgroup.as_deref(), Some(&b"/oomnode-3523"[..]));
    let task_cgroup = first.task_cgroup.as_deref();
    assert_eq!(task_cgroup, Some(&b"/oomnode-3523/inner"[..]));
    let memory = first.memory.unwrap();
    assert_eq!(memory.usage_bytes, 20 << 20);
    assert_eq!(memory.limit, Limit::Bytes(20 << 20));
    assert_eq!(memory.failcnt, 83);
    assert_eq!(first.memory_swap.unwrap().limit, Limit::Unlimited);
    assert_eq!(first.swap, None);
    assert_eq!(first.kmem.unwrap().usage_bytes, 108 << 10);
    let mut stat = first.stat.unwrap();
    assert_eq!(stat.version, Version::V1);
    assert_eq!(stat.anon_bytes, Some(20_860_928));
    stat.kernel_bytes = Some(108 << 10);
    assert_eq!(stat.unexplained_bytes(memory.usage_bytes), 0);
    let [victim] = &first.victims[..] else {
        panic!("{:?}", first.victims);
    };
    assert_eq!((victim.tid, victim.uid), (8601, Some(0)));
    assert_eq!(victim.comm, b"a b,(c)=");
    assert_eq!(victim.anon_rss_bytes, Some(20352 << 10));
    assert_eq!(victim.pgtables_bytes, Some(80 << 10));
    assert!(!first.sysrq && !first.no_killable);

    let hostile = b"x\n\x1b[1m\xff";
    assert_eq!(second.trigger.as_ref().unwrap().comm, hostile);
    assert_eq!(second.chosen.as_ref().unwrap().comm, hostile);
    assert_eq!(second.victims[0].comm, hostile);
    assert_eq!(tids(second), [8602]);
}

#[test]
fn real_v2_kills() {
    for (kernel, raw) in V2 {
        let reports = assemble(raw);
        let [container, group, node] = &reports[..] else {
            panic!("{kernel}: {} reports", reports.len());
        };
        assert_eq!(container.limit_cgroup.as_deref(), Some(&b"/pod"[..]));
        assert_eq!(container.task_cgroup.as_deref(), Some(&b"/pod/c1"[..]));
        assert_eq!(container.victims.len(), 1);
        assert_eq!(container.victims[0].comm, b"a b,(c)=");
        let tid = container.trigger.as_ref().unwrap().tid;
        assert_eq!(tid, Some(container.victims[0].tid));
        let memory = container.memory.unwrap();
        assert_eq!(memory.limit, Limit::Bytes(24 << 20));
        assert_eq!(container.swap.unwrap().limit, Limit::Unlimited);
        let stat = container.stat.unwrap();
        assert_eq!(stat.version, Version::V2);
        assert_eq!(stat.kernel_bytes.is_some(), kernel != "5.10");
        // Page tables and other kernel pages have no key on 5.10; later at most a page that is
        // charged and not in use yet is left over.
        let unexplained = stat.unexplained_bytes(memory.usage_bytes) / 4096;
        let expected = match kernel {
            "5.10" => 72,
            "6.12" => 1,
            _ => 0,
        };
        assert_eq!(unexplained, expected, "{kernel}");

        assert_eq!(group.group_cgroup.as_deref(), Some(&b"/pod/g"[..]));
        let names: Vec<_> = group
            .victims
            .iter()
            .map(|victim| &victim.comm[..])
            .collect();
        assert_eq!(
            names,
            [&b"grouphog"[..], b"init", b"sib1", b"sib2"],
            "{kernel}"
        );

        assert_eq!(node.constraint, Some(Constraint::None));
        assert_eq!(node.limit_cgroup, None);
        assert_eq!(node.memory, None);
        assert_eq!(node.message.as_deref(), Some(&b"Out of memory"[..]));
        assert_eq!(node.victims[0].comm, b"nodehog");
    }
}

#[test]
fn any_loss_keeps_reports_apart() {
    // Whichever record is missing, the gap in the numbers must not mix the two kills.
    let lines: Vec<_> = V1_6_18.lines().collect();
    for missing in 0..lines.len() {
        let mut rest = lines.clone();
        rest.remove(missing);
        let reports = assemble(&rest.join("\n"));
        let mut victims = Vec::new();
        for report in &reports {
            assert!(report.victims.len() <= 1);
            if let (Some(trigger), [victim]) = (&report.trigger, &report.victims[..]) {
                assert_eq!(trigger.comm, victim.comm);
            }
            victims.extend(tids(report));
        }
        let expected: &[u32] = match missing {
            78 => &[8602],
            158 => &[8601],
            _ => &[8601, 8602],
        };
        assert_eq!(victims, expected, "without {}", lines[missing]);
    }
}

#[test]
fn rate_limited_kills_are_reports_of_their_own() {
    let reports = report(&[
        &killed(1),
        &killed(2),
        INVOKED,
        DECISION,
        &killed(10),
        &killed(11),
    ]);
    assert_eq!(reports.len(), 4);
    assert_eq!(reports[0].trigger, None);
    assert_eq!(reports[1].limit_cgroup, None);
    assert_eq!(tids(&reports[2]), [10]);
    assert!(reports[2].trigger.is_some());
    assert_eq!(tids(&reports[3]), [11]);
}

#[test]
fn a_group_is_one_report_and_its_first_victim_counts_once() {
    let group = "Tasks in /pod are going to be killed due to memory.oom.group set";
    let kills = [killed(10), killed(10), killed(11), killed(12)];
    let lines = [
        INVOKED, DECISION, &kills[0], group, &kills[1], &kills[2], &kills[3],
    ];
    let [report] = &report(&lines)[..] else {
        panic!("one report expected");
    };
    assert_eq!(tids(report), [10, 11, 12]);
    assert_eq!(report.group_cgroup.as_deref(), Some(&b"/pod"[..]));
}

#[test]
fn a_group_ends_when_the_kernel_has_been_silent() {
    let mut assembler = Assembler::default();
    let group = b"Tasks in /pod are going to be killed due to memory.oom.group set";
    let (first, second) = (killed(10), killed(11));
    assert_eq!(assembler.push(kernel_record(1, first.as_bytes())), None);
    assert_eq!(assembler.push(kernel_record(2, group)), None);
    assert_eq!(assembler.expire(500_000), None);
    let mut late = kernel_record(3, second.as_bytes());
    late.header.time_us = 2_000_000;
    assert_eq!(tids(&assembler.push(late).unwrap()), [10]);
    assert_eq!(tids(&assembler.expire(4_000_000).unwrap()), [11]);
    assert_eq!(assembler.finish(), None);
}

#[test]
fn before_5_0() {
    let reports = report(&[
        INVOKED,
        "hog cpuset=/ mems_allowed=0",
        "CPU: 0 PID: 9 Comm: hog Not tainted 4.18.0",
        "Task in /pod/c killed as a result of limit of /pod",
        "memory: usage 20480kB, limit 20480kB, failcnt 7",
        "Memory cgroup stats for /pod: cache:0KB rss:20352KB",
        "Memory cgroup out of memory: Kill process 10 (hog) score 984 or sacrifice child",
        "Killed process 10 (hog) total-vm:8kB, anon-rss:4kB, file-rss:0kB, shmem-rss:0kB",
        "oom_reaper: reaped process 10 (hog), now anon-rss:0kB, file-rss:0kB, shmem-rss:4kB",
    ]);
    let [report] = &reports[..] else {
        panic!("{} reports", reports.len());
    };
    assert_eq!(report.limit_cgroup.as_deref(), Some(&b"/pod"[..]));
    assert_eq!(report.task_cgroup.as_deref(), Some(&b"/pod/c"[..]));
    let message = report.message.as_deref();
    assert_eq!(message, Some(&b"Memory cgroup out of memory"[..]));
    assert_eq!(report.trigger.as_ref().unwrap().tid, Some(9));
    assert_eq!(report.stat, None);
    let reaped = Reaped::Done {
        anon_rss_bytes: 0,
        file_rss_bytes: 0,
        shmem_rss_bytes: 4096,
    };
    assert_eq!(report.victims[0].reaped, Some(reaped));
}

#[test]
fn statistics_in_one_record_before_6_5() {
    let keys = "anon 20316160\nfile 0\nkernel_stack 16384\npercpu 0\nsock 0\nshmem 0";
    let stat = |text: &str| {
        report(&[
            INVOKED,
            "swap: usage 0kB, limit 0kB, failcnt 0",
            "Memory cgroup stats for /pod:",
            text,
            DECISION,
            &killed(10),
        ])
        .remove(0)
        .stat
        .unwrap()
    };
    let whole = stat(keys);
    assert_eq!(whole.version, Version::V2);
    assert_eq!(whole.anon_bytes, Some(20_316_160));
    assert_eq!(whole.shmem_bytes, Some(0));
    // The last line of a record that fills the kernel's buffer may have lost digits.
    let cut = stat(&format!(
        "{keys}\n{}slab_unreclaimable 12",
        "pgfault 0\n".repeat(90)
    ));
    assert_eq!(cut.anon_bytes, Some(20_316_160));
    assert_eq!(cut.slab_unreclaimable_bytes, None);
}

#[test]
fn a_line_printed_in_pieces_is_put_together() {
    let mut assembler = Assembler::default();
    let pieces: [(bool, &[u8]); 4] = [
        (
            false,
            b"oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null)",
        ),
        (true, b",cpuset=/,mems_allowed=0,oom_memcg=/pod"),
        (true, b",task_memcg=/pod/c,task=hog,pid=10"),
        (true, b",uid=0"),
    ];
    for (seq, (continuation, piece)) in (1..).zip(pieces) {
        let mut record = kernel_record(seq, piece);
        record.header.continuation = continuation;
        assert_eq!(assembler.push(record), None);
    }
    let report = assembler.finish().unwrap();
    assert_eq!(report.limit_cgroup.as_deref(), Some(&b"/pod"[..]));
    assert_eq!(report.chosen.unwrap().tid, 10);
}

#[test]
fn node_kill_by_sysrq() {
    let node = "oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,\
                global_oom,task_memcg=/a,task=hog,pid=10,uid=0";
    let kill = "Out of memory: Killed process 10 (hog) total-vm:8kB, anon-rss:4kB, file-rss:0kB, \
                shmem-rss:0kB, UID:0 pgtables:4kB oom_score_adj:0";
    let invoked = "kworker/0:1 invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=-1, \
                   oom_score_adj=0";
    let reports = report(&["sysrq: Manual OOM execution", invoked, node, kill, INVOKED]);
    assert!(reports[0].sysrq);
    assert_eq!(reports[0].constraint, Some(Constraint::None));
    assert_eq!(reports[0].limit_cgroup, None);
    assert!(!reports[1].sysrq);
    // Rate-limited: only the key press tells.
    let reports = report(&["sysrq: Manual OOM execution", kill, kill]);
    assert_eq!([reports[0].sysrq, reports[1].sysrq], [true, false]);
}

#[test]
fn runs_that_kill_nobody() {
    let exiting = "Memory cgroup out of memory: OOM victim 10 (hog) is already exiting. \
                   Skip killing the task";
    let nobody = "Out of memory and no killable processes...";
    let reports = report(&[INVOKED, exiting, INVOKED, nobody, &killed(3)]);
    assert_eq!(reports.len(), 3);
    assert_eq!(reports[0].already_exiting, [10]);
    assert!(reports[1].no_killable && reports[1].victims.is_empty());
    assert_eq!(tids(&reports[2]), [3]);
}

#[test]
fn the_name_in_the_killed_line_settles_an_ambiguous_path() {
    let decision = "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,\
        oom_memcg=/pod,task_memcg=/pod/c,task=b,task=hog,pid=10,uid=0";
    let reports = report(&[INVOKED, decision, &killed(10)]);
    assert_eq!(
        reports[0].task_cgroup.as_deref(),
        Some(&b"/pod/c,task=b"[..])
    );
    assert_eq!(reports[0].chosen.as_ref().unwrap().comm, b"hog");
}

#[test]
fn the_reaper_of_an_earlier_victim_changes_nothing() {
    let reaped =
        "oom_reaper: reaped process 9 (hog), now anon-rss:0kB, file-rss:0kB, shmem-rss:0kB";
    let other_stack = "CPU: 1 PID: 77 Comm: x Not tainted 5.10";
    let reports = report(&[&killed(10), reaped, other_stack]);
    assert_eq!(reports[0].victims[0].reaped, None);
    assert_eq!(reports[0].seq, (1, 1));
}

#[test]
fn user_space_cannot_forge_a_report() {
    let mut assembler = Assembler::default();
    let forged = killed(1);
    let mut record = kernel_record(1, forged.as_bytes());
    record.header.priority = (1 << 3) | 6;
    assert_eq!(assembler.push(record), None);
    assert_eq!(assembler.finish(), None);
}

proptest! {
    #[test]
    fn any_records_are_taken(
        records in prop::collection::vec((0u32..16, any::<u64>(), any::<u64>(), any::<bool>(), 0usize..170, any::<u8>()), 0..60),
    ) {
        let lines: Vec<_> = V1_6_18.lines().collect();
        let mut assembler = Assembler::default();
        for (priority, seq, time_us, continuation, index, cut) in records {
            let text = lines.get(index).map_or(&b"x"[..], |line| line.as_bytes());
            let text = text.split(|&byte| byte == b';').nth(1).unwrap_or(text);
            let text = &text[..text.len().min(cut.into())];
            let header = RecordHeader { priority, seq, time_us, continuation };
            assembler.push(Record { header, text });
        }
        assembler.finish();
    }
}
