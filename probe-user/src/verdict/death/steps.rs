//! What to run next.

use super::{Facts, sender};
use crate::{
    event::{DeathCause, ProcessRole, Sender},
    verdict::{quote, steps::Target},
};

const MOST: usize = 4;

/// Most useful first; none for an orderly end.
pub(super) fn of(facts: &Facts<'_>, cause: DeathCause) -> Vec<String> {
    use DeathCause as C;

    let death = facts.death;
    let pid = facts.process.pid;
    let mut steps: Vec<String> = match cause {
        C::AppExit if death.exit_code == 0 => return Vec::new(),
        C::AppExit if matches!(death.exit_code, 126 | 127) => {
            inspect(facts).into_iter().chain(logs(facts)).collect()
        }
        C::OomKill | C::OomGroup => {
            let kernel = "journalctl -k -g 'oom-kill|Killed process'".to_owned();
            describe(facts)
                .into_iter()
                .chain([kernel])
                .chain(logs(facts))
                .collect()
        }
        C::RuntimeStop => describe(facts).into_iter().chain(inspect(facts)).collect(),
        C::RuntimeStopGraceExpired => grace(facts)
            .into_iter()
            .chain(logs(facts))
            .chain(inspect(facts))
            .collect(),
        C::Eviction => {
            let node = facts.k8s.and_then(|k8s| k8s.node.name.as_deref());
            let node = node.and_then(quote);
            let node = node.map(|node| format!("kubectl describe node {node}"));
            let evicted = "kubectl get events -A --field-selector reason=Evicted".to_owned();
            let kubelet = "journalctl -u kubelet -g evict --no-pager | tail -20".to_owned();
            [evicted, kubelet].into_iter().chain(node).collect()
        }
        C::LivenessKill => describe(facts).into_iter().chain(logs(facts)).collect(),
        C::UserspaceOomKiller => killer(facts),
        C::KilledByProcess | C::CgroupKill => {
            death.sender.as_ref().map(of_sender).unwrap_or_default()
        }
        C::Crash => {
            let core = match pid {
                Some(pid) if death.core_dumped => format!("coredumpctl info {pid}"),
                _ => "sysctl kernel.core_pattern".to_owned(),
            };
            let kernel = "journalctl -k -g 'segfault|general protection|trap ' | tail -20";
            logs(facts)
                .into_iter()
                .chain([core, kernel.to_owned()])
                .collect()
        }
        C::Seccomp => ["journalctl -k -g type=1326 | tail -20".to_owned()]
            .into_iter()
            .chain(inspect(facts))
            .collect(),
        C::ResourceLimit => inspect(facts).into_iter().chain(logs(facts)).collect(),
        C::InitDied => Vec::new(),
        C::OwnSignal | C::AppExit => logs(facts).into_iter().chain(describe(facts)).collect(),
        C::Unknown => ["journalctl -k --since -15min".to_owned()]
            .into_iter()
            .chain(describe(facts))
            .chain(inspect(facts))
            .collect(),
    };
    if facts.container.is_none()
        && facts.k8s.is_none()
        && cause != C::InitDied
        && let Some(pid) = pid
    {
        steps.push(format!("journalctl _PID={pid}"));
    }
    steps.truncate(MOST);
    steps
}

fn target(facts: &Facts<'_>) -> Option<Target> {
    Target::of(facts.k8s?)
}

fn describe(facts: &Facts<'_>) -> Option<String> {
    let Target {
        namespace, name, ..
    } = target(facts)?;
    Some(format!("kubectl {namespace} describe pod {name}"))
}

fn grace(facts: &Facts<'_>) -> Option<String> {
    let Target {
        namespace, name, ..
    } = target(facts)?;
    Some(format!(
        "kubectl {namespace} get pod {name} -o yaml | grep -nE 'terminationGracePeriodSeconds|preStop'"
    ))
}

/// Of the instance that died, if its end was the container's end.
fn logs(facts: &Facts<'_>) -> Option<String> {
    let container = facts.k8s?.container.as_ref()?.name.as_deref();
    let container = quote(container?)?;
    let Target {
        namespace, name, ..
    } = target(facts)?;
    let previous = if facts.death.role == Some(ProcessRole::Init) {
        " --previous"
    } else {
        ""
    };
    Some(format!(
        "kubectl {namespace} logs {name} -c {container}{previous} --tail=50"
    ))
}

fn inspect(facts: &Facts<'_>) -> Option<String> {
    let container = facts.container?;
    let id = quote(container.id.as_deref()?)?;
    let is_kubernetes = container.orchestrator.as_deref() == Some("kubernetes");
    match container.runtime.as_deref() {
        Some("containerd" | "cri-o") if is_kubernetes => Some(format!("crictl inspect {id}")),
        Some(runtime @ ("docker" | "podman")) => Some(format!("{runtime} inspect {id}")),
        _ => None,
    }
}

fn killer(facts: &Facts<'_>) -> Vec<String> {
    let Some(sender) = &facts.death.sender else {
        return Vec::new();
    };
    let Some((name, _)) = sender::oom_killer(sender) else {
        return Vec::new();
    };
    let unit = sender::unit(sender).and_then(quote);
    let unit = unit.unwrap_or_else(|| name.to_owned());
    let mut steps = vec![format!("journalctl -u {unit} --since -15min")];
    if name == "systemd-oomd" {
        steps.push("oomctl".to_owned());
    }
    steps
}

fn of_sender(sender: &Sender) -> Vec<String> {
    let pid = sender.process.as_ref().and_then(|process| process.pid);
    let mut steps = Vec::new();
    if let Some(pid) = pid {
        steps.push(format!("ps -o pid,ppid,user,lstart,args -p {pid}"));
    }
    if let Some(Target {
        namespace, name, ..
    }) = sender.k8s.as_ref().and_then(Target::of)
    {
        steps.push(format!("kubectl {namespace} describe pod {name}"));
    } else if let Some(path) = sender.cgroup.as_ref().and_then(|c| c.path.as_deref()) {
        if sender.container.is_some() {
            steps.extend(quote(path).map(|path| format!("oomprobe resolve {path}")));
        } else if let Some(unit) = sender::unit(sender)
            && !path.starts_with("/user.slice/")
        {
            steps.extend(quote(unit).map(|unit| format!("journalctl -u {unit} --since -15min")));
        } else if path.starts_with("/user.slice/") {
            steps.push("last -F | head -10".to_owned());
        }
    }
    steps
}
