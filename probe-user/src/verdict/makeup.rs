//! What filled the memory.

use super::{lead_up, less_sure, share, unknown};
use crate::event::label::{self, bytes, percent};
use crate::event::{
    AllocPath, Candidate, Cause, Confidence, KernelBalance, MemorySource, OomKill, Outcome, Role,
    Rss, Scope, Victim,
};

/// What filled the memory, and what says so.
pub(super) struct Makeup {
    pub(super) cause: Cause,
    pub(super) confidence: Confidence,
    /// The cause as a clause for the summary.
    pub(super) reason: Option<String>,
    pub(super) evidence: Vec<String>,
}

/// A read this late still shows what the decision saw: a victim takes milliseconds to get to the
/// point of its exit where it frees its memory (3.5 to 6 ms were measured).
const READ_IN_TIME_US: u64 = 2_000;

pub(super) fn of(kill: &OomKill) -> Makeup {
    let mut evidence = Vec::new();
    let (cause, confidence, reason) = match kill.scope {
        Scope::Sysrq => (Cause::Unknown, Confidence::High, None),
        _ if matches!(
            kill.outcome,
            Outcome::MarkedExiting | Outcome::AbortedVictimDying
        ) =>
        {
            unknown(None)
        }
        Scope::Node | Scope::Cpuset | Scope::Mempolicy => node(kill, &mut evidence),
        _ => grown(kill, memcg(kill, &mut evidence)),
    };
    Makeup {
        cause,
        confidence,
        reason,
        evidence,
    }
}

/// Says leak or spike for anonymous memory where the record before the kill shows it.
fn grown(kill: &OomKill, judgement: Judgement) -> Judgement {
    let (Cause::WorkingSetOverLimit, confidence, reason) = &judgement else {
        return judgement;
    };
    let Some(growth) = lead_up::growth(kill, *confidence) else {
        return judgement;
    };
    let reason = reason.as_ref().map_or_else(
        || growth.reason.clone(),
        |reason| format!("{reason}; {}", growth.reason),
    );
    (growth.cause, growth.confidence, Some(reason))
}

type Judgement = (Cause, Confidence, Option<String>);

/// The parts of a charge by what an SRE would do about them.
struct Parts {
    total: u64,
    anon: u64,
    file: u64,
    shmem: u64,
    sock: u64,
    /// Kernel memory by kind, largest first.
    kernel: Vec<(&'static str, u64)>,
    /// Given back before the parts were read, and nobody's resident memory.
    freed: u64,
    unexplained: u64,
}

impl Parts {
    /// `None` unless the total and at least the three user parts are known: with a part missing
    /// the others cannot be called small.
    fn of(kill: &OomKill) -> Option<Self> {
        let memory = &kill.memory;
        let total = memory.total_bytes.filter(|&total| total > 0)?;
        let (rss_anon, rss_shmem) = victims_rss(kill);
        // A late read misses what the victims have freed since; what they held is known.
        let anon = memory.anon_bytes?.max(rss_anon.min(total));
        let file = memory.file_bytes?;
        // Mapped shared memory may be charged elsewhere: no more than there is room for.
        let room = total.saturating_sub(anon).saturating_sub(file);
        let shmem = memory.shmem_bytes?.max(rss_shmem.min(room));
        let sock = memory.sock_bytes.unwrap_or(0);
        let mut kernel = vec![
            (
                "unreclaimable slab",
                memory.slab_unreclaimable_bytes.unwrap_or(0),
            ),
            (
                "reclaimable slab",
                memory.slab_reclaimable_bytes.unwrap_or(0),
            ),
            ("kernel stacks", memory.kernel_stack_bytes.unwrap_or(0)),
            ("page tables", memory.page_tables_bytes.unwrap_or(0)),
            ("per-CPU memory", memory.percpu_bytes.unwrap_or(0)),
            ("vmalloc", memory.vmalloc_bytes.unwrap_or(0)),
            (
                "other kernel memory (pipes, BPF, drivers)",
                memory.kernel_other_bytes.unwrap_or(0),
            ),
        ];
        kernel.sort_by_key(|&(_, bytes)| std::cmp::Reverse(bytes));
        let explained = kernel
            .iter()
            .map(|&(_, bytes)| bytes)
            .chain([anon, file, shmem, sock])
            .fold(0_u64, u64::saturating_add);
        let missing = total.saturating_sub(explained);
        let since = total.saturating_sub(memory.read_usage_bytes.unwrap_or(total));
        let freed = missing.min(since);
        let unexplained = missing - freed;
        Some(Self {
            total,
            anon,
            file,
            shmem,
            sock,
            kernel,
            freed,
            unexplained,
        })
    }

