//! The public event model: what every sink writes and every consumer reads.
//!
//! An event is one JSON object on one line: the [`Event`] envelope, then the body of its kind.
//! Nested names follow OpenTelemetry's attributes (`.k8s.pod.name` is `k8s.pod.name`); own names
//! carry their unit. A field that is not known is `null`, never 0 and never left out; only the
//! subject (`k8s`, `container`, `process`) is absent from kinds that have none.
//!
//! To add a kind: one file with its struct, one arm of [`Body`], [`Body::kind`] and [`Body::severity`]. Schema and
//! docs/events.md follow from the types.

mod before;
mod escape;
mod gfp;
pub mod label;
mod oom_kill;
mod oom_outcome;
mod outstanding;
mod pressure;
mod process_death;
pub mod queues;
mod signal;
mod skb_census;
mod skb_holders;
mod slab_usage;
mod stack;
mod status;
mod subject;
mod time;
mod triage;
mod verdict;

pub use before::{Before, CpuThrottled, MemorySample};
pub use escape::{escape, is_hostile};
pub use gfp::Gfp;
pub use oom_kill::{
    Candidate, Constraint, Limit, LimitLevel, Memory, MemorySource, Node, OomKill, Outcome, Psi,
    PsiResource, PsiWindow, Role, Scope, Trigger, Victim,
};
pub use oom_outcome::{OomOutcome, VictimOutcome};
pub use outstanding::{AgeCount, Outstanding, OutstandingCgroup, OutstandingStack, TrackAccuracy};
pub use pressure::{
    Finding, FindingId, Grower, LeakSuspect, LimitEvent, MemcgLimit, Pressure, ReclaimStall,
    StallKind,
};
pub use process_death::{
    CauseCount, DeathCause, DeathVerdict, Fault, ProcessDeath, ProcessRole, Restarts,
    RuntimeStatus, Sender, Signal, StopRequest, Via,
};
pub use skb_census::{CensusReader, CensusSocket, SkbAbandoned, SkbCensus, SkbGroup};
pub use skb_holders::{
    HeldSocket, HolderMethod, SkbBalance, SkbBefore, SkbCache, SkbCreator, SkbExplained, SkbHolder,
    SkbHolders, SkbQueue, SkbSource,
};
pub use slab_usage::{
    AllocationProfile, AllocationSite, CgroupKernelMemory, KernelBalance, ProfileState,
    SlabCacheUsage, SlabTrace, SlabUsage,
};
pub use stack::AllocPath;
pub use status::{Gap, Heartbeat, KernelFacts, Loss, ProbeStatus, Refusal, SignalStatus};
pub use subject::{
    Cgroup, Container, K8s, K8sContainer, Named, Pod, Process, Qos, ResolvedBy, Rss, text,
};
pub use time::Time;
pub use triage::{
    ConntrackTable, Cpu, Disk, NodeMemory, NodePressure, NotRead, OomHistory, RecentKill, Reclaim,
    SlabCache, Throttled, TopCgroup, Triage, permission_denied,
};
pub use verdict::{Cause, Confidence, KubernetesReport, Verdict};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One event: the envelope and the body of its kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(title = "oomprobe event")]
pub struct Event {
    /// Version of this format. Fields may be added within it; none is renamed or removed.
    pub schema: Schema,
    /// When it happened: RFC 3339 in UTC with nanoseconds, from `time_boot_ns` and one offset
    /// taken at start, so that differences between events are exact.
    pub time: Time,
    /// When it happened: `CLOCK_BOOTTIME`, ns since boot, suspend included. Comparable between
    /// events of the same `host.boot_id` only.
    pub time_boot_ns: u64,
    /// Number of the event in this run, from 0 without holes: a hole is an event lost after it
    /// was made.
    pub seq: u64,
    /// The node the event comes from.
    pub host: Host,
    /// How bad it is: OpenTelemetry severity text.
    pub severity: Severity,
    /// The pod the event is about: for a kill, the chosen victim's. Absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub k8s: Option<K8s>,
    /// The container the event is about: for a kill, the chosen victim's. Absent where there is
    /// none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<Container>,
    /// The process the event is about: for a kill, the chosen victim. Absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// What happened, by kind.
    #[serde(flatten)]
    pub body: Body,
}

impl Event {
    /// An event of `body`, with the severity and the subject that follow from it.
    pub fn new(time: Time, time_boot_ns: u64, seq: u64, host: Host, body: Body) -> Self {
        let victim = match &body {
            Body::OomKill(kill) => kill.chosen(),
            _ => None,
        };
        Self {
            schema: Schema::V1,
            time,
            time_boot_ns,
            seq,
            host,
            severity: body.severity(),
            k8s: victim.and_then(|victim| victim.k8s.clone()),
            container: victim.and_then(|victim| victim.container.clone()),
            process: victim.map(|victim| victim.process.clone()),
            body,
        }
    }

    /// The same event, about this pod and container.
    #[must_use]
    pub fn about(mut self, k8s: Option<K8s>, container: Option<Container>) -> Self {
        self.k8s = k8s;
        self.container = container;
        self
    }

