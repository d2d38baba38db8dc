//! Processes that a signal ended: who sent it, and what for.

use super::{Facts, Finding, finding};
use crate::event::{Confidence, DeathCause, Sender, Signal, Via, label};

/// Commands that stop containers.
const RUNTIMES: [&str; 9] = [
    "runc",
    "crun",
    "conmon",
    "crio",
    "dockerd",
    "containerd",
    "podman",
    "youki",
    "kubelet",
];
/// Userspace OOM killers. A `comm` has at most 15 bytes.
const OOM_KILLERS: [&str; 4] = ["systemd-oomd", "earlyoom", "oomd", "nohang"];
/// Signals of which a program dies by its own fault.
const CRASHES: [&str; 7] = [
    "SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGTRAP", "SIGABRT", "SIGQUIT",
];

pub(super) fn find(facts: &Facts<'_>, signal: &Signal, via: Via) -> Finding {
    use Confidence::{High, Low, Medium};

    let own = facts.death.sender.as_ref().and_then(|s| s.process.as_ref());
    let is_own = own.is_some_and(|p| p.pid.is_some() && p.pid == facts.process.pid);
    let is_crash = CRASHES.contains(&signal.name.as_str());
    if via == Via::Fault || (is_crash && (is_own || via == Via::Unknown)) {
        let address = facts.death.fault.iter().filter_map(|f| f.address.as_ref());
        let evidence = address.map(|at| format!("fault at {at}")).collect();
        let sure = if via == Via::Unknown { Medium } else { High };
        return finding(
            DeathCause::Crash,
            sure,
            format!("crashed: {}", signal.name),
            evidence,
        );
    }
    let seen = facts.death.sender.as_ref().filter(|_| via != Via::Unknown);
    let Some((sender, process)) = seen.and_then(|s| Some((s, s.process.as_ref()?))) else {
        let why = format!("was ended by {}; who sent it is not known", signal.name);
        return finding(
            DeathCause::Unknown,
            Low,
            why,
            vec!["its sender was not seen".to_owned()],
        );
    };
    let by = label::process(process);
    let evidence = vec![format!("{} from {by}", signal.name)];
    if is(sender, &OOM_KILLERS) {
        // Anybody may give a process that name, but only root's is the node's own service.
        let sure = if process.uid == Some(0) { High } else { Medium };
        let why = format!("was killed by the userspace OOM killer {by}");
        return finding(DeathCause::UserspaceOomKiller, sure, why, evidence);
    }
    if is_runtime(sender) {
        return runtime_stop(facts, signal, evidence);
    }
    if via == Via::CgroupKill {
        let why = format!("was killed: {by} wrote to cgroup.kill");
        return finding(DeathCause::CgroupKill, High, why, evidence);
    }
    let from = label::subject(
        sender.k8s.as_ref(),
        sender.container.as_ref(),
        sender.cgroup.as_ref(),
    );
    let from = from.map(|from| format!(" in {from}")).unwrap_or_default();
    let why = format!("was ended by {} from {by}{from}", signal.name);
    finding(DeathCause::KilledByProcess, High, why, evidence)
}

/// Whether a container runtime of the node, or a helper of one, sent it.
pub(super) fn is_runtime(sender: &Sender) -> bool {
    is(sender, &RUNTIMES)
}

/// Whether a process of the node, or its parent, has one of these names.
fn is(sender: &Sender, names: &[&str]) -> bool {
    let comm = sender
        .process
        .as_ref()
        .and_then(|process| process.comm.as_deref());
    let named = |comm: &str| {
        names.contains(&comm) || (names == RUNTIMES && comm.starts_with("containerd-shim"))
    };
    // A container may call its processes what it likes.
    sender.container.is_none()
        && sender.k8s.is_none()
        && (comm.is_some_and(named) || sender.parent_comm.as_deref().is_some_and(named))
}

fn runtime_stop(facts: &Facts<'_>, signal: &Signal, mut evidence: Vec<String>) -> Finding {
    use Confidence::{High, Medium};

    let runtime = facts.death.runtime.as_ref();
    let sandbox_stopped = runtime.and_then(|runtime| runtime.sandbox_stopped);
    let node = facts.node;
    if let (Some(true), Some(available), Some(threshold)) = (
        sandbox_stopped,
        node.available_bytes,
        node.eviction_threshold_bytes,
    ) && available < threshold
    {
        let (available, threshold) = (label::bytes(available), label::bytes(threshold));
        evidence.push(format!(
            "node: {available} available, the kubelet evicts below {threshold}"
        ));
        let why = "was stopped with its pod, on a node short of memory: an eviction";
        return finding(DeathCause::Eviction, Medium, why, evidence);
    }
    if sandbox_stopped == Some(false) {
        evidence.push("its pod's sandbox was not stopped".to_owned());
        let why = "alone of its pod was stopped by the runtime: a liveness or startup probe failed, or its container was restarted";
        return finding(DeathCause::LivenessKill, Medium, why, evidence);
    }
    let request = facts.death.stop_request.as_ref();
    match request.and_then(|request| request.killed_after_ms) {
        Some(ms) => {
            let why = format!("was killed by the runtime {ms} ms after it was asked to stop");
            finding(DeathCause::RuntimeStopGraceExpired, High, why, evidence)
        }
        None if signal.name == "SIGKILL" => {
            let why = "was killed by the runtime at once: a forced stop, or cleaning up";
            finding(DeathCause::RuntimeStop, Medium, why, evidence)
        }
        None => finding(
            DeathCause::RuntimeStop,
            High,
            "was stopped by the runtime, in time",
            evidence,
        ),
    }
}
