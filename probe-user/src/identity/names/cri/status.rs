//! How a container ended.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use tokio::time::Instant;
use tonic::{Code, Status};

use super::{
    Client, Cri, MAX_DETAIL_CHARS, NameError,
    api::{
        ContainerStatusRequest, ContainerStatusResponse, ListContainersRequest,
        ListContainersResponse,
    },
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

/// Which containers and sandboxes there are at one moment: one question for all deaths that wait.
#[derive(Debug, Default)]
pub(in crate::identity::names) struct States {
    /// Whether it has exited, and its sandbox, by id.
    containers: HashMap<String, (bool, String)>,
    /// Sandboxes that run.
    ready: HashSet<String>,
}

impl States {
    /// Whether a container has exited, and its sandbox; `None` if no runtime knows it.
    pub(in crate::identity::names) fn container(&self, id: &str) -> Option<(bool, &str)> {
        let (has_exited, sandbox) = self.containers.get(id)?;
        Some((*has_exited, sandbox))
    }

    /// Whether a sandbox runs.
    pub(in crate::identity::names) fn is_ready(&self, sandbox: &str) -> bool {
        self.ready.contains(sandbox)
    }
}

impl Cri {
    /// What there is, in all runtimes.
    pub(in crate::identity::names) async fn states(
        &mut self,
        deadline: Instant,
    ) -> Result<States, NameError> {
        let mut all = States::default();
        // "Not found" makes every socket answer.
        let asked = self
            .ask(deadline, async |client| {
                client.states(&mut all).await?;
                Ok(None::<()>)
            })
            .await;
        if all.containers.is_empty() {
            asked?;
        }
        Ok(all)
    }

    /// How a container ended; `None` if it runs, or no runtime knows it.
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
    async fn states(&mut self, all: &mut States) -> Result<(), Status> {
        let request = ListContainersRequest { filter: None };
        let found: ListContainersResponse = self.call("ListContainers", request).await?;
        // Both or nothing: without an answer to this one, every sandbox would seem to be stopped.
        let sandboxes = self.sandboxes(None).await?.into_iter();
        let containers = found.containers.into_iter();
        all.containers.extend(containers.map(|container| {
            let has_exited = container.state == EXITED;
            (container.id, (has_exited, container.pod_sandbox_id))
        }));
        let ready = sandboxes.filter(|sandbox| sandbox.state == SANDBOX_READY);
        all.ready.extend(ready.map(|sandbox| sandbox.id));
        Ok(())
    }

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
        let Some(status) = status.filter(|status| status.state == EXITED) else {
            return Ok(None);
        };
        let reason: String = status.reason.chars().take(MAX_DETAIL_CHARS).collect();
        Ok(Some(Ended {
            exit_code: Some(status.exit_code),
            reason: (!reason.is_empty()).then_some(reason),
            sandbox_stopped: None,
            grace_period: status
                .annotations
                .get(GRACE_PERIOD)
                .and_then(|seconds| seconds.parse().ok())
                .map(Duration::from_secs),
        }))
    }
}
