//! Leaks: what grows steadily and does not come back.
//!
//! A growing number is mostly not a leak: programs warm up, collectors let garbage pile up and
//! sweep it, jobs take what they need in one step, and page cache fills whatever is free. So page
//! cache and reclaimable slab are never looked at, and the rest must grow through the whole window:
//! by a material amount, evenly, without falling back, without slowing down, above what it has
//! reached and given back before, and go on doing so for a while.

use std::num::NonZeroUsize;
use std::time::Duration;

use lru::LruCache;

use super::sample::{CgroupSample, NodeSample, Settings};
use super::series::{self, Point, Slope, approx};
use crate::event::label::{self, bytes, seconds};
use crate::event::{Cgroup, Confidence, Grower, LeakSuspect};

/// Slots of a window. A slot keeps the least value seen in it, so that a collector's fall is seen
/// however short.
const SLOTS: usize = 60;

/// Filled slots that a judgement needs: a slow reader may leave five of six empty.
const FEWEST_SLOTS: usize = 10;

/// Stretches of the window that must all grow.
const LEVELS: usize = 5;

/// Growth that matters at all. A cgroup's counters are exact to 64 pages a CPU
/// (`MEMCG_CHARGE_BATCH`): below this a large machine's rounding could grow.
const MATERIAL_BYTES: f64 = 4.0 * 1024.0 * 1024.0;

/// Growth that matters, over the level it started from. A daily wave of a third of the level rises
/// by 1.5 % in ten minutes at its steepest.
const MATERIAL_RATIO: f64 = 0.05;

/// Least growth of a stretch over the mean of all: below, it is a step, a plateau or chance.
const EVEN: f64 = 0.3;

/// Most that it may have fallen back over its growth: above, it is a saw.
const DRAWDOWN_RATIO: f64 = 0.5;

/// Second half's slope over the first's: below, it is a warm-up that ends by itself.
const SLOWING: f64 = 0.6;

/// The same where the second slope is less than the first for sure.
const SLOWING_FOR_SURE: f64 = 0.9;

/// A fall to less than this share of the peak shows that the memory is given back: then only what
/// exceeds the peak counts.
const FALLEN_RATIO: f64 = 0.75;

/// A peak is forgotten after this many windows.
const PEAK_WINDOWS: u64 = 12;

/// Judgements for less those against that make a suspect: a quarter of a window.
const HOLD: u8 = 15;

/// Series that are kept: three of each of 2,000 cgroups and the node's, about 2 MiB. Beyond, the
/// one that was fed longest ago goes.
const SERIES: NonZeroUsize = NonZeroUsize::new(6_500).unwrap();

/// What to take for a leak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Over how long it must grow. A longer one finds slower leaks, and is quiet on longer
    /// warm-ups and saws.
    pub window: Duration,
    /// How often one that goes on is told again; sooner only when the time to the limit has
    /// halved.
    pub repeat: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(600),
            repeat: Duration::from_secs(3600),
        }
    }
}

/// What may grow.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// One kind of memory of the cgroup with this kernfs id.
    Cgroup(u64, Grower),
    /// `SUnreclaim` of the node.
    SlabUnreclaimable,
    /// A slab cache of the node.
    SlabCache(Box<str>),
}

/// A limit and what counts against it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headroom {
    /// The limit, bytes.
    pub limit_bytes: u64,
    /// What fills it and is not given back for the asking: usage less inactive page cache.
    pub used_bytes: u64,
}

/// Something that grows as a leak does.
#[derive(Clone, Debug, PartialEq)]
pub struct Leak {
    /// What grows.
    pub subject: Subject,
    /// How much it is, bytes.
    pub bytes: u64,
    /// How fast, bytes per second.
    pub slope: Slope,
    /// Over how long this was seen, s.
    pub window_s: f64,
    /// How sure it is.
    pub confidence: Confidence,
    /// The limit it grows towards.
    pub limit_bytes: Option<u64>,
    /// At this rate the limit is reached in this time, s.
    pub time_to_limit_s: Option<f64>,
}

/// Looks for leaks in series of samples. Samples of one subject come in order of time.
///
/// It holds for ancestors too: a leak in a container makes its pod and `kubepods` grow. Feed the
/// cgroups that own processes or limits, and take the deepest one.
#[derive(Debug)]
pub struct Detector {
    options: Options,
    slot_ns: u64,
    series: LruCache<Subject, Series>,
}

impl Detector {
    /// A detector that has seen nothing.
    pub fn new(options: Options) -> Self {
        let slot = options.window.as_nanos() / SLOTS as u128;
        Self {
            options,
            slot_ns: u64::try_from(slot).unwrap_or(u64::MAX).max(1),
            series: LruCache::new(SERIES),
        }
    }

