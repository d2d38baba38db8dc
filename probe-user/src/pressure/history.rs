//! From the flight recorder to `before`: what led up to a kill. Pure.

use super::sample::{CgroupSample, NodeSample};
use crate::event::{Before, Confidence, CpuThrottled, MemorySample};

/// A pause of this length between two limit hits begins a new series of hits.
pub const HIT_PAUSE_NS: u64 = 10 * SECOND_NS;

/// Growth is measured, and thrashing is judged, over this long.
const RECENT_NS: u64 = 10 * SECOND_NS;

/// Most samples an event carries.
const MAX_SAMPLES: usize = 60;

/// Of those, so many are the last ones as they came; the others are spread over the time before.
const MAX_LAST_SAMPLES: usize = 30;

/// Share of time from which on waiting for memory is thrashing.
const THRASH_STALL_RATIO: f64 = 0.1;

/// Refaults from which on waiting for memory is thrashing, pages per second: a disk of 100
/// operations a second that does nothing else, or readahead at a few.
const THRASH_REFAULTS_PER_S: f64 = 100.0;

/// Least time over which thrashing is judged.
const THRASH_WINDOW_NS: u64 = SECOND_NS;

const SECOND_NS: u64 = 1_000_000_000;

/// Limit hits without a pause between them. `CLOCK_BOOTTIME`, ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HitSeries {
    /// The first.
    pub first_ns: u64,
    /// The last.
    pub last_ns: u64,
}

impl HitSeries {
    /// The series that a hit at `boot_ns` belongs to, after `before`.
    pub fn after(before: Option<Self>, boot_ns: u64) -> Self {
        match before {
            Some(series) if boot_ns <= series.last_ns.saturating_add(HIT_PAUSE_NS) => Self {
                // Notices of hits and counters that moved arrive in no order.
                first_ns: if boot_ns.saturating_add(HIT_PAUSE_NS) >= series.first_ns {
                    series.first_ns.min(boot_ns)
                } else {
                    series.first_ns
                },
                last_ns: series.last_ns.max(boot_ns),
            },
            _ => Self {
                first_ns: boot_ns,
                last_ns: boot_ns,
            },
        }
    }
}

/// What is known of a cgroup beside its samples. `None` is what nobody can tell.
#[derive(Clone, Copy, Debug, Default)]
pub struct Known {
    /// When it was made, `CLOCK_BOOTTIME`.
    pub made_boot_ns: Option<u64>,
    /// The limit that was hit.
    pub limit_bytes: Option<u64>,
    /// Most ever charged (`memory.peak`, `memory.max_usage_in_bytes`).
    pub peak_bytes: Option<u64>,
    /// Limit hits as hooks told of them.
    pub hits: Option<HitSeries>,
    /// `max` of `memory.events.local` (v1: `memory.failcnt`) at the kill or soon after.
    pub max_events: Option<u64>,
    /// `high` of `memory.events.local`, then.
    pub high_events: Option<u64>,
    /// How long it waited for its CPU quota.
    pub cpu_throttled: Option<CpuThrottled>,
}

/// What is common to cgroups and the node.
#[derive(Clone, Copy, Debug, Default)]
struct Point {
    boot_ns: u64,
    usage_bytes: u64,
    anon_bytes: Option<u64>,
    file_bytes: Option<u64>,
    shmem_bytes: Option<u64>,
    slab_bytes: Option<u64>,
    swap_bytes: Option<u64>,
    max_events: Option<u64>,
    high_events: Option<u64>,
    refaults: Option<u64>,
    stall_us: Option<u64>,
}

impl From<&CgroupSample> for Point {
    fn from(sample: &CgroupSample) -> Self {
        let mut point = Self {
            boot_ns: sample.boot_ns,
            usage_bytes: sample.usage_bytes,
            ..Self::default()
        };
        if let Some(detail) = &sample.detail {
            point.anon_bytes = Some(detail.anon_bytes);
            point.file_bytes = Some(detail.file_bytes);
            point.shmem_bytes = Some(detail.shmem_bytes);
            point.slab_bytes = plus(
                detail.slab_reclaimable_bytes,
                detail.slab_unreclaimable_bytes,
            );
            point.swap_bytes = detail.swap_bytes;
            point.max_events = detail.max_events;
            point.high_events = detail.high_events;
            point.refaults = plus(detail.refault_anon, detail.refault_file);
            point.stall_us = detail.psi_some_us;
        }
        point
    }
}

