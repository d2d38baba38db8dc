//! A pod made over CRI with the names, labels, cgroups, scores and logs that the kubelet gives it
//! (kubernetes: pkg/kubelet/kuberuntime, pkg/kubelet/cm, pkg/kubelet/qos).

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Containerd;
use super::cgroup::PodCgroup;
use super::cri::{ContainerStatus, Cri, ExecOutput};
use super::image::IMAGE;
use super::logs::PodLogs;
use super::proto::{
    Capability, ContainerConfig, ContainerMetadata, ContainerState, ImageSpec,
    LinuxContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext,
    LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption,
    PodSandboxConfig, PodSandboxMetadata,
};
use crate::deadline::{soon, until};
use crate::meminfo;

/// Period of the CPU bandwidth controller, microseconds: the kubelet's default.
const CPU_PERIOD_US: i64 = 100_000;

/// Whose process namespace a pod's containers see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PidNamespace {
    /// Each container its own: the kubelet's default.
    #[default]
    Container,
    /// One for the pod (`shareProcessNamespace`).
    Pod,
    /// The node's (`hostPID`).
    Node,
}

/// A container of a pod's specification.
#[derive(Clone, Debug, Default)]
pub struct ContainerSpec {
    name: String,
    command: Vec<String>,
    memory_request_bytes: Option<u64>,
    memory_limit_bytes: Option<u64>,
    cpu_limit_millis: Option<u32>,
    capabilities: Vec<String>,
}

impl ContainerSpec {
    /// A container that runs `command`, without requests or limits.
    pub fn new(name: &str, command: &[&str]) -> Self {
        Self {
            name: name.into(),
            command: command.iter().map(ToString::to_string).collect(),
            ..Self::default()
        }
    }

    /// Requests memory. A container with a limit and no request requests its limit.
    #[must_use]
    pub fn memory_request_bytes(mut self, bytes: u64) -> Self {
        self.memory_request_bytes = Some(bytes);
        self
    }

    /// Limits memory.
    #[must_use]
    pub fn memory_limit_bytes(mut self, bytes: u64) -> Self {
        self.memory_limit_bytes = Some(bytes);
        self
    }

    /// Limits (and requests) CPU time, in thousandths of a CPU.
    #[must_use]
    pub fn cpu_limit_millis(mut self, millis: u32) -> Self {
        self.cpu_limit_millis = Some(millis);
        self
    }

    /// Gives it a capability beside those that all containers have, as `NET_ADMIN`.
    #[must_use]
    pub fn capability(mut self, name: &str) -> Self {
        self.capabilities.push(name.into());
        self
    }

    fn request_bytes(&self) -> Option<u64> {
        self.memory_request_bytes.or(self.memory_limit_bytes)
    }
}

/// Quality-of-service class, by Kubernetes' rules over all containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl Qos {
    fn of(containers: &[ContainerSpec]) -> Self {
        let guaranteed = containers.iter().all(|one| {
            one.cpu_limit_millis.is_some()
                && one.memory_limit_bytes.is_some()
                && one.request_bytes() == one.memory_limit_bytes
        });
        let nothing_asked = containers
            .iter()
            .all(|one| one.cpu_limit_millis.is_none() && one.request_bytes().is_none());
        if nothing_asked {
            Self::BestEffort
        } else if guaranteed {
            Self::Guaranteed
        } else {
            Self::Burstable
        }
    }

    fn parent_cgroup(self) -> &'static str {
        match self {
            Self::Guaranteed => "/kubepods",
            Self::Burstable => "/kubepods/burstable",
            Self::BestEffort => "/kubepods/besteffort",
        }
    }

    /// As pkg/kubelet/qos/policy.go: a burstable container is the safer the more it requests.
    fn oom_score_adj(self, container: &ContainerSpec, node_memory_bytes: u64) -> i64 {
        match self {
            Self::Guaranteed => -997,
            Self::BestEffort => 1000,
            Self::Burstable => {
                let requested = container.request_bytes().unwrap_or(0);
                let permille = u128::from(requested) * 1000 / u128::from(node_memory_bytes.max(1));
                (1000 - i64::try_from(permille).unwrap_or(1000)).clamp(3, 999)
            }
        }
    }
}

/// What a pod is to be, before it runs.
#[derive(Clone, Debug)]
pub struct PodSpec {
    namespace: String,
    name: String,
    containers: Vec<ContainerSpec>,
    pid_namespace: PidNamespace,
    log_root: PathBuf,
}

