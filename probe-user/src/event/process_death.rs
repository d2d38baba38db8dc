//! `process_death`: a process ended, and what ended it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Before, Cgroup, Confidence, Container, K8s, KubernetesReport, Process, Severity, Time,
};

/// A process ended.
///
/// The process, its pod and its container are the `process`, `k8s` and `container` of the event;
/// `time` is when its last thread exited. Written for deaths by signal or with a non-zero exit code
/// in containers and for the first process of every container; for all with `--all-deaths`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProcessDeath {
    /// Exit code as a shell, a container runtime and Kubernetes show it: what the process passed to
    /// `exit()`, or 128 + the number of the signal that ended it.
    pub exit_code: u32,
    /// The signal that ended it. Null if it exited by itself.
    pub signal: Option<Signal>,
    /// Whether the kernel wrote a core dump, or piped it to `kernel.core_pattern`.
    pub core_dumped: bool,
    /// The memory cgroup it was in (the v2 cgroup, where there is no memory controller).
    pub cgroup: Option<Cgroup>,
    /// What it was to its container. Null outside containers.
    pub role: Option<ProcessRole>,
    /// From its start to its end.
    pub lifetime_ms: Option<u64>,
    /// Most memory it ever had resident (`ru_maxrss` of `getrusage(2)`): also what it was before it
    /// called execve, a copy of its parent.
    pub peak_rss_bytes: Option<u64>,
    /// Who sent the deadly signal. Null if it exited by itself, and if the kernel did not tell.
    pub sender: Option<Sender>,
    /// What the processor complained of. Null if it is no crash of that kind.
    pub fault: Option<Fault>,
    /// The request to stop that came before. Null if there was none.
    pub stop_request: Option<StopRequest>,
    /// `incident` of the `oom_kill` that it is a victim of.
    pub incident: Option<String>,
    /// Whether its container lived on. Null outside containers and for a container's first process.
    pub container_survived: Option<bool>,
    /// What the container went through before. Null for what is not the end of a container and not
    /// of the runtime's doing, for a victim of an OOM kill (its `oom_kill` has it), and if it was not
    /// sampled.
    pub before: Option<Before>,
    /// Other processes of the same container that ended with it, by the same signal, and have no
    /// event of their own.
    pub others: u64,
    /// What the container runtime says of the container. Null if the container lives on, or the
    /// runtime could not be asked in time.
    pub runtime: Option<RuntimeStatus>,
    /// This death and those of the same container of the same pod before, restarts included. Null for
    /// any process but a container's first.
    pub restarts: Option<Restarts>,
    /// Whether the container's status in Kubernetes will say `OOMKilled`; see
    /// `verdict.kubernetes_will_report` for whether that is true. Null outside Kubernetes, for a
    /// container that lives on, and where it cannot be told.
    pub kubernetes_says_oomkilled: Option<bool>,
    /// What ended it and what to do.
    pub verdict: DeathVerdict,
}

impl ProcessDeath {
    /// How bad it is: the end of a container by force is an error, an orderly one is not.
    pub fn severity(&self) -> Severity {
        let is_orderly = match self.verdict.cause {
            DeathCause::RuntimeStop | DeathCause::InitDied => true,
            DeathCause::AppExit => self.exit_code == 0,
            _ => false,
        };
        match self.role {
            _ if is_orderly => Severity::Info,
            Some(ProcessRole::Init) => Severity::Error,
            _ => Severity::Warn,
        }
    }
}

/// A signal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Signal {
    /// Number.
    pub number: u32,
    /// Name, as `SIGKILL`; `SIGRTMIN+3` for a real-time signal as glibc counts them.
    pub name: String,
}

/// What a process was to its container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProcessRole {
    /// Its first process: its end is the container's end.
    Init,
    /// Started in it by the runtime: an exec probe, a lifecycle hook, or `kubectl exec`.
    Exec,
    /// Any other process in it.
    Child,
}

/// Who sent a signal.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Sender {
    /// How it was sent.
    pub via: Via,
    /// When.
    pub sent_at: Option<Time>,
    /// `si_code` by name, as `SI_USER` or `SEGV_MAPERR`; its number where it has none.
    pub si_code: Option<String>,
    /// The process that ran when it was sent: the sender, if `via` names something a process does.
    pub process: Option<Process>,
    /// Its parent's `comm`, which tells whom a short-lived helper (`runc`, `kill`) worked for.
    pub parent_comm: Option<String>,
    /// Its memory cgroup.
    pub cgroup: Option<Cgroup>,
    /// The pod it is in.
    pub k8s: Option<K8s>,
    /// The container it is in.
    pub container: Option<Container>,
}

