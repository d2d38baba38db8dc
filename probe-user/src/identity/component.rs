//! What one directory name of a cgroup path is, given the names above it.
//!
//! Whole names only: 64 hex digits inside a longer name (`….mount`, `<id>.service`) are no id.

use super::claim::{Orchestrator, Qos, Role, Runtime};

/// The names from the root of the view down to the one in question.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    /// Names above, root first.
    pub(super) above: &'a [&'a [u8]],
    /// True if directories above the first name are hidden (cgroup namespace, cut record).
    pub(super) hidden_root: bool,
    /// True if the name directly above is a pod.
    pub(super) in_pod: bool,
}

impl<'a> Context<'a> {
    /// Name `levels` above, 1 being the parent.
    fn up(&self, levels: usize) -> Option<&'a [u8]> {
        let index = self.above.len().checked_sub(levels)?;
        self.above.get(index).copied()
    }

    fn parent_is(&self, name: &[u8]) -> bool {
        self.up(1) == Some(name)
    }
}

/// A name that says something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// A pod's cgroup.
    Pod {
        uid: String,
        qos: Option<Qos>,
        /// The container, where runtime and kubelet disagree about the cgroup driver and one
        /// directory carries both.
        container: Option<Container>,
    },
    /// Looks like a pod but stands where the kubelet never puts one.
    MisplacedPod,
    /// The kubelet's own levels above pods.
    Kubepods { qos: Option<Qos> },
    /// A container.
    Container(Container),
    /// A container's monitor process.
    Monitor {
        orchestrator: Orchestrator,
        runtime: Option<Runtime>,
        role: Role,
    },
    /// A Nomad task.
    Nomad { alloc: String, task: String },
    /// Belongs to an orchestrator, with no container of its own.
    Owned(Orchestrator),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Container {
    pub(super) id: String,
    pub(super) orchestrator: Orchestrator,
    pub(super) runtime: Option<Runtime>,
    pub(super) role: Option<Role>,
    /// A machine-like container (LXC, nspawn) known by its name, not by an engine's id.
    pub(super) system: bool,
}

impl Container {
    fn engine(id: &[u8], orchestrator: Orchestrator, runtime: Option<Runtime>) -> Self {
        Self {
            id: text(id),
            orchestrator,
            runtime,
            role: None,
            system: false,
        }
    }

    fn system(name: &[u8], orchestrator: Orchestrator) -> Self {
        Self {
            system: true,
            ..Self::engine(name, orchestrator, None)
        }
    }
}

