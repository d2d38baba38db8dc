//! Who sent a signal, and whether that may be believed.

use super::Facts;
use crate::event::{Confidence, Sender, label};

/// Commands that stop containers.
const RUNTIMES: [&str; 10] = [
    "runc",
    "crun",
    "conmon",
    "crio",
    "dockerd",
    "containerd",
    "containerd-shim",
    "podman",
    "youki",
    "kubelet",
];
/// Userspace OOM killers. A `comm` has at most 15 bytes.
const OOM_KILLERS: [&str; 4] = ["systemd-oomd", "earlyoom", "oomd", "nohang"];

/// How sure it is that a container runtime, or a helper of one, sent it; `None` if it did not.
/// Anybody may give a process such a name, so a container's own do not count, and those of a plain
/// user (rootless podman) only for half.
pub(super) fn runtime(sender: &Sender) -> Option<Confidence> {
    let own = comm(sender);
    let named = |name: &str| RUNTIMES.contains(&name);
    let is_runtime = own.is_some_and(named) || sender.parent_comm.as_deref().is_some_and(named);
    (is_runtime && is_of_node(sender)).then(|| trust(sender))
}

/// The same for a userspace OOM killer, by its own name alone: it kills without helpers.
pub(super) fn oom_killer(sender: &Sender) -> Option<(&str, Confidence)> {
    let name = comm(sender).filter(|name| OOM_KILLERS.contains(name))?;
    is_of_node(sender).then(|| (name, trust(sender)))
}

/// Whether `facts`' process sent it to itself.
pub(super) fn is_own(facts: &Facts<'_>, sender: &Sender) -> bool {
    let pid = sender.process.as_ref().and_then(|process| process.pid);
    pid.is_some() && pid == facts.process.pid
}

/// What the sender is to the process that died, as a clause after its name.
pub(super) fn place(facts: &Facts<'_>, sender: &Sender) -> String {
    let process = sender.process.as_ref();
    let pid = process.and_then(|process| process.pid);
    let is_parent = pid.is_some() && pid == facts.process.ppid;
    let parent = if is_parent { ", its parent," } else { "" };
    let id = |container: Option<&crate::event::Container>| container?.id.clone();
    let container = id(sender.container.as_ref());
    if container.is_some() && container == id(facts.container) {
        return format!("{parent} in the same container");
    }
    let subject = label::subject(sender.k8s.as_ref(), sender.container.as_ref(), None);
    if let Some(subject) = subject {
        let uid = |k8s: Option<&crate::event::K8s>| k8s?.pod.uid.clone();
        let pod = uid(sender.k8s.as_ref());
        return match pod {
            Some(_) if pod == uid(facts.k8s) => {
                format!(" in another container of its pod, {subject}")
            }
            Some(_) => format!(" in another pod, {subject}"),
            None => format!(" in another container, {subject}"),
        };
    }
    if pid == Some(1) {
        return ", the node's init, which stops units as at a shutdown".to_owned();
    }
    let uid = process.and_then(|process| process.uid);
    let uid = uid.map(|uid| format!(" of uid {uid}")).unwrap_or_default();
    match (cgroup(sender), unit(sender)) {
        (Some(path), _) if path.starts_with("/user.slice/") => {
            format!("{parent} in a user session on the node{uid}: a person or their script")
        }
        (_, Some(unit)) => format!("{parent} in the node's service {unit}"),
        (Some(path), None) => format!("{parent} on the node in {path}"),
        (None, None) => format!("{parent} of an unknown cgroup"),
    }
}

/// The systemd service it is in, on the node.
pub(super) fn unit(sender: &Sender) -> Option<&str> {
    let name = cgroup(sender)?
        .split('/')
        .find(|name| name.ends_with(".service"))?;
    is_of_node(sender).then_some(name)
}

fn comm(sender: &Sender) -> Option<&str> {
    sender.process.as_ref()?.comm.as_deref()
}

fn cgroup(sender: &Sender) -> Option<&str> {
    sender.cgroup.as_ref()?.path.as_deref()
}

/// Whether it is a process of the node, or the runtime's own helper in a pod's cgroup.
fn is_of_node(sender: &Sender) -> bool {
    let role = sender.container.as_ref().map(|c| c.role.as_deref());
    match role {
        // One whose cgroup is not known may be a container's.
        None => sender.k8s.is_none() && sender.cgroup.is_some(),
        Some(role) => matches!(role, Some("conmon" | "monitor")),
    }
}

/// A system service (systemd-oomd and earlyoom do not run as root) is the node's as well as root's.
fn trust(sender: &Sender) -> Confidence {
    let is_root = sender.process.as_ref().and_then(|p| p.uid) == Some(0);
    let is_system = cgroup(sender).is_some_and(|path| path.starts_with("/system.slice/"));
    if is_root || is_system {
        Confidence::High
    } else {
        Confidence::Medium
    }
}
