//! Verdicts: pure functions from the facts of an event to what they mean.
//!
//! A verdict cites the evidence it used and may say that it does not know. The rules:
//! `makeup` what filled the memory, `lead_up` how it came to that, `choice` why this victim, `jvm`
//! whether a heap setting leaves no room, `kubernetes` what the API will show, `steps` what to run
//! next; `pressure` is about nodes on which nobody was killed.

mod choice;
pub mod death;
pub mod holders;
mod jvm;
mod kubernetes;
mod lead_up;
mod makeup;
pub mod pressure;
pub mod queues;
mod steps;

pub(crate) use steps::quote;

use crate::event::label::{self, bytes, percent};
use crate::event::{
    AllocPath, Cause, Confidence, KernelBalance, LimitLevel, OomKill, Outcome, Scope, Verdict,
};
use makeup::Makeup;

/// Explains an OOM kill. `kill.verdict` is not read.
pub fn oom_kill(kill: &OomKill) -> Verdict {
    let makeup = makeup::of(kill);
    // A heap setting explains a kill only by the limit that the JVM sees.
    let own_limit = matches!(kill.scope, Scope::Container | Scope::Pod | Scope::Slice);
    let anonymous = matches!(
        makeup.cause,
        Cause::WorkingSetOverLimit | Cause::Leak | Cause::Spike
    );
    let heap = (own_limit && anonymous)
        .then(|| jvm::heap_near_limit(kill))
        .flatten();
    let mut evidence = limit_evidence(kill);
    evidence.extend(heap.clone());
    evidence.extend(makeup.evidence.iter().cloned());
    evidence.extend(trigger_evidence(kill));
    evidence.extend(choice::why(kill));
    evidence.extend(lead_up::evidence(kill));
    Verdict {
        cause: makeup.cause,
        confidence: makeup.confidence,
        summary: summary(kill, &makeup, heap.is_some()),
        evidence,
        next_steps: steps::of(kill, makeup.cause, heap.is_some()),
        kubernetes_will_report: kubernetes::report(kill),
    }
}

fn summary(kill: &OomKill, makeup: &Makeup, heap_near_limit: bool) -> String {
    let who = kill.chosen().map_or_else(
        || "an unknown process".to_owned(),
        |victim| {
            let process = label::process(&victim.process);
            let k8s = victim.k8s.as_ref();
            let owner = label::subject(k8s, victim.container.as_ref(), victim.cgroup.as_ref());
            match owner {
                Some(owner) => format!("{process} in {owner}"),
                None => process,
            }
        },
    );
    let limit = whose_limit(kill);
    match kill.outcome {
        Outcome::Killed => {
            let more = match kill.killed().count() {
                0 | 1 => String::new(),
                count => format!(" and {} more", count - 1),
            };
            let reason = match makeup.reason {
                _ if heap_near_limit => {
                    "; the JVM heap setting leaves no room for the rest of the JVM".to_owned()
                }
                Some(ref reason) => format!("; {reason}"),
                None => String::new(),
            };
            format!("{who}{more} killed: {limit}{reason}")
        }
        Outcome::NothingKillable => {
            format!("Nobody killed, memory still missing: {limit}, and no process may be killed")
        }
        Outcome::AbortedVictimDying => {
            format!("Nobody killed this time: {limit}, and an earlier victim is still dying")
        }
        Outcome::MarkedExiting => {
            format!("Not a kill: {who} was exiting already and got the last reserves; {limit}")
        }
    }
}

