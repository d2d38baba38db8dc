//! From the kernel's `CLOCK_BOOTTIME` to wall-clock time.

use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, Timespec, clock_gettime};

/// The distance between `CLOCK_BOOTTIME` and `CLOCK_REALTIME`, taken once: times of records keep
/// their order whatever NTP does to the wall clock, until [`Self::refresh`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootClock {
    offset_ns: i64,
}

impl BootClock {
    /// Compares the two clocks.
    pub fn now() -> Self {
        // The pair that was read fastest has the least error.
        let offset_ns = (0..5)
            .map(|_| {
                let before = boot_ns();
                let real = nanoseconds(clock_gettime(ClockId::Realtime));
                let after = boot_ns();
                let middle = before + (after - before) / 2;
                (after - before, real.saturating_sub_unsigned(middle))
            })
            .min()
            .map_or(0, |(_, offset)| offset);
        Self { offset_ns }
    }

    /// Takes over steps of the wall clock; returns by how many ns it stepped.
    pub fn refresh(&mut self) -> i64 {
        let offset_ns = Self::now().offset_ns;
        let step = offset_ns.saturating_sub(self.offset_ns);
        self.offset_ns = offset_ns;
        step
    }

    /// Wall-clock time of `boot_ns`, ns since boot.
    pub fn wall_time(self, boot_ns: u64) -> SystemTime {
        let unix_ns = self.offset_ns.saturating_add_unsigned(boot_ns).max(0);
        SystemTime::UNIX_EPOCH + Duration::from_nanos(unix_ns.unsigned_abs())
    }

    /// The same as RFC 3339 in UTC, with nanoseconds.
    pub fn rfc3339(self, boot_ns: u64) -> String {
        humantime::format_rfc3339_nanos(self.wall_time(boot_ns)).to_string()
    }
}

/// `CLOCK_BOOTTIME`: ns since boot, time in suspend included. The clock of all records, and of
/// `/proc/<pid>/stat`'s start time.
pub fn boot_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::Boottime)).unsigned_abs()
}

/// `CLOCK_MONOTONIC`, ns: the clock of the kernel log, near enough.
pub fn monotonic_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::Monotonic)).unsigned_abs()
}

fn nanoseconds(time: Timespec) -> i64 {
    time.tv_sec
        .saturating_mul(1_000_000_000)
        .saturating_add(time.tv_nsec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_with_nanoseconds() {
        let clock = BootClock {
            offset_ns: 1_700_000_000_000_000_000,
        };
        assert_eq!(clock.rfc3339(123_456_789), "2023-11-14T22:13:20.123456789Z");
        assert_eq!(clock.rfc3339(0), "2023-11-14T22:13:20.000000000Z");
    }

    #[test]
    fn nonsense_stays_within_the_calendar() {
        let clock = BootClock { offset_ns: -1 };
        assert_eq!(clock.rfc3339(0), "1970-01-01T00:00:00.000000000Z");
        assert!(clock.rfc3339(u64::MAX).ends_with('Z'));
    }

    #[test]
    fn agrees_with_the_wall_clock() {
        let mut clock = BootClock::now();
        let wall = clock.wall_time(boot_ns());
        let difference = SystemTime::now()
            .duration_since(wall)
            .unwrap_or_else(|error| error.duration());
        assert!(difference < Duration::from_secs(60), "{difference:?}");
        assert!(clock.refresh().abs() < 60_000_000_000);
    }
}
