//! What the readings say: kernel memory that is too much, or becomes so.
//!
//! The kernel's caches breathe: each fork, connection and open file fills some. So growth is told
//! only of what cannot be reclaimed, never paused during the look, is no longer small, and would
//! fill a tenth of the node within an hour.

use std::cmp::Reverse;

use crate::event::label::{bytes, percent, rate, seconds};
use crate::event::{Confidence, Finding, FindingId, KernelBalance, Severity, SlabUsage};

use super::caches::Grown;

/// Unreclaimable slab, or memory that no counter names, above this and above a tenth of all memory is
/// too much: the same bound as `triage` has. Nodes of any size run with some hundred MiB of both.
const LARGE_BYTES: u64 = 1 << 30;

/// A cache that grows counts from here on: a burst of processes or connections takes some MiB of a
/// cache, and gives it back.
const GROWING_BYTES: u64 = 64 << 20;

/// It must grow by this much during the look: more than free objects of processors and half-full
/// slabs make up.
const GROWTH_BYTES: i64 = 16 << 20;

/// A look shorter than this sees a burst as a slope.
const LONG_LOOK_S: f64 = 30.0;

const HOUR_S: f64 = 3600.0;

/// Most serious first.
pub(super) fn of(usage: &SlabUsage, grown: &[Grown], look_s: f64) -> Vec<Finding> {
    let total = usage.balance.as_ref().map(|balance| balance.total_bytes);
    let mut found: Vec<Finding> = [
        slab_unreclaimable(usage, total),
        usage.balance.as_ref().and_then(unaccounted),
    ]
    .into_iter()
    .flatten()
    .collect();
    let growing = usage.caches.iter().zip(grown).filter_map(|(cache, grown)| {
        // Unknown is taken for unreclaimable only if the node has no reclaimable slab to speak of.
        if cache.reclaimable != Some(false)
            || cache.bytes < GROWING_BYTES
            || grown.grown_bytes() < GROWTH_BYTES
            || !grown.is_steady()
        {
            return None;
        }
        let growth = cache.growth_bytes_per_s?;
        let full_s = float(total? / 10) / growth;
        if full_s > HOUR_S {
            return None;
        }
        let shared = match cache.aliases.as_deref() {
            Some([]) | None => String::new(),
            Some(aliases) => format!(", shared with {} aliases", aliases.len()),
        };
        Some(Finding {
            id: FindingId::LeakSuspect,
            severity: Severity::Warn,
            confidence: if look_s < LONG_LOOK_S {
                Confidence::Low
            } else {
                Confidence::Medium
            },
            cgroup: None,
            summary: format!(
                "cache {} grows by {} without a pause and cannot be reclaimed",
                cache.name,
                rate(growth)
            ),
            evidence: vec![
                format!(
                    "{} in {} objects of {} B{shared}",
                    bytes(cache.bytes),
                    cache.objects,
                    cache.object_bytes
                ),
                format!(
                    "it rose in each of {} parts of {}",
                    grown.before.len(),
                    seconds(look_s)
                ),
                format!(
                    "at this rate it takes a tenth of the memory in {}",
                    seconds(full_s)
                ),
            ],
            next_steps: steps(&cache.name),
        })
    });
    found.extend(growing);
    found.sort_by_key(|finding| Reverse((finding.severity, finding.confidence)));
    found
}

fn slab_unreclaimable(usage: &SlabUsage, total: Option<u64>) -> Option<Finding> {
    let (total, slab) = (total?, usage.slab_unreclaimable_bytes?);
    if !is_large(slab, total) {
        return None;
    }
    let unreclaimable = usage
        .caches
        .iter()
        .filter(|cache| cache.reclaimable != Some(true));
    let biggest: Vec<String> = unreclaimable
        .clone()
        .take(3)
        .map(|cache| format!("{} {}", cache.name, bytes(cache.bytes)))
        .collect();
    let mut evidence = vec![format!("SUnreclaim {} of {}", bytes(slab), bytes(total))];
    if !biggest.is_empty() {
        evidence.push(format!("biggest caches: {}", biggest.join(", ")));
    }
    if let Some(growth) = usage.slab_unreclaimable_growth_bytes_per_s {
        evidence.push(format!("it changes by {}", rate(growth)));
    }
    let charged = usage.cgroups.iter().max_by_key(|it| it.kernel_bytes);
    if let Some(most) = charged {
        evidence.push(format!(
            "the most that is charged to one cgroup is {}",
            bytes(most.kernel_bytes)
        ));
    }
    let first = unreclaimable.clone().next();
    Some(Finding {
        id: FindingId::SlabUnreclaimable,
        severity: Severity::Warn,
        confidence: Confidence::High,
        cgroup: None,
        summary: format!(
            "kernel objects that cannot be given back fill {} of the memory",
            percent(slab, total)
        ),
        evidence,
        next_steps: first.map_or(Vec::new(), |cache| steps(&cache.name)),
    })
}