impl PodSpec {
    /// A pod without containers.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            containers: Vec::new(),
            pid_namespace: PidNamespace::default(),
            log_root: "/var/log".into(),
        }
    }

    /// Adds a container. All of them together decide the QoS class and the pod's own limit.
    #[must_use]
    pub fn container(mut self, container: ContainerSpec) -> Self {
        self.containers.push(container);
        self
    }

    /// Shares process namespaces otherwise than by default.
    #[must_use]
    pub fn pid_namespace(mut self, shared: PidNamespace) -> Self {
        self.pid_namespace = shared;
        self
    }

    /// Where `pods/` and `containers/` are, instead of `/var/log`.
    #[must_use]
    pub fn log_root(mut self, root: &Path) -> Self {
        self.log_root = root.into();
        self
    }

    fn container_named(&self, name: &str) -> Result<&ContainerSpec> {
        let container = self.containers.iter().find(|one| one.name == name);
        container.with_context(|| format!("no container {name} in the pod's specification"))
    }

    /// Runs the sandbox. Containers start one by one with [`Pod::start`].
    pub fn run(self, containerd: &Containerd) -> Result<Pod> {
        ensure!(!self.containers.is_empty(), "a pod needs a container");
        let uid = fs::read_to_string("/proc/sys/kernel/random/uuid")?
            .trim()
            .to_owned();
        let qos = Qos::of(&self.containers);
        // The kubelet limits the pod only if every container has a limit.
        let limit_bytes = self
            .containers
            .iter()
            .map(|one| one.memory_limit_bytes)
            .sum();
        let cgroup = PodCgroup::create(format!("{}/pod{uid}", qos.parent_cgroup()), limit_bytes)?;
        let logs = PodLogs::create(&self.log_root, &self.namespace, &self.name, &uid)?;

        let mut pod = Pod {
            cri: containerd.cri(),
            sandbox_id: None,
            sandbox: PodSandboxConfig {
                metadata: Some(PodSandboxMetadata {
                    name: self.name.clone(),
                    uid: uid.clone(),
                    namespace: self.namespace.clone(),
                    attempt: 0,
                }),
                log_directory: logs.directory().to_string_lossy().into_owned(),
                labels: HashMap::new(),
                annotations: HashMap::from([("kubernetes.io/config.source".into(), "api".into())]),
                linux: Some(LinuxPodSandboxConfig {
                    cgroup_parent: cgroup.path().into(),
                    security_context: Some(LinuxSandboxSecurityContext {
                        namespace_options: Some(self.namespaces()),
                    }),
                }),
            },
            qos,
            attempts: HashMap::new(),
            spec: self,
            uid,
            logs,
            cgroup,
        };
        pod.sandbox.labels = pod.labels();
        pod.sandbox_id = Some(pod.cri.run_pod_sandbox(pod.sandbox.clone())?);
        Ok(pod)
    }

    /// The host's network needs no CNI plugin.
    fn namespaces(&self) -> NamespaceOption {
        let pid = match self.pid_namespace {
            PidNamespace::Container => NamespaceMode::Container,
            PidNamespace::Pod => NamespaceMode::Pod,
            PidNamespace::Node => NamespaceMode::Node,
        };
        NamespaceOption {
            network: NamespaceMode::Node.into(),
            pid: pid.into(),
            ipc: NamespaceMode::Pod.into(),
        }
    }
}

/// A running pod. Dropping it deletes it: containers, sandbox, logs, cgroups.
pub struct Pod {
    cri: Arc<Cri>,
    spec: PodSpec,
    uid: String,
    qos: Qos,
    sandbox: PodSandboxConfig,
    sandbox_id: Option<String>,
    /// How often each container, by name, was started.
    attempts: HashMap<String, u32>,
    logs: PodLogs,
    cgroup: PodCgroup,
}

impl Pod {
    /// The pod's UID.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// Path of the pod's cgroup, as the kernel prints it.
    pub fn cgroup_path(&self) -> &str {
        self.cgroup.path()
    }

    /// Memory that is charged to it, kernel memory included.
    pub fn memory_bytes(&self) -> Result<u64> {
        self.cgroup.memory_bytes()
    }

    /// Creates and starts a container of the specification, once more if it ran before: the next
    /// attempt in the same sandbox is how the kubelet restarts a container.
    pub fn start(&mut self, name: &str) -> Result<Container> {
        let command = self.spec.container_named(name)?.command.clone();
        self.start_command(name, command)
    }

    /// The same with another command: a program that does something else each time.
    pub fn start_as(&mut self, name: &str, command: &[&str]) -> Result<Container> {
        self.start_command(name, command.iter().map(ToString::to_string).collect())
    }

    fn start_command(&mut self, name: &str, command: Vec<String>) -> Result<Container> {
        let spec = self.spec.container_named(name)?;
        let attempt = self.attempts.get(name).copied().unwrap_or(0);
        let log_path = self.logs.prepare(name, attempt)?;

        let mut config = self.container_config(spec, attempt, log_path.clone())?;
        config.command = command;
        let sandbox_id = self
            .sandbox_id
            .as_deref()
            .context("the pod has no sandbox")?;
        let id = self
            .cri
            .create_container(sandbox_id, config, self.sandbox.clone())?;
        self.attempts.insert(name.into(), attempt + 1);
        self.cri.start_container(&id)?;
        let PodSpec {
            namespace,
            name: pod,
            ..
        } = &self.spec;
        self.logs
            .link(&format!("{pod}_{namespace}_{name}-{id}"), &log_path)?;
        Ok(Container {
            cri: self.cri.clone(),
            cgroup_path: format!("{}/{id}", self.cgroup.path()),
            log: self.logs.directory().join(log_path),
            id,
        })
    }

