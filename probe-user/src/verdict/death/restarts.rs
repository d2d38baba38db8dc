//! Ends of the same container of the same pod, restarts included: a crash loop in a sentence.

use std::{collections::VecDeque, num::NonZeroUsize};

use lru::LruCache;

use super::{Facts, sender, stop};
use crate::event::{
    Cause, CauseCount, Container, DeathCause, DeathVerdict, K8s, OomKill, Restarts, Scope,
    label as words,
};

/// Containers that are remembered.
const CONTAINERS: NonZeroUsize = NonZeroUsize::new(2048).expect("not zero");
/// Deaths remembered of each.
const DEATHS: usize = 50;
/// How long they are, ns.
const WINDOW_NS: u64 = 3_600_000_000_000;

/// A container of a pod across its restarts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RestartKey(String, String);

impl RestartKey {
    /// The pod's UID, else its name, with the container's name; without them the container's id.
    pub fn of(k8s: Option<&K8s>, container: Option<&Container>) -> Option<Self> {
        let by_name = || {
            let k8s = k8s?;
            let pod = k8s.pod.uid.clone().or_else(|| words::pod(k8s))?;
            Some(Self(pod, k8s.container.as_ref()?.name.clone()?))
        };
        by_name().or_else(|| Some(Self(String::new(), container?.id.clone()?)))
    }
}

/// The deaths of the last hour.
#[derive(Debug)]
pub struct History(LruCache<RestartKey, VecDeque<Past>>);

#[derive(Debug)]
struct Past {
    at_boot_ns: u64,
    cause: DeathCause,
    label: String,
}

impl Default for History {
    fn default() -> Self {
        Self(LruCache::new(CONTAINERS))
    }
}

impl History {
    /// Remembers a death and tells of it and those before.
    pub fn add(
        &mut self,
        key: RestartKey,
        at_boot_ns: u64,
        cause: DeathCause,
        label: &str,
    ) -> Restarts {
        let deaths = self.0.get_or_insert_mut(key, VecDeque::new);
        deaths.retain(|past| at_boot_ns.saturating_sub(past.at_boot_ns) <= WINDOW_NS);
        if deaths.len() == DEATHS {
            deaths.pop_front();
        }
        deaths.push_back(Past {
            at_boot_ns,
            cause,
            label: label.to_owned(),
        });
        restarts(deaths, at_boot_ns)
    }
}

fn restarts(deaths: &VecDeque<Past>, at_boot_ns: u64) -> Restarts {
    let first = deaths.iter().map(|past| past.at_boot_ns).min();
    let window_ms = at_boot_ns.saturating_sub(first.unwrap_or(at_boot_ns)) / 1_000_000;
    let causes = counted(deaths.iter().map(|past| past.cause))
        .into_iter()
        .map(|(cause, count)| CauseCount { cause, count })
        .collect();
    let labels: Vec<String> = counted(deaths.iter().map(|past| past.label.as_str()))
        .into_iter()
        .map(|(label, count)| format!("{count} × {label}"))
        .collect();
    Restarts {
        deaths: deaths.len() as u64,
        window_ms,
        causes,
        summary: match deaths.len() {
            1 => format!("1 death: {}", labels.join(", ")),
            count => format!(
                "{count} deaths in {}: {}",
                stop::ms_label(window_ms),
                labels.join(", ")
            ),
        },
    }
}

/// Each with how often it comes, most frequent first, else in the order in which they came.
fn counted<T: PartialEq>(items: impl Iterator<Item = T>) -> Vec<(T, u64)> {
    let mut counts: Vec<(T, u64)> = Vec::new();
    for item in items {
        match counts.iter_mut().find(|(other, _)| *other == item) {
            Some((_, count)) => *count += 1,
            None => counts.push((item, 1)),
        }
    }
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    counts
}

/// An OOM kill in a few words: whose limit, how large, and how it filled if that is known.
pub fn oom_label(kill: &OomKill) -> String {
    let whose = match kill.scope {
        Scope::Container => "container",
        Scope::Pod => "pod",
        Scope::QosSlice | Scope::Kubepods | Scope::Slice => "ancestor",
        Scope::Node | Scope::Cpuset | Scope::Mempolicy => "node",
        Scope::Sysrq => "sysrq",
        Scope::Unknown => "unexplained",
    };
    let limit = kill
        .limit
        .as_ref()
        .and_then(|limit| limit.level.limit_bytes);
    let at = limit.map_or(String::new(), |limit| {
        format!(" at {}", words::bytes(limit))
    });
    let how = match kill.verdict.cause {
        Cause::Leak => " after steady growth",
        Cause::Spike => " by a spike",
        Cause::PageCache => " by page cache",
        Cause::Tmpfs => " by tmpfs",
        Cause::KernelMemory => " by kernel memory",
        Cause::Sockets => " by socket buffers",
        _ => "",
    };
    format!("{whose} OOM{at}{how}")
}