fn unaccounted(balance: &KernelBalance) -> Option<Finding> {
    let rest = u64::try_from(balance.unaccounted_bytes).ok()?;
    let rest = rest.saturating_sub(balance.noise_bytes);
    if !is_large(rest, balance.total_bytes) {
        return None;
    }
    let mut evidence = vec![format!(
        "{} of {} is neither free, on an LRU list, in slab, nor in any other counter",
        bytes(rest),
        bytes(balance.total_bytes)
    )];
    if let Some(balloon) = balance.balloon_bytes.filter(|balloon| *balloon > 0) {
        evidence.push(format!("a balloon has {} of it or less", bytes(balloon)));
    }
    evidence.push(
        "pages that drivers, packet rings, a hypervisor's balloon or ZFS take are not in slab"
            .to_owned(),
    );
    Some(Finding {
        id: FindingId::KernelUnaccounted,
        severity: Severity::Warn,
        confidence: Confidence::Medium,
        cgroup: None,
        summary: format!(
            "the kernel took {} of the memory page by page, which no slab view shows",
            percent(rest, balance.total_bytes)
        ),
        evidence,
        next_steps: vec![
            "grep -s . /sys/kernel/debug/vmmemctl /proc/spl/kstat/zfs/arcstats | grep -wE 'size|current'"
                .to_owned(),
            "ss -0 -a -n -m -p".to_owned(),
            "ethtool -l eth0; ethtool -g eth0".to_owned(),
        ],
    })
}

/// What to run next about a cache.
fn steps(cache: &str) -> Vec<String> {
    let mut steps = Vec::new();
    if cache.starts_with("skbuff") {
        steps.push("oomprobe skb".to_owned());
    }
    // Buffers are kept for reuse by processors: the cache knows little of who asks for them.
    let tracked = if cache.starts_with("skbuff") {
        "skb"
    } else {
        cache
    };
    // A name of a cache is the kernel's own, or a module's.
    if let Some(cache) = crate::verdict::quote(tracked) {
        steps.push(format!("oomprobe slab --track {cache} --duration 60s"));
    }
    steps.push("oomprobe slab --duration 60s".to_owned());
    steps
}

fn is_large(bytes: u64, total: u64) -> bool {
    bytes > LARGE_BYTES && bytes > total / 10
}

#[expect(clippy::cast_precision_loss, reason = "a time for a person")]
fn float(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::slabinfo::Cache;

    const GIB: u64 = 1 << 30;
    const MIB: u64 = 1 << 20;

    fn usage(slab: u64, rest: i64) -> SlabUsage {
        SlabUsage {
            slab_unreclaimable_bytes: Some(slab),
            balance: Some(KernelBalance {
                total_bytes: 16 * GIB,
                unaccounted_bytes: rest,
                noise_bytes: 10 * MIB,
                ..KernelBalance::default()
            }),
            ..SlabUsage::default()
        }
    }

    fn with_cache(looks: &[u64], reclaimable: Option<bool>, seconds: f64) -> Vec<Finding> {
        let (last, before) = looks.split_last().unwrap();
        let grown = Grown {
            cache: Cache {
                name: b"skbuff_head_cache".to_vec(),
                objects: last / 256,
                object_bytes: 256,
                bytes: *last,
            },
            before: before.iter().map(|bytes| (*bytes, bytes / 256)).collect(),
        };
        let mut usage = usage(0, 0);
        let mut cache = grown.usage(None, seconds);
        cache.reclaimable = reclaimable;
        usage.caches = vec![cache];
        of(&usage, &[grown], seconds)
    }

    #[test]
    fn a_healthy_node_has_none() {
        assert!(of(&usage(900 * MIB, 0), &[], 3.0).is_empty());
        // Large, but not by the size of the node.
        assert!(of(&usage(3 * GIB / 2, 0), &[], 3.0).is_empty());
        assert!(of(&usage(0, 1 << 30), &[], 3.0).is_empty());
        assert!(of(&usage(0, i64::MIN), &[], 3.0).is_empty());
        assert!(of(&SlabUsage::default(), &[], 3.0).is_empty());
    }

    #[test]
    fn too_much_slab_or_too_much_that_nothing_names() {
        let found = of(&usage(2 * GIB, 0), &[], 3.0);
        assert_eq!(found[0].id, FindingId::SlabUnreclaimable);
        let found = of(&usage(0, 4 << 30), &[], 3.0);
        assert_eq!(found[0].id, FindingId::KernelUnaccounted);
    }

    #[test]
    fn growth_must_be_steady_large_fast_and_unreclaimable() {
        let leak = [100, 110, 120, 130, 140, 150].map(|mib| mib * MIB);
        let found = with_cache(&leak, Some(false), 5.0);
        assert_eq!(found[0].id, FindingId::LeakSuspect);
        assert_eq!(found[0].confidence, Confidence::Low);
        assert_eq!(found[0].next_steps[0], "oomprobe skb");
        let longer = with_cache(&leak, Some(false), 60.0);
        assert_eq!(longer[0].confidence, Confidence::Medium);

        assert!(with_cache(&leak, Some(true), 5.0).is_empty());
        assert!(with_cache(&leak, None, 5.0).is_empty());
        // A pause, a young cache, a trickle, and a slope that would take days.
        let pause = [100, 120, 120, 130, 140, 150].map(|mib| mib * MIB);
        assert!(with_cache(&pause, Some(false), 5.0).is_empty());
        let young = [1, 10, 20, 30, 40, 50].map(|mib| mib * MIB);
        assert!(with_cache(&young, Some(false), 5.0).is_empty());
        let trickle = [100, 101, 102, 103, 104, 105].map(|mib| mib * MIB);
        assert!(with_cache(&trickle, Some(false), 5.0).is_empty());
        assert!(with_cache(&leak, Some(false), 600.0).is_empty());
    }
}
