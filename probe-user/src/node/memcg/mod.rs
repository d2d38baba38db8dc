//! Memory cgroups, v1 and v2: limits, usage, events and the parts of the memory they are charged.
//!
//! Files: Documentation/admin-guide/cgroup-v2.rst "Memory Interface Files" and
//! Documentation/admin-guide/cgroup-v1/memory.rst.

mod reclaim;
mod stat;

use std::path::{Path, PathBuf};

pub use reclaim::ReclaimCounters;
pub use stat::MemoryStat;

use super::text::{self, Error, ParseError, TextFile};

/// Which interface a memory cgroup has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// `memory.usage_in_bytes` and its like.
    V1,
    /// `memory.current` and its like.
    V2,
}

impl Version {
    /// The version of the memory cgroup at `dir`; `None` if it is none, which holds for the root
    /// of the v2 hierarchy too.
    pub fn of(dir: &Path) -> Option<Self> {
        if dir.join("memory.current").exists() {
            Some(Self::V2)
        } else if dir.join("memory.usage_in_bytes").exists() {
            Some(Self::V1)
        } else {
            None
        }
    }
}

/// A limit or a protection. Orders by size, [`Limit::Unlimited`] last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Limit {
    /// This many bytes.
    Bytes(u64),
    /// `max`, or a page counter at its end (v1).
    Unlimited,
}

impl Limit {
    /// A page counter that is "unlimited" stands at `LONG_MAX` rounded down to a page; no machine
    /// has half of that.
    const UNLIMITED_FROM: u64 = 1 << 62;

    /// A limit from a number of bytes as v1 and the kernel log print it.
    pub fn from_bytes(bytes: u64) -> Self {
        if bytes >= Self::UNLIMITED_FROM {
            Self::Unlimited
        } else {
            Self::Bytes(bytes)
        }
    }

    /// The bytes; `None` if unlimited.
    pub fn bytes(self) -> Option<u64> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            Self::Unlimited => None,
        }
    }

    /// Parses the content of a file that holds a limit or a protection.
    pub fn parse(content: &[u8]) -> Result<Self, ParseError> {
        let content = content.trim_ascii();
        // v1 prints -1 for some counters on some architectures.
        if content == b"max" || content == b"-1" {
            return Ok(Self::Unlimited);
        }
        text::decimal(content)
            .map(Self::from_bytes)
            .ok_or(ParseError {
                line: 1,
                expected: "a number of bytes or \"max\"",
            })
    }
}

/// `memory.events` or `memory.events.local`: how often something happened. `None` where the kernel
/// does not count it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryEvents {
    /// Reclaimed although under its low protection.
    pub low: Option<u64>,
    /// Throttled for being over `memory.high`.
    pub high: Option<u64>,
    /// About to go over `memory.max`.
    pub max: Option<u64>,
    /// Allocation about to fail at the limit; not every one ends in a kill.
    pub oom: Option<u64>,
    /// Processes of this cgroup killed by any OOM killer. A group kill counts its first victim
    /// twice if that was alive until its turn came.
    pub oom_kill: Option<u64>,
    /// Group kills (5.17).
    pub oom_group_kill: Option<u64>,
    /// Sockets throttled (6.19).
    pub sock_throttled: Option<u64>,
}

impl MemoryEvents {
    /// Parses the content of the file.
    pub fn parse(content: &[u8]) -> Result<Self, ParseError> {
        let mut events = Self::default();
        text::flat_keyed(content, |key, value| {
            let slot = match key {
                b"low" => &mut events.low,
                b"high" => &mut events.high,
                b"max" => &mut events.max,
                b"oom" => &mut events.oom,
                b"oom_kill" => &mut events.oom_kill,
                b"oom_group_kill" => &mut events.oom_group_kill,
                b"sock_throttled" => &mut events.sock_throttled,
                _ => return,
            };
            *slot = Some(value);
        })?;
        Ok(events)
    }
}