    fn kernel_bytes(&self) -> u64 {
        self.kernel
            .iter()
            .map(|&(_, bytes)| bytes)
            .fold(0, u64::saturating_add)
    }

    /// The part that dominates: more than half, or far more than any other.
    fn dominant(&self) -> Option<(Cause, u64, bool)> {
        let mut parts = [
            (Cause::WorkingSetOverLimit, self.anon),
            (Cause::PageCache, self.file),
            (Cause::Tmpfs, self.shmem),
            (Cause::Sockets, self.sock),
            (Cause::KernelMemory, self.kernel_bytes()),
            (Cause::Unknown, self.unexplained + self.freed),
        ];
        parts.sort_by_key(|&(_, bytes)| std::cmp::Reverse(bytes));
        let [(cause, first), (_, second), ..] = parts;
        let clear = first.saturating_mul(2) > self.total;
        (clear || first >= second.saturating_mul(2)).then_some((cause, first, clear))
    }

    fn listed(&self) -> String {
        let (kernel, kernel_bytes) = ("kernel", self.kernel_bytes());
        let mut shares = vec![
            ("anonymous", self.anon),
            ("page cache", self.file),
            ("tmpfs/shared", self.shmem),
            ("socket buffers", self.sock),
            (kernel, kernel_bytes),
            ("freed before it was read", self.freed),
            ("unexplained", self.unexplained),
        ];
        shares.retain(|&(_, bytes)| bytes.saturating_mul(200) >= self.total);
        shares.sort_by_key(|&(_, bytes)| std::cmp::Reverse(bytes));
        let shares: Vec<_> = shares
            .iter()
            .map(|&(name, bytes)| share(name, bytes, self.total))
            .collect();
        shares.join(", ")
    }
}

/// Resident anonymous and shared memory of the victims that a late read no longer sees. Processes
/// that share an address space count once.
fn victims_rss(kill: &OomKill) -> (u64, u64) {
    kill.killed()
        .filter(|victim| victim.role != Role::SharesMm)
        .filter_map(|victim| victim.process.rss)
        .fold((0, 0), |(anon, shmem), rss| {
            (
                u64::saturating_add(anon, rss.anon_bytes),
                // Shared pages of several victims are the same pages.
                shmem.max(rss.shmem_bytes),
            )
        })
}

fn memcg(kill: &OomKill, evidence: &mut Vec<String>) -> Judgement {
    let Some(parts) = Parts::of(kill) else {
        return without_parts(kill, evidence);
    };
    evidence.push(format!("the charge: {}", parts.listed()));
    let late = kill.memory.source != Some(MemorySource::Kernel)
        && kill
            .memory
            .read_delay_us
            .is_none_or(|delay| delay > READ_IN_TIME_US);
    let mut confidence = if late {
        Confidence::Medium
    } else {
        Confidence::High
    };
    let Some((cause, _, clear)) = parts.dominant() else {
        return unknown(Some("no single kind of memory dominates".to_owned()));
    };
    if !clear || kill.scope == Scope::Unknown {
        confidence = less_sure(confidence);
    }
    let total = parts.total;
    let reason = match cause {
        Cause::Unknown if parts.freed > parts.unexplained => {
            return unknown(Some(format!(
                "{} of the charge was given back before it could be read",
                percent(parts.freed, total)
            )));
        }
        Cause::Unknown => {
            return unknown(Some(format!(
                "{} of the charge is in no counter",
                percent(parts.unexplained, total)
            )));
        }
        Cause::WorkingSetOverLimit => return anonymous(kill, &parts, confidence, evidence),
        Cause::PageCache => {
            // Clean cache is given back before anyone is killed.
            confidence = less_sure(confidence);
            format!(
                "{} of it is page cache that could not be given back (dirty, locked or in use)",
                percent(parts.file, total)
            )
        }
        Cause::Tmpfs => format!(
            "{} of it is files in tmpfs or shared memory, not the process",
            percent(parts.shmem, total)
        ),
        Cause::Sockets => format!("{} of it is socket buffers", percent(parts.sock, total)),
        _ => {
            let kinds: Vec<_> = parts
                .kernel
                .iter()
                .filter(|&&(_, bytes)| bytes.saturating_mul(20) >= total)
                .map(|&(name, bytes)| share(name, bytes, total))
                .collect();
            evidence.push(format!("kernel memory: {}", kinds.join(", ")));
            format!(
                "{} of it is the kernel's own memory on its behalf, mostly {}",
                percent(parts.kernel_bytes(), total),
                parts.kernel[0].0
            )
        }
    };
    evidence.extend(victim_share(kill, total));
    (cause, confidence, Some(reason))
}

/// Anonymous memory fills the limit: the victim's, or somebody else's?
fn anonymous(
    kill: &OomKill,
    parts: &Parts,
    confidence: Confidence,
    evidence: &mut Vec<String>,
) -> Judgement {
    evidence.extend(victim_share(kill, parts.total));
    if let Some(victim) = kill.chosen()
        && let Some(other) = bigger_neighbour(kill, victim)
    {
        let owner = label::subject(
            other.k8s.as_ref(),
            other.container.as_ref(),
            other.cgroup.as_ref(),
        )
        .unwrap_or_else(|| "another cgroup".to_owned());
        let size = other.process.rss.map_or(0, Rss::total_bytes);
        let who = label::process(&other.process);
        evidence.push(format!(
            "{who} in {owner} holds {} of the same limit",
            bytes(size)
        ));
        return (
            Cause::Neighbour,
            less_sure(confidence),
            Some(format!(
                "most of it is held by {who} in {owner}, which was not killed"
            )),
        );
    }
    let reason = format!(
        "{} of it is anonymous memory (heap, stacks)",
        percent(parts.anon, parts.total)
    );
    (Cause::WorkingSetOverLimit, confidence, Some(reason))
}

/// A process of another container that survived and holds at least twice as much as the victim.
fn bigger_neighbour<'a>(kill: &'a OomKill, victim: &Victim) -> Option<&'a Candidate> {
    let own = victim.process.rss?.total_bytes();
    kill.candidates
        .iter()
        .filter(|other| {
            let (other, own) = (other.cgroup.as_ref(), victim.cgroup.as_ref());
            other.zip(own).is_some_and(|(other, own)| !other.is(own))
        })
        .filter(|other| {
            kill.killed()
                .all(|victim| victim.process.pid != other.process.pid)
        })
        .filter_map(|other| Some((other, other.process.rss?.total_bytes())))
        .max_by_key(|&(_, size)| size)
        .filter(|&(_, size)| size >= own.saturating_mul(2))
        .map(|(other, _)| other)
}

