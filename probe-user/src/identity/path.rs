//! From the names of a cgroup to a [`Claim`].
//!
//! Which level wins: with a pod in the path, the outermost pod and the first container below it,
//! for these the host's runtime can name and whatever is deeper the workload may have made up.
//! Without a pod, the innermost container.

use super::claim::{Claim, Orchestrator};
use super::component::{self, Container, Context, Part};

/// Reads a path from the root of a cgroup hierarchy, as `/proc/<pid>/cgroup` or the kernel log
/// prints it. Total: any bytes give a claim.
pub fn parse(path: &[u8]) -> Claim {
    let path = path.strip_suffix(b" (deleted)").unwrap_or(path);
    let names: Vec<&[u8]> = path
        .split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty())
        .collect();
    let names = without_mount_point(&names);
    let above = names.iter().take_while(|name| **name == b"..").count();
    let visible = &names[above..];
    // Only leading dots come from the kernel; behind others nothing is to be believed.
    let end = visible
        .iter()
        .position(|name| *name == b"..")
        .unwrap_or(visible.len());
    claim(&visible[..end], above > 0)
}

/// Reads names as the BPF programs record them: leaf first, each ended by NUL.
///
/// `truncated` says that names nearest to the root are missing; what hides there might be a user's
/// own slice, so nothing read from such a record is trusted.
pub fn parse_names(names: &[u8], truncated: bool) -> Claim {
    let mut complete: Vec<&[u8]> = names.split(|byte| *byte == 0).collect();
    // What follows the last NUL is nothing, or a name that was cut.
    let rest = complete.pop();
    if !truncated {
        complete.extend(rest);
    }
    complete.retain(|name| !name.is_empty());
    complete.reverse();
    let mut claim = claim(&complete, truncated);
    claim.trusted &= !truncated;
    claim
}

/// Joins names as the BPF programs record them into a path from the root.
///
/// A path whose upper part is missing starts with `…`.
pub fn join_names(names: &[u8], truncated: bool) -> Vec<u8> {
    let mut path = Vec::with_capacity(names.len() + 4);
    if truncated {
        path.extend_from_slice("…".as_bytes());
    }
    for name in names
        .rsplit(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        path.push(b'/');
        path.extend_from_slice(name);
    }
    if path.is_empty() {
        path.push(b'/');
    }
    path
}

/// Drops `/sys/fs/cgroup[/<controller>]`.
fn without_mount_point<'a, 'n>(names: &'a [&'n [u8]]) -> &'a [&'n [u8]] {
    const HIERARCHIES: [&[u8]; 17] = [
        b"blkio",
        b"cpu",
        b"cpuacct",
        b"cpuset",
        b"devices",
        b"freezer",
        b"hugetlb",
        b"memory",
        b"misc",
        b"net_cls",
        b"net_prio",
        b"perf_event",
        b"pids",
        b"rdma",
        b"systemd",
        b"unified",
        b"elogind",
    ];
    let [b"sys", b"fs", b"cgroup", rest @ ..] = names else {
        return names;
    };
    let is_hierarchy = |name: &[u8]| {
        name.split(|byte| *byte == b',')
            .all(|controller| HIERARCHIES.contains(&controller))
    };
    match rest {
        [first, below @ ..] if is_hierarchy(first) => below,
        _ => rest,
    }
}

/// Recognised names with their level in the path.
struct Found {
    parts: Vec<(usize, Part)>,
}

impl Found {
    fn pods(&self) -> impl DoubleEndedIterator<Item = (usize, &Part)> {
        self.parts
            .iter()
            .filter(|(_, part)| matches!(part, Part::Pod { .. }))
            .map(|(level, part)| (*level, part))
    }

    /// Containers an engine made, whose ids its clients know.
    fn engine_containers(&self) -> impl DoubleEndedIterator<Item = (usize, &Container)> {
        self.containers().filter(|(_, container)| !container.system)
    }

    fn containers(&self) -> impl DoubleEndedIterator<Item = (usize, &Container)> {
        self.parts.iter().filter_map(|(level, part)| match part {
            Part::Container(container)
            | Part::Pod {
                container: Some(container),
                ..
            } => Some((*level, container)),
            _ => None,
        })
    }
}