impl From<&NodeSample> for Point {
    fn from(sample: &NodeSample) -> Self {
        let available = sample.available_bytes.or(sample.free_bytes).unwrap_or(0);
        Self {
            boot_ns: sample.boot_ns,
            usage_bytes: sample.total_bytes.saturating_sub(available),
            anon_bytes: sample.anon_bytes,
            file_bytes: sample.file_bytes,
            shmem_bytes: sample.shmem_bytes,
            slab_bytes: plus(
                sample.slab_reclaimable_bytes,
                sample.slab_unreclaimable_bytes,
            ),
            swap_bytes: minus(sample.swap_total_bytes, sample.swap_free_bytes),
            max_events: None,
            high_events: None,
            refaults: plus(sample.refault_anon, sample.refault_file),
            stall_us: sample.psi_some_us[1],
        }
    }
}

/// What led up to the kill at `kill_boot_ns` of the cgroup that gave `series` (oldest first).
pub fn before(series: &[CgroupSample], kill_boot_ns: u64, known: &Known) -> Before {
    let points: Vec<Point> = series.iter().map(Point::from).collect();
    build(&points, kill_boot_ns, known)
}

/// The same for the node.
pub fn before_node(series: &[NodeSample], kill_boot_ns: u64) -> Before {
    let points: Vec<Point> = series.iter().map(Point::from).collect();
    build(&points, kill_boot_ns, &Known::default())
}

fn build(points: &[Point], kill_ns: u64, known: &Known) -> Before {
    // What was sampled later describes another world.
    let points = &points[..points.partition_point(|point| point.boot_ns <= kill_ns)];
    let hits = hits(points, kill_ns, known);
    let reached_ns = hits.map_or(kill_ns, |hits| hits.first_ns);
    let first_ns = points.first().map(|point| point.boot_ns);
    // The record of an old cgroup begins long after it was made.
    let is_in_record = |made: &u64| {
        let is_followed = |first| (*made..=made.saturating_add(RECENT_NS)).contains(&first);
        *made <= reached_ns && first_ns.is_none_or(is_followed)
    };
    let made_ns = known.made_boot_ns.filter(is_in_record);
    let start_ns = made_ns.or(first_ns).unwrap_or(kill_ns);
    let is_young = made_ns.is_some();

    let curve = curve(
        points,
        start_ns,
        is_young,
        reached_ns,
        hits.is_some(),
        known,
    );
    let growth = growth(&curve, reached_ns);

    let counted = |of: fn(&Point) -> Option<u64>, at_kill: Option<u64>| {
        let first = if is_young {
            Some(0)
        } else {
            points.iter().find_map(of)
        };
        // A look that began before the kill may have read what came after it.
        let last = at_kill.or_else(|| points.iter().rev().find_map(of));
        minus(last, first)
    };
    Before {
        samples: samples(points, kill_ns),
        first_limit_hit_ms: hits.map(|hits| ms(kill_ns - hits.first_ns)),
        max_hits: counted(|point| point.max_events, known.max_events),
        high_hits: counted(|point| point.high_events, known.high_events),
        stall_ms: counted(|point| point.stall_us, None).map(|us| as_f64(us) / 1e3),
        refaults: counted(|point| point.refaults, None),
        growth_bytes_per_s: growth.map(|(slope, _)| slope),
        growth_confidence: growth.map(|(_, confidence)| confidence),
        half_to_limit_ms: known
            .limit_bytes
            .and_then(|limit| half_to_limit(&curve, limit / 2, reached_ns)),
        thrashed: thrashed(points, kill_ns),
        cpu_throttled: known.cpu_throttled,
        span_ms: ms(kill_ns - start_ns),
    }
}

/// The series of limit hits that was not over at the kill.
fn hits(points: &[Point], kill_ns: u64, known: &Known) -> Option<HitSeries> {
    let counted = points.windows(2).fold(None, |series, pair| {
        let moved =
            |of: fn(&Point) -> Option<u64>| of(&pair[1]) > of(&pair[0]) && of(&pair[0]).is_some();
        if moved(|point| point.max_events) {
            Some(HitSeries::after(series, pair[1].boot_ns))
        } else {
            series
        }
    });
    let told = known.hits.filter(|hits| hits.first_ns <= kill_ns);
    [told, counted]
        .into_iter()
        .flatten()
        .filter(|hits| hits.last_ns.saturating_add(HIT_PAUSE_NS) >= kill_ns)
        .min_by_key(|hits| hits.first_ns)
}

/// Usage over time until the limit was reached, with the two ends that are known without a
/// sample: nothing when the cgroup was made, and the limit when it was hit.
fn curve(
    points: &[Point],
    start_ns: u64,
    is_young: bool,
    reached_ns: u64,
    was_hit: bool,
    known: &Known,
) -> Vec<(u64, u64)> {
    let made = is_young.then_some((start_ns, 0));
    let sampled = points
        .iter()
        .filter(|point| point.boot_ns <= reached_ns)
        .map(|point| (point.boot_ns, point.usage_bytes));
    let mut curve: Vec<(u64, u64)> = made.into_iter().chain(sampled).collect();
    let full = if was_hit || is_young {
        known.limit_bytes.or(known.peak_bytes)
    } else {
        None
    };
    if let Some(full) = full
        && curve.last().is_some_and(|&(at, _)| at < reached_ns)
    {
        curve.push((reached_ns, full));
    }
    curve
}

