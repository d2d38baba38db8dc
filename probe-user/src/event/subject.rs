//! Who an event is about: process, cgroup, container, pod.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Time;

/// Bytes the kernel or a process chose, as text: valid UTF-8 stays as it is, any other byte
/// becomes `\xNN`. Nothing else is escaped: JSON and the terminal sink each have their own rules.
pub fn text(bytes: &[u8]) -> String {
    use std::fmt::Write as _;

    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        out.push_str(chunk.valid());
        for byte in chunk.invalid() {
            // Writing to a String cannot fail.
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out
}

/// A control group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Cgroup {
    /// kernfs id: the inode number of its directory.
    pub id: Option<u64>,
    /// Path from the hierarchy's root, `/` for the root itself. On v1 and hybrid hosts this is
    /// the memory controller's hierarchy. Bytes that are not UTF-8 are written `\xNN`.
    pub path: Option<String>,
}

impl Cgroup {
    /// Whether both are the same cgroup: by id, else by path.
    pub fn is(&self, other: &Self) -> bool {
        match (self.id, other.id) {
            (Some(own), Some(other)) => own == other,
            _ => self.path.is_some() && self.path == other.path,
        }
    }
}

/// The pod, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct K8s {
    /// The pod.
    pub pod: Pod,
    /// Its namespace.
    pub namespace: Named,
    /// The container in it. Null for the pod itself (a pod's limit belongs to no container).
    pub container: Option<K8sContainer>,
    /// The node.
    pub node: Named,
    /// QoS class, from the cgroup path.
    pub qos: Option<Qos>,
    /// What gave the names.
    pub resolved_by: Option<ResolvedBy>,
    /// False if the identity is only a claim: the cgroup path lies where an unprivileged user
    /// may create cgroups, and no runtime confirmed it.
    pub trusted: bool,
    /// Why a name is null. Null if nothing is missing.
    pub error: Option<String>,
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Pod {
    /// Name.
    pub name: Option<String>,
    /// UID, from the cgroup path. A static pod's is the hash of its manifest, which is not the
    /// UID that the API server shows for its mirror pod.
    pub uid: Option<String>,
}

/// Something that only has a name here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Named {
    /// Name; null if it could not be resolved.
    pub name: Option<String>,
}

/// A container of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct K8sContainer {
    /// Name in the pod's specification.
    pub name: Option<String>,
    /// How often the kubelet had restarted it when this instance was started.
    pub restart_count: Option<u32>,
}

/// Kubernetes QoS class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Qos {
    /// Requests equal limits for every container; oom_score_adj -997.
    Guaranteed,
    /// Something is requested; oom_score_adj 2 to 999, lower the more memory is requested.
    Burstable,
    /// Nothing is requested; oom_score_adj 1000.
    #[serde(rename = "besteffort")]
    BestEffort,
}

impl Qos {
    /// The class as Kubernetes spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

/// What gave the names of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ResolvedBy {
    /// The cgroup path alone: UID and container id, no names.
    CgroupPath,
    /// A link in `/var/log/containers`.
    ContainerLogs,
    /// The container runtime, over CRI.
    Cri,
    /// A directory in `/var/log/pods`.
    PodLogs,
    /// The kubelet's `/pods`.
    Kubelet,
}

/// A container, of Kubernetes or not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Container {
    /// Id the runtime gave it, from the cgroup path.
    pub id: Option<String>,
    /// Runtime: `containerd`, `cri-o`, `docker`, `podman`; null where the path does not tell.
    pub runtime: Option<String>,
    /// What manages it: `kubernetes`, `docker`, `podman`, `nomad`, `ecs`, …
    pub orchestrator: Option<String>,
    /// `sandbox` for a pod's pause container, `conmon` or `monitor` for the runtime's own helper;
    /// null for an ordinary container.
    pub role: Option<String>,
}

/// A process at the moment of the event.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Process {
    /// Process id (thread group id) in the initial pid namespace.
    pub pid: Option<u32>,
    /// Thread id in the initial pid namespace: the thread the kernel named.
    pub tid: Option<u32>,
    /// Process id in its innermost pid namespace: what the container itself sees.
    pub ns_pid: Option<u32>,
    /// Parent's process id in the initial pid namespace.
    pub ppid: Option<u32>,
    /// When it was started. With `pid` it names a process for good, as pids are reused.
    pub start_time: Option<Time>,
    /// `task_struct.comm`: at most 15 bytes, set by the process itself. Bytes that are not UTF-8
    /// are written `\xNN`.
    pub comm: Option<String>,
    /// Arguments from `/proc/<pid>/cmdline`, possibly cut. Null if it was gone already.
    pub cmdline: Option<Vec<String>>,
    /// Real uid in the initial user namespace.
    pub uid: Option<u32>,
    /// -1000 (never chosen) to 1000 (chosen first).
    pub oom_score_adj: Option<i32>,
    /// Threads of the process.
    pub threads: Option<u32>,
    /// Resident memory by type.
    pub rss: Option<Rss>,
    /// True if per-CPU parts were added to the rss counters; false means that each may be off by
    /// a few MiB on a large machine.
    pub rss_exact: Option<bool>,
    /// Bytes in swap.
    pub swap_bytes: Option<u64>,
    /// Bytes of page tables.
    pub page_tables_bytes: Option<u64>,
    /// Address space in use, resident or not.
    pub virtual_bytes: Option<u64>,
}

/// Resident set of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Rss {
    /// Anonymous memory: heap, stacks, private writes.
    pub anon_bytes: u64,
    /// Mapped files: reclaimable, unless dirty or locked.
    pub file_bytes: u64,
    /// Mapped shared memory: tmpfs, System V, shared anonymous mappings.
    pub shmem_bytes: u64,
}

impl Rss {
    /// All of it.
    pub const fn total_bytes(self) -> u64 {
        self.anon_bytes
            .saturating_add(self.file_bytes)
            .saturating_add(self.shmem_bytes)
    }
}