/// Whose limit was hit, as a clause.
fn whose_limit(kill: &OomKill) -> String {
    let size = kill
        .limit
        .as_ref()
        .and_then(|limit| limit.level.limit_bytes)
        .map(|limit| format!(" ({})", bytes(limit)))
        .unwrap_or_default();
    let path = kill
        .limit
        .as_ref()
        .and_then(|limit| limit.level.cgroup.path.as_deref());
    match kill.scope {
        Scope::Container => format!("its container reached its own limit{size}"),
        Scope::Pod if pod_limit_is_containers(kill) => {
            format!("its container reached its limit{size}, which its pod shares")
        }
        Scope::Pod => format!("its pod reached the limit{size} all its containers share"),
        Scope::QosSlice => format!("the pods of its QoS class together reached their limit{size}"),
        Scope::Kubepods => {
            format!("all pods together reached the node's allocatable memory{size}")
        }
        Scope::Slice => format!("cgroup {} reached its limit{size}", path.unwrap_or("?")),
        Scope::Node => "the node ran out of memory".to_owned(),
        Scope::Cpuset => "the NUMA nodes its cpuset allows ran out of memory".to_owned(),
        Scope::Mempolicy => "the NUMA nodes its memory policy allows ran out of memory".to_owned(),
        Scope::Sysrq => "somebody asked the kernel for it (sysrq-f); no limit was hit".to_owned(),
        Scope::Unknown => "whose limit was hit is not known".to_owned(),
    }
}

/// A pod whose only limit is one container's: the kubelet writes the same number to both, and the
/// pod's fills first because its sandbox is charged to it too.
fn pod_limit_is_containers(kill: &OomKill) -> bool {
    let Some(limit) = &kill.limit else {
        return false;
    };
    let Some(size) = limit.level.limit_bytes else {
        return false;
    };
    below_limit(kill).any(|level| level.limit_bytes == Some(size))
}

/// Levels under the limit owner, leaf first.
fn below_limit(kill: &OomKill) -> impl Iterator<Item = &LimitLevel> {
    kill.limit.iter().flat_map(|limit| {
        let owner = &limit.level.cgroup;
        limit
            .levels
            .iter()
            .take_while(move |level| !level.cgroup.is(owner))
    })
}

fn limit_evidence(kill: &OomKill) -> Vec<String> {
    let mut evidence = Vec::new();
    if let Some(limit) = &kill.limit {
        let level = &limit.level;
        if let (Some(usage), Some(max)) = (level.usage_bytes, level.limit_bytes) {
            let whose = match kill.scope {
                Scope::Container => "the container's limit",
                Scope::Pod => "the pod's limit",
                _ => level.cgroup.path.as_deref().unwrap_or("the limit"),
            };
            let hits = match level.max_events {
                Some(hits) if hits > 1 => format!(", hit {hits} times so far"),
                _ => String::new(),
            };
            evidence.push(format!(
                "{whose}: {} used of {}{hits}",
                bytes(usage),
                bytes(max)
            ));
        }
        if let (Some(used), Some(max)) = (level.swap_usage_bytes, level.swap_limit_bytes)
            && max > 0
            && used >= max
        {
            evidence.push(format!(
                "its swap is full too: {} of {}",
                bytes(used),
                bytes(max)
            ));
        }
        // Without swap in use it says the same as memory alone.
        if let (Some(used), Some(max)) = (level.memsw_usage_bytes, level.memsw_limit_bytes)
            && level.swap_usage_bytes.is_some_and(|swap| swap > 0)
            && used >= max
        {
            evidence.push(format!(
                "memory and swap together: {} used of {}",
                bytes(used),
                bytes(max)
            ));
        }
        if matches!(kill.scope, Scope::QosSlice | Scope::Kubepods | Scope::Slice)
            && let Some((own, max)) =
                below_limit(kill).find_map(|level| Some((level.usage_bytes?, level.limit_bytes?)))
        {
            evidence.push(format!(
                "the victim's own limit was not reached: {} used of {}",
                bytes(own),
                bytes(max)
            ));
        }
    }
    if matches!(
        kill.scope,
        Scope::Node | Scope::Cpuset | Scope::Mempolicy | Scope::Unknown
    ) {
        evidence.extend(node_evidence(kill));
    }
    evidence
}

