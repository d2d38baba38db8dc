//! Who was killed, who allocated, who else was there.

use probe_common::wire::{self, has, section};

use super::{
    super::{
        assemble::{Incident, Role as WireRole, Victim as WireVictim},
        death::is_runtime,
        evidence::Evidence,
        who::{Identities, Who},
    },
    Context, cgroup, decision, total_pages,
};
use crate::{
    event::{AllocPath, Candidate, Gfp, Process, Role, Rss, Trigger, Victim, text},
    node::oom_score,
    ring::decode::{comm, parent_comm},
};

/// A process as its record tells it, with its arguments from `evidence`.
pub fn process(context: &Context, task: &wire::Task, evidence: Option<&Evidence>) -> Process {
    let has = |bit: u32| task.has & bit != 0;
    let signed = |bit: u32, pages: i64| has(bit).then(|| context.pages(pages));
    Process {
        pid: (task.pid != 0).then_some(task.pid),
        tid: (task.tid != 0).then_some(task.tid),
        ns_pid: has(has::NS_PID).then_some(task.ns_pid),
        ppid: has(has::TASK).then_some(task.ppid),
        start_time: (task.start_boot_ns != 0).then(|| context.time(task.start_boot_ns)),
        comm: has(has::TASK).then(|| text(comm(task))),
        cmdline: evidence.and_then(|evidence| evidence.cmdlines.get(&task.pid).cloned()),
        uid: has(has::CRED).then_some(task.uid),
        oom_score_adj: has(has::SIGNAL).then_some(task.oom_score_adj),
        threads: has(has::SIGNAL).then_some(task.threads),
        rss: has(has::MM).then(|| Rss {
            anon_bytes: context.pages(task.rss_anon_pages),
            file_bytes: context.pages(task.rss_file_pages),
            shmem_bytes: context.pages(task.rss_shmem_pages),
        }),
        rss_exact: has(has::MM).then_some(has(has::RSS_EXACT)),
        swap_bytes: signed(has::MM, task.swap_pages),
        page_tables_bytes: has(has::MM).then_some(task.pgtables_bytes),
        virtual_bytes: has(has::MM).then(|| context.bytes(task.total_vm_pages)),
    }
}

/// Whether a victim is the first process of its container; `None` outside containers, and where
/// neither its pid namespace nor its parent tells.
pub(super) fn container_init(task: &wire::Task, who: &Who) -> Option<bool> {
    who.container.as_ref()?;
    is_init(task)
}

/// Whether a process that is in a container is its first.
pub fn is_init(task: &wire::Task) -> Option<bool> {
    let parent = parent_comm(task);
    if parent.is_some_and(is_runtime) {
        return Some(true);
    }
    if task.has & has::NS_PID == 0 || task.ns_level == 0 {
        return parent.map(|_| false);
    }
    Some(task.ns_pid == 1)
}

pub(super) fn victim(
    context: &Context,
    victim: &WireVictim,
    evidence: &Evidence,
    identities: &Identities,
) -> Victim {
    let path = victim.cgroup.path(0);
    let who = identities.of(&path);
    Victim {
        container_init: container_init(&victim.task, &who),
        process: process(context, &victim.task, Some(evidence)),
        cgroup: Some(cgroup(victim.task.memcg_id, &path)),
        k8s: who.k8s,
        container: who.container,
        role: match victim.role {
            WireRole::Chosen => Role::Chosen,
            WireRole::Group => Role::Group,
            WireRole::SharesMm => Role::SharesMm,
            WireRole::AlreadyExiting => Role::AlreadyExiting,
        },
        killed_at: victim.killed_boot_ns.map(|boot_ns| context.time(boot_ns)),
        exited_at: victim.exited.map(|(boot_ns, _)| context.time(boot_ns)),
        reaped_at: victim.reaped_boot_ns.map(|boot_ns| context.time(boot_ns)),
    }
}

pub(super) fn trigger(
    context: &Context,
    incident: &Incident,
    evidence: &Evidence,
    identities: &Identities,
    order: Option<i32>,
    stack: Vec<String>,
) -> Option<Trigger> {
    let task = incident.trigger()?;
    let path = incident
        .context()?
        .names(section::TRIGGER_PATH)
        .unwrap_or_default()
        .path(0);
    let who = identities.of(&path);
    let mask = decision(incident)
        .map(|decision| decision.gfp_mask)
        .or_else(|| evidence.log.as_ref()?.trigger.as_ref()?.gfp_mask);
    let mut gfp = mask.map(Gfp::from_mask);
    // The log has the kernel's own names for every bit.
    let logged = evidence
        .log
        .as_ref()
        .and_then(|log| log.trigger.as_ref()?.gfp_flags.as_deref());
    if let (Some(gfp), Some(flags)) = (&mut gfp, logged) {
        gfp.flags = Some(text(flags));
    }
    Some(Trigger {
        process: process(context, task, Some(evidence)),
        cgroup: Some(cgroup(task.memcg_id, &path)),
        k8s: who.k8s,
        container: who.container,
        order,
        gfp,
        path: AllocPath::of_stack(&stack),
        stack,
    })
}

pub(super) fn candidate(
    context: &Context,
    incident: &Incident,
    evidence: &Evidence,
    identities: &Identities,
    task: &wire::Task,
    path: Option<&[u8]>,
) -> Candidate {
    let who = path.map(|path| identities.of(path)).unwrap_or_default();
    let total = total_pages(context, incident, evidence);
    Candidate {
        process: process(context, task, None),
        cgroup: path.map(|path| cgroup(task.memcg_id, path)),
        k8s: who.k8s,
        container: who.container,
        points: oom_score::points(task, total, context.page_bytes),
    }
}