fn victim_share(kill: &OomKill, total: u64) -> Option<String> {
    let rss = kill.chosen()?.process.rss?;
    let held = rss.anon_bytes.saturating_add(rss.shmem_bytes);
    Some(format!(
        "the victim's resident memory explains {} of it ({})",
        percent(held, total),
        bytes(held)
    ))
}

/// The split could not be read: judge by the victim's size, then by what the memory was for.
fn without_parts(kill: &OomKill, evidence: &mut Vec<String>) -> Judgement {
    let usage = kill
        .memory
        .total_bytes
        .or(kill.limit.as_ref().and_then(|l| l.level.usage_bytes));
    let (anon, shmem) = victims_rss(kill);
    if let Some(usage) = usage.filter(|&usage| usage > 0) {
        evidence.extend(victim_share(kill, usage));
        if anon >= usage / 5 * 4 {
            let reason = format!("{} of it is the victim's own memory", percent(anon, usage));
            return (Cause::WorkingSetOverLimit, Confidence::Medium, Some(reason));
        }
        if anon.saturating_add(shmem) < usage / 3
            && let Some((cause, what)) = path_hint(kill)
        {
            let reason = format!("little of it is the victim's; it was asked for {what}");
            return (cause, Confidence::Low, Some(reason));
        }
    }
    unknown(None)
}

