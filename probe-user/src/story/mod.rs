//! The story of one pod, told from the events of a capture.
//!
//! [`Collector`] keeps what concerns the pod, in bounded memory however long the capture is;
//! [`timeline`] joins what is about one death and finds what led up to it; [`pattern`] says what the
//! deaths have in common. Nothing is read or asked here: the same events give the same story.

mod collect;
mod digest;
mod pattern;
mod timeline;

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use collect::Collector;

use crate::event::{
    Cause, Confidence, CpuThrottled, DeathCause, Event, KubernetesReport, ProcessRole, Schema,
    Scope, Time,
};

/// Deaths that a story lists at most; the oldest are left out.
pub const MOST_DEATHS: usize = 10_000;

/// Whose story, and how far back.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// Name or UID of the pod.
    pub pod: String,
    /// Its namespace; `None` if the name is the only one of its kind.
    pub namespace: Option<String>,
    /// Only this container: its name, its id, or the start of its id.
    pub container: Option<String>,
    /// Only what happened within this time before the last event.
    pub since: Option<Duration>,
}

/// Why there is no story.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No event is about such a pod.
    #[error("no event is about pod {wanted}{}", others(.pods, *.more))]
    NoSuchPod {
        /// What was asked for.
        wanted: String,
        /// Pods there are events about, as "namespace/name".
        pods: Vec<String>,
        /// Whether there are more than these.
        more: bool,
    },
    /// The name means more than one pod.
    #[error(
        "pod {pod} is in more than one namespace: say which with --namespace ({})",
        .namespaces.join(", ")
    )]
    Ambiguous {
        /// Its name.
        pod: String,
        /// Where there is one.
        namespaces: Vec<String>,
    },
}

fn others(pods: &[String], more: bool) -> String {
    if pods.is_empty() {
        return "; none is about any pod: was it written on the pod's node, with --cri-socket where \
                the runtime's socket is at an unusual place?"
            .to_owned();
    }
    let end = if more { ", …" } else { "" };
    format!("; there are events about: {}{end}", pods.join(", "))
}

/// The story of the pod that `query` names.
pub fn tell(events: impl IntoIterator<Item = Event>, query: &Query) -> Result<Story, Error> {
    let mut collector = Collector::new(query.clone());
    for event in events {
        collector.push(&event);
    }
    collector.tell()
}

/// The story of one pod: what `oomprobe explain -o json` writes, as one object.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(title = "oomprobe story")]
pub struct Story {
    /// Version of this format. Fields may be added within it; none is renamed or removed.
    pub schema: Schema,
    /// `story`, as events have their kind.
    pub kind: Kind,
    /// The pod.
    pub pod: Subject,
    /// The time it tells of.
    pub span: Span,
    /// The containers that died or had processes that did, by name.
    pub containers: Vec<ContainerStory>,
    /// Deaths, oldest first. One that several events tell of is here once.
    pub deaths: Vec<Death>,
    /// Older deaths that found no room in the list.
    pub left_out: u64,
    /// Where the capture cannot be trusted to be complete. Empty: nothing is known to be missing.
    pub holes: Vec<Hole>,
    /// What the deaths have in common, and what to do.
    pub pattern: Pattern,
}

/// What kind of object it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Kind {
    /// The story of one pod.
    #[default]
    Story,
}

/// The pod that a story is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Subject {
    /// Name. Null where no event has it.
    pub name: Option<String>,
    /// Namespace. Null where no event has it.
    pub namespace: Option<String>,
    /// UIDs, in the order they appeared. More than one: the pod was made anew under the same name.
    pub uids: Vec<String>,
    /// Host names of the nodes that the events come from.
    pub nodes: Vec<String>,
}

/// The time that a story tells of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Span {
    /// The first event, of any pod.
    pub from: Option<Time>,
    /// The last event, of any pod.
    pub to: Option<Time>,
    /// Events about the pod.
    pub events: u64,
}

/// One container of the pod, over its restarts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ContainerStory {
    /// Name; the start of its id where no event has a name.
    pub name: Option<String>,
    /// How often it ended.
    pub ends: u64,
    /// How often processes in it died while it lived on.
    pub survived: u64,
    /// Restarts the kubelet had counted when the last instance that is known was started.
    pub restart_count: Option<u32>,
}