    /// The same event, about this process.
    #[must_use]
    pub fn of(mut self, process: Process) -> Self {
        self.process = Some(process);
        self
    }
}

/// Version of the event format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum Schema {
    /// The first.
    #[default]
    #[serde(rename = "oomprobe/1")]
    V1,
}

/// What happened. `kind` names it; the other fields of the object follow from it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Body {
    /// The OOM killer ran: one event per invocation, with all its victims.
    OomKill(Box<OomKill>),
    /// What became of the victims of an `oom_kill`.
    OomOutcome(OomOutcome),
    /// A process ended, and what ended it.
    ProcessDeath(Box<ProcessDeath>),
    /// A memory cgroup hit its limit.
    MemcgLimit(MemcgLimit),
    /// Tasks waited for reclaim, throttling or compaction.
    ReclaimStall(ReclaimStall),
    /// Tasks are held up for want of memory, CPU or I/O.
    Pressure(Pressure),
    /// Something grows steadily.
    LeakSuspect(LeakSuspect),
    /// One look at the whole node: what is wrong with it.
    Triage(Box<Triage>),
    /// Who holds socket buffers.
    SkbHolders(Box<SkbHolders>),
    /// Which kernel caches are big or grow, and where the rest of the kernel's memory is.
    SlabUsage(Box<SlabUsage>),
    /// Socket buffers that were allocated since oomprobe started and are not freed.
    SkbOutstanding(Box<Outstanding>),
    /// Objects of one slab cache that were allocated since oomprobe started and are not freed.
    SlabOutstanding(Box<Outstanding>),
    /// What is attached and what is not; the first event of every run.
    ProbeStatus(ProbeStatus),
    /// oomprobe is alive: silence since the last one means that nothing happened.
    Heartbeat(Heartbeat),
    /// Something was seen but could not be recorded.
    Loss(Loss),
    /// The kernel counted something that oomprobe did not see.
    Gap(Gap),
}

impl Body {
    /// The value of `kind`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::OomKill(_) => "oom_kill",
            Self::OomOutcome(_) => "oom_outcome",
            Self::ProcessDeath(_) => "process_death",
            Self::MemcgLimit(_) => "memcg_limit",
            Self::ReclaimStall(_) => "reclaim_stall",
            Self::Pressure(_) => "pressure",
            Self::LeakSuspect(_) => "leak_suspect",
            Self::Triage(_) => "triage",
            Self::SkbHolders(_) => "skb_holders",
            Self::SlabUsage(_) => "slab_usage",
            Self::SkbOutstanding(_) => "skb_outstanding",
            Self::SlabOutstanding(_) => "slab_outstanding",
            Self::ProbeStatus(_) => "probe_status",
            Self::Heartbeat(_) => "heartbeat",
            Self::Loss(_) => "loss",
            Self::Gap(_) => "gap",
        }
    }

    /// How bad it is.
    pub fn severity(&self) -> Severity {
        match self {
            Self::OomKill(kill) => match (kill.outcome, kill.scope) {
                (Outcome::Killed, Scope::Node) => Severity::Fatal,
                (Outcome::Killed | Outcome::NothingKillable, _) => Severity::Error,
                (Outcome::AbortedVictimDying, _) => Severity::Warn,
                (Outcome::MarkedExiting, _) => Severity::Info,
            },
            Self::OomOutcome(outcome) => {
                let stuck = outcome.victims.iter().any(|victim| victim.still_alive);
                if stuck {
                    Severity::Warn
                } else {
                    Severity::Info
                }
            }
            Self::ProcessDeath(death) => death.severity(),
            Self::Pressure(pressure) => worst(&pressure.findings),
            Self::Triage(triage) => worst(&triage.findings),
            Self::SkbHolders(holders) => worst(&holders.findings),
            Self::SlabUsage(usage) => worst(&usage.findings),
            Self::ProbeStatus(status) if !status.attached => Severity::Error,
            Self::LeakSuspect(_) | Self::Loss(_) | Self::Gap(_) => Severity::Warn,
            Self::MemcgLimit(_)
            | Self::ReclaimStall(_)
            | Self::SkbOutstanding(_)
            | Self::SlabOutstanding(_)
            | Self::ProbeStatus(_)
            | Self::Heartbeat(_) => Severity::Info,
        }
    }
}

/// The severity of what found these.
fn worst(findings: &[Finding]) -> Severity {
    let severities = findings.iter().map(|finding| finding.severity);
    severities.max().unwrap_or(Severity::Info)
}

/// The node an event comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Host {
    /// Host name (`/proc/sys/kernel/hostname` of the initial UTS namespace).
    pub name: Option<String>,
    /// `/proc/sys/kernel/random/boot_id`: another value means that the node was booted between.
    pub boot_id: Option<String>,
}

/// Severity text of OpenTelemetry's log data model.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "UPPERCASE")]
pub enum Severity {
    /// Finest detail.
    Trace,
    /// Detail for debugging.
    Debug,
    /// Nothing to do.
    #[default]
    Info,
    /// Something may need attention, or the record has a hole.
    Warn,
    /// A process was killed.
    Error,
    /// The node itself ran out of memory.
    Fatal,
}
