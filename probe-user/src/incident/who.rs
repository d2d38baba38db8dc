//! Pod and container of cgroup paths, for events.

use std::{collections::BTreeMap, rc::Rc, time::Duration};

use tokio::time::Instant;

use crate::{
    event::{Container, K8s, K8sContainer, Named, Pod, Qos, ResolvedBy},
    identity::{
        Claim, Orchestrator,
        names::{Names, Resolver, Source},
        path,
    },
};

/// How long an event waits for names.
pub const DEADLINE: Duration = Duration::from_secs(2);

/// Whom a cgroup belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Who {
    /// What the path claims.
    pub claim: Option<Claim>,
    /// The pod.
    pub k8s: Option<K8s>,
    /// The container.
    pub container: Option<Container>,
}

/// Answers for the cgroups of one event, by path.
#[derive(Clone, Debug, Default)]
pub struct Identities(BTreeMap<Vec<u8>, Who>);

impl Identities {
    /// Looks all `paths` up, within one deadline.
    pub async fn resolve(
        resolver: &Rc<Resolver>,
        node_name: Option<&str>,
        paths: impl IntoIterator<Item = Vec<u8>>,
    ) -> Self {
        let deadline = Instant::now() + DEADLINE;
        let mut out = BTreeMap::new();
        for path in paths {
            if out.contains_key(&path) {
                continue;
            }
            let claim = path::parse(&path);
            let names = resolver.names(&claim, deadline).await;
            out.insert(path, who(claim, &names, node_name));
        }
        Self(out)
    }

    /// Whom `path` belongs to.
    pub fn of(&self, path: &[u8]) -> Who {
        self.0.get(path).cloned().unwrap_or_default()
    }
}

fn who(claim: Claim, names: &Names, node_name: Option<&str>) -> Who {
    let known = names.known.as_deref();
    let pod_uid = known
        .and_then(|known| known.pod_uid.clone())
        .or(claim.pod_uid.clone());
    let is_pod = pod_uid.is_some() || known.is_some_and(|known| known.pod_name.is_some());
    let container_name = known.and_then(|known| known.container_name.clone());
    let k8s = is_pod.then(|| K8s {
        pod: Pod {
            name: known.and_then(|known| known.pod_name.clone()),
            uid: pod_uid,
        },
        namespace: Named {
            name: known.and_then(|known| known.namespace.clone()),
        },
        container: (claim.container_id.is_some() && container_name.is_some()).then(|| {
            K8sContainer {
                name: container_name,
                restart_count: known.and_then(|known| known.restart_count),
            }
        }),
        node: Named {
            name: node_name.map(ToOwned::to_owned),
        },
        qos: claim.qos.and_then(|qos| qos_of(qos.as_str())),
        resolved_by: Some(
            known.map_or(ResolvedBy::CgroupPath, |known| match known.resolved_by {
                Source::LogLink => ResolvedBy::ContainerLogs,
                Source::Cri => ResolvedBy::Cri,
                Source::LogDir => ResolvedBy::PodLogs,
            }),
        ),
        trusted: names.trusted,
        error: names.error.as_ref().map(ToString::to_string),
    });
    let runtime = claim.runtime.or(known.and_then(|known| known.runtime));
    let role = claim.role.or(known.and_then(|known| known.role));
    let container = claim.container_id.is_some().then(|| Container {
        id: claim.container_id.clone(),
        runtime: runtime.map(|runtime| runtime.as_str().to_owned()),
        orchestrator: (claim.orchestrator != Orchestrator::Unknown)
            .then(|| claim.orchestrator.as_str().to_owned()),
        role: role.map(|role| role.as_str().to_owned()),
    });
    Who {
        claim: Some(claim),
        k8s,
        container,
    }
}

fn qos_of(name: &str) -> Option<Qos> {
    [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort]
        .into_iter()
        .find(|qos| qos.name().eq_ignore_ascii_case(name))
}