type Grammar = fn(&[u8], Context<'_>) -> Option<Part>;

/// Tried in order; the first that recognises a name decides.
const GRAMMARS: [Grammar; 9] = [
    kubelet_slice,
    kubelet_directory,
    machine,
    ecs,
    nomad,
    kata,
    monitor,
    prefixed_container,
    bare_container,
];

/// What `name` is below `context`.
pub(super) fn classify(name: &[u8], context: Context<'_>) -> Option<Part> {
    GRAMMARS.iter().find_map(|grammar| grammar(name, context))
}

/// True for a name systemd gives to a unit's cgroup.
pub(super) fn is_unit(name: &[u8]) -> bool {
    const SUFFIXES: [&[u8]; 6] = [
        b".slice",
        b".scope",
        b".service",
        b".mount",
        b".swap",
        b".socket",
    ];
    SUFFIXES
        .iter()
        .any(|suffix| name.len() > suffix.len() && name.ends_with(suffix))
}

/// Splits `[<root>-]kubepods[-<qos>]` into the length of its `kubepods` part and its QoS class.
fn kubepods_slice(stem: &[u8]) -> Option<(usize, Option<Qos>)> {
    let (base, qos) = if let Some(base) = stem.strip_suffix(b"-burstable") {
        (base, Some(Qos::Burstable))
    } else if let Some(base) = stem.strip_suffix(b"-besteffort") {
        (base, Some(Qos::BestEffort))
    } else {
        (stem, None)
    };
    let root = base.strip_suffix(b"kubepods")?;
    (root.is_empty() || root.ends_with(b"-")).then_some((base.len(), qos))
}

/// systemd driver: `kubepods-burstable-pod<uid>.slice` and the slices above it.
fn kubelet_slice(name: &[u8], context: Context<'_>) -> Option<Part> {
    let is_slice_of = |parent: &[u8], stem: &[u8]| parent.strip_suffix(b".slice") == Some(stem);
    // systemd places `a-b.slice` in `a.slice`, always.
    let chained = |stem: &[u8]| context.up(1).is_none_or(|parent| is_slice_of(parent, stem));

    let (unit, container) = match name.iter().position(|byte| *byte == b':') {
        Some(colon) => (&name[..colon], Some(colon_container(&name[colon + 1..])?)),
        None => (name, None),
    };
    let stem = unit.strip_suffix(b".slice").unwrap_or(unit);
    if let Some((prefix, uid)) = split_pod_uid(stem) {
        let (_, qos) = kubepods_slice(prefix)?;
        if container.is_none() && !chained(prefix) {
            return Some(Part::MisplacedPod);
        }
        let qos = Some(qos.unwrap_or(Qos::Guaranteed));
        return Some(Part::Pod {
            uid,
            qos,
            container,
        });
    }
    if container.is_some() || stem.len() == unit.len() {
        return None;
    }
    let (base_len, qos) = kubepods_slice(stem)?;
    Some(Part::Kubepods {
        qos: qos.filter(|_| chained(&stem[..base_len])),
    })
}

/// `<prefix>-pod<uid>` → prefix and UID.
fn split_pod_uid(stem: &[u8]) -> Option<(&[u8], String)> {
    [36, 32].into_iter().find_map(|len| {
        let (head, uid) = stem.split_at_checked(stem.len().checked_sub(len)?)?;
        Some((head.strip_suffix(b"-pod")?, pod_uid(uid)?))
    })
}

/// `cri-containerd:<id>`: runc taking systemd's `slice:prefix:name` for a directory name.
fn colon_container(rest: &[u8]) -> Option<Container> {
    let colon = rest.iter().position(|byte| *byte == b':')?;
    let runtime = match &rest[..colon] {
        b"cri-containerd" => Runtime::Containerd,
        b"crio" => Runtime::CriO,
        b"docker" => Runtime::Docker,
        _ => return None,
    };
    let id = &rest[colon + 1..];
    is_hex(id, 64).then(|| Container::engine(id, Orchestrator::Kubernetes, Some(runtime)))
}

/// cgroupfs driver: `kubepods/burstable/pod<uid>`.
fn kubelet_directory(name: &[u8], context: Context<'_>) -> Option<Part> {
    let qos_named = |name: &[u8]| match name {
        b"burstable" => Some(Qos::Burstable),
        b"besteffort" => Some(Qos::BestEffort),
        _ => None,
    };
    if name == b"kubepods" {
        return Some(Part::Kubepods { qos: None });
    }
    if context.parent_is(b"kubepods")
        && let Some(qos) = qos_named(name)
    {
        return Some(Part::Kubepods { qos: Some(qos) });
    }
    let uid = pod_uid(name.strip_prefix(b"pod")?)?;
    let qos = match (context.up(1), context.up(2)) {
        (None, _) if context.hidden_root => None,
        (Some(b"kubepods"), _) => Some(Qos::Guaranteed),
        (Some(class), above)
            if qos_named(class).is_some()
                && above.map_or(context.hidden_root, |name| name == b"kubepods") =>
        {
            qos_named(class)
        }
        _ => return Some(Part::MisplacedPod),
    };
    Some(Part::Pod {
        uid,
        qos,
        container: None,
    })
}

/// System containers and virtual machines: LXC, nspawn, libvirt, Garden, Mesos.
fn machine(name: &[u8], context: Context<'_>) -> Option<Part> {
    use Orchestrator::{Garden, Libvirt, Lxc, Mesos, Nspawn};
    let system =
        |name: &[u8], orchestrator| Some(Part::Container(Container::system(name, orchestrator)));

    if let Some(guest) = name.strip_prefix(b"lxc.payload.") {
        return system(guest, Lxc);
    }
    if name.starts_with(b"lxc.monitor.") {
        return Some(Part::Monitor {
            orchestrator: Lxc,
            runtime: None,
            role: Role::Monitor,
        });
    }
    if name.ends_with(b".libvirt-qemu") {
        return Some(Part::Owned(Libvirt));
    }
    match context.up(1)? {
        b"lxc" => system(name, Lxc),
        b"mesos" if is_uuid(name) => system(name, Mesos),
        b"garden" if is_groups(name, &[8, 4, 4, 4, 4]) => system(name, Garden),
        b"good" | b"bad"
            if context.up(2) == Some(b"garden") && is_groups(name, &[8, 4, 4, 4, 4]) =>
        {
            system(name, Garden)
        }
        b"machine.slice" => {
            if name.starts_with(br"machine-qemu\x2d") {
                return Some(Part::Owned(Libvirt));
            }
            if name.starts_with(br"machine-lxc\x2d") {
                return Some(Part::Owned(Lxc));
            }
            let service = name.strip_suffix(b".service");
            let guest = service
                .and_then(|unit| unit.strip_prefix(b"systemd-nspawn@"))
                .or_else(|| {
                    service
                        .or_else(|| name.strip_suffix(b".scope"))?
                        .strip_prefix(b"machine-")
                })?;
            system(&unescape_unit(guest), Nspawn)
        }
        _ => None,
    }
}

/// Amazon ECS: `/ecs/<task>/<id>` and `ecstasks-<task>.slice`.
fn ecs(name: &[u8], context: Context<'_>) -> Option<Part> {
    let is_task = |name: &[u8]| is_hex(name, 32) || is_uuid(name);
    let task_slice = name
        .strip_prefix(b"ecstasks-")
        .and_then(|rest| rest.strip_suffix(b".slice"));
    if context.parent_is(b"ecstasks.slice") && task_slice.is_some_and(is_task)
        || context.parent_is(b"ecs") && is_task(name)
    {
        return Some(Part::Owned(Orchestrator::Ecs));
    }
    if context.up(2) != Some(b"ecs") || !context.up(1).is_some_and(is_task) {
        return None;
    }
    // Fargate names a container after its task.
    let (task, serial) = name.split_at_checked(32)?;
    let serial = serial.strip_prefix(b"-")?;
    let fargate = is_hex(task, 32) && !serial.is_empty() && serial.iter().all(u8::is_ascii_digit);
    fargate.then(|| Part::Container(Container::engine(name, Orchestrator::Ecs, None)))
}

/// Nomad: `<allocation>.<task>[.scope]` below `nomad[.slice]`, also by way of `share`/`reserve`.
fn nomad(name: &[u8], context: Context<'_>) -> Option<Part> {
    let is_root = |name: Option<&[u8]>| matches!(name, Some(b"nomad" | b"nomad.slice"));
    let partition = matches!(
        context.up(1),
        Some(b"share" | b"reserve" | b"share.slice" | b"reserve.slice")
    );
    let in_nomad = is_root(context.up(1)) || partition && is_root(context.up(2));
    if !in_nomad {
        return None;
    }
    let (alloc, rest) = name.split_at_checked(36)?;
    let task = rest.strip_prefix(b".")?;
    let task = task.strip_suffix(b".scope").unwrap_or(task);
    (is_uuid(alloc) && !task.is_empty()).then(|| Part::Nomad {
        alloc: text(alloc),
        task: text(task),
    })
}

/// Kata: the virtual machine monitor of a sandbox; the application is not visible to the host.
fn kata(name: &[u8], context: Context<'_>) -> Option<Part> {
    let id = if context.parent_is(b"kata_overhead") {
        Some(name)
    } else {
        name.strip_prefix(b"kata_")
            .or_else(|| name.strip_prefix(b"kata-overhead.slice:runtime-rs:"))
    };
    let id = id.filter(|id| is_hex(id, 64))?;
    let container = Container::engine(id, Orchestrator::Kata, None);
    Some(Part::Container(Container {
        role: Some(Role::Sandbox),
        ..container
    }))
}

/// conmon, the process that waits for a container of CRI-O or Podman.
fn monitor(name: &[u8], _: Context<'_>) -> Option<Part> {
    let stem = name.strip_suffix(b".scope").unwrap_or(name);
    let (prefix, _) = split_hex_id(stem)?;
    let (orchestrator, runtime) = match prefix {
        b"crio-conmon-" => (Orchestrator::Kubernetes, Runtime::CriO),
        b"libpod-conmon-" => (Orchestrator::Podman, Runtime::Podman),
        _ => return None,
    };
    Some(Part::Monitor {
        orchestrator,
        runtime: Some(runtime),
        role: Role::Conmon,
    })
}

/// `<runtime>-<64 hex>[.scope]`.
fn prefixed_container(name: &[u8], context: Context<'_>) -> Option<Part> {
    let scope = name.strip_suffix(b".scope");
    let (prefix, id) = split_hex_id(scope.unwrap_or(name))?;
    let (orchestrator, runtime) = match prefix {
        b"cri-containerd-" => (Orchestrator::Kubernetes, Runtime::Containerd),
        b"crio-" => (Orchestrator::Kubernetes, Runtime::CriO),
        b"docker-" => (Orchestrator::Docker, Runtime::Docker),
        b"libpod-" | b"libpod-payload-" => (Orchestrator::Podman, Runtime::Podman),
        b"nerdctl-" => (Orchestrator::Nerdctl, Runtime::Containerd),
        _ => return None,
    };
    let orchestrator = if orchestrator == Orchestrator::Docker && in_ecs(context) {
        Orchestrator::Ecs
    } else {
        orchestrator
    };
    let mut container = Container::engine(id, orchestrator, Some(runtime));
    // Below a slice CRI-O's containers are scopes; the sandbox without a pause container is not.
    let pod_slice = context.in_pod && context.up(1).is_some_and(|name| name.ends_with(b".slice"));
    if runtime == Runtime::CriO && scope.is_none() && pod_slice {
        container.role = Some(Role::Sandbox);
    }
    Some(Part::Container(container))
}

/// Directories named by nothing but an id, whose engine only the parent can tell.
fn bare_container(name: &[u8], context: Context<'_>) -> Option<Part> {
    use Orchestrator::{Docker, Ecs, Kubernetes, Podman, Unknown};
    let engine = |orchestrator, runtime| {
        Some(Part::Container(Container::engine(
            name,
            orchestrator,
            runtime,
        )))
    };
    let buildkit = context.parent_is(b"buildkit") && context.up(2) == Some(b"docker");
    if buildkit && name.len() == 25 && name.iter().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9')) {
        return engine(Docker, Some(Runtime::Docker));
    }
    if context.in_pod && is_uuid(name) {
        return engine(Unknown, None);
    }
    let podman_pod = name
        .strip_suffix(b".slice")
        .and_then(split_hex_id)
        .is_some_and(|(prefix, _)| prefix.ends_with(b"libpod_pod_"));
    if podman_pod {
        return Some(Part::Owned(Podman));
    }
    if !is_hex(name, 64) {
        return None;
    }
    if in_ecs(context) {
        return engine(Ecs, Some(Runtime::Docker));
    }
    match context.up(1) {
        Some(b"docker" | b"actions_job") => engine(Docker, Some(Runtime::Docker)),
        Some(b"k8s.io") => engine(Kubernetes, Some(Runtime::Containerd)),
        // Podman's cgroupfs driver keeps pods, not containers, under bare ids.
        Some(b"libpod_parent") => Some(Part::Owned(Podman)),
        _ => engine(Unknown, None),
    }
}

