//! Names from the container runtime, and how containers ended, over its CRI socket.

mod api;
mod status;

pub use status::Ended;
pub(super) use status::States;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout_at};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use self::api::{
    Container, ContainerFilter, ListContainersRequest, ListContainersResponse,
    ListPodSandboxRequest, ListPodSandboxResponse, PodSandbox, PodSandboxFilter, VersionRequest,
    VersionResponse,
};
use super::known::{Known, NameError, Source};
use crate::identity::{Role, Runtime};

/// Where runtimes listen, below the host's root. `/run`, not `/var/run`: that is an absolute
/// link, which would leave a host root mounted elsewhere.
const SOCKETS: [&str; 8] = [
    "run/containerd/containerd.sock",
    "run/crio/crio.sock",
    "run/k3s/containerd/containerd.sock",
    "run/k0s/containerd.sock",
    "var/snap/microk8s/common/run/containerd.sock",
    "system/run/containerd/containerd.sock",
    "run/cri-dockerd.sock",
    "run/docker/containerd/containerd.sock",
];

/// A socket that had less time than this is not to blame for its silence.
const PATIENCE: Duration = Duration::from_millis(200);
/// First pause after a failure; doubled with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause.
const LAST_PAUSE: Duration = Duration::from_secs(60);

/// The kubelet's own bound on an answer.
const MAX_ANSWER_BYTES: usize = 16 << 20;

/// An error text longer than this is cut; a runtime may quote anything in it.
const MAX_DETAIL_CHARS: usize = 200;

/// All runtimes of a node. Asks one question at a time.
pub(super) struct Cri {
    sockets: Vec<Socket>,
    /// The user named the socket: its absence is an error.
    is_named: bool,
}

impl Cri {
    /// `named` overrides the usual places.
    pub(super) fn new(host_root: &Path, named: Option<&Path>) -> Self {
        let paths: Vec<PathBuf> = match named {
            Some(path) => vec![path.strip_prefix("unix:").map_or_else(
                |_| path.to_owned(),
                // `unix:///run/x` has lost its slashes to the path's normal form.
                |rest| Path::new("/").join(rest),
            )],
            None => SOCKETS.iter().map(|path| host_root.join(path)).collect(),
        };
        Self {
            sockets: paths.into_iter().map(Socket::new).collect(),
            is_named: named.is_some(),
        }
    }

    /// Names of a container, or of a sandbox that has this id.
    pub(super) async fn container(
        &mut self,
        id: &str,
        deadline: Instant,
    ) -> Result<Option<Known>, NameError> {
        self.ask(deadline, async |client| client.container(id).await)
            .await
    }

    /// Names of a pod.
    pub(super) async fn pod(
        &mut self,
        uid: &str,
        deadline: Instant,
    ) -> Result<Option<Known>, NameError> {
        self.ask(deadline, async |client| client.pod(uid).await)
            .await
    }

    /// Everything every runtime knows: ids with their names.
    pub(super) async fn list(
        &mut self,
        deadline: Instant,
    ) -> Result<Vec<(String, Known)>, NameError> {
        let mut all = Vec::new();
        // "Not found" makes every socket answer.
        let asked = self
            .ask(deadline, async |client| {
                all.extend(client.list().await?);
                Ok(None::<()>)
            })
            .await;
        if all.is_empty() {
            asked?;
        }
        Ok(all)
    }

    /// Asks one runtime after the other until one knows. Each gets an equal share of the time
    /// that is left, so that one that hangs does not silence the others.
    async fn ask<T>(
        &mut self,
        deadline: Instant,
        mut question: impl AsyncFnMut(&mut Client) -> Result<Option<T>, Status>,
    ) -> Result<Option<T>, NameError> {
        let is_named = self.is_named;
        let mut present: Vec<&mut Socket> = self
            .sockets
            .iter_mut()
            .filter(|socket| is_named || socket.path.exists())
            .collect();
        let mut left = u32::try_from(present.len()).unwrap_or(u32::MAX);
        if left == 0 {
            return Err(NameError::NoCriSocket);
        }
        let mut failure = None;
        for socket in &mut present {
            let now = Instant::now();
            let share = deadline.saturating_duration_since(now) / left;
            left -= 1;
            match socket.ask(now + share, &mut question).await {
                Ok(Some(known)) => return Ok(Some(known)),
                Ok(None) => {}
                Err(detail) => failure = Some(NameError::CriUnreachable(detail)),
            }
        }
        failure.map_or(Ok(None), Err)
    }
}