/// `memory.oom_control` (v1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OomControl {
    /// The OOM killer is off for this cgroup: its tasks wait instead.
    pub kill_disabled: bool,
    /// At its limit and waiting; set on the whole subtree of the limit's owner.
    pub under_oom: bool,
    /// Processes of this very cgroup (not of its descendants, nor by whose limit) that an OOM
    /// killer killed (4.13).
    pub oom_kill: Option<u64>,
}

impl OomControl {
    /// Parses the content of the file.
    pub fn parse(content: &[u8]) -> Result<Self, ParseError> {
        let mut control = Self::default();
        text::flat_keyed(content, |key, value| match key {
            b"oom_kill_disable" => control.kill_disabled = value != 0,
            b"under_oom" => control.under_oom = value != 0,
            b"oom_kill" => control.oom_kill = Some(value),
            _ => {}
        })?;
        Ok(control)
    }
}

/// Settings and single counters of a memory cgroup, read by path. `None` where this version or
/// kernel has no such file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemcgSettings {
    /// Which interface it has.
    pub version: Version,
    /// Hard limit: `memory.max`, `memory.limit_in_bytes`.
    pub max: Option<Limit>,
    /// Throttling limit: `memory.high`.
    pub high: Option<Limit>,
    /// Best-effort protection: `memory.low`.
    pub low: Option<Limit>,
    /// Hard protection: `memory.min`.
    pub min: Option<Limit>,
    /// Charged: `memory.current`, `memory.usage_in_bytes`.
    pub usage_bytes: Option<u64>,
    /// Most ever charged: `memory.peak` (5.19), `memory.max_usage_in_bytes`.
    pub peak_bytes: Option<u64>,
    /// Times the limit was hit: `memory.failcnt` (v1; `memory.events` tells it on v2).
    pub failcnt: Option<u64>,
    /// Swap used: `memory.swap.current` (v2).
    pub swap_usage_bytes: Option<u64>,
    /// Swap limit: `memory.swap.max` (v2).
    pub swap_max: Option<Limit>,
    /// Memory and swap: `memory.memsw.usage_in_bytes` (v1).
    pub memsw_usage_bytes: Option<u64>,
    /// Limit of the two together: `memory.memsw.limit_in_bytes` (v1).
    pub memsw_max: Option<Limit>,
    /// All processes are killed together: `memory.oom.group` (v2).
    pub oom_group: Option<bool>,
}

impl MemcgSettings {
    /// Reads no more than the limits and protections of the memory itself: `max`, `high`, `low`
    /// and `min`. All else is `None`.
    pub fn read_limits(dir: &Path, version: Version, buf: &mut Vec<u8>) -> Result<Self, Error> {
        let mut read = |name| text::optional(read_file(dir, name, buf, Limit::parse));
        let mut settings = Self {
            version,
            max: None,
            high: None,
            low: None,
            min: None,
            usage_bytes: None,
            peak_bytes: None,
            failcnt: None,
            swap_usage_bytes: None,
            swap_max: None,
            memsw_usage_bytes: None,
            memsw_max: None,
            oom_group: None,
        };
        match version {
            Version::V2 => {
                settings.max = read("memory.max")?;
                settings.high = read("memory.high")?;
                settings.low = read("memory.low")?;
                settings.min = read("memory.min")?;
            }
            Version::V1 => settings.max = read("memory.limit_in_bytes")?,
        }
        Ok(settings)
    }