/// Slope over the last ten seconds of `curve`, bytes per second: the median over all pairs
/// (Theil–Sen), which a few outliers do not move.
fn growth(curve: &[(u64, u64)], reached_ns: u64) -> Option<(f64, Confidence)> {
    let from = curve.partition_point(|&(at, _)| at.saturating_add(RECENT_NS) < reached_ns);
    let recent = thinned(&curve[from..], MAX_SAMPLES);
    let mut slopes = Vec::new();
    for (index, &&(from_ns, from_bytes)) in recent.iter().enumerate() {
        for &&(to_ns, to_bytes) in &recent[index + 1..] {
            if to_ns > from_ns {
                let rise = as_f64(to_bytes) - as_f64(from_bytes);
                slopes.push(rise / as_f64(to_ns - from_ns) * 1e9);
            }
        }
    }
    slopes.sort_by(f64::total_cmp);
    let quantile = |quarters: usize| {
        slopes
            .get((slopes.len().checked_sub(1)?) * quarters / 4)
            .copied()
    };
    let median = quantile(2)?;
    let spread = (quantile(3)? - quantile(1)?).abs() / median.abs().max(1.0);
    let confidence = match recent.len() {
        8.. if spread <= 0.5 => Confidence::High,
        4.. if spread <= 1.0 => Confidence::Medium,
        _ => Confidence::Low,
    };
    Some((median, confidence))
}

/// From the last time usage rose over `half` to when the limit was reached.
fn half_to_limit(curve: &[(u64, u64)], half: u64, reached_ns: u64) -> Option<f64> {
    let below = curve.iter().rposition(|&(_, bytes)| bytes < half)?;
    let (from_ns, from_bytes) = curve[below];
    let &(to_ns, to_bytes) = curve.get(below + 1)?;
    // In between usage is taken to have risen evenly.
    let share = as_f64(half - from_bytes) / as_f64(to_bytes - from_bytes);
    Some((ms(reached_ns - from_ns) - share * ms(to_ns - from_ns)).max(0.0))
}

fn thrashed(points: &[Point], kill_ns: u64) -> Option<bool> {
    let mut both = points
        .iter()
        .filter(|point| point.boot_ns.saturating_add(RECENT_NS) >= kill_ns)
        .filter_map(|point| Some((point.boot_ns, point.stall_us?, point.refaults?)));
    let (from_ns, from_stall, from_refaults) = both.next()?;
    let (to_ns, to_stall, to_refaults) = both.next_back()?;
    let span_ns = to_ns - from_ns;
    if span_ns < THRASH_WINDOW_NS {
        return None;
    }
    let seconds = as_f64(span_ns) / 1e9;
    let stalled = as_f64(to_stall.saturating_sub(from_stall)) / 1e6 / seconds;
    let refaults = as_f64(to_refaults.saturating_sub(from_refaults)) / seconds;
    Some(stalled > THRASH_STALL_RATIO && refaults >= THRASH_REFAULTS_PER_S)
}

fn samples(points: &[Point], kill_ns: u64) -> Vec<MemorySample> {
    let (old, last) = points.split_at(points.len().saturating_sub(MAX_LAST_SAMPLES));
    thinned(old, MAX_SAMPLES - MAX_LAST_SAMPLES)
        .into_iter()
        .chain(last)
        .map(|point| MemorySample {
            before_ms: ms(kill_ns - point.boot_ns),
            usage_bytes: point.usage_bytes,
            anon_bytes: point.anon_bytes,
            file_bytes: point.file_bytes,
            shmem_bytes: point.shmem_bytes,
            slab_bytes: point.slab_bytes,
            swap_bytes: point.swap_bytes,
            max_events: point.max_events,
            high_events: point.high_events,
            refaults: point.refaults,
            stall_ms: point.stall_us.map(|us| as_f64(us) / 1e3),
        })
        .collect()
}

/// At most `most` of `items`, evenly spread, the first and the last among them.
fn thinned<T>(items: &[T], most: usize) -> Vec<&T> {
    if items.len() <= most {
        return items.iter().collect();
    }
    let last = items.len() - 1;
    (0..most)
        .map(|index| &items[index * last / (most - 1)])
        .collect()
}

fn plus(first: Option<u64>, second: Option<u64>) -> Option<u64> {
    Some(first?.saturating_add(second?))
}

fn minus(from: Option<u64>, what: Option<u64>) -> Option<u64> {
    Some(from?.saturating_sub(what?))
}

fn ms(ns: u64) -> f64 {
    as_f64(ns) / 1e6
}

#[expect(
    clippy::cast_precision_loss,
    reason = "durations and counts far below 2^53"
)]
fn as_f64(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests;