    /// Takes a full look at the cgroup `id`. A sample without detail is not looked at.
    pub fn cgroup(&mut self, id: u64, sample: &CgroupSample, settings: &Settings) -> Vec<Leak> {
        let Some(detail) = &sample.detail else {
            return Vec::new();
        };
        let headroom = settings.max_bytes.map(|limit_bytes| Headroom {
            limit_bytes,
            used_bytes: sample
                .usage_bytes
                .saturating_sub(detail.inactive_file_bytes.unwrap_or(0)),
        });
        // Dentries and inodes are given back as page cache is.
        let kernel = detail
            .kernel_bytes
            .map(|all| all.saturating_sub(detail.slab_reclaimable_bytes.unwrap_or(0)));
        [
            (Grower::Anon, Some(detail.anon_bytes)),
            (Grower::Shmem, Some(detail.shmem_bytes)),
            (Grower::Kernel, kernel),
        ]
        .into_iter()
        .filter_map(|(what, bytes)| {
            self.observe(Subject::Cgroup(id, what), sample.boot_ns, bytes?, headroom)
        })
        .collect()
    }

    /// Takes a look at the node.
    pub fn node(&mut self, sample: &NodeSample) -> Option<Leak> {
        let slab = sample.slab_unreclaimable_bytes?;
        let headroom = sample.available_bytes.map(|available| Headroom {
            limit_bytes: sample.total_bytes,
            used_bytes: sample.total_bytes.saturating_sub(available),
        });
        self.observe(Subject::SlabUnreclaimable, sample.boot_ns, slab, headroom)
    }

    /// Takes a value of any subject; `Some` when it is time to tell.
    pub fn observe(
        &mut self,
        subject: Subject,
        boot_ns: u64,
        bytes: u64,
        headroom: Option<Headroom>,
    ) -> Option<Leak> {
        let slot = boot_ns / self.slot_ns;
        if !self.series.contains(&subject) {
            if approx(bytes) < MATERIAL_BYTES {
                return None;
            }
            self.series.put(subject.clone(), Series::new(slot));
        }
        let series = self.series.get_mut(&subject)?;
        if !series.take(slot, bytes) {
            return None;
        }
        let slot_s = approx(self.slot_ns) / 1e9;
        let trend = series.judge(slot_s);
        series.score = match trend {
            Some(_) => (series.score + 1).min(2 * HOLD),
            None => series.score.saturating_sub(1),
        };
        let trend = trend.filter(|_| series.score >= HOLD)?;
        let time_to_limit_s = headroom.map(
            |Headroom {
                 limit_bytes,
                 used_bytes,
             }| { approx(limit_bytes.saturating_sub(used_bytes)) / trend.slope.median },
        );
        if let Some((told_ns, told_to_limit_s)) = series.told {
            let again =
                Duration::from_nanos(boot_ns.saturating_sub(told_ns)) >= self.options.repeat;
            let nearer = time_to_limit_s
                .zip(told_to_limit_s)
                .is_some_and(|(now, told)| now <= told / 2.0 && now > 0.0);
            if !again && !nearer {
                return None;
            }
        }
        series.told = Some((boot_ns, time_to_limit_s));
        Some(Leak {
            subject,
            bytes,
            slope: trend.slope,
            window_s: trend.window_s,
            confidence: trend.confidence,
            limit_bytes: headroom.map(|headroom| headroom.limit_bytes),
            time_to_limit_s,
        })
    }
}

impl Leak {
    /// The event. `cgroup` is that of the subject, `who` what a person calls it.
    pub fn event(self, cgroup: Option<Cgroup>, who: Option<&str>) -> LeakSuspect {
        let (what, slab_cache) = match self.subject {
            Subject::Cgroup(_, what) => (what, None),
            Subject::SlabUnreclaimable => (Grower::SlabUnreclaimable, None),
            Subject::SlabCache(name) => (Grower::SlabCache, Some(name.into_string())),
        };
        let name = match (what, &slab_cache) {
            (Grower::Anon, _) => "anonymous memory",
            (Grower::Shmem, _) => "tmpfs and shared memory",
            (Grower::Kernel, _) => "kernel memory",
            (Grower::SlabCache, Some(cache)) => cache,
            _ => "unreclaimable slab",
        };
        let whose = who.or(cgroup.as_ref().and_then(|cgroup| cgroup.path.as_deref()));
        let towards = match (self.limit_bytes, self.time_to_limit_s) {
            (Some(limit), Some(left)) => {
                format!(", its limit of {} is {} away", bytes(limit), seconds(left))
            }
            _ => String::new(),
        };
        LeakSuspect {
            what,
            summary: format!(
                "{name} of {} has grown by {} for {}: {} now{towards}",
                whose.unwrap_or("the node"),
                label::rate(self.slope.median),
                seconds(self.window_s),
                bytes(self.bytes)
            ),
            cgroup,
            slab_cache,
            bytes: self.bytes,
            growth_bytes_per_s: self.slope.median,
            growth_low_bytes_per_s: self.slope.low,
            growth_high_bytes_per_s: self.slope.high,
            window_s: self.window_s,
            confidence: self.confidence,
            limit_bytes: self.limit_bytes,
            time_to_limit_s: self.time_to_limit_s,
        }
    }
}

