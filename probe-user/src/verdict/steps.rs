//! What to run next. Names come from the node and are quoted, so that a command can be pasted
//! whatever they hold.

use super::{chosen, pod_limit_is_containers};
use crate::event::{Cause, K8s, OomKill, Scope, is_hostile};

const MOST: usize = 4;

/// One to four commands, most useful first.
pub(super) fn of(kill: &OomKill, cause: Cause, heap_near_limit: bool) -> Vec<String> {
    let mut steps = Vec::new();
    let k8s = chosen(kill).and_then(|victim| victim.k8s.as_ref());
    let pod = k8s.and_then(pod_args);
    let node_wide = matches!(
        kill.scope,
        Scope::Node | Scope::Cpuset | Scope::Mempolicy | Scope::Kubepods | Scope::QosSlice
    );

    if kill.scope == Scope::Sysrq {
        steps.push("journalctl -k | grep -i sysrq".to_owned());
    }
    if heap_near_limit && let Some(pod) = &pod {
        steps.push(format!(
            "kubectl {pod} -o yaml | grep -nE 'Xmx|RAMPercentage|memory:'  # leave a quarter of \
             the limit free: -XX:MaxRAMPercentage=75"
        ));
    }
    match cause {
        Cause::Tmpfs => steps.extend(
            k8s.and_then(exec_args)
                .map(|exec| format!("kubectl {exec} -- sh -c 'df -h -t tmpfs; du -xsh /dev/shm'")),
        ),
        Cause::KernelMemory => steps.push("slabtop -o -s c | head -20".to_owned()),
        Cause::Sockets => {
            steps.extend(
                k8s.and_then(exec_args)
                    .map(|exec| format!("kubectl {exec} -- cat /proc/net/sockstat")),
            );
        }
        _ => {}
    }
    if node_wide {
        if k8s.is_some() {
            steps.push("kubectl top pod -A --sort-by=memory | head -15".to_owned());
            let node = k8s.and_then(|k8s| quote(k8s.node.name.as_deref()?));
            steps.extend(node.map(|node| {
                format!("kubectl describe node {node} | sed -n '/Allocated resources/,$p'")
            }));
        } else {
            steps.push("ps -eo pid,rss,oom_score_adj,comm --sort=-rss | head -15".to_owned());
        }
        if kill.scope == Scope::Node && cause != Cause::KernelMemory {
            steps.push("grep -E 'Mem|Swap|Slab|SUnreclaim|Shmem' /proc/meminfo".to_owned());
        }
    }
    if let Some(pod) = &pod {
        if kill.scope == Scope::Pod && !pod_limit_is_containers(kill) {
            steps.extend(
                k8s.and_then(top_args)
                    .map(|top| format!("kubectl {top} --containers")),
            );
        }
        steps.push(format!(
            "kubectl {pod} -o jsonpath='{{range .spec.containers[*]}}{{.name}} \
             {{.resources}}{{\"\\n\"}}{{end}}'"
        ));
    } else if let Some(uid) = k8s.and_then(|k8s| k8s.pod.uid.as_deref()).and_then(plain) {
        steps.push(format!(
            "kubectl get pod -A -o jsonpath='{{range .items[?(@.metadata.uid==\"{uid}\")]}}\
             {{.metadata.namespace}}/{{.metadata.name}}{{\"\\n\"}}{{end}}'"
        ));
    }
    steps.extend(unit(kill).map(|unit| format!("systemctl status {unit}")));
    steps.extend(memory_stat(kill));
    if steps.is_empty() {
        steps.push("journalctl -k -g 'oom-kill|Killed process'".to_owned());
    }
    steps.truncate(MOST);
    steps
}

fn pod_args(k8s: &K8s) -> Option<String> {
    named_pod(k8s).map(|(namespace, name)| format!("-n {namespace} get pod {name}"))
}

fn top_args(k8s: &K8s) -> Option<String> {
    named_pod(k8s).map(|(namespace, name)| format!("-n {namespace} top pod {name}"))
}

fn exec_args(k8s: &K8s) -> Option<String> {
    let (namespace, name) = named_pod(k8s)?;
    let container = quote(k8s.container.as_ref()?.name.as_deref()?)?;
    Some(format!("-n {namespace} exec {name} -c {container}"))
}

fn named_pod(k8s: &K8s) -> Option<(String, String)> {
    Some((
        quote(k8s.namespace.name.as_deref()?)?,
        quote(k8s.pod.name.as_deref()?)?,
    ))
}

/// The limit owner, or the pod above a container: the container's own cgroup goes with it.
fn memory_stat(kill: &OomKill) -> Option<String> {
    let path = kill.limit.as_ref()?.level.cgroup.path.as_deref()?;
    let path = match kill.scope {
        Scope::Container if chosen(kill).is_some_and(|victim| victim.k8s.is_some()) => path
            .rsplit_once('/')
            .map(|(parent, _)| parent)
            .filter(|p| !p.is_empty())?,
        _ => path,
    };
    let name = quote(path.rsplit('/').next().filter(|name| !name.is_empty())?)?;
    // By name, as the place differs between cgroup v1 and v2.
    Some(format!(
        "find /sys/fs/cgroup -name {name} -exec cat {{}}/memory.stat ';' 2>/dev/null"
    ))
}

/// The systemd unit that owns the limit.
fn unit(kill: &OomKill) -> Option<String> {
    if kill.scope != Scope::Slice {
        return None;
    }
    let name = kill
        .limit
        .as_ref()?
        .level
        .cgroup
        .path
        .as_deref()?
        .rsplit('/')
        .next()?;
    let is_unit = [".service", ".slice", ".scope"]
        .iter()
        .any(|suffix| name.ends_with(suffix));
    if is_unit { quote(name) } else { None }
}

/// One shell word. `None` for what no line may hold: control characters, and bidirectional
/// controls that make a command look like another one.
fn quote(word: &str) -> Option<String> {
    if word.is_empty() || word.chars().any(is_hostile) {
        return None;
    }
    let safe = |c: char| c.is_ascii_alphanumeric() || "_./:@=,+-".contains(c);
    Some(if word.chars().all(safe) && !word.starts_with('-') {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    })
}

/// A word that needs no quotes.
fn plain(word: &str) -> Option<&str> {
    let safe = |c: char| c.is_ascii_alphanumeric() || c == '-';
    (!word.is_empty() && word.chars().all(safe)).then_some(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_leave_its_word() {
        assert_eq!(quote("cart-7d9f").as_deref(), Some("cart-7d9f"));
        assert_eq!(quote("a b").as_deref(), Some("'a b'"));
        assert_eq!(
            quote("$(reboot)'; ls").as_deref(),
            Some(r"'$(reboot)'\''; ls'")
        );
        assert_eq!(quote("--all").as_deref(), Some("'--all'"));
        assert_eq!(quote("a\nreboot"), None);
        assert_eq!(quote("a\u{202e}b"), None);
    }
}