    /// Reads the memory cgroup at `dir`.
    pub fn read(dir: &Path, version: Version, buf: &mut Vec<u8>) -> Result<Self, Error> {
        let mut settings = Self::read_limits(dir, version, buf)?;
        let mut read = |name| text::optional(read_file(dir, name, buf, Limit::parse));
        match version {
            Version::V2 => settings.swap_max = read("memory.swap.max")?,
            Version::V1 => settings.memsw_max = read("memory.memsw.limit_in_bytes")?,
        }
        let mut read = |name| text::optional(read_file(dir, name, buf, text::single_number));
        match version {
            Version::V2 => {
                settings.usage_bytes = read("memory.current")?;
                settings.peak_bytes = read("memory.peak")?;
                settings.swap_usage_bytes = read("memory.swap.current")?;
                settings.oom_group = read("memory.oom.group")?.map(|value| value != 0);
            }
            Version::V1 => {
                settings.usage_bytes = read("memory.usage_in_bytes")?;
                settings.peak_bytes = read("memory.max_usage_in_bytes")?;
                settings.failcnt = read("memory.failcnt")?;
                settings.memsw_usage_bytes = read("memory.memsw.usage_in_bytes")?;
            }
        }
        Ok(settings)
    }
}

/// The tightest hard limit that holds for the cgroup at `dir`: its own or an ancestor's, up to
/// `root` (the mount point of the hierarchy). With it comes the directory that sets it; of equal
/// limits the outermost, which is hit by the most.
///
/// `None` if no level has a limit.
pub fn effective_max(
    root: &Path,
    dir: &Path,
    version: Version,
    buf: &mut Vec<u8>,
) -> Result<Option<(PathBuf, u64)>, Error> {
    let name = match version {
        Version::V2 => "memory.max",
        Version::V1 => "memory.limit_in_bytes",
    };
    let mut tightest: Option<(&Path, u64)> = None;
    for level in dir.ancestors().take_while(|level| level.starts_with(root)) {
        let max = text::optional(read_file(level, name, buf, Limit::parse))?;
        if let Some(bytes) = max.and_then(Limit::bytes)
            && tightest.is_none_or(|(_, least)| bytes <= least)
        {
            tightest = Some((level, bytes));
        }
    }
    Ok(tightest.map(|(level, bytes)| (level.to_owned(), bytes)))
}

fn read_file<T>(
    dir: &Path,
    name: &str,
    buf: &mut Vec<u8>,
    parse: impl FnOnce(&[u8]) -> Result<T, ParseError>,
) -> Result<T, Error> {
    text::parse_file(dir.join(name), buf, parse)
}

/// The files of a memory cgroup that matter at a kill, held open: reading them needs no path and
/// no memory. Once the cgroup is removed every read is [`Error::Gone`].
#[derive(Debug)]
pub struct MemcgFiles {
    version: Version,
    usage: TextFile,
    stat: TextFile,
    counters: Counters,
    buf: Vec<u8>,
}

#[derive(Debug)]
enum Counters {
    V1 {
        oom_control: TextFile,
        kmem: Option<TextFile>,
        tcp: Option<TextFile>,
    },
    V2 {
        events: TextFile,
        events_local: Option<TextFile>,
        swap: Option<TextFile>,
    },
}

/// What [`MemcgFiles::events`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Events {
    /// v1: `memory.oom_control`.
    V1(OomControl),
    /// v2: `memory.events` and `memory.events.local` (5.2).
    V2 {
        /// Of the cgroup and its descendants.
        total: MemoryEvents,
        /// Of the cgroup alone.
        local: Option<MemoryEvents>,
    },
}

/// Usage and what it is made of, read back to back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemcgReading {
    /// `memory.current`, `memory.usage_in_bytes`.
    pub usage_bytes: u64,
    /// Parts of it; with v1's kernel memory, and v2's swap.
    pub stat: MemoryStat,
}

