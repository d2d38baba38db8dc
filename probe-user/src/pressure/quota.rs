//! How long a cgroup waited for its CPU quota lately. What stands still for that looks, to a probe,
//! like what stands still for memory.

use crate::{event::CpuThrottled, node::cpu::Throttling, pressure::series::approx};

/// Between two readings that are kept, ns.
const APART_NS: u64 = 10_000_000_000;

/// The last two readings of a cgroup's `cpu.stat`, some ten seconds apart.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quota {
    older: Option<(u64, Throttling)>,
    newer: Option<(u64, Throttling)>,
}

impl Quota {
    /// Keeps a reading. `made_boot_ns`: when the cgroup was made, with all counters at 0.
    pub fn push(&mut self, now_ns: u64, reading: Throttling, made_boot_ns: Option<u64>) {
        let Some((at_ns, newer)) = self.newer else {
            self.older = made_boot_ns.map(|made_ns| (made_ns, Throttling::default()));
            self.newer = Some((now_ns, reading));
            return;
        };
        if now_ns >= at_ns.saturating_add(APART_NS) {
            self.older = Some((at_ns, newer));
        }
        self.newer = Some((now_ns, reading));
    }

    /// What happened since the older reading; `None` if there are not two yet, or if it has no quota.
    pub fn lately(&self) -> Option<CpuThrottled> {
        let ((from_ns, from), (to_ns, to)) = (self.older?, self.newer?);
        let periods = to.periods.saturating_sub(from.periods);
        let throttled = to.throttled.saturating_sub(from.throttled);
        let us = to.throttled_us.saturating_sub(from.throttled_us);
        (periods > 0).then(|| CpuThrottled {
            throttled_periods: throttled,
            // A period that is under way counts as throttled before it counts as a period.
            throttled_ratio: (approx(throttled) / approx(periods)).min(1.0),
            throttled_ms: approx(us) / 1e3,
            window_ms: approx(to_ns.saturating_sub(from_ns)) / 1e6,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn reading(periods: u64, throttled: u64) -> Throttling {
        Throttling {
            periods,
            throttled,
            throttled_us: throttled * 50_000,
        }
    }

    #[test]
    fn the_last_ten_seconds_count() {
        let mut quota = Quota::default();
        assert_eq!(quota.lately(), None);
        quota.push(SECOND, reading(1000, 0), None);
        assert_eq!(quota.lately(), None, "since when is not known");
        quota.push(11 * SECOND, reading(1100, 0), None);
        quota.push(14 * SECOND, reading(1130, 24), None);
        let lately = quota.lately().unwrap();
        assert_eq!(lately.throttled_periods, 24);
        assert!((lately.throttled_ratio - 24.0 / 130.0).abs() < 1e-9);
        assert!((lately.throttled_ms - 1200.0).abs() < 1e-9);
        assert!((lately.window_ms - 13_000.0).abs() < 1e-9);
    }

    #[test]
    fn a_young_one_counts_since_it_was_made() {
        let mut quota = Quota::default();
        quota.push(3 * SECOND, reading(20, 15), Some(SECOND));
        let lately = quota.lately().unwrap();
        assert!((lately.throttled_ratio - 0.75).abs() < 1e-9);
        assert!((lately.window_ms - 2000.0).abs() < 1e-9);
    }

    #[test]
    fn without_a_quota_there_is_nothing_to_tell() {
        let mut quota = Quota::default();
        quota.push(3 * SECOND, reading(0, 0), Some(SECOND));
        assert_eq!(quota.lately(), None);
    }
}
