//! What a cgroup path claims about its owner.

use serde::Serialize;

macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
        pub enum $name {
            $($(#[$vdoc])* #[serde(rename = $text)] $variant,)*
        }

        impl $name {
            /// The name as events print it.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

named! {
    /// Who arranged the cgroup.
    Orchestrator {
        /// The kubelet, or a CRI runtime on its behalf.
        Kubernetes = "kubernetes",
        /// Docker without Kubernetes.
        Docker = "docker",
        /// Podman.
        Podman = "podman",
        /// nerdctl with the systemd driver.
        Nerdctl = "nerdctl",
        /// Amazon ECS, Fargate included.
        Ecs = "ecs",
        /// HashiCorp Nomad.
        Nomad = "nomad",
        /// LXC, LXD, Incus, Proxmox.
        Lxc = "lxc",
        /// systemd-nspawn.
        Nspawn = "nspawn",
        /// libvirt (QEMU).
        Libvirt = "libvirt",
        /// Cloud Foundry Garden.
        Garden = "garden",
        /// Apache Mesos.
        Mesos = "mesos",
        /// Kata Containers outside a pod.
        Kata = "kata",
        /// A container whose engine the path does not tell.
        Unknown = "unknown",
        /// A plain unit of systemd.
        Systemd = "systemd",
        /// Nothing recognisable.
        None = "none",
    }
}

named! {
    /// The container runtime, where the path names it.
    Runtime {
        /// containerd, through its CRI plugin or nerdctl.
        Containerd = "containerd",
        /// CRI-O.
        CriO = "cri-o",
        /// Docker, or cri-dockerd.
        Docker = "docker",
        /// Podman.
        Podman = "podman",
    }
}

named! {
    /// Kubernetes quality of service class.
    Qos {
        /// Limits equal requests.
        Guaranteed = "guaranteed",
        /// Some request or limit.
        Burstable = "burstable",
        /// No request, no limit.
        BestEffort = "besteffort",
    }
}

named! {
    /// What a cgroup is for when it is not an application container.
    Role {
        /// The runtime's monitor of a container (CRI-O, Podman).
        Conmon = "conmon",
        /// A pod sandbox: the pause container or a virtual machine monitor.
        Sandbox = "sandbox",
        /// The monitor of an LXC container.
        Monitor = "monitor",
    }
}

/// Identity read from cgroup names alone.
///
/// A claim, not a proof: whoever may create cgroups chooses their names. Serialises to the five
/// base keys (null where unknown) and further keys only where they apply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Claim {
    /// Who arranged the cgroup.
    pub orchestrator: Orchestrator,
    /// Runtime, where a name prefix tells it.
    pub runtime: Option<Runtime>,
    /// Pod UID: a dashed UUID, or the 32 hex digits of a static pod's configuration hash.
    pub pod_uid: Option<String>,
    /// Container id as the runtime writes it, or the name of a system container.
    pub container_id: Option<String>,
    /// QoS class, where the visible path tells it.
    pub qos: Option<Qos>,
    /// Set for cgroups that are not application containers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// False where an unprivileged user may have made up these names.
    #[serde(skip_serializing_if = "is_true")]
    pub trusted: bool,
    /// Outermost container around the claimed one, such as the node container of kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outer_container_id: Option<String>,
    /// Innermost container below the claimed one, such as docker in a pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inner_container_id: Option<String>,
    /// Innermost pod below the claimed one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inner_pod_uid: Option<String>,
    /// Nomad allocation id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nomad_alloc: Option<String>,
    /// Nomad task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nomad_task: Option<String>,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature serde calls"
)]
const fn is_true(value: &bool) -> bool {
    *value
}

impl Claim {
    /// A cgroup of `orchestrator` of which nothing else is known.
    pub const fn of(orchestrator: Orchestrator) -> Self {
        Self {
            orchestrator,
            runtime: None,
            pod_uid: None,
            container_id: None,
            qos: None,
            role: None,
            trusted: true,
            outer_container_id: None,
            inner_container_id: None,
            inner_pod_uid: None,
            nomad_alloc: None,
            nomad_task: None,
        }
    }
}
