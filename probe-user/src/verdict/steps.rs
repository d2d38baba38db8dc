//! What to run next. Names come from the node and are quoted, so that a command can be pasted
//! whatever they hold.

use super::pod_limit_is_containers;
use crate::event::{Cause, K8s, OomKill, Scope, is_hostile};

const MOST: usize = 4;

/// One to four commands, most useful first.
pub(super) fn of(kill: &OomKill, cause: Cause, heap_near_limit: bool) -> Vec<String> {
    let k8s = kill.chosen().and_then(|victim| victim.k8s.as_ref());
    let mut steps = Vec::new();
    if kill.scope == Scope::Sysrq {
        steps.push("journalctl -k -g sysrq".to_owned());
    }
    steps.extend(by_cause(kill, cause, k8s));
    match kill.scope {
        Scope::Node | Scope::Cpuset | Scope::Mempolicy | Scope::Kubepods | Scope::QosSlice => {
            steps.extend(node_wide(kill, cause, k8s));
        }
        _ => {}
    }
    if let Some(k8s) = k8s {
        steps.extend(pod(kill, k8s, heap_near_limit));
    }
    steps.extend(unit(kill).map(|unit| format!("systemctl status {unit}")));
    if k8s.is_none() || matches!(cause, Cause::KernelMemory | Cause::Unknown) {
        steps.extend(memory_stat(kill));
    }
    if steps.is_empty() {
        steps.push("journalctl -k -g 'oom-kill|Killed process'".to_owned());
    }
    steps.truncate(MOST);
    steps
}

/// What looks at the kind of memory that filled the limit.
fn by_cause(kill: &OomKill, cause: Cause, k8s: Option<&K8s>) -> Option<String> {
    let exec = |command: &str| Target::of(k8s?)?.exec(command);
    match cause {
        Cause::Tmpfs => exec("df -h").or_else(|| Some("df -h -t tmpfs".to_owned())),
        Cause::KernelMemory if has_buffers(kill) => Some("oomprobe skb".to_owned()),
        Cause::KernelMemory if kill.scope == Scope::Node => Some("oomprobe slab".to_owned()),
        Cause::KernelMemory => Some("slabtop -o -s c | head -20".to_owned()),
        Cause::Sockets => exec("cat /proc/net/sockstat").or_else(|| Some("ss -tumn".to_owned())),
        Cause::PageCache => memory_stat(kill),
        _ => None,
    }
}

/// Whether socket buffers are among the biggest of the node's slab caches.
fn has_buffers(kill: &OomKill) -> bool {
    let mut biggest = kill.node.slab_caches.iter().take(3);
    biggest.any(|cache| cache.name.starts_with("skbuff"))
}

fn node_wide(kill: &OomKill, cause: Cause, k8s: Option<&K8s>) -> Vec<String> {
    let mut steps = Vec::new();
    if let Some(k8s) = k8s {
        steps.push("kubectl top pod -A --sort-by=memory | head -15".to_owned());
        let node = k8s.node.name.as_deref().and_then(quote);
        steps.extend(node.map(|node| {
            format!("kubectl describe node {node} | sed -n '/Allocated resources/,$p'")
        }));
    } else {
        steps.push("ps -eo pid,rss,oom_score_adj,comm --sort=-rss | head -15".to_owned());
    }
    if matches!(kill.scope, Scope::Cpuset | Scope::Mempolicy) {
        steps.push("grep -h MemFree /sys/devices/system/node/node*/meminfo".to_owned());
    } else if kill.scope == Scope::Node && cause != Cause::KernelMemory {
        steps.push("grep -E 'Mem|Swap|Slab|SUnreclaim|Shmem' /proc/meminfo".to_owned());
    }
    steps
}

fn pod(kill: &OomKill, k8s: &K8s, heap_near_limit: bool) -> Vec<String> {
    let mut steps = Vec::new();
    let Some(Target {
        namespace,
        name,
        container,
    }) = Target::of(k8s)
    else {
        let uid = k8s.pod.uid.as_deref().and_then(plain);
        steps.extend(uid.map(|uid| {
            format!(
                "kubectl get pod -A -o custom-columns=\
                 N:.metadata.namespace,P:.metadata.name,U:.metadata.uid | grep {uid}"
            )
        }));
        return steps;
    };
    if heap_near_limit {
        steps.push(format!(
            "kubectl {namespace} get pod {name} -o yaml | grep -nE 'Xmx|RAMPercentage|memory:'"
        ));
    }
    let top = format!("kubectl {namespace} top pod {name} --containers");
    let shared = kill.scope == Scope::Pod && !pod_limit_is_containers(kill);
    if shared {
        steps.push(top.clone());
    }
    steps.push(format!("kubectl {namespace} describe pod {name}"));
    if let Some(container) = container {
        let init = kill.chosen().and_then(|victim| victim.container_init);
        let previous = if init == Some(true) {
            " --previous"
        } else {
            ""
        };
        steps.push(format!(
            "kubectl {namespace} logs {name} -c {container}{previous} --tail=50"
        ));
    }
    if !shared {
        steps.push(top);
    }
    steps
}

/// A pod as arguments of kubectl, each one shell word.
pub(super) struct Target {
    /// With its `-n`.
    pub(super) namespace: String,
    pub(super) name: String,
    container: Option<String>,
}

impl Target {
    /// `None` if the names are not known.
    pub(super) fn of(k8s: &K8s) -> Option<Self> {
        let container = k8s.container.as_ref();
        Some(Self {
            namespace: format!("-n {}", quote(k8s.namespace.name.as_deref()?)?),
            name: quote(k8s.pod.name.as_deref()?)?,
            container: container.and_then(|container| quote(container.name.as_deref()?)),
        })
    }

    /// `command` run in its container.
    pub(super) fn exec(&self, command: &str) -> Option<String> {
        let Self {
            namespace,
            name,
            container,
        } = self;
        let container = container.as_ref()?;
        Some(format!(
            "kubectl {namespace} exec {name} -c {container} -- {command}"
        ))
    }
}

/// The limit owner, or the pod above a container: the container's own cgroup goes with it.
fn memory_stat(kill: &OomKill) -> Option<String> {
    let path = kill.limit.as_ref()?.level.cgroup.path.as_deref()?;
    let path = match kill.scope {
        Scope::Container if kill.chosen().is_some_and(|victim| victim.k8s.is_some()) => path
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
pub(crate) fn quote(word: &str) -> Option<String> {
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