fn node_evidence(kill: &OomKill) -> Vec<String> {
    let node = &kill.node;
    let mut evidence = Vec::new();
    if let (Some(total), Some(free)) = (node.mem_total_bytes, node.mem_free_bytes) {
        let watermark = node
            .watermark_min_bytes
            .map(|min| format!(" (the kernel keeps {} back)", bytes(min)))
            .unwrap_or_default();
        let available = node
            .mem_available_bytes
            .map(|available| format!(", {} available", bytes(available)))
            .unwrap_or_default();
        evidence.push(format!(
            "node: {} free of {}{watermark}{available}",
            bytes(free),
            bytes(total)
        ));
    }
    if let (Some(reclaimable), Some(unreclaimable)) =
        (node.slab_reclaimable_bytes, node.slab_unreclaimable_bytes)
    {
        evidence.push(format!(
            "node slab: {} unreclaimable, {} reclaimable",
            bytes(unreclaimable),
            bytes(reclaimable)
        ));
    }
    let biggest = node.slab_caches.iter().take(3);
    let biggest: Vec<String> = biggest
        .map(|cache| format!("{} {}", cache.name, bytes(cache.bytes)))
        .collect();
    if !biggest.is_empty() {
        evidence.push(format!("biggest slab caches: {}", biggest.join(", ")));
    }
    let noise = |kernel: &KernelBalance| i64::try_from(kernel.noise_bytes).unwrap_or(i64::MAX);
    if let Some(kernel) = &node.kernel
        && kernel.unaccounted_bytes > noise(kernel)
    {
        evidence.push(format!(
            "{} are pages of the kernel that no counter names (buffers of drivers and the like)",
            bytes(kernel.unaccounted_bytes.unsigned_abs())
        ));
    }
    match (node.swap_total_bytes, node.swap_free_bytes) {
        (Some(0), _) => evidence.push("node has no swap".to_owned()),
        (Some(total), Some(free)) => {
            evidence.push(format!(
                "node swap: {} free of {}",
                bytes(free),
                bytes(total)
            ));
        }
        _ => {}
    }
    evidence
}

fn trigger_evidence(kill: &OomKill) -> Option<String> {
    let trigger = kill.trigger.as_ref()?;
    let what = match trigger.path {
        AllocPath::PageFault => "touching its own memory",
        AllocPath::PageCache => "reading or writing a file",
        AllocPath::Tmpfs => "writing to tmpfs or shared memory",
        AllocPath::SwapIn => "swapping a page in",
        AllocPath::Slab => "asking for a kernel object",
        AllocPath::Skb => "filling a socket buffer",
        AllocPath::PageTable => "asking for page tables",
        AllocPath::KernelStack => "starting a thread or process",
        AllocPath::Pipe => "writing to a pipe",
        AllocPath::Exec => "starting a program",
        AllocPath::Vmalloc => "asking for kernel memory (vmalloc)",
        AllocPath::Percpu => "asking for per-CPU memory",
        AllocPath::Bpf => "making an eBPF map or program",
        AllocPath::LimitLowered => {
            return Some(format!(
                "{} lowered the limit below what was in use",
                label::process(&trigger.process)
            ));
        }
        AllocPath::Sysrq | AllocPath::Unknown => return None,
    };
    let whose = match kill.chosen().and_then(|victim| victim.process.pid) {
        Some(pid) if trigger.process.pid == Some(pid) => "the victim itself".to_owned(),
        _ => label::process(&trigger.process),
    };
    Some(format!("the allocation that failed: {whose}, {what}"))
}

/// "97 % anonymous (498 MiB)", the form all shares have.
fn share(name: &str, part: u64, whole: u64) -> String {
    format!("{} {name} ({})", percent(part, whole), bytes(part))
}

/// One step less sure.
fn less_sure(confidence: Confidence) -> Confidence {
    match confidence {
        Confidence::High => Confidence::Medium,
        Confidence::Medium | Confidence::Low => Confidence::Low,
    }
}

/// Nothing to say about the cause.
fn unknown(reason: Option<String>) -> (Cause, Confidence, Option<String>) {
    (Cause::Unknown, Confidence::Low, reason)
}