/// How a signal came about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Via {
    /// `kill(2)`.
    Kill,
    /// `tgkill(2)` or `tkill(2)`: to one thread, as `abort(3)` and `raise(3)` do.
    Tkill,
    /// `sigqueue(3)`, `pidfd_send_signal(2)` with a siginfo.
    Sigqueue,
    /// A write to `cgroup.kill`.
    CgroupKill,
    /// The OOM killer.
    OomKiller,
    /// Its parent died (`PR_SET_PDEATHSIG`).
    ParentDeath,
    /// The first process of its pid namespace died.
    PidNamespace,
    /// A fault of its own: the processor or the kernel refused what it did.
    Fault,
    /// A seccomp filter.
    Seccomp,
    /// A resource limit (`RLIMIT_CPU`, `RLIMIT_FSIZE`).
    ResourceLimit,
    /// A timer of its own, a broken pipe, its terminal, or another part of the kernel.
    Kernel,
    /// It was not seen.
    #[default]
    Unknown,
}

/// What the processor complained of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Fault {
    /// The address that was touched, hexadecimal; for SIGILL and SIGFPE the instruction's.
    pub address: Option<String>,
    /// Address of the instruction, hexadecimal. From the kernel log.
    pub instruction: Option<String>,
    /// The file mapped where the instruction is, and the offset of the instruction in the file (up to
    /// some 6.x kernels: in the mapping), as `libc.so.6+0x28000`. From the kernel log.
    pub mapping: Option<String>,
    /// Number of the system call that a seccomp filter forbids.
    pub syscall: Option<i32>,
}

/// A request to stop (SIGTERM, or the image's stop signal).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StopRequest {
    /// Its signal.
    pub signal: Signal,
    /// Who sent it.
    pub sender: Sender,
    /// Whether another container of the pod was asked too: the whole pod is ended. Null for what is
    /// not the end of a container, and where no other one has processes.
    pub siblings_too: Option<bool>,
    /// From the request to the end of the process.
    pub took_ms: u64,
    /// From the request to the SIGKILL that followed it. Null if none did.
    pub killed_after_ms: Option<u64>,
}

/// What a container runtime says of a container that ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RuntimeStatus {
    /// Exit code it saw. Null while it says that the container runs.
    pub exit_code: Option<i32>,
    /// Its reason, as `OOMKilled`, `Error`, `Completed`.
    pub reason: Option<String>,
    /// Whether the pod's sandbox was stopped too: the whole pod was ended, not one container.
    pub sandbox_stopped: Option<bool>,
    /// The pod's grace period (`io.kubernetes.pod.terminationGracePeriod`).
    pub grace_period_ms: Option<u64>,
}

/// Ends of the same container of the same pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Restarts {
    /// How often it ended while oomprobe looked, this time included.
    pub deaths: u64,
    /// From the first of them to this one.
    pub window_ms: u64,
    /// Their causes, most frequent first.
    pub causes: Vec<CauseCount>,
    /// All of it in a sentence.
    pub summary: String,
}

/// How often a cause was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CauseCount {
    /// The cause.
    pub cause: DeathCause,
    /// Times.
    pub count: u64,
}

/// What ended a process and what to do about it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeathVerdict {
    /// What ended it.
    pub cause: DeathCause,
    /// How sure that is.
    pub confidence: Confidence,
    /// One sentence for a person.
    pub summary: String,
    /// What the conclusion rests on; most telling first.
    pub evidence: Vec<String>,
    /// Commands to run next, most useful first; each can be pasted into a shell.
    pub next_steps: Vec<String>,
    /// What Kubernetes will show for it. Null outside Kubernetes, and where the container lives on.
    pub kubernetes_will_report: Option<KubernetesReport>,
}

/// What ended a process.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum DeathCause {
    /// The kernel's OOM killer chose it.
    OomKill,
    /// The OOM killer took it along with another (memory.oom.group, or a shared address space).
    OomGroup,
    /// The container runtime stopped it, and it ended in time.
    RuntimeStop,
    /// The container runtime killed it: it did not end within its grace period.
    RuntimeStopGraceExpired,
    /// The kubelet evicted its pod.
    Eviction,
    /// The kubelet restarts its container: a liveness or startup probe failed.
    LivenessKill,
    /// A userspace OOM killer: systemd-oomd, earlyoom, oomd, nohang.
    UserspaceOomKiller,
    /// Another process, or a person, killed it.
    KilledByProcess,
    /// Somebody wrote to `cgroup.kill` of its cgroup.
    CgroupKill,
    /// It crashed: a fault, an abort, a trap.
    Crash,
    /// A seccomp filter forbids a system call that it made.
    Seccomp,
    /// It exceeded a resource limit of its own (`RLIMIT_CPU`, `RLIMIT_FSIZE`).
    ResourceLimit,
    /// The first process of its container or pid namespace, or its parent, ended: it had to go too.
    InitDied,
    /// A signal that its own doing brought: a broken pipe, a timer of its own, its terminal, or
    /// one that it sent to itself.
    OwnSignal,
    /// It exited by itself.
    AppExit,
    /// The evidence does not tell.
    #[default]
    Unknown,
}
