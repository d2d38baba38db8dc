//! What a verdict on a death rests on.

use crate::event::{Container, K8s, Process, ProcessDeath};

/// All that is known about a death.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Who died.
    pub process: &'a Process,
    /// Its pod.
    pub k8s: Option<&'a K8s>,
    /// Its container.
    pub container: Option<&'a Container>,
    /// The event, its `verdict`, `restarts` and `kubernetes_says_oomkilled` still empty.
    pub death: &'a ProcessDeath,
    /// Its part in an OOM kill, if it was a victim of one.
    pub oom: Option<OomPart>,
    /// The last OOM kill of another process of its container, before it died.
    pub earlier_oom: Option<&'a EarlierOom>,
    /// The last command that failed in its container before that was asked to stop.
    pub failed_exec: Option<&'a FailedExec>,
    /// The node's memory when it was stopped, and what the kubelet makes of it.
    pub node: NodeState,
}

/// A victim's part in an OOM kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OomPart {
    /// The kernel chose it.
    Chosen,
    /// It was taken along with the chosen one.
    TakenAlong,
}

/// An OOM kill that a container outlived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EarlierOom {
    /// `incident` of its `oom_kill`.
    pub incident: String,
    /// `comm` of the victim.
    pub comm: String,
    /// From that kill to this death.
    pub ms_before: u64,
}

/// A command that was executed in a container and failed: an exec probe, or a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedExec {
    /// Its `comm`.
    pub comm: String,
    /// Its exit code, 128 + signal for a signal.
    pub exit_code: u32,
    /// The runtime killed it: it took too long.
    pub was_late: bool,
    /// From its end to the request to stop.
    pub ms_before: u64,
}

/// The node's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeState {
    /// `MemAvailable`, before the container that is stopped gave back its own.
    pub available_bytes: Option<u64>,
    /// The kubelet's `memory.available` threshold for hard eviction, if it has a configuration here.
    pub eviction_threshold_bytes: Option<u64>,
}
