//! What a look-up answers.

use std::sync::Arc;

use serde::Serialize;

use crate::identity::{Claim, Role, Runtime};

/// Where names were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A link in `/var/log/containers`.
    LogLink,
    /// The container runtime, over CRI.
    Cri,
    /// A directory in `/var/log/pods`.
    LogDir,
}

impl Source {
    /// The name as events print it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::LogLink => "log_link",
            Self::Cri => "cri",
            Self::LogDir => "log_dir",
        }
    }
}

/// Why names are missing, in whole or in part. Displays as `code` or `code: detail`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Every source was asked and none has it.
    #[error("not_found")]
    NotFound,
    /// There is no runtime socket to ask.
    #[error("no_cri_socket")]
    NoCriSocket,
    /// The log directories exist and cannot be read.
    #[error("log_dir_unreadable: {0}")]
    LogDirUnreadable(String),
    /// A runtime socket exists and gives no usable answer.
    #[error("cri_unreachable: {0}")]
    CriUnreachable(String),
    /// The caller's time was up.
    #[error("deadline")]
    Deadline,
}

impl NameError {
    /// The machine-readable part.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::NoCriSocket => "no_cri_socket",
            Self::LogDirUnreadable(_) => "log_dir_unreadable",
            Self::CriUnreachable(_) => "cri_unreachable",
            Self::Deadline => "deadline",
        }
    }

    /// How much it explains: with several failures the highest is reported.
    const fn rank(&self) -> u8 {
        match self {
            Self::NotFound => 0,
            Self::NoCriSocket => 1,
            Self::LogDirUnreadable(_) => 2,
            Self::CriUnreachable(_) => 3,
            Self::Deadline => 4,
        }
    }

    pub(super) fn worse_of(self, other: Self) -> Self {
        if other.rank() > self.rank() {
            other
        } else {
            self
        }
    }
}

/// Kubernetes names of a container or pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Which source said so.
    pub resolved_by: Source,
    /// `k8s.pod.name`
    pub pod_name: Option<String>,
    /// `k8s.namespace.name`
    pub namespace: Option<String>,
    /// `k8s.pod.uid`, as the kubelet uses it on the node.
    pub pod_uid: Option<String>,
    /// `k8s.container.name`
    pub container_name: Option<String>,
    /// `k8s.container.restart_count`
    pub restart_count: Option<u32>,
    /// Image reference as the runtime lists it.
    pub image: Option<String>,
    /// The runtime that answered, where the cgroup path does not tell.
    pub runtime: Option<Runtime>,
    /// [`Role::Sandbox`] if the id is a pod's pause container.
    pub role: Option<Role>,
}

impl Known {
    pub(super) const fn by(resolved_by: Source) -> Self {
        Self {
            resolved_by,
            pod_name: None,
            namespace: None,
            pod_uid: None,
            container_name: None,
            restart_count: None,
            image: None,
            runtime: None,
            role: None,
        }
    }
}

/// The answer to one look-up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// What was found; the pod alone where the container could not be told.
    pub known: Option<Arc<Known>>,
    /// True if the claim is trusted and the source agrees with it about the pod.
    pub trusted: bool,
    /// How long the look-up took, µs.
    pub latency_us: u64,
    /// Why something is missing. None, with nothing known, for a claim that Kubernetes has no
    /// names for.
    pub error: Option<NameError>,
}

impl Names {
    pub(super) fn new(claim: &Claim, answer: Answer, latency_us: u64) -> Self {
        let known = answer.known;
        let agrees = known
            .as_ref()
            .is_some_and(|known| match (&known.pod_uid, &claim.pod_uid) {
                (Some(source), Some(claimed)) => source == claimed,
                _ => true,
            });
        Self {
            trusted: claim.trusted && agrees,
            known,
            latency_us,
            error: answer.error,
        }
    }
}

/// What the sources say, before it is held against a claim.
#[derive(Clone, Debug, Default)]
pub(super) struct Answer {
    pub(super) known: Option<Arc<Known>>,
    pub(super) error: Option<NameError>,
}
