//! Who takes memory, and who waits for it.

use super::Draft;
use super::activity::{Activity, NodeActivity, Wait, over};
use super::thresholds::{NEIGHBOUR_BYTES_PER_S, NEIGHBOUR_RATIO, PROTECTED_RATIO};
use crate::event::label::{self, bytes, ratio};
use crate::event::{Confidence, Finding, FindingId};
use crate::pressure::sample::Detail;
use crate::pressure::series::approx;

/// The node reclaims for what one cgroup takes, and another one waits.
pub(super) fn noisy(
    node: &NodeActivity,
    cgroups: &[Activity<'_>],
    page_bytes: u64,
) -> Option<Finding> {
    if !node.reclaims() {
        return None;
    }
    let leaves = leaves(cgroups);
    let taken: Vec<_> = leaves
        .iter()
        .map(|&leaf| (leaf, taken_bytes(leaf, page_bytes)))
        .collect();
    let all = taken
        .iter()
        .fold(0, |sum: u64, &(_, taken)| sum.saturating_add(taken));
    let &(culprit, most) = taken.iter().max_by_key(|&&(_, taken)| taken)?;
    let rate = approx(most) / culprit.seconds;
    if over(most, all) < NEIGHBOUR_RATIO || rate < NEIGHBOUR_BYTES_PER_S {
        return None;
    }
    let others = || {
        leaves
            .iter()
            .filter(|leaf| !leaf.window.cgroup.is(culprit.window.cgroup))
    };
    // One that is at its own limit waits for itself.
    let mut waiting: Vec<_> = others()
        .filter(|leaf| leaf.waits() && !leaf.at_own_limit())
        .collect();
    waiting.sort_by(|a, b| {
        let some = |leaf: &Activity<'_>| leaf.wait.map_or(0.0, |wait| wait.some);
        some(b).total_cmp(&some(a))
    });
    let blind = others().all(|leaf| leaf.wait.is_none());
    let (confidence, sufferers) = match waiting.first() {
        Some(first) => (
            Confidence::High,
            format!("{} waits for it", first.window.who()),
        ),
        None if blind && node.waits() => (Confidence::Low, "the node waits for it".to_owned()),
        None => return None,
    };
    let grown = culprit.growth(|d| d.anon_bytes.saturating_add(d.shmem_bytes));
    let how = if over(grown, most) >= 0.5 {
        "grows"
    } else {
        "fills the page cache by its file I/O"
    };
    let draft =
        Draft {
            id: FindingId::NoisyNeighbour,
            confidence,
            summary: format!(
                "{} {how} at {} and makes the whole node look for memory; {sufferers}",
                culprit.window.who(),
                label::rate(rate)
            ),
            evidence: [Some(format!(
                "it took {} of all memory taken in {} ({}); {} of that is anonymous or shared",
                ratio(over(most, all)),
                label::seconds(culprit.seconds),
                bytes(most),
                bytes(grown)
            ))]
            .into_iter()
            .flatten()
            .chain(waiting.iter().take(3).filter_map(|leaf| {
                Some(format!("{}: {}", leaf.window.who(), leaf.wait?.evidence()))
            }))
            .chain([node.reclaim_evidence()])
            .chain(node.available_evidence())
            .chain(blind.then_some(node.wait).flatten().map(Wait::evidence))
            .collect(),
        };
    Some(draft.about(culprit.window))
}

/// Memory that a cgroup took from the node: what it grew by, and what it took anew while as much
/// of its own was reclaimed. One that reclaims at its own limit takes nothing from others, nor does
/// one that reads back what was thrown out: that is what it was taken.
fn taken_bytes(leaf: &Activity<'_>, page_bytes: u64) -> u64 {
    let held = |d: &Detail| {
        d.anon_bytes
            .saturating_add(d.file_bytes)
            .saturating_add(d.shmem_bytes)
            .saturating_add(d.kernel_bytes.unwrap_or(0))
    };
    if leaf.at_own_limit() {
        return leaf.growth(held);
    }
    // What the node took from it was not taken by it: what came in is what it grew by, or less,
    // and what was reclaimed meanwhile.
    let reclaimed = leaf.count(|d| d.pgsteal).saturating_mul(page_bytes);
    let lost = leaf.shrinkage(held);
    let refaulted = leaf.count(|d| d.refault_file) + leaf.count(|d| d.refault_anon);
    leaf.growth(held)
        .saturating_add(reclaimed.saturating_sub(lost))
        .saturating_sub(refaulted.saturating_mul(page_bytes))
}

/// Cgroups without another one inside.
fn leaves<'a, 'b>(cgroups: &'b [Activity<'a>]) -> Vec<&'b Activity<'a>> {
    let mut sorted: Vec<_> = cgroups.iter().collect();
    // With the separator before all other bytes, what is inside follows at once.
    let key = |activity: &&Activity<'_>| -> Vec<u8> {
        let path = activity.window.cgroup.path.as_deref().unwrap_or_default();
        path.bytes()
            .map(|byte| if byte == b'/' { 0 } else { byte })
            .collect()
    };
    sorted.sort_by_cached_key(key);
    let next = sorted.iter().skip(1).map(Some).chain([None]);
    sorted
        .iter()
        .zip(next)
        .filter(|(own, next)| next.is_none_or(|next| !own.window.holds(next.window)))
        .map(|(own, _)| *own)
        .collect()
}

/// `memory.min` or `memory.low` keeps a large part of the node from those who wait.
pub(super) fn protection(node: &NodeActivity, cgroups: &[Activity<'_>]) -> Option<Finding> {
    if !node.reclaims() {
        return None;
    }
    let kept = |activity: &Activity<'_>| {
        let settings = &activity.window.settings;
        settings
            .min_bytes
            .max(settings.low_bytes)
            .unwrap_or(0)
            .min(activity.usage_bytes)
    };
    let holder = cgroups.iter().max_by_key(|activity| kept(activity))?;
    let bytes_kept = kept(holder);
    if over(bytes_kept, node.last.total_bytes) < PROTECTED_RATIO {
        return None;
    }
    let waiting = cgroups
        .iter()
        .filter(|other| !holder.window.holds(other.window) && !other.window.holds(holder.window))
        .filter(|other| other.waits() && !other.at_own_limit())
        .max_by_key(|other| other.usage_bytes)?;
    let settings = &holder.window.settings;
    let breached = holder.count(|d| d.low_events);
    let draft = Draft {
        id: FindingId::Protection,
        confidence: Confidence::Medium,
        summary: format!(
            "{} keeps {} by memory.min or memory.low while {} waits for memory",
            holder.window.who(),
            bytes(bytes_kept),
            waiting.window.who()
        ),
        evidence: [
            Some(format!(
                "{} of the node is protected there (min {}, low {})",
                ratio(over(bytes_kept, node.last.total_bytes)),
                settings.min_bytes.map_or("not set".to_owned(), bytes),
                settings.low_bytes.map_or("not set".to_owned(), bytes)
            )),
            waiting
                .wait
                .map(|wait| format!("{}: {}", waiting.window.who(), wait.evidence())),
            Some(node.reclaim_evidence()),
            (breached > 0)
                .then(|| format!("it was reclaimed {breached} times although under memory.low")),
        ]
        .into_iter()
        .flatten()
        .collect(),
    };
    Some(draft.about(holder.window))
}
