//! What Kubernetes will show for the end of a container.
//!
//! containerd's CRI plugin marks a container `OOMKilled` as soon as a task OOM event names it
//! (internal/cri/server/events.go, `TaskOOM`), whichever of its processes was killed, and keeps that
//! reason whatever its first process ends with later, exit code 0 included
//! (internal/cri/server/container_status.go). CRI-O lets `OOMKilled` win over the exit code as well
//! (server/container_status.go), from a mark that conmon leaves when the cgroup's counter of OOM
//! kills moved. Both show `Completed` for code 0 and `Error` for all else; CRI-O has
//! `seccomp killed` too.

use super::Facts;
use crate::event::{DeathCause, KubernetesReport, ProcessRole};

/// Null for anything but the end of a pod's container.
pub(super) fn of(facts: &Facts<'_>, cause: DeathCause) -> Option<KubernetesReport> {
    let is_helper = facts.container.is_some_and(|c| c.role.is_some());
    if facts.k8s.is_none() || is_helper || facts.death.role != Some(ProcessRole::Init) {
        return None;
    }
    let is_oom = matches!(cause, DeathCause::OomKill | DeathCause::OomGroup);
    let code = facts.death.exit_code;
    // Before it has an exit code, the runtime has not had its last word.
    let runtime = facts.death.runtime.as_ref();
    let reason = runtime
        .filter(|runtime| runtime.exit_code.is_some())
        .and_then(|runtime| runtime.reason.as_deref())
        .filter(|reason| !reason.is_empty());
    let report = |oom_killed, wrong, why: String| {
        Some(KubernetesReport {
            oom_killed,
            wrong,
            why,
        })
    };
    let earlier = facts.earlier_oom.map(|oom| {
        format!(
            "another process of the container ({}) was OOM-killed {} before, and the runtime \
             counts that",
            oom.comm,
            super::stop::ms_label(oom.ms_before)
        )
    });
    match (reason, is_oom, earlier) {
        (Some("OOMKilled"), true, _) => report(
            Some(true),
            false,
            format!("the runtime says so, exit code {code}"),
        ),
        (Some("OOMKilled"), false, Some(earlier)) => report(Some(true), true, earlier),
        (Some("OOMKilled"), false, None) if cause == DeathCause::Unknown => report(
            Some(true),
            false,
            "the runtime says so; nothing else does".to_owned(),
        ),
        (Some("OOMKilled"), false, None) => report(
            Some(true),
            true,
            "the runtime says so, though the kernel's OOM killer did not end it: it counts every \
             OOM kill in the container since it was started"
                .to_owned(),
        ),
        (Some(reason), true, _) => report(
            Some(false),
            true,
            format!(
                "{reason}, exit code {code}: the runtime did not learn of the OOM kill in time, \
                 or cannot, as of a node OOM on cgroup v1"
            ),
        ),
        (Some(reason), false, _) => {
            report(Some(false), false, format!("{reason}, exit code {code}"))
        }
        (None, true, _) => report(
            Some(true),
            false,
            format!("exit code {code}, the container's first process was OOM-killed"),
        ),
        (None, false, Some(earlier)) => report(Some(true), true, earlier),
        (None, false, None) if cause == DeathCause::Unknown => report(
            None,
            false,
            format!("exit code {code}; what ended it is not known, and the runtime did not answer"),
        ),
        (None, false, None) => {
            let reason = if code == 0 { "Completed" } else { "Error" };
            report(Some(false), false, format!("{reason}, exit code {code}"))
        }
    }
}