impl MemcgFiles {
    /// Opens the files of the memory cgroup at `dir`: three to five descriptors.
    pub fn open(dir: &Path, version: Version) -> Result<Self, Error> {
        let file = |name: &str| TextFile::open(dir.join(name));
        let optional = |name: &str| text::optional(file(name));
        let (usage, counters) = match version {
            Version::V2 => (
                "memory.current",
                Counters::V2 {
                    events: file("memory.events")?,
                    events_local: optional("memory.events.local")?,
                    swap: optional("memory.swap.current")?,
                },
            ),
            Version::V1 => (
                "memory.usage_in_bytes",
                Counters::V1 {
                    oom_control: file("memory.oom_control")?,
                    kmem: optional("memory.kmem.usage_in_bytes")?,
                    tcp: optional("memory.kmem.tcp.usage_in_bytes")?,
                },
            ),
        };
        Ok(Self {
            version,
            usage: file(usage)?,
            stat: file("memory.stat")?,
            counters,
            buf: Vec::with_capacity(text::BUFFER_LEN),
        })
    }

    /// Bytes charged.
    pub fn usage_bytes(&mut self) -> Result<u64, Error> {
        self.usage.parse(&mut self.buf, text::single_number)
    }

    /// Usage and its parts.
    pub fn read(&mut self) -> Result<MemcgReading, Error> {
        let usage_bytes = self.usage_bytes()?;
        let version = self.version;
        let mut stat = self
            .stat
            .parse(&mut self.buf, |content| MemoryStat::parse(version, content))?;
        let mut number = |file: &Option<TextFile>| match file {
            Some(file) => file.parse(&mut self.buf, text::single_number).map(Some),
            None => Ok(None),
        };
        match &self.counters {
            Counters::V1 { kmem, tcp, .. } => {
                stat.kernel_bytes = number(kmem)?;
                stat.sock_bytes = number(tcp)?;
            }
            Counters::V2 { swap, .. } => stat.swap_bytes = number(swap)?,
        }
        Ok(MemcgReading { usage_bytes, stat })
    }

