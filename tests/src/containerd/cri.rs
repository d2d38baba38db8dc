//! A blocking CRI client: the kubelet's side of the socket.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use prost::Message;
use tokio::runtime::Runtime;
use tonic::Request;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use super::proto::{self, ContainerState};

/// How long one call may take. Only a hang reaches it: the machine may be busy.
const CALL_DEADLINE: Duration = Duration::from_secs(90);

/// What the runtime says of one container (CRI `ContainerStatus`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerStatus {
    /// Created, running or exited.
    pub state: ContainerState,
    /// Exit code of the init process; 128 + signal when a signal ended it.
    pub exit_code: i32,
    /// `OOMKilled`, `Completed`, `Error`, or empty while it runs.
    pub reason: String,
}

/// One row of `ListContainers`: running and exited containers alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedContainer {
    /// The container's id, 64 hex digits.
    pub id: String,
    /// The sandbox (pod) it belongs to.
    pub pod_sandbox_id: String,
    /// Created, running or exited.
    pub state: ContainerState,
    /// The labels given at creation, `io.kubernetes.*` among them.
    pub labels: HashMap<String, String>,
}

/// What a command run in a container gave back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecOutput {
    /// Exit code; 128 + signal when a signal ended it.
    pub exit_code: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

/// A connection to one runtime's socket.
pub struct Cri {
    runtime: Runtime,
    channel: Channel,
}