/// The last window of one subject.
#[derive(Debug)]
struct Series {
    /// Number of the newest slot, in slots since boot.
    newest: u64,
    /// KiB, by number of the slot modulo their count; [`EMPTY`] where nothing was seen.
    kib: [u32; SLOTS],
    /// A peak it fell from, KiB, and the slot of the fall.
    fallen: Option<(u32, u64)>,
    /// Judgements for less those against.
    score: u8,
    /// When it was told last, ns since boot, and the time to the limit then, s.
    told: Option<(u64, Option<f64>)>,
}

/// No value: 4 TiB is more than any one kind of memory is taken for.
const EMPTY: u32 = u32::MAX;

struct Trend {
    slope: Slope,
    window_s: f64,
    confidence: Confidence,
}

impl Series {
    const fn new(slot: u64) -> Self {
        Self {
            newest: slot,
            kib: [EMPTY; SLOTS],
            fallen: None,
            score: 0,
            told: None,
        }
    }

    /// Whether the value opened a slot.
    fn take(&mut self, slot: u64, bytes: u64) -> bool {
        let kib = u32::try_from(bytes >> 10)
            .unwrap_or(EMPTY - 1)
            .min(EMPTY - 1);
        let peak = self.kib.iter().filter(|&&kib| kib != EMPTY).max();
        if let Some(&peak) = peak
            && f64::from(kib) < f64::from(peak) * FALLEN_RATIO
            && self.fallen.is_none_or(|(former, _)| peak > former)
        {
            self.fallen = Some((peak, slot));
        }
        if let Some((peak, at)) = self.fallen
            && (kib > peak || slot.saturating_sub(at) > PEAK_WINDOWS * SLOTS as u64)
        {
            self.fallen = None;
        }
        let opened = slot > self.newest || self.kib.iter().all(|&kib| kib == EMPTY);
        let skipped = slot.saturating_sub(self.newest).min(SLOTS as u64);
        for empty in 1..=skipped {
            self.kib[index(self.newest.wrapping_add(empty))] = EMPTY;
        }
        if skipped == SLOTS as u64 {
            self.kib = [EMPTY; SLOTS];
        }
        self.newest = self.newest.max(slot);
        let place = &mut self.kib[index(self.newest)];
        *place = kib.min(*place);
        opened
    }

    fn points(&self, slot_s: f64) -> Vec<Point> {
        (1..=SLOTS as u64)
            .filter_map(|age| {
                let kib = self.kib[index(self.newest.wrapping_add(age))];
                (kib != EMPTY).then(|| Point {
                    s: approx(age) * slot_s,
                    value: f64::from(kib) * 1024.0,
                })
            })
            .collect()
    }

    /// Whether the window looks like a leak. Cheap questions come first: nearly all series end
    /// there.
    fn judge(&self, slot_s: f64) -> Option<Trend> {
        if self.fallen.is_some() {
            return None;
        }
        let points = self.points(slot_s);
        let window_s = points.last()?.s - points.first()?.s;
        if points.len() < FEWEST_SLOTS || window_s < 0.85 * slot_s * approx(SLOTS) {
            return None;
        }
        let levels = series::levels::<LEVELS>(&points)?;
        let growth = levels[LEVELS - 1] - levels[0];
        // A leak that was told stays one, though its level outgrows it.
        let ratio = if self.told.is_some() {
            0.0
        } else {
            MATERIAL_RATIO
        };
        if growth < MATERIAL_BYTES.max(levels[0] * ratio) {
            return None;
        }
        let even = series::evenness(&levels).filter(|&even| even >= EVEN)?;
        if series::drawdown(&points) > growth * DRAWDOWN_RATIO {
            return None;
        }
        let slope = series::slope(&points).filter(|slope| slope.low > 0.0)?;
        if slowing(&points) {
            return None;
        }
        let sure = (slope.low / slope.median).min(even);
        let confidence = match sure {
            0.7.. => Confidence::High,
            0.45.. => Confidence::Medium,
            _ => Confidence::Low,
        };
        Some(Trend {
            slope,
            window_s,
            confidence,
        })
    }
}

/// A warm-up: the second half grows less than the first.
fn slowing(points: &[Point]) -> bool {
    let (first, second) = points.split_at(points.len() / 2);
    let (Some(first), Some(second)) = (series::slope(first), series::slope(second)) else {
        return false;
    };
    let ratio = second.median / first.median;
    ratio < SLOWING || (ratio < SLOWING_FOR_SURE && second.high < first.median)
}

fn index(slot: u64) -> usize {
    usize::try_from(slot % SLOTS as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests;