/// One death: of a container, or of a process in it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Death {
    /// When it was killed or ended.
    pub time: Time,
    /// Container name; the start of its id where no event has a name.
    pub container: Option<String>,
    /// Id of the container.
    pub container_id: Option<String>,
    /// How often the kubelet had restarted the container before.
    pub restart_count: Option<u32>,
    /// The process, as "comm (pid 123)".
    pub process: String,
    /// What the process was to the container.
    pub role: Option<ProcessRole>,
    /// Whether the container ended with it. Null if that is not known.
    pub container_ended: Option<bool>,
    /// Other processes that died with it.
    pub others: u64,
    /// `incident` of the `oom_kill`, if it was one.
    pub incident: Option<String>,
    /// What ended it.
    pub cause: DeathCause,
    /// How sure that is.
    pub confidence: Confidence,
    /// Of an OOM kill: whose limit was hit.
    pub scope: Option<Scope>,
    /// Of an OOM kill: the limit.
    pub limit_bytes: Option<u64>,
    /// Of an OOM kill: what filled the memory.
    pub filled_by: Option<Cause>,
    /// One sentence for a person.
    pub summary: String,
    /// What it rests on; most telling first.
    pub evidence: Vec<String>,
    /// Exit code as Kubernetes shows it. Null if no event tells.
    pub exit_code: Option<u32>,
    /// Name of the signal that ended it. Null if it exited by itself.
    pub signal: Option<String>,
    /// When the process was started: of a container's first process, when the container was.
    pub started_at: Option<Time>,
    /// From its start to its end.
    pub lifetime_ms: Option<u64>,
    /// From the end of the instance before to the start of this one: back-off and start-up. Null
    /// for the first that is known.
    pub restarted_after_ms: Option<u64>,
    /// What was seen before.
    pub lead_up: LeadUp,
    /// What Kubernetes will show. Null where the container lives on or nothing tells.
    pub kubernetes_will_report: Option<KubernetesReport>,
    /// The container runtime's reason, as `OOMKilled` or `Error`.
    pub runtime_reason: Option<String>,
    /// Commands to run next.
    pub next_steps: Vec<String>,
}

/// What was seen before a death: of the same container and of its pod, since the container's last
/// end, and of the node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LeadUp {
    /// How fast memory grew, bytes per second.
    pub growth_bytes_per_s: Option<f64>,
    /// Hits of the hard limit (`max`). Null if nothing counted them.
    pub max_hits: Option<u64>,
    /// Hits of `memory.high`.
    pub high_hits: Option<u64>,
    /// Time that tasks of the container or the pod waited for memory in the last minute, ms.
    pub stall_ms: Option<f64>,
    /// Time that tasks waited for the node's memory in the last minute, ms.
    pub node_stall_ms: Option<f64>,
    /// Whether it thrashed.
    pub thrashed: Option<bool>,
    /// How long it waited for its CPU quota just before.
    pub cpu_throttled: Option<CpuThrottled>,
    /// Times the OOM killer ran for it in that time and killed nobody.
    pub ooms_without_kill: u64,
    /// What held its tasks up in the last minute. Null if nothing was seen that did.
    pub held_up_by: Option<HeldUp>,
    /// What pressure and leak events said, newest first, at most three.
    pub said: Vec<String>,
}

/// What held tasks up.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum HeldUp {
    /// They waited for memory.
    ReclaimStall,
    /// They slept because of `memory.high`.
    MemoryThrottling,
    /// They waited for a processor because of their CPU limit.
    CpuThrottling,
    /// They waited for a processor.
    CpuPressure,
    /// They waited for disks.
    IoPressure,
}

/// A place where the capture may be incomplete.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Hole {
    /// When it was noticed.
    pub time: Time,
    /// What is missing, in a sentence.
    pub what: String,
}

/// What the deaths have in common.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Pattern {
    /// One paragraph for a person.
    pub summary: String,
    /// Deaths that are alike, most frequent first: of containers if any ended, else of processes.
    pub groups: Vec<Group>,
    /// Commands to run next, most useful first.
    pub next_steps: Vec<String>,
}

/// Deaths that are alike.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Group {
    /// How many.
    pub count: u64,
    /// What they were, as "container OOM at 512 MiB growing 3 MiB/s".
    pub what: String,
}