fn claim(names: &[&[u8]], hidden_root: bool) -> Claim {
    let mut parts: Vec<(usize, Part)> = Vec::new();
    for (level, name) in names.iter().enumerate() {
        let in_pod = matches!(parts.last(), Some((last, Part::Pod { .. })) if last + 1 == level);
        let context = Context {
            above: &names[..level],
            hidden_root,
            in_pod,
        };
        if let Some(part) = component::classify(name, context) {
            parts.push((level, part));
        }
    }
    let found = Found { parts };
    let (mut claim, depth) = pod_claim(&found)
        .or_else(|| container_claim(&found))
        .or_else(|| owner_claim(&found))
        .unwrap_or_else(|| {
            let unit = names.first().is_some_and(|name| component::is_unit(name));
            let orchestrator = if unit {
                Orchestrator::Systemd
            } else {
                Orchestrator::None
            };
            // A crafted pod that was not believed is still worth a warning.
            let depth = found.parts.last().map_or(0, |(level, _)| *level);
            (Claim::of(orchestrator), depth)
        });
    // An unprivileged user may make any name below their own manager.
    claim.trusted = !names[..depth.min(names.len())].contains(&b"user.slice".as_slice());
    claim
}

/// The outermost pod, with the level of what is claimed.
fn pod_claim(found: &Found) -> Option<(Claim, usize)> {
    let (pod_level, Part::Pod { uid, qos, .. }) = found.pods().next()? else {
        return None;
    };
    let mut claim = Claim {
        pod_uid: Some(uid.clone()),
        qos: *qos,
        ..Claim::of(Orchestrator::Kubernetes)
    };
    let mut depth = pod_level;
    let first = found.parts.iter().find_map(|(level, part)| match part {
        Part::Container(container) if *level > pod_level && !container.system => {
            Some((*level, Some(container), container.runtime, container.role))
        }
        Part::Pod {
            container: Some(container),
            ..
        } if *level == pod_level => {
            Some((*level, Some(container), container.runtime, container.role))
        }
        Part::Monitor { runtime, role, .. } if *level > pod_level => {
            Some((*level, None, *runtime, Some(*role)))
        }
        _ => None,
    });
    if let Some((level, container, runtime, role)) = first {
        claim.container_id = container.map(|container| container.id.clone());
        claim.runtime = runtime;
        claim.role = role;
        depth = level;
    }
    let id = |(_, container): (usize, &Container)| container.id.clone();
    claim.outer_container_id = found
        .engine_containers()
        .find(|(level, _)| *level < pod_level)
        .map(id);
    claim.inner_container_id = found
        .engine_containers()
        .rfind(|(level, _)| *level > depth)
        .map(id);
    claim.inner_pod_uid = found.pods().rev().find_map(|(level, part)| match part {
        Part::Pod { uid, .. } if level > pod_level => Some(uid.clone()),
        _ => None,
    });
    Some((claim, depth))
}

/// The innermost container or monitor outside any pod.
fn container_claim(found: &Found) -> Option<(Claim, usize)> {
    let (depth, mut claim) = found.parts.iter().rev().find_map(|(level, part)| {
        let claim = match part {
            Part::Container(container) => Claim {
                runtime: container.runtime,
                container_id: Some(container.id.clone()),
                role: container.role,
                ..Claim::of(container.orchestrator)
            },
            Part::Monitor {
                orchestrator,
                runtime,
                role,
            } => Claim {
                runtime: *runtime,
                role: Some(*role),
                ..Claim::of(*orchestrator)
            },
            _ => return None,
        };
        Some((*level, claim))
    })?;
    for (_, part) in found.parts.iter().take_while(|(level, _)| *level < depth) {
        match part {
            // The kubelet owns everything below its root, a pod's own directory or not.
            Part::Kubepods { qos } => {
                claim.orchestrator = Orchestrator::Kubernetes;
                claim.qos = claim.qos.or(*qos);
            }
            Part::Nomad { .. } => set_nomad(&mut claim, part),
            _ => {}
        }
    }
    claim.outer_container_id = found
        .engine_containers()
        .find(|(level, _)| *level < depth)
        .map(|(_, container)| container.id.clone());
    Some((claim, depth))
}

/// A level that belongs to an orchestrator but holds no container.
fn owner_claim(found: &Found) -> Option<(Claim, usize)> {
    let mut result = None;
    for (level, part) in &found.parts {
        let (claim, depth) = match part {
            Part::Kubepods { .. } => {
                result.get_or_insert((Claim::of(Orchestrator::Kubernetes), *level))
            }
            Part::Owned(orchestrator) => result.get_or_insert((Claim::of(*orchestrator), *level)),
            Part::Nomad { .. } => result.get_or_insert((Claim::of(Orchestrator::Nomad), *level)),
            _ => continue,
        };
        *depth = *level;
        match part {
            Part::Kubepods { qos } => claim.qos = claim.qos.or(*qos),
            Part::Nomad { .. } => set_nomad(claim, part),
            _ => {}
        }
    }
    result
}

fn set_nomad(claim: &mut Claim, part: &Part) {
    if let Part::Nomad { alloc, task } = part {
        claim.orchestrator = Orchestrator::Nomad;
        claim.nomad_alloc = Some(alloc.clone());
        claim.nomad_task = Some(task.clone());
    }
}
