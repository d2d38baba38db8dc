//! The flight recorder: what was sampled of one cgroup, in bounded memory.
//!
//! Usage of every watched cgroup is kept for a minute in eight bytes a sample. Only a cgroup that
//! matters has a ring of full looks: the last ones as they came, so that ten a second before a
//! kill are there, and one a second of the time before.

use std::collections::VecDeque;

use super::sample::{CgroupSample, Detail};

/// Usage samples of a cgroup: a minute, at one a second.
pub const USAGE_SAMPLES: usize = 60;

/// Full looks that are kept at the rate they came: six seconds, at ten a second.
const DENSE_LOOKS: usize = 60;

/// Most full looks of a cgroup: the dense ones, and one a second of the minute before them.
pub const LOOKS: usize = DENSE_LOOKS + 60;

/// Least distance of two full looks that are older than the dense ones. Below a second, as a look
/// that comes a bit early must not cost its neighbour.
const THIN_NS: u64 = 900_000_000;

/// A usage sample this near to a full look says the same.
const SAME_MOMENT_NS: u64 = 50_000_000;

const MS: u64 = 1_000_000;

/// Usage is kept in units of this size, whatever the page size: 16 TiB in 32 bits.
const UNIT_BYTES: u64 = 4096;

/// Usage over time.
#[derive(Debug)]
struct UsageRing {
    /// Time of the newest sample.
    last_ms: u64,
    /// Where the next sample goes.
    next: u8,
    len: u8,
    /// Usage in units, and ms since the sample before.
    samples: [(u32, u32); USAGE_SAMPLES],
}

impl UsageRing {
    const fn new() -> Self {
        Self {
            last_ms: 0,
            next: 0,
            len: 0,
            samples: [(0, 0); USAGE_SAMPLES],
        }
    }

    fn push(&mut self, boot_ns: u64, usage_bytes: u64) {
        let now_ms = boot_ns / MS;
        let units = u32::try_from(usage_bytes / UNIT_BYTES).unwrap_or(u32::MAX);
        let since_ms = u32::try_from(now_ms.saturating_sub(self.last_ms)).unwrap_or(u32::MAX);
        let next = usize::from(self.next);
        self.samples[next] = (units, since_ms);
        self.last_ms = now_ms;
        #[expect(clippy::cast_possible_truncation, reason = "below USAGE_SAMPLES")]
        {
            self.next = ((next + 1) % USAGE_SAMPLES) as u8;
            self.len = (usize::from(self.len) + 1).min(USAGE_SAMPLES) as u8;
        }
    }

    /// Newest first.
    fn iter(&self) -> impl Iterator<Item = CgroupSample> {
        let mut at_ms = self.last_ms;
        (1..=usize::from(self.len)).map(move |back| {
            let index = (usize::from(self.next) + USAGE_SAMPLES - back) % USAGE_SAMPLES;
            let (units, since_ms) = self.samples[index];
            let sample = CgroupSample {
                boot_ns: at_ms * MS,
                usage_bytes: u64::from(units) * UNIT_BYTES,
                detail: None,
            };
            at_ms = at_ms.saturating_sub(u64::from(since_ms));
            sample
        })
    }
}

macro_rules! packed {
    (values: $($value:ident)*; options: $($option:ident)*;) => {
        /// A full look in half the memory: `u64::MAX` is "not told", which no counter reaches.
        #[derive(Clone, Copy, Debug)]
        struct Packed {
            boot_ns: u64,
            usage_bytes: u64,
            $($value: u64,)*
            $($option: u64,)*
        }

        impl Packed {
            fn new(boot_ns: u64, usage_bytes: u64, detail: &Detail) -> Self {
                Self {
                    boot_ns,
                    usage_bytes,
                    $($value: detail.$value,)*
                    $($option: detail.$option.unwrap_or(u64::MAX),)*
                }
            }

            fn unpack(&self) -> CgroupSample {
                let told = |value: u64| (value != u64::MAX).then_some(value);
                CgroupSample {
                    boot_ns: self.boot_ns,
                    usage_bytes: self.usage_bytes,
                    detail: Some(Detail {
                        $($value: self.$value,)*
                        $($option: told(self.$option),)*
                    }),
                }
            }
        }
    };
}

packed! {
    values: anon_bytes file_bytes shmem_bytes;
    options: file_dirty_bytes inactive_file_bytes slab_reclaimable_bytes slab_unreclaimable_bytes
        kernel_bytes sock_bytes swap_bytes max_events high_events low_events oom_kill_events
        refault_anon refault_file pgscan pgsteal pgmajfault psi_some_us psi_full_us io_psi_full_us;
}

/// What was sampled of one cgroup.
#[derive(Debug)]
pub struct Record {
    usage: UsageRing,
    last: Option<Packed>,
    looks: Option<VecDeque<Packed>>,
}

impl Default for Record {
    fn default() -> Self {
        Self {
            usage: UsageRing::new(),
            last: None,
            looks: None,
        }
    }
}

impl Record {
    /// Takes the usage of a cheap look.
    pub fn push_usage(&mut self, boot_ns: u64, usage_bytes: u64) {
        self.usage.push(boot_ns, usage_bytes);
    }

    /// Takes a full look; a sample without detail is passed over.
    pub fn push_look(&mut self, sample: &CgroupSample) {
        let Some(detail) = &sample.detail else {
            return;
        };
        let packed = Packed::new(sample.boot_ns, sample.usage_bytes, detail);
        self.last = Some(packed);
        let Some(looks) = &mut self.looks else {
            return;
        };
        looks.push_back(packed);
        // What has just become too old to be kept at any distance.
        if let Some(old) = looks.len().checked_sub(DENSE_LOOKS + 1)
            && let Some(before) = old.checked_sub(1)
            && looks[old].boot_ns.saturating_sub(looks[before].boot_ns) < THIN_NS
        {
            looks.remove(old);
        }
        if looks.len() > LOOKS {
            looks.pop_front();
        }
    }