struct Socket {
    path: PathBuf,
    client: Option<Client>,
    failures: u32,
    /// Until when it is left alone, and why.
    pause: Option<(Instant, String)>,
}

impl Socket {
    const fn new(path: PathBuf) -> Self {
        Self {
            path,
            client: None,
            failures: 0,
            pause: None,
        }
    }

    async fn ask<T>(
        &mut self,
        deadline: Instant,
        question: &mut impl AsyncFnMut(&mut Client) -> Result<Option<T>, Status>,
    ) -> Result<Option<T>, String> {
        let started = Instant::now();
        if let Some((until, why)) = &self.pause
            && started < *until
        {
            return Err(why.clone());
        }
        let path = &self.path;
        let old = self.client.take();
        let exchange = async {
            // A connection from before may be dead, as after a restart of the runtime.
            if let Some(mut client) = old
                && let Ok(answer) = question(&mut client).await
            {
                return Ok((client, answer));
            }
            let mut client = Client::connect(path).await?;
            let answer = question(&mut client).await.map_err(|status| {
                let text = if status.message().is_empty() {
                    status.code().description()
                } else {
                    status.message()
                };
                text.to_owned()
            })?;
            Ok::<_, String>((client, answer))
        };
        let mut patient = true;
        let result = timeout_at(deadline, exchange).await.unwrap_or_else(|_| {
            patient = started.elapsed() >= PATIENCE;
            let waited_ms = started.elapsed().as_millis();
            Err(format!("no answer within {waited_ms} ms"))
        });
        match result {
            Ok((client, answer)) => {
                self.client = Some(client);
                self.failures = 0;
                self.pause = None;
                Ok(answer)
            }
            Err(error) => {
                let detail: String = format!("{}: {error}", self.path.display())
                    .chars()
                    .take(MAX_DETAIL_CHARS)
                    .collect();
                if patient {
                    let pause = FIRST_PAUSE
                        .saturating_mul(1 << self.failures.min(6))
                        .min(LAST_PAUSE);
                    self.failures += 1;
                    self.pause = Some((Instant::now() + pause, detail.clone()));
                }
                Err(detail)
            }
        }
    }
}

/// A connection to one runtime.
struct Client {
    grpc: tonic::client::Grpc<Channel>,
    runtime: Option<Runtime>,
}

