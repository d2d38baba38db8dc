//! The part of the CRI that names and ends need (k8s.io/cri-api, `runtime/v1/api.proto`).
//!
//! Fields that are not declared here are skipped when decoding.

use std::collections::BTreeMap;

/// `VersionRequest`
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct VersionRequest {
    /// Version of the kubelet's runtime API; ignored by runtimes.
    #[prost(string, tag = "1")]
    pub(super) version: String,
}

/// `VersionResponse`
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct VersionResponse {
    /// `containerd`, `cri-o`, `docker`…
    #[prost(string, tag = "2")]
    pub(super) runtime_name: String,
}

/// `ContainerFilter`
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct ContainerFilter {
    /// Container id.
    #[prost(string, tag = "1")]
    pub(super) id: String,
}

/// `ListContainersRequest`
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct ListContainersRequest {
    /// None lists all, exited ones included.
    #[prost(message, optional, tag = "1")]
    pub(super) filter: Option<ContainerFilter>,
}

/// `ListContainersResponse`
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct ListContainersResponse {
    /// What matched.
    #[prost(message, repeated, tag = "1")]
    pub(super) containers: Vec<Container>,
}

/// `Container`
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct Container {
    /// Container id.
    #[prost(string, tag = "1")]
    pub(super) id: String,
    /// Sandbox the container runs in.
    #[prost(string, tag = "2")]
    pub(super) pod_sandbox_id: String,
    /// Name and attempt.
    #[prost(message, optional, tag = "3")]
    pub(super) metadata: Option<ContainerMetadata>,
    /// Image as the pod asks for it.
    #[prost(message, optional, tag = "4")]
    pub(super) image: Option<ImageSpec>,
    /// `ContainerState`: 0 created, 1 running, 2 exited, 3 unknown.
    #[prost(int32, tag = "6")]
    pub(super) state: i32,
    /// `io.kubernetes.*`
    #[prost(btree_map = "string, string", tag = "8")]
    pub(super) labels: BTreeMap<String, String>,
}

/// `ContainerMetadata`
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct ContainerMetadata {
    /// Name in the pod's spec.
    #[prost(string, tag = "1")]
    pub(super) name: String,
    /// How often it was restarted.
    #[prost(uint32, tag = "2")]
    pub(super) attempt: u32,
}

/// `ImageSpec`
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct ImageSpec {
    /// Reference.
    #[prost(string, tag = "1")]
    pub(super) image: String,
}

/// `PodSandboxFilter`
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct PodSandboxFilter {
    /// Sandbox id.
    #[prost(string, tag = "1")]
    pub(super) id: String,
    /// Labels that must all match.
    #[prost(btree_map = "string, string", tag = "3")]
    pub(super) label_selector: BTreeMap<String, String>,
}

/// `ListPodSandboxRequest`
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct ListPodSandboxRequest {
    /// None lists all.
    #[prost(message, optional, tag = "1")]
    pub(super) filter: Option<PodSandboxFilter>,
}

/// `ListPodSandboxResponse`
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct ListPodSandboxResponse {
    /// What matched.
    #[prost(message, repeated, tag = "1")]
    pub(super) items: Vec<PodSandbox>,
}

/// `PodSandbox`
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct PodSandbox {
    /// Sandbox id.
    #[prost(string, tag = "1")]
    pub(super) id: String,
    /// Pod names.
    #[prost(message, optional, tag = "2")]
    pub(super) metadata: Option<PodSandboxMetadata>,
    /// `PodSandboxState`: 0 ready, 1 not.
    #[prost(int32, tag = "3")]
    pub(super) state: i32,
}

/// `PodSandboxMetadata`
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct PodSandboxMetadata {
    /// Pod name.
    #[prost(string, tag = "1")]
    pub(super) name: String,
    /// Pod UID as in the cgroup; for a static pod its configuration hash.
    #[prost(string, tag = "2")]
    pub(super) uid: String,
    /// Pod namespace.
    #[prost(string, tag = "3")]
    pub(super) namespace: String,
}

/// `ContainerStatusRequest`
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct ContainerStatusRequest {
    /// Container id.
    #[prost(string, tag = "1")]
    pub(super) container_id: String,
}

/// `ContainerStatusResponse`
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct ContainerStatusResponse {
    /// The status.
    #[prost(message, optional, tag = "1")]
    pub(super) status: Option<ContainerStatus>,
}

/// `ContainerStatus`
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct ContainerStatus {
    /// `ContainerState`: 0 created, 1 running, 2 exited, 3 unknown.
    #[prost(int32, tag = "3")]
    pub(super) state: i32,
    /// Once exited.
    #[prost(int32, tag = "7")]
    pub(super) exit_code: i32,
    /// One word in CamelCase, once exited.
    #[prost(string, tag = "10")]
    pub(super) reason: String,
    /// `io.kubernetes.*`
    #[prost(btree_map = "string, string", tag = "13")]
    pub(super) annotations: BTreeMap<String, String>,
}