/// The cause in a few words, the same for the same thing, so that they can be counted.
pub fn label(facts: &Facts<'_>, verdict: &DeathVerdict) -> String {
    use DeathCause as C;

    let death = facts.death;
    let signal = death
        .signal
        .as_ref()
        .map_or("signal", |signal| &signal.name);
    let by = death
        .sender
        .as_ref()
        .and_then(|sender| sender.process.as_ref()?.comm.as_deref())
        .unwrap_or("?");
    match verdict.cause {
        C::OomKill => "OOM kill".to_owned(),
        C::OomGroup => "OOM kill of its group".to_owned(),
        C::RuntimeStop => "stop by the runtime".to_owned(),
        C::RuntimeStopGraceExpired => "kill after the grace period".to_owned(),
        C::Eviction => "eviction".to_owned(),
        C::LivenessKill => match death.before.as_ref().and_then(stop::stall) {
            Some(stall) => format!("liveness kill during {}", stall.what),
            None => "liveness kill".to_owned(),
        },
        C::UserspaceOomKiller => {
            let sender = death.sender.as_ref().and_then(sender::oom_killer);
            format!("kill by {}", sender.map_or(by, |(name, _)| name))
        }
        C::KilledByProcess => format!("{signal} from {by}"),
        C::CgroupKill => format!("cgroup.kill by {by}"),
        C::Crash => format!("crash {signal}"),
        C::Seccomp => "seccomp kill".to_owned(),
        C::ResourceLimit => format!("resource limit {signal}"),
        C::InitDied => "death with its first process".to_owned(),
        C::OwnSignal => format!("own {signal}"),
        C::AppExit => format!("exit {}", death.exit_code),
        C::Unknown => format!("{signal} of unknown sender"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE_NS: u64 = 60_000_000_000;

    fn key(name: &str) -> RestartKey {
        RestartKey("uid".to_owned(), name.to_owned())
    }

    #[test]
    fn restarts_are_counted_by_cause_most_frequent_first() {
        let mut history = History::default();
        let mut last = None;
        let liveness = (DeathCause::LivenessKill, "liveness kill");
        let oom = (DeathCause::OomKill, "container OOM at 512 MiB");
        for (minute, (cause, label)) in [(0, liveness), (3, oom), (6, oom), (9, oom), (12, oom)] {
            last = Some(history.add(key("app"), minute * MINUTE_NS, cause, label));
        }
        let last = last.unwrap();
        assert_eq!(
            last.summary,
            "5 deaths in 12 min: 4 × container OOM at 512 MiB, 1 × liveness kill"
        );
        assert_eq!((last.deaths, last.window_ms), (5, 720_000));
        assert_eq!(last.causes[0].cause, DeathCause::OomKill);
        assert_eq!(last.causes[0].count, 4);
        let other = history.add(key("other"), 0, oom.0, oom.1);
        assert_eq!(other.summary, "1 death: 1 × container OOM at 512 MiB");
    }

    #[test]
    fn what_is_remembered_is_bounded_in_time_and_number() {
        let mut history = History::default();
        let mut add = |name: &str, at| {
            history
                .add(key(name), at, DeathCause::AppExit, "exit 1")
                .deaths
        };
        assert_eq!(add("app", 0), 1);
        assert_eq!(add("app", WINDOW_NS + 1), 1);
        let last = (2..200).map(|n| add("app", WINDOW_NS + n)).last();
        assert_eq!(last, Some(50));
        for n in 0..CONTAINERS.get() {
            add(&format!("c{n}"), 0);
        }
        assert_eq!(add("app", WINDOW_NS + 300), 1);
    }

    #[test]
    fn a_container_is_known_by_its_pod_and_name_else_by_its_id() {
        let container = Container {
            id: Some("abc".to_owned()),
            ..Container::default()
        };
        let mut k8s = K8s::default();
        let of = |k8s: &K8s| RestartKey::of(Some(k8s), Some(&container));
        let by_id = Some(RestartKey(String::new(), "abc".to_owned()));
        assert_eq!(of(&k8s), by_id);
        k8s.pod.uid = Some("u".to_owned());
        assert_eq!(of(&k8s), by_id);
        k8s.container = Some(crate::event::K8sContainer {
            name: Some("app".to_owned()),
            ..Default::default()
        });
        assert_eq!(of(&k8s), Some(RestartKey("u".to_owned(), "app".to_owned())));
        assert_eq!(RestartKey::of(None, None), None);
    }
}