impl Cri {
    /// A client of the runtime at `socket`; connects at the first call, and again when it must.
    pub(crate) fn new(socket: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot make a tokio runtime")?;
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))
            .with_context(|| format!("{} is no socket address", socket.display()))?;
        // A lazy channel starts its worker on the runtime it is made in.
        let channel = {
            let _inside = runtime.enter();
            endpoint.connect_lazy()
        };
        Ok(Self { runtime, channel })
    }

    /// Whether the runtime answers and calls itself ready. The network may stay "not ready": pods
    /// of these tests live in the host's.
    pub(crate) fn ready(&self) -> Result<bool> {
        let answer: proto::StatusResponse =
            self.call("/runtime.v1.RuntimeService/Status", proto::Empty {})?;
        Ok(answer
            .status
            .unwrap_or_default()
            .conditions
            .iter()
            .any(|condition| condition.r#type == "RuntimeReady" && condition.status))
    }

    pub(crate) fn has_image(&self, name: &str) -> Result<bool> {
        let request = proto::ImageStatusRequest {
            image: Some(proto::ImageSpec { image: name.into() }),
        };
        let answer: proto::ImageStatusResponse =
            self.call("/runtime.v1.ImageService/ImageStatus", request)?;
        Ok(answer.image.is_some())
    }

    pub(crate) fn run_pod_sandbox(&self, config: proto::PodSandboxConfig) -> Result<String> {
        let request = proto::RunPodSandboxRequest {
            config: Some(config),
        };
        let answer: proto::PodSandboxId =
            self.call("/runtime.v1.RuntimeService/RunPodSandbox", request)?;
        Ok(answer.pod_sandbox_id)
    }

    pub(crate) fn create_container(
        &self,
        pod_sandbox_id: &str,
        config: proto::ContainerConfig,
        sandbox_config: proto::PodSandboxConfig,
    ) -> Result<String> {
        let request = proto::CreateContainerRequest {
            pod_sandbox_id: pod_sandbox_id.into(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        let answer: proto::ContainerId =
            self.call("/runtime.v1.RuntimeService/CreateContainer", request)?;
        Ok(answer.container_id)
    }

    pub(crate) fn start_container(&self, id: &str) -> Result<()> {
        self.on_container("/runtime.v1.RuntimeService/StartContainer", id)
    }

    /// SIGTERM, then SIGKILL once `grace` (whole seconds) is over; returns when the container is
    /// dead.
    pub(crate) fn stop_container(&self, id: &str, grace: Duration) -> Result<()> {
        let request = proto::StopContainerRequest {
            container_id: id.into(),
            timeout: i64::try_from(grace.as_secs())?,
        };
        let path = "/runtime.v1.RuntimeService/StopContainer";
        let _: proto::Empty = self.call_within(path, request, CALL_DEADLINE + grace)?;
        Ok(())
    }

    pub(crate) fn remove_container(&self, id: &str) -> Result<()> {
        self.on_container("/runtime.v1.RuntimeService/RemoveContainer", id)
    }

    pub(crate) fn container_status(&self, id: &str) -> Result<ContainerStatus> {
        let request = proto::ContainerId {
            container_id: id.into(),
        };
        let answer: proto::ContainerStatusResponse =
            self.call("/runtime.v1.RuntimeService/ContainerStatus", request)?;
        let status = answer.status.ok_or_else(|| anyhow!("no status for {id}"))?;
        Ok(ContainerStatus {
            state: status.state(),
            exit_code: status.exit_code,
            reason: status.reason,
        })
    }

    /// Every container the runtime knows, those that have ended included.
    pub fn list_containers(&self) -> Result<Vec<ListedContainer>> {
        let path = "/runtime.v1.RuntimeService/ListContainers";
        let answer: proto::ListContainersResponse = self.call(path, proto::Empty {})?;
        let listed = answer.containers.into_iter().map(|one| ListedContainer {
            state: one.state(),
            id: one.id,
            pod_sandbox_id: one.pod_sandbox_id,
            labels: one.labels,
        });
        Ok(listed.collect())
    }

    /// Kills the command and fails once `timeout` (whole seconds, 0 is none) is over.
    pub(crate) fn exec_sync(
        &self,
        id: &str,
        command: &[&str],
        timeout: Duration,
    ) -> Result<ExecOutput> {
        let request = proto::ExecSyncRequest {
            container_id: id.into(),
            cmd: command.iter().map(ToString::to_string).collect(),
            timeout: i64::try_from(timeout.as_secs())?,
        };
        let path = "/runtime.v1.RuntimeService/ExecSync";
        let answer: proto::ExecSyncResponse =
            self.call_within(path, request, CALL_DEADLINE + timeout)?;
        Ok(ExecOutput {
            exit_code: answer.exit_code,
            stdout: answer.stdout,
            stderr: answer.stderr,
        })
    }

    /// Ids of all pod sandboxes.
    pub(crate) fn list_pod_sandboxes(&self) -> Result<Vec<String>> {
        let path = "/runtime.v1.RuntimeService/ListPodSandbox";
        let answer: proto::ListPodSandboxResponse = self.call(path, proto::Empty {})?;
        Ok(answer.items.into_iter().map(|one| one.id).collect())
    }

    /// Kills whatever still runs in the sandbox, then the sandbox.
    pub(crate) fn stop_pod_sandbox(&self, id: &str) -> Result<()> {
        self.on_sandbox("/runtime.v1.RuntimeService/StopPodSandbox", id)
    }

    /// Forgets the sandbox and every container in it.
    pub(crate) fn remove_pod_sandbox(&self, id: &str) -> Result<()> {
        self.on_sandbox("/runtime.v1.RuntimeService/RemovePodSandbox", id)
    }

    fn on_container(&self, path: &'static str, id: &str) -> Result<()> {
        let request = proto::ContainerId {
            container_id: id.into(),
        };
        let _: proto::Empty = self.call(path, request)?;
        Ok(())
    }

    fn on_sandbox(&self, path: &'static str, id: &str) -> Result<()> {
        let request = proto::PodSandboxId {
            pod_sandbox_id: id.into(),
        };
        let _: proto::Empty = self.call(path, request)?;
        Ok(())
    }

    fn call<Q, A>(&self, path: &'static str, request: Q) -> Result<A>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        self.call_within(path, request, CALL_DEADLINE)
    }

    fn call_within<Q, A>(&self, path: &'static str, request: Q, deadline: Duration) -> Result<A>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        self.runtime.block_on(async {
            tokio::time::timeout(deadline, unary(self.channel.clone(), path, request))
                .await
                .with_context(|| format!("{path}: no answer in {} s", deadline.as_secs()))?
        })
    }
}

async fn unary<Q, A>(channel: Channel, path: &'static str, request: Q) -> Result<A>
where
    Q: Message + 'static,
    A: Message + Default + 'static,
{
    let mut grpc = Grpc::new(channel);
    grpc.ready()
        .await
        .with_context(|| format!("{path}: no connection"))?;
    let codec = ProstCodec::<Q, A>::default();
    let answer = grpc
        .unary(
            Request::new(request),
            PathAndQuery::from_static(path),
            codec,
        )
        .await
        .map_err(|status| anyhow!("{path}: {:?}: {}", status.code(), status.message()))?;
    Ok(answer.into_inner())
}