impl Client {
    async fn connect(path: &Path) -> Result<Self, String> {
        let path = path.to_owned();
        let dial = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://localhost")
            .connect_with_connector(dial)
            .await
            .map_err(|error| root_cause(&error))?;
        let mut client = Self {
            grpc: tonic::client::Grpc::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES),
            runtime: None,
        };
        // Also tells a CRI socket from any other.
        let version: VersionResponse = client
            .call("Version", VersionRequest::default())
            .await
            .map_err(|status| format!("not a CRI v1 runtime: {}", status.message()))?;
        client.runtime = match version.runtime_name.as_str() {
            "containerd" => Some(Runtime::Containerd),
            "cri-o" => Some(Runtime::CriO),
            "docker" => Some(Runtime::Docker),
            _ => None,
        };
        Ok(client)
    }

    async fn call<Q, A>(&mut self, method: &str, request: Q) -> Result<A, Status>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        self.grpc
            .ready()
            .await
            .map_err(|error| Status::unavailable(root_cause(&error)))?;
        let path = http_path(method)?;
        let codec = ProstCodec::<Q, A>::default();
        let answer = self.grpc.unary(Request::new(request), path, codec).await?;
        Ok(answer.into_inner())
    }

    async fn container(&mut self, id: &str) -> Result<Option<Known>, Status> {
        let request = ListContainersRequest {
            filter: Some(ContainerFilter { id: id.to_owned() }),
        };
        let found: Result<ListContainersResponse, _> = self.call("ListContainers", request).await;
        let containers = or_empty(found)?.containers;
        let Some(container) = containers.into_iter().find(|found| found.id == id) else {
            let sandbox = self.sandbox(id).await?;
            return Ok(sandbox.map(|sandbox| self.known_sandbox(sandbox)));
        };
        let sandbox_id = container.pod_sandbox_id.clone();
        let mut known = self.known_container(container);
        // Containers made by other clients than the kubelet lack its labels.
        if known.pod_name.is_none()
            && let Some(sandbox) = self.sandbox(&sandbox_id).await?
        {
            set_pod(&mut known, sandbox);
        }
        Ok(Some(known))
    }

    async fn sandbox(&mut self, id: &str) -> Result<Option<PodSandbox>, Status> {
        let filter = PodSandboxFilter {
            id: id.to_owned(),
            label_selector: BTreeMap::new(),
        };
        let items = self.sandboxes(Some(filter)).await?;
        Ok(items.into_iter().find(|found| found.id == id))
    }

    async fn pod(&mut self, uid: &str) -> Result<Option<Known>, Status> {
        let label = (POD_UID.to_owned(), uid.to_owned());
        let filter = PodSandboxFilter {
            id: String::new(),
            label_selector: BTreeMap::from([label]),
        };
        let items = self.sandboxes(Some(filter)).await?;
        let is_pod = |sandbox: &PodSandbox| {
            sandbox
                .metadata
                .as_ref()
                .is_some_and(|meta| meta.uid == uid)
        };
        let sandbox = items.into_iter().find(is_pod);
        // The question was about the pod, not about its sandbox.
        Ok(sandbox.map(|sandbox| Known {
            role: None,
            ..self.known_sandbox(sandbox)
        }))
    }

    async fn sandboxes(
        &mut self,
        filter: Option<PodSandboxFilter>,
    ) -> Result<Vec<PodSandbox>, Status> {
        let request = ListPodSandboxRequest { filter };
        let found: Result<ListPodSandboxResponse, _> = self.call("ListPodSandbox", request).await;
        Ok(or_empty(found)?.items)
    }

    async fn list(&mut self) -> Result<Vec<(String, Known)>, Status> {
        let sandboxes = self.sandboxes(None).await?;
        let request = ListContainersRequest { filter: None };
        let found: ListContainersResponse = self.call("ListContainers", request).await?;
        let mut all = Vec::with_capacity(sandboxes.len() + found.containers.len());
        for container in found.containers {
            let id = container.id.clone();
            let sandbox_id = container.pod_sandbox_id.clone();
            let mut known = self.known_container(container);
            let sandbox = sandboxes.iter().find(|sandbox| sandbox.id == sandbox_id);
            if let (None, Some(sandbox)) = (&known.pod_name, sandbox) {
                set_pod(&mut known, sandbox.clone());
            }
            all.push((id, known));
        }
        for sandbox in sandboxes {
            all.push((sandbox.id.clone(), self.known_sandbox(sandbox)));
        }
        Ok(all)
    }

    fn known_container(&self, mut container: Container) -> Known {
        let mut label = |key| {
            container
                .labels
                .remove(key)
                .filter(|value| !value.is_empty())
        };
        let mut known = Known {
            pod_name: label(POD_NAME),
            namespace: label(POD_NAMESPACE),
            pod_uid: label(POD_UID),
            container_name: label(CONTAINER_NAME),
            runtime: self.runtime,
            ..Known::by(Source::Cri)
        };
        if let Some(meta) = container.metadata {
            known.restart_count = Some(meta.attempt);
            known.container_name = known.container_name.or(Some(meta.name));
        }
        known.image = container
            .image
            .map(|spec| spec.image)
            .filter(|image| !image.is_empty());
        known
    }

    fn known_sandbox(&self, sandbox: PodSandbox) -> Known {
        let mut known = Known {
            runtime: self.runtime,
            role: Some(Role::Sandbox),
            ..Known::by(Source::Cri)
        };
        set_pod(&mut known, sandbox);
        known
    }
}

const POD_NAME: &str = "io.kubernetes.pod.name";
const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
const POD_UID: &str = "io.kubernetes.pod.uid";
const CONTAINER_NAME: &str = "io.kubernetes.container.name";

fn set_pod(known: &mut Known, sandbox: PodSandbox) {
    if let Some(meta) = sandbox.metadata {
        known.pod_name = Some(meta.name);
        known.namespace = Some(meta.namespace);
        known.pod_uid = Some(meta.uid);
    }
}

/// Some runtimes say "not found" where others return an empty list.
fn or_empty<T: Default>(found: Result<T, Status>) -> Result<T, Status> {
    match found {
        Err(status) if status.code() == Code::NotFound => Ok(T::default()),
        other => other,
    }
}

fn http_path(method: &str) -> Result<tonic::codegen::http::uri::PathAndQuery, Status> {
    format!("/runtime.v1.RuntimeService/{method}")
        .parse()
        .map_err(|error| Status::internal(format!("{error}")))
}

/// The innermost error: the outer ones only say "transport error".
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    match cause.downcast_ref::<io::Error>() {
        Some(io) => io.to_string(),
        None => cause.to_string(),
    }
}