    /// Stops the sandbox, as the kubelet does once it has stopped the containers of a pod that is to
    /// go.
    pub fn stop(&self) -> Result<()> {
        let id = self
            .sandbox_id
            .as_deref()
            .context("the pod has no sandbox")?;
        self.cri.stop_pod_sandbox(id)
    }

    /// Removes the sandbox while its containers run, which ends them at once.
    pub fn remove_running(mut self) -> Result<()> {
        let id = self.sandbox_id.take().context("the pod has no sandbox")?;
        self.cri.remove_pod_sandbox(&id)
    }

    /// Deletes the pod and every trace of it on the node.
    pub fn delete(mut self) -> Result<()> {
        self.remove_sandbox()
    }

    fn remove_sandbox(&mut self) -> Result<()> {
        if let Some(id) = self.sandbox_id.take() {
            self.cri.stop_pod_sandbox(&id)?;
            self.cri.remove_pod_sandbox(&id)?;
        }
        Ok(())
    }

    fn labels(&self) -> HashMap<String, String> {
        HashMap::from([
            ("io.kubernetes.pod.name".into(), self.spec.name.clone()),
            (
                "io.kubernetes.pod.namespace".into(),
                self.spec.namespace.clone(),
            ),
            ("io.kubernetes.pod.uid".into(), self.uid.clone()),
        ])
    }

    fn container_config(
        &self,
        spec: &ContainerSpec,
        attempt: u32,
        log_path: String,
    ) -> Result<ContainerConfig> {
        let mut labels = self.labels();
        labels.insert("io.kubernetes.container.name".into(), spec.name.clone());
        let mut resources = LinuxContainerResources {
            oom_score_adj: self.qos.oom_score_adj(spec, meminfo::bytes("MemTotal")?),
            ..LinuxContainerResources::default()
        };
        if let Some(bytes) = spec.memory_limit_bytes {
            resources.memory_limit_in_bytes = i64::try_from(bytes)?;
        }
        if let Some(millis) = spec.cpu_limit_millis {
            resources.cpu_period = CPU_PERIOD_US;
            resources.cpu_quota = i64::from(millis) * CPU_PERIOD_US / 1000;
        }
        Ok(ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: spec.name.clone(),
                attempt,
            }),
            image: Some(ImageSpec {
                image: IMAGE.into(),
            }),
            command: Vec::new(),
            labels,
            annotations: HashMap::from([
                (
                    "io.kubernetes.container.restartCount".into(),
                    attempt.to_string(),
                ),
                (
                    "io.kubernetes.pod.terminationGracePeriod".into(),
                    "30".into(),
                ),
            ]),
            log_path,
            linux: Some(LinuxContainerConfig {
                resources: Some(resources),
                security_context: Some(LinuxContainerSecurityContext {
                    capabilities: Some(Capability {
                        add_capabilities: spec.capabilities.clone(),
                    }),
                    namespace_options: Some(self.spec.namespaces()),
                }),
            }),
        })
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if let Err(error) = self.remove_sandbox() {
            eprintln!("cannot remove pod {}: {error:#}", self.spec.name);
        }
    }
}

/// A container of a running pod.
pub struct Container {
    cri: Arc<Cri>,
    id: String,
    cgroup_path: String,
    log: PathBuf,
}

impl Container {
    /// Its id, 64 hex digits.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Path of its cgroup, as the kernel prints it.
    pub fn cgroup_path(&self) -> &str {
        &self.cgroup_path
    }

    /// What the runtime says of it.
    pub fn status(&self) -> Result<ContainerStatus> {
        self.cri.container_status(&self.id)
    }

    /// Waits until it has written `text`. Only then its program surely runs: the runtime calls a
    /// container started while runc is about to execute that program.
    pub fn wait_output(&self, text: &str) -> Result<()> {
        until(
            soon(),
            &format!("{text:?} from container {}", self.id),
            || {
                let log = fs::read_to_string(&self.log).unwrap_or_default();
                Ok(log.contains(text).then_some(()))
            },
        )
    }

    /// Waits for its end; says what the runtime says then.
    pub fn wait_exited(&self) -> Result<ContainerStatus> {
        until(soon(), &format!("end of container {}", self.id), || {
            let status = self.status()?;
            Ok((status.state == ContainerState::Exited).then_some(status))
        })
    }

    /// Runs a command in it, to its end.
    pub fn exec(&self, command: &[&str]) -> Result<ExecOutput> {
        self.cri.exec_sync(&self.id, command, Duration::ZERO)
    }

    /// Runs a command in it as the kubelet runs an exec probe: it is killed, and this fails, after
    /// `timeout` (whole seconds).
    pub fn probe(&self, command: &[&str], timeout: Duration) -> Result<ExecOutput> {
        self.cri.exec_sync(&self.id, command, timeout)
    }

    /// SIGTERM, then SIGKILL after `grace` (whole seconds).
    pub fn stop(&self, grace: Duration) -> Result<()> {
        self.cri.stop_container(&self.id, grace)
    }

    /// Makes the runtime forget it.
    pub fn remove(self) -> Result<()> {
        self.cri.remove_container(&self.id)
    }
}
