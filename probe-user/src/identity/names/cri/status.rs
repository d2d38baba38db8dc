//! How a container ended.

use std::time::Duration;

use tokio::time::Instant;
use tonic::{Code, Status};

use super::{
    Client, Cri, MAX_DETAIL_CHARS, NameError,
    api::{
        ContainerFilter, ContainerStatusRequest, ContainerStatusResponse, ListContainersRequest,
        ListContainersResponse,
    },
    or_empty,
};

/// `CONTAINER_EXITED`
const EXITED: i32 = 2;
/// `SANDBOX_READY`
const SANDBOX_READY: i32 = 0;

/// Seconds, written on every container by the kubelet
/// (pkg/kubelet/kuberuntime/labels.go).
const GRACE_PERIOD: &str = "io.kubernetes.pod.terminationGracePeriod";

/// What the runtime says of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code; `None` while it runs.
    pub exit_code: Option<i32>,
    /// One word, as `OOMKilled`, `Error`, `Completed`.
    pub reason: Option<String>,
    /// Whether its pod's sandbox was stopped or removed; `None` if it is not known.
    pub sandbox_stopped: Option<bool>,
    /// The pod's grace period.
    pub grace_period: Option<Duration>,
}

impl Cri {
    /// How a container ended; `None` if no runtime knows it.
    pub(in crate::identity::names) async fn ended(
        &mut self,
        id: &str,
        deadline: Instant,
    ) -> Result<Option<Ended>, NameError> {
        self.ask(deadline, async |client| client.ended(id).await)
            .await
    }
}

impl Client {
    async fn ended(&mut self, id: &str) -> Result<Option<Ended>, Status> {
        let request = ContainerStatusRequest {
            container_id: id.to_owned(),
        };
        let answer: Result<ContainerStatusResponse, _> =
            self.call("ContainerStatus", request).await;
        let status = match answer {
            Ok(answer) => answer.status,
            Err(status) if status.code() == Code::NotFound => None,
            Err(status) => return Err(status),
        };
        let Some(status) = status else {
            return Ok(None);
        };
        let has_exited = status.state == EXITED;
        let reason: String = status.reason.chars().take(MAX_DETAIL_CHARS).collect();
        Ok(Some(Ended {
            exit_code: has_exited.then_some(status.exit_code),
            reason: (has_exited && !reason.is_empty()).then_some(reason),
            sandbox_stopped: self.sandbox_of(id).await?,
            grace_period: status
                .annotations
                .get(GRACE_PERIOD)
                .and_then(|seconds| seconds.parse().ok())
                .map(Duration::from_secs),
        }))
    }

    /// Whether the sandbox of the container is stopped, or gone.
    async fn sandbox_of(&mut self, id: &str) -> Result<Option<bool>, Status> {
        let request = ListContainersRequest {
            filter: Some(ContainerFilter { id: id.to_owned() }),
        };
        let found: Result<ListContainersResponse, _> = self.call("ListContainers", request).await;
        let containers = or_empty(found)?.containers;
        let Some(container) = containers.into_iter().find(|found| found.id == id) else {
            return Ok(None);
        };
        let sandbox = self.sandbox(&container.pod_sandbox_id).await?;
        Ok(Some(
            sandbox.is_none_or(|sandbox| sandbox.state != SANDBOX_READY),
        ))
    }
}
