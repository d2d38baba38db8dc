//! What is short for everybody.

use super::Draft;
use super::activity::{Activity, NodeActivity, Wait, over, refault_wait_evidence};
use super::thresholds::{
    BLIND_DIRECT_PER_S, BLIND_REFAULTS_PER_S, EXHAUSTED_RATIO, REFAULT_RATIO, REFAULTS_PER_S,
    SHORT_RATIO, SLAB_RATIO, SWAP_FULL_RATIO, SWAP_PAGES_PER_S, WAITING_UNNAMED,
};
use crate::event::label::{bytes, percent, ratio};
use crate::event::{Confidence, Finding, FindingId};

/// Findings of the node itself. A thrash that a neighbour explains is the neighbour's.
pub(super) fn judge(
    node: &NodeActivity,
    cgroups: &[Activity<'_>],
    has_neighbour: bool,
) -> Vec<Finding> {
    let thrash = || {
        swap_thrash(node, cgroups).or_else(|| thrashing(node, cgroups).filter(|_| !has_neighbour))
    };
    [overcommit(node), thrash(), slab(node)]
        .into_iter()
        .flatten()
        .map(Draft::about_node)
        .collect()
}

/// Memory is used up, and there is no swap to put any of it.
fn overcommit(node: &NodeActivity) -> Option<Draft> {
    let available = node.available_ratio()?;
    let last = &node.last;
    let swap = (
        last.swap_total_bytes.unwrap_or(0),
        last.swap_free_bytes.unwrap_or(0),
    );
    let swap_left = swap.0 > 0 && over(swap.1, swap.0) > SWAP_FULL_RATIO;
    let short = available <= EXHAUSTED_RATIO || (available <= SHORT_RATIO && node.waits());
    if !short || swap_left {
        return None;
    }
    let swap = match swap {
        (0, _) => "there is no swap".to_owned(),
        (total, free) => format!("swap: {} free of {}", bytes(free), bytes(total)),
    };
    let committed = last.committed_bytes.map(|committed| {
        format!(
            "processes have been promised {} of memory's size (Committed_AS {})",
            percent(committed, last.total_bytes),
            bytes(committed)
        )
    });
    let used = last.anon_bytes.map(|anon| {
        format!(
            "used by: {} anonymous, {} tmpfs/shared, {} unreclaimable slab",
            bytes(anon),
            bytes(last.shmem_bytes.unwrap_or(0)),
            bytes(last.slab_unreclaimable_bytes.unwrap_or(0))
        )
    });
    Some(Draft {
        id: FindingId::Overcommit,
        confidence: Confidence::High,
        summary: format!(
            "the node is nearly out of memory: {} of {} is available and nothing can be put away",
            bytes(last.available_bytes.unwrap_or(0)),
            bytes(last.total_bytes)
        ),
        evidence: [used, Some(swap), committed, node.wait.map(Wait::evidence)]
            .into_iter()
            .flatten()
            .collect(),
    })
}

fn swap_thrash(node: &NodeActivity, cgroups: &[Activity<'_>]) -> Option<Draft> {
    let (inward, outward) = (node.per_s(|n| n.pswpin), node.per_s(|n| n.pswpout));
    if !node.waits() || !node.reclaims() || inward.min(outward) < SWAP_PAGES_PER_S {
        return None;
    }
    let used = node
        .last
        .swap_total_bytes
        .zip(node.last.swap_free_bytes)
        .map(|(total, free)| {
            format!(
                "{} of {} of swap used",
                bytes(total.saturating_sub(free)),
                bytes(total)
            )
        });
    Some(Draft {
        id: FindingId::SwapThrash,
        confidence: Confidence::High,
        summary: "the node swaps out what it needs again at once: it has less memory than its \
                  processes work with"
            .to_owned(),
        evidence: [
            node.wait.map(Wait::evidence),
            Some(format!("{inward:.0} pages a second in, {outward:.0} out")),
            refault_wait_evidence(refault_wait_ns(cgroups), node.seconds),
            used,
            node.available_evidence(),
            Some(node.reclaim_evidence()),
        ]
        .into_iter()
        .flatten()
        .collect(),
    })
}

/// A task's wait counts for its own cgroup alone, so that ancestors add nothing.
fn refault_wait_ns(cgroups: &[Activity<'_>]) -> u64 {
    let each = cgroups.iter().map(Activity::refault_wait_ns);
    each.fold(0, u64::saturating_add)
}

fn thrashing(node: &NodeActivity, cgroups: &[Activity<'_>]) -> Option<Draft> {
    let refaults = node.per_s(|n| n.refault_file) + node.per_s(|n| n.refault_anon);
    let share = refaults / node.per_s(|n| n.pgsteal).max(1.0);
    if !node.reclaims() || refaults < REFAULTS_PER_S || share < REFAULT_RATIO {
        return None;
    }
    let confidence = match node.wait {
        Some(wait) if wait.long() => Confidence::High,
        // No account of waiting is kept.
        None if refaults >= BLIND_REFAULTS_PER_S
            && node.per_s(|n| n.allocstall) >= BLIND_DIRECT_PER_S =>
        {
            Confidence::Low
        }
        _ => return None,
    };
    let most = cgroups
        .iter()
        .filter(|activity| activity.refaults() > 0)
        .max_by_key(|activity| {
            (
                activity.refaults(),
                activity.window.cgroup.path.as_ref().map(String::len),
            )
        })
        .map(|activity| {
            format!(
                "most of them in {}: {}",
                activity.window.who(),
                activity.refault_evidence()
            )
        });
    let waiting = node.wait.map_or_else(
        || {
            format!(
                "tasks had to free pages themselves {:.0} times a second; how long they waited is \
                 not known, as PSI is off",
                node.per_s(|n| n.allocstall)
            )
        },
        Wait::evidence,
    );
    Some(Draft {
        id: FindingId::Thrashing,
        confidence,
        summary: "the node thrashes: program code and files in use are thrown out and read back, \
                  and nothing is killed"
            .to_owned(),
        evidence: [
            Some(waiting),
            Some(format!(
                "{refaults:.0} pages a second were thrown out and read back, {} of what reclaim \
                 took",
                ratio(share.min(1.0))
            )),
            refault_wait_evidence(refault_wait_ns(cgroups), node.seconds),
            node.available_evidence(),
            Some(node.reclaim_evidence()),
            most,
        ]
        .into_iter()
        .flatten()
        .collect(),
    })
}

fn slab(node: &NodeActivity) -> Option<Draft> {
    let slab = node.last.slab_unreclaimable_bytes?;
    let share = over(slab, node.last.total_bytes);
    (node.last.total_bytes > 0 && share >= SLAB_RATIO).then(|| Draft {
        id: FindingId::SlabUnreclaimable,
        confidence: Confidence::High,
        summary: format!(
            "{} of the node is kernel objects that cannot be given back: {}",
            ratio(share),
            bytes(slab)
        ),
        evidence: [
            Some(format!(
                "SUnreclaim is {} of {}; a busy node has a few percent",
                bytes(slab),
                bytes(node.last.total_bytes)
            )),
            node.last
                .slab_reclaimable_bytes
                .map(|slab| format!("reclaimable slab is {}", bytes(slab))),
            node.available_evidence(),
        ]
        .into_iter()
        .flatten()
        .collect(),
    })
}

/// Tasks wait, and nothing else was found.
pub(super) fn unnamed(node: &NodeActivity) -> Option<Finding> {
    let wait = node.wait.filter(|wait| wait.some >= WAITING_UNNAMED)?;
    let draft = Draft {
        id: FindingId::Unknown,
        confidence: Confidence::Low,
        summary: "tasks wait for memory; what takes it cannot be told".to_owned(),
        evidence: [
            Some(wait.evidence()),
            Some(node.reclaim_evidence()),
            node.rise(|n| n.compact_stall)
                .map(|count| format!("{count} waits for memory to be moved together (compaction)")),
            node.available_evidence(),
        ]
        .into_iter()
        .flatten()
        .collect(),
    };
    Some(draft.about_node())
}
