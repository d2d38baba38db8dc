//! What to run next for a finding. Names are quoted as in [`crate::verdict`]'s own steps.

use super::CgroupWindow;
use crate::event::FindingId;
use crate::verdict::steps::{Target, quote};

const MOST: usize = 4;

/// One to four commands, most useful first. `None` for a finding of the node.
pub(super) fn of(id: FindingId, window: Option<&CgroupWindow<'_>>) -> Vec<String> {
    let mut steps = Vec::new();
    let target = window.and_then(|window| Target::of(window.k8s?));
    let exec = |command: &str| target.as_ref()?.exec(command);
    match id {
        FindingId::TmpfsGrowth => {
            steps.push(exec("df -h").unwrap_or_else(|| "df -h -t tmpfs".to_owned()));
        }
        FindingId::KernelMemory | FindingId::SlabUnreclaimable => {
            steps.push("slabtop -o -s c | head -20".to_owned());
        }
        FindingId::SocketMemory => {
            steps.push(exec("cat /proc/net/sockstat").unwrap_or_else(|| "ss -tumn".to_owned()));
        }
        FindingId::HighThrottling => steps.extend(file(window, "memory.high")),
        FindingId::Protection => steps.extend(file(window, "memory.min")),
        FindingId::SwapThrash => steps.push("vmstat 1 5".to_owned()),
        FindingId::Overcommit => {
            steps.push("ps -eo pid,rss,oom_score_adj,comm --sort=-rss | head -15".to_owned());
        }
        _ => {}
    }
    match window {
        Some(window) => {
            if let Some(target) = &target {
                let Target {
                    namespace, name, ..
                } = target;
                steps.push(format!("kubectl {namespace} top pod {name} --containers"));
                steps.push(format!("kubectl {namespace} describe pod {name}"));
            }
            steps.extend(file(Some(window), "memory.stat"));
        }
        None => {
            steps.push("grep -E 'Mem|Swap|Slab|SUnreclaim|Shmem|Commit' /proc/meminfo".to_owned());
        }
    }
    steps.push("oomprobe trace --duration 30s".to_owned());
    steps.truncate(MOST);
    steps
}

/// A control file of the cgroup, found by name, as the place differs between cgroup v1 and v2.
fn file(window: Option<&CgroupWindow<'_>>, file: &str) -> Option<String> {
    let path = window?.cgroup.path.as_deref()?;
    let name = quote(path.rsplit('/').next().filter(|name| !name.is_empty())?)?;
    Some(format!(
        "find /sys/fs/cgroup -name {name} -exec cat {{}}/{file} ';' 2>/dev/null"
    ))
}