fn in_ecs(context: Context<'_>) -> bool {
    context
        .above
        .iter()
        .any(|name| matches!(*name, b"ecs" | b"ecstasks.slice"))
}

/// `<prefix><64 hex>` → prefix and id.
fn split_hex_id(stem: &[u8]) -> Option<(&[u8], &[u8])> {
    let (prefix, id) = stem.split_at_checked(stem.len().checked_sub(64)?)?;
    is_hex(id, 64).then_some((prefix, id))
}

/// A pod UID in the API's spelling. systemd's escape turned `-` into `_`.
fn pod_uid(bytes: &[u8]) -> Option<String> {
    if is_hex(bytes, 32) {
        return Some(text(bytes));
    }
    let dashed: Vec<u8> = bytes
        .iter()
        .map(|byte| if *byte == b'_' { b'-' } else { *byte })
        .collect();
    is_uuid(&dashed).then(|| text(&dashed))
}

fn is_hex(bytes: &[u8], len: usize) -> bool {
    bytes.len() == len && bytes.iter().all(u8::is_ascii_hexdigit)
}

fn is_uuid(bytes: &[u8]) -> bool {
    is_groups(bytes, &[8, 4, 4, 4, 12])
}

/// Groups of hex digits of these lengths, joined by `-`.
fn is_groups(bytes: &[u8], lengths: &[usize]) -> bool {
    let mut groups = bytes.split(|byte| *byte == b'-');
    lengths
        .iter()
        .all(|len| groups.next().is_some_and(|group| is_hex(group, *len)))
        && groups.next().is_none()
}

/// Undoes systemd's `\xNN` escape (systemd.unit(5)).
fn unescape_unit(name: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = rest
            .strip_prefix(br"\x")
            .and_then(|rest| rest.get(..2))
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        if let Some(byte) = escaped {
            plain.push(byte);
            rest = &rest[4..];
        } else {
            plain.push(first);
            rest = tail;
        }
    }
    plain
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
