//! What the user chose to follow.

use std::{path::PathBuf, time::Duration};

use super::Deaths;
use crate::event;

/// Over how long memory must grow to be a leak, unless the user says otherwise.
pub const LEAK_WINDOW: Duration = Duration::from_secs(600);

/// What the user chose.
#[derive(Clone, Debug)]
pub struct Options {
    /// Root of the host's file system: `/`, or where a container has it mounted.
    pub host_root: PathBuf,
    /// Socket of the container runtime; `None` tries the usual places.
    pub cri_socket: Option<PathBuf>,
    /// Between two `heartbeat` events; zero for none.
    pub heartbeat: Duration,
    /// Stop after this long.
    pub duration: Option<Duration>,
    /// Stop after this many `oom_kill` events that passed the filter and their outcomes.
    pub count: Option<u64>,
    /// Over how long memory must grow to be a leak.
    pub leak_window: Duration,
    /// Which deaths are told.
    pub deaths: Deaths,
    /// How often to look who holds kernel memory; `None` for only when a node is full of it.
    pub leaks: Option<Duration>,
    /// Only events about this pod, namespace or container.
    pub filter: Filter,
}

/// Which events about pods are wanted. Events about the tracer itself always are.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// `k8s.pod.name`.
    pub pod: Option<String>,
    /// `k8s.namespace.name`.
    pub namespace: Option<String>,
    /// `k8s.container.name`, or a container id or the start of one.
    pub container: Option<String>,
    /// Path of a cgroup that a victim must be in.
    pub cgroup: Option<String>,
}

impl Filter {
    fn is_empty(&self) -> bool {
        self.pod.is_none() && self.namespace.is_none() && self.container.is_none()
    }

    fn wants(&self, k8s: Option<&event::K8s>, container: Option<&event::Container>) -> bool {
        let same = |want: &Option<String>, is: Option<&String>| {
            want.as_ref().is_none_or(|want| is == Some(want))
        };
        let in_container = self.container.as_ref().is_none_or(|want| {
            let name = k8s.and_then(|k8s| k8s.container.as_ref()?.name.as_ref());
            let id = container.and_then(|container| container.id.as_ref());
            name == Some(want) || id.is_some_and(|id| id.starts_with(want.as_str()))
        });
        same(&self.pod, k8s.and_then(|k8s| k8s.pod.name.as_ref()))
            && same(
                &self.namespace,
                k8s.and_then(|k8s| k8s.namespace.name.as_ref()),
            )
            && in_container
    }

    /// Whether an event about this pod and container is wanted.
    pub(super) fn wants_about(
        &self,
        k8s: Option<&event::K8s>,
        container: Option<&event::Container>,
    ) -> bool {
        self.is_empty() || self.wants(k8s, container)
    }

    /// Whether a victim of the kill, or the owner of the limit, is wanted.
    pub(super) fn wants_kill(&self, kill: &event::OomKill) -> bool {
        let in_cgroup = self.cgroup.is_none()
            || kill.victims.iter().any(|victim| {
                let cgroup = victim.cgroup.as_ref();
                cgroup.and_then(|cgroup| cgroup.path.as_ref()) == self.cgroup.as_ref()
            });
        in_cgroup && (self.is_empty() || self.wants_pod(kill))
    }

    fn wants_pod(&self, kill: &event::OomKill) -> bool {
        kill.victims
            .iter()
            .any(|v| self.wants(v.k8s.as_ref(), v.container.as_ref()))
            || kill
                .limit
                .as_ref()
                .is_some_and(|limit| self.wants(limit.k8s.as_ref(), limit.container.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Container, K8s, K8sContainer, Limit, Named, OomKill, Pod, Victim};

    fn kill() -> OomKill {
        let k8s = |pod: &str, container: Option<&str>| {
            Some(K8s {
                pod: Pod {
                    name: Some(pod.to_owned()),
                    uid: None,
                },
                namespace: Named {
                    name: Some("shop".to_owned()),
                },
                container: container.map(|name| K8sContainer {
                    name: Some(name.to_owned()),
                    restart_count: None,
                }),
                ..K8s::default()
            })
        };
        OomKill {
            victims: vec![Victim {
                k8s: k8s("cart", Some("app")),
                container: Some(Container {
                    id: Some("0123abcd".to_owned()),
                    ..Container::default()
                }),
                ..Victim::default()
            }],
            limit: Some(Limit {
                k8s: k8s("owner", None),
                ..Limit::default()
            }),
            ..OomKill::default()
        }
    }

    #[test]
    fn kills_are_filtered_by_victim_and_limit_owner() {
        let some = |text: &str| Some(text.to_owned());
        let rows = [
            (None, None, None, true),
            (some("cart"), None, None, true),
            (some("owner"), None, None, true),
            (some("other"), None, None, false),
            (None, some("shop"), None, true),
            (None, some("other"), None, false),
            (None, None, some("app"), true),
            (None, None, some("0123"), true),
            (None, None, some("4567"), false),
            (some("cart"), some("shop"), some("app"), true),
            (some("owner"), None, some("app"), false),
        ];
        for (pod, namespace, container, wanted) in rows {
            let filter = Filter {
                pod,
                namespace,
                container,
                cgroup: None,
            };
            assert_eq!(filter.wants_kill(&kill()), wanted, "{filter:?}");
        }
    }
}