    /// Event counters.
    pub fn events(&mut self) -> Result<Events, Error> {
        match &self.counters {
            Counters::V1 { oom_control, .. } => Ok(Events::V1(
                oom_control.parse(&mut self.buf, OomControl::parse)?,
            )),
            Counters::V2 {
                events,
                events_local,
                ..
            } => Ok(Events::V2 {
                total: events.parse(&mut self.buf, MemoryEvents::parse)?,
                local: match events_local {
                    Some(file) => Some(file.parse(&mut self.buf, MemoryEvents::parse)?),
                    None => None,
                },
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn write(dir: &Path, files: &[(&str, &str)]) {
        fs::create_dir_all(dir).unwrap();
        for (name, content) in files {
            fs::write(dir.join(name), content).unwrap();
        }
    }

    #[test]
    fn v2_files_are_read_again_and_again() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path();
        let events = "low 0\nhigh 3\nmax 5\noom 2\noom_kill 1\noom_group_kill 0\n";
        write(
            dir,
            &[
                ("memory.current", "1000\n"),
                ("memory.stat", "anon 600\nfile 100\nkernel 200\nsock 50\n"),
                ("memory.events", events),
                ("memory.swap.current", "4096\n"),
            ],
        );
        assert_eq!(Version::of(dir), Some(Version::V2));
        let mut files = MemcgFiles::open(dir, Version::V2).unwrap();
        let reading = files.read().unwrap();
        assert_eq!(reading.usage_bytes, 1000);
        assert_eq!(reading.stat.unexplained_bytes(reading.usage_bytes), 50);
        assert_eq!(reading.stat.swap_bytes, Some(4096));
        let Events::V2 { total, local } = files.events().unwrap() else {
            panic!("a v2 cgroup");
        };
        assert_eq!((total.max, total.oom_kill), (Some(5), Some(1)));
        assert_eq!(total.sock_throttled, None);
        assert_eq!(local, None);

        write(dir, &[("memory.current", "2000\n")]);
        assert_eq!(files.usage_bytes().unwrap(), 2000);
    }

    #[test]
    fn v2_settings_tell_absent_from_unlimited() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path();
        write(
            dir,
            &[
                ("memory.max", "max\n"),
                ("memory.low", "0\n"),
                ("memory.oom.group", "1\n"),
                ("memory.swap.max", "8192\n"),
            ],
        );
        let settings = MemcgSettings::read(dir, Version::V2, &mut Vec::new()).unwrap();
        assert_eq!(settings.max, Some(Limit::Unlimited));
        assert_eq!(settings.low, Some(Limit::Bytes(0)));
        assert_eq!(settings.high, None);
        assert_eq!(settings.peak_bytes, None);
        assert_eq!(settings.oom_group, Some(true));
        assert_eq!(settings.swap_max, Some(Limit::Bytes(8192)));
    }

    #[test]
    fn the_tightest_limit_may_be_an_ancestors() {
        let root = tempfile::tempdir().unwrap();
        let pod = root.path().join("kubepods/pod1");
        let leaf = pod.join("c1");
        write(&leaf, &[("memory.max", "max\n")]);
        let buf = &mut Vec::new();
        let max = |buf: &mut Vec<u8>| effective_max(root.path(), &leaf, Version::V2, buf).unwrap();
        assert_eq!(max(buf), None);
        write(&pod, &[("memory.max", "4096\n")]);
        assert_eq!(max(buf), Some((pod.clone(), 4096)));
        write(&leaf, &[("memory.max", "4096\n")]);
        assert_eq!(max(buf), Some((pod, 4096)));
        write(&leaf, &[("memory.max", "2048\n")]);
        assert_eq!(max(buf), Some((leaf.clone(), 2048)));
    }

    #[test]
    fn unlimited_in_all_its_spellings() {
        for content in [
            "max\n",
            "9223372036854771712\n",
            "9223372036854710272\n",
            "-1\n",
        ] {
            assert_eq!(Limit::parse(content.as_bytes()), Ok(Limit::Unlimited));
        }
        assert!(Limit::Bytes(u64::MAX) < Limit::Unlimited);
        assert!(Limit::parse(b"lots").is_err());
    }

    #[test]
    fn oom_control_of_a_kernel_that_counts_no_kills() {
        let control = OomControl::parse(b"oom_kill_disable 0\nunder_oom 1\n").unwrap();
        assert!(control.under_oom);
        assert_eq!(control.oom_kill, None);
    }

    /// A scratch cgroup on the running kernel; `None` where there is no v1 memory controller to
    /// make one in.
    fn scratch() -> Option<PathBuf> {
        let dir = PathBuf::from(format!(
            "/sys/fs/cgroup/memory/oomprobe-node-{}",
            std::process::id()
        ));
        fs::create_dir(&dir).ok()?;
        Some(dir)
    }

    #[test]
    fn a_removed_cgroup_is_gone() {
        let Some(dir) = scratch() else {
            eprintln!("skipped: no v1 memory hierarchy that can be written");
            return;
        };
        fs::write(dir.join("memory.limit_in_bytes"), "1048576").unwrap();
        let version = Version::of(&dir).unwrap();
        let mut files = MemcgFiles::open(&dir, version).unwrap();
        let reading = files.read();
        let events = files.events();
        let settings = MemcgSettings::read(&dir, version, &mut Vec::new());
        let root = Path::new("/sys/fs/cgroup/memory");
        let max = effective_max(root, &dir, version, &mut Vec::new());
        fs::remove_dir(&dir).unwrap();

        assert_eq!(reading.unwrap().usage_bytes, 0);
        assert!(matches!(events.unwrap(), Events::V1(_)));
        assert_eq!(settings.unwrap().max, Some(Limit::Bytes(1 << 20)));
        assert_eq!(max.unwrap(), Some((dir.clone(), 1 << 20)));
        assert!(files.read().unwrap_err().is_gone());
        assert!(files.events().unwrap_err().is_gone());
        assert!(MemcgFiles::open(&dir, version).unwrap_err().is_gone());
    }
}
