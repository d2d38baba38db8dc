//! How busy the processors are: `/proc/loadavg`, `/proc/stat`, and `cpu.stat` of cgroups.

use std::path::Path;

use super::text::{self, Error, ParseError};

/// `/proc/loadavg`: tasks that run, are ready to, or wait for a disk.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// Average over one minute.
    pub load1: f64,
    /// Average over five minutes.
    pub load5: f64,
    /// Average over a quarter of an hour.
    pub load15: f64,
}

impl Load {
    /// Parses the content of the file.
    pub fn parse(content: &[u8]) -> Result<Self, ParseError> {
        let mut averages = content
            .split(u8::is_ascii_whitespace)
            .map_while(|word| std::str::from_utf8(word).ok()?.parse::<f64>().ok())
            .filter(|average| average.is_finite());
        let mut next = || {
            averages.next().ok_or(ParseError {
                line: 1,
                expected: "three averages",
            })
        };
        Ok(Self {
            load1: next()?,
            load5: next()?,
            load15: next()?,
        })
    }

    /// Reads `<proc>/loadavg`.
    pub fn read(proc: &Path) -> Result<Self, Error> {
        text::parse_file(proc.join("loadavg"), &mut Vec::new(), Self::parse)
    }
}

/// What `/proc/stat` says of tasks and processors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tasks {
    /// Online processors: the `cpu<n>` lines.
    pub cpus: u64,
    /// Tasks that run or are ready to (`procs_running`).
    pub running: Option<u64>,
    /// Tasks that wait for a disk (`procs_blocked`).
    pub blocked: Option<u64>,
}

impl Tasks {
    /// Parses the content of the file; lines of other things are passed over.
    pub fn parse(content: &[u8]) -> Result<Self, ParseError> {
        let mut tasks = Self::default();
        for (_, line) in text::lines(content) {
            let Some((key, value)) = text::cut(line, b" ") else {
                continue;
            };
            match key {
                b"procs_running" => tasks.running = text::decimal(value),
                b"procs_blocked" => tasks.blocked = text::decimal(value),
                _ if key.strip_prefix(b"cpu").and_then(text::decimal).is_some() => tasks.cpus += 1,
                _ => {}
            }
        }
        if tasks.cpus == 0 {
            return Err(ParseError {
                line: 1,
                expected: "a \"cpu0\" line",
            });
        }
        Ok(tasks)
    }

    /// Reads `<proc>/stat`.
    pub fn read(proc: &Path) -> Result<Self, Error> {
        text::parse_file(proc.join("stat"), &mut Vec::new(), Self::parse)
    }
}

/// `cpu.stat` of a cgroup with a CPU limit: counters since the cgroup was made. All 0 without one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Throttling {
    /// Periods in which it had something to run.
    pub periods: u64,
    /// Of those, periods in which it used up its quota and had to wait.
    pub throttled: u64,
    /// How long it waited, summed over processors, µs.
    pub throttled_us: u64,
}

impl Throttling {
    /// Parses the content of the file: v2 counts `throttled_usec`, v1 `throttled_time` in ns.
    pub fn parse(content: &[u8]) -> Result<Self, ParseError> {
        let mut stat = Self::default();
        text::flat_keyed(content, |key, value| match key {
            b"nr_periods" => stat.periods = value,
            b"nr_throttled" => stat.throttled = value,
            b"throttled_usec" => stat.throttled_us = value,
            b"throttled_time" => stat.throttled_us = value / 1000,
            _ => {}
        })?;
        Ok(stat)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages() {
        let load = Load::parse(b"0.20 1.18 12.50 1/80 11206\n").unwrap();
        assert!((load.load15 - 12.5).abs() < 1e-9);
        assert!(Load::parse(b"0.20 1.18").is_err());
        assert!(Load::parse(b"0.20 NaN x").is_err());
    }

    #[test]
    fn tasks_and_processors() {
        let content = b"cpu  1 2 3\ncpu0 1 2\ncpu11 1 2\nintr 5 6\nprocs_running 3\n\
                        procs_blocked 1\nsoftirq 1 2\n";
        let tasks = Tasks::parse(content).unwrap();
        assert_eq!(tasks.cpus, 2);
        assert_eq!(tasks.running, Some(3));
        assert_eq!(tasks.blocked, Some(1));
        assert!(Tasks::parse(b"cpu  1 2 3\n").is_err());
    }

    #[test]
    fn both_units_of_throttling() {
        let v1 = Throttling::parse(b"nr_periods 10\nnr_throttled 4\nthrottled_time 5000000\n");
        let v2 = Throttling::parse(
            b"usage_usec 9\nuser_usec 5\nnr_periods 10\nnr_throttled 4\nthrottled_usec 5000\n",
        );
        assert_eq!(v1, v2);
        assert_eq!(v2.unwrap().throttled_us, 5000);
        assert_eq!(
            Throttling::parse(b"usage_usec 9\n"),
            Ok(Throttling::default())
        );
    }

    #[test]
    fn reads_this_machine() {
        let proc = Path::new("/proc");
        assert!(Load::read(proc).unwrap().load1 >= 0.0);
        assert!(Tasks::read(proc).unwrap().running.unwrap() >= 1);
    }
}
