//! An OOM that killed nobody, from the kernel log: all there is where no hook tells of it.

use std::collections::BTreeMap;

use super::{super::who::Identities, Context, cgroup, from_log, memory::parts, scope};
use crate::{
    event::{
        Constraint, Gfp, Limit, LimitLevel, Memory, MemorySource, OomKill, Outcome, Process,
        Trigger, text,
    },
    node::{kmsg::OomReport, memcg::MemoryStat},
    verdict,
};

/// The event for a report that ended with "no killable processes"; `folded` of its kind were not
/// reported before it.
pub fn nothing_killable(
    context: &Context,
    report: &OomReport,
    boot_ns: u64,
    folded: u64,
    identities: &Identities,
) -> OomKill {
    let path = report.limit_cgroup.as_deref();
    let constraint = report
        .constraint
        .map(from_log)
        .or(path.map(|_| Constraint::Memcg));
    let order = report.trigger.as_ref().and_then(|trigger| trigger.order);
    let from_kmsg = |datum: &str| (datum.to_owned(), "kmsg".to_owned());
    let mut kill = OomKill {
        incident: context.incident_id_at(boot_ns),
        scope: scope(path, identities, constraint, order),
        constraint,
        outcome: Outcome::NothingKillable,
        folded,
        limit: path.map(|path| {
            let who = identities.of(path);
            Limit {
                level: LimitLevel {
                    cgroup: cgroup(0, path),
                    usage_bytes: report.memory.map(|memory| memory.usage_bytes),
                    limit_bytes: report.memory.and_then(|memory| memory.limit.bytes()),
                    ..LimitLevel::default()
                },
                k8s: who.k8s,
                container: who.container,
                levels: Vec::new(),
                found_by: Some("kmsg".to_owned()),
            }
        }),
        memory: match (stat(report), report.memory) {
            (Some(stat), Some(memory)) => Memory {
                total_bytes: Some(memory.usage_bytes),
                unexplained_bytes: Some(stat.unexplained_bytes(memory.usage_bytes)),
                source: Some(MemorySource::Kmsg),
                read_usage_bytes: Some(memory.usage_bytes),
                ..parts(&stat)
            },
            _ => Memory::default(),
        },
        trigger: report.trigger.as_ref().map(|trigger| Trigger {
            process: Process {
                tid: trigger.tid,
                comm: Some(text(&trigger.comm)),
                oom_score_adj: trigger.oom_score_adj,
                ..Process::default()
            },
            order: trigger.order,
            gfp: trigger.gfp_mask.map(|mask| {
                let mut gfp = Gfp::from_mask(mask);
                if let Some(flags) = &trigger.gfp_flags {
                    gfp.flags = Some(text(flags));
                }
                gfp
            }),
            ..Trigger::default()
        }),
        hooks: BTreeMap::from(["end", "limit", "memory", "trigger"].map(from_kmsg)),
        ..OomKill::default()
    };
    kill.verdict = verdict::oom_kill(&kill);
    kill
}

/// The report's `memory.stat`; on v1 kernel memory has a counter of its own.
fn stat(report: &OomReport) -> Option<MemoryStat> {
    let mut stat = report.stat?;
    stat.kernel_bytes = stat
        .kernel_bytes
        .or(report.kmem.map(|kmem| kmem.usage_bytes));
    Some(stat)
}
