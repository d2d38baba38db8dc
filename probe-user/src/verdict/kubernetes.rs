//! What Kubernetes will show for a kill.

use crate::event::{KubernetesReport, OomKill, Outcome, Role, Scope};

/// Null where no victim belongs to a pod.
pub(super) fn report(kill: &OomKill) -> Option<KubernetesReport> {
    kill.victims.iter().find(|victim| victim.k8s.is_some())?;
    let (oom_killed, why) = judge(kill);
    Some(KubernetesReport {
        oom_killed,
        wrong: false,
        why: why.to_owned(),
    })
}

fn judge(kill: &OomKill) -> (Option<bool>, &'static str) {
    if kill.outcome != Outcome::Killed {
        return (Some(false), "no process was killed");
    }
    let in_pods = || kill.killed().filter(|victim| victim.k8s.is_some());
    if in_pods().any(|victim| victim.container_init == Some(true)) {
        let why = if kill.scope == Scope::Node {
            "exit code 137, the container's first process was killed; on cgroup v1 the runtime is \
             not told of a node OOM and shows Error instead"
        } else if in_pods().any(|victim| victim.role == Role::Group) {
            "exit code 137, the whole cgroup was killed (memory.oom.group)"
        } else {
            "exit code 137, the container's first process was killed"
        };
        return (Some(true), why);
    }
    if in_pods().all(|victim| victim.container_init == Some(false)) {
        return (
            Some(false),
            "a child was killed and the container lives on: no restart, no event; if it exits \
             later for any reason, its status may wrongly say OOMKilled, as runtimes read a \
             cumulative counter",
        );
    }
    (
        None,
        "it depends on whether the container's first process is among the victims, which could \
         not be seen",
    )
}