fn path_hint(kill: &OomKill) -> Option<(Cause, &'static str)> {
    match kill.trigger.as_ref()?.path {
        AllocPath::Tmpfs => Some((Cause::Tmpfs, "tmpfs or shared memory")),
        AllocPath::PageCache => Some((Cause::PageCache, "page cache")),
        AllocPath::Skb => Some((Cause::Sockets, "a socket buffer")),
        AllocPath::Slab
        | AllocPath::KernelStack
        | AllocPath::PageTable
        | AllocPath::Percpu
        | AllocPath::Bpf
        | AllocPath::Vmalloc => Some((Cause::KernelMemory, "kernel memory")),
        _ => None,
    }
}

/// Memory of the kernel itself that is neither slab nor stacks nor page tables.
fn beside_slab(kernel: &KernelBalance) -> u64 {
    // Counters that moved while they were read are no memory.
    let unaccounted = kernel.unaccounted_bytes.max(0).unsigned_abs();
    kernel
        .percpu_bytes
        .into_iter()
        .chain([kernel.vmalloc_bytes, unaccounted])
        .fold(0, u64::saturating_add)
}

fn node(kill: &OomKill, evidence: &mut Vec<String>) -> Judgement {
    let node = &kill.node;
    let freed = {
        let (anon, shmem) = victims_rss(kill);
        anon.saturating_add(shmem)
    };
    let Some(total) = node.mem_total_bytes.filter(|&total| total > 0) else {
        return (Cause::NodeExhausted, Confidence::Low, None);
    };
    let of_node = |part: u64| percent(part, total);
    if kill.scope == Scope::Node {
        let kernel = node
            .slab_unreclaimable_bytes
            .into_iter()
            .chain(node.kernel_stack_bytes)
            .chain(node.page_tables_bytes)
            .chain(node.kernel.as_ref().map(beside_slab))
            .fold(0, u64::saturating_add);
        if kernel > total / 5 * 2 {
            let reason = format!("{} of the node is kernel memory", of_node(kernel));
            return (Cause::KernelMemory, Confidence::Medium, Some(reason));
        }
        if let Some(shmem) = node.shmem_bytes.filter(|&shmem| shmem > total / 2) {
            let reason = format!("{} of the node is tmpfs or shared memory", of_node(shmem));
            return (Cause::Tmpfs, Confidence::Medium, Some(reason));
        }
        // What the victims held may be free already when this is read.
        if let Some(available) = node.mem_available_bytes
            && available.saturating_sub(freed) > total / 10
        {
            evidence.push(format!(
                "yet {} of memory was available when it was read: fragmented (order {}), or \
                 freed since",
                bytes(available),
                kill.trigger
                    .as_ref()
                    .and_then(|t| t.order)
                    .map_or("?".into(), |o| o.to_string())
            ));
            return unknown(None);
        }
        let confidence = match node.mem_available_bytes {
            Some(_) => Confidence::High,
            None => Confidence::Medium,
        };
        return (Cause::NodeExhausted, confidence, None);
    }
    if let Some(available) = node.mem_available_bytes {
        evidence.push(format!(
            "in all NUMA nodes together {} is available",
            bytes(available)
        ));
    }
    (Cause::NodeExhausted, Confidence::Medium, None)
}