    /// Keeps full looks from here on, beginning with the last one there was.
    pub fn keep_looks(&mut self) {
        if self.looks.is_none() {
            self.looks = Some(self.last.into_iter().collect());
        }
    }

    /// True if full looks are kept.
    pub fn keeps_looks(&self) -> bool {
        self.looks.is_some()
    }

    /// Gives up the full looks but the last.
    pub fn drop_looks(&mut self) {
        self.looks = None;
    }

    /// The last full look.
    pub fn last_look(&self) -> Option<CgroupSample> {
        self.last.as_ref().map(Packed::unpack)
    }

    /// Everything there is, oldest first, each moment once.
    pub fn series(&self) -> Vec<CgroupSample> {
        let looks = self.looks.iter().flatten();
        let last = self.last.iter().filter(|_| self.looks.is_none());
        let mut series: Vec<CgroupSample> = looks.chain(last).map(Packed::unpack).collect();
        let detailed = series.len();
        for sample in self.usage.iter() {
            let near = |look: &CgroupSample| look.boot_ns.abs_diff(sample.boot_ns) < SAME_MOMENT_NS;
            if !series[..detailed].iter().any(near) {
                series.push(sample);
            }
        }
        series.sort_by_key(|sample| sample.boot_ns);
        series
    }

    /// Memory that full looks take beside the record itself, bytes.
    pub fn looks_bytes(&self) -> usize {
        let looks = self.looks.as_ref().map_or(0, VecDeque::capacity);
        looks * size_of::<Packed>()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn look(boot_ns: u64, usage_bytes: u64) -> CgroupSample {
        CgroupSample {
            boot_ns,
            usage_bytes,
            detail: Some(Detail {
                anon_bytes: usage_bytes,
                max_events: Some(boot_ns / SECOND),
                ..Detail::default()
            }),
        }
    }

    #[test]
    fn a_look_comes_back_as_it_went_in() {
        let sample = CgroupSample {
            boot_ns: 7,
            usage_bytes: 8,
            detail: Some(Detail {
                anon_bytes: 1,
                file_bytes: 2,
                shmem_bytes: 3,
                psi_full_us: Some(0),
                io_psi_full_us: Some(9),
                low_events: Some(u64::MAX - 1),
                ..Detail::default()
            }),
        };
        let mut record = Record::default();
        record.push_look(&sample);
        assert_eq!(record.last_look(), Some(sample));
        assert_eq!(record.series(), [sample]);
    }

    #[test]
    fn the_dense_end_is_kept_and_the_rest_thinned() {
        let mut record = Record::default();
        record.keep_looks();
        let start = 1_000 * SECOND;
        for tenth in 0..2_000_u64 {
            record.push_look(&look(start + tenth * SECOND / 10, tenth << 12));
        }
        let series = record.series();
        assert_eq!(series.len(), LOOKS);
        let newest = series.last().unwrap();
        assert_eq!(newest.usage_bytes, 1_999 << 12);
        for pair in series.windows(2) {
            let gap = pair[1].boot_ns - pair[0].boot_ns;
            let age = newest.boot_ns - pair[1].boot_ns;
            // Where dense and thin meet, the gap may be anything between.
            let expected = match age / SECOND {
                0..5 => SECOND / 10..=SECOND / 10,
                5..7 => SECOND / 10..=SECOND,
                _ => THIN_NS..=SECOND,
            };
            assert!(expected.contains(&gap), "{gap} at {age}");
        }
        assert!(newest.boot_ns - series[0].boot_ns >= 55 * SECOND);
    }

    #[test]
    fn a_moment_is_told_once() {
        let mut record = Record::default();
        record.push_look(&look(10 * SECOND, 5 << 20));
        record.keep_looks();
        for second in 11..=80 {
            let now = second * SECOND + 123_456;
            record.push_usage(now, second << 20);
            if second > 70 {
                record.push_look(&look(now + 2_000_000, second << 20));
            }
        }
        let series = record.series();
        // 21..=70 from the usage ring, 71..=80 from looks, and the look it began with.
        assert_eq!(series.len(), 61);
        assert_eq!(series.iter().filter(|s| s.detail.is_some()).count(), 11);
        assert!(series.is_sorted_by_key(|sample| sample.boot_ns));
    }

    proptest! {
        #[test]
        fn usage_keeps_the_newest_to_a_millisecond_and_a_page(
            steps in proptest::collection::vec((1_u64..100_000_000_000, 0_u64..1 << 45), 1..200)
        ) {
            let mut ring = UsageRing::new();
            let mut now = 50 * 365 * 86_400 * SECOND;
            let mut pushed = Vec::new();
            for (step, usage) in steps {
                now += step;
                ring.push(now, usage);
                pushed.push((now, usage));
            }
            let kept: Vec<_> = ring.iter().collect();
            prop_assert_eq!(kept.len(), pushed.len().min(USAGE_SAMPLES));
            for (kept, (at, usage)) in kept.iter().zip(pushed.iter().rev()) {
                prop_assert!(at - kept.boot_ns < MS);
                let usage = (usage / UNIT_BYTES).min(u64::from(u32::MAX)) * UNIT_BYTES;
                prop_assert_eq!(kept.usage_bytes, usage);
            }
        }
    }
}
