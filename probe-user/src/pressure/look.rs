//! Looking at a memory cgroup: cheaply (its usage) and fully (what it consists of, what it did).

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use super::sample::{Detail, Settings};
use crate::{
    identity::hierarchy::{Hierarchies, Mode, Mount},
    node::{
        self, Error, TextFile,
        cpu::Throttling,
        memcg::{Limit, MemcgSettings, MemoryEvents, OomControl, Version},
        psi::PressureFile,
        single_number,
    },
};

/// Where cgroups are found.
#[derive(Clone, Debug)]
pub struct Roots {
    /// The memory controller's hierarchy.
    pub memory: Mount,
    /// Which interface it has.
    pub version: Version,
    /// Where a cgroup has its `*.pressure` files: v1 has none, but systemd and container engines
    /// make the same tree on the v2 hierarchy of a hybrid layout.
    pressure: Option<Mount>,
    /// Where a cgroup has its `cpu.stat`: on v1 the CPU controller's own hierarchy, where container
    /// engines make the same tree.
    cpu: Option<Mount>,
    /// Hooks count limit hits, and no file tells them: v1's `memory.failcnt` counts every try to
    /// charge, and none where memory and swap together have the same limit.
    pub hooked: bool,
}

impl Roots {
    /// From where hierarchies are mounted.
    pub fn new(hierarchies: &Hierarchies) -> Self {
        Self {
            memory: hierarchies.memory.clone(),
            version: match hierarchies.mode {
                Mode::Unified => Version::V2,
                Mode::Hybrid | Mode::Legacy => Version::V1,
            },
            pressure: hierarchies.unified.clone(),
            cpu: cpu(hierarchies),
            hooked: false,
        }
    }

    /// Opens what a cheap look reads.
    pub fn open_usage(&self, path: &[u8]) -> io::Result<File> {
        let name = match self.version {
            Version::V1 => "memory.usage_in_bytes",
            Version::V2 => "memory.current",
        };
        File::open(self.directory(path)?.join(name))
    }

    /// A pressure file of the cgroup at `path`.
    pub fn pressure_file(&self, path: &[u8], name: &str) -> Option<PathBuf> {
        Some(self.pressure.as_ref()?.directory(path)?.join(name))
    }

    /// How long the cgroup at `path` waited for its CPU quota.
    pub fn throttling(&self, path: &[u8], buf: &mut Vec<u8>) -> Option<Throttling> {
        let file = self.cpu.as_ref()?.directory(path)?.join("cpu.stat");
        let file = TextFile::open(file).ok()?;
        file.parse(buf, Throttling::parse).ok()
    }

    /// How often the cgroup at `path` itself hit its limits, now.
    pub fn limit_hits(&self, path: &[u8], buf: &mut Vec<u8>) -> io::Result<LimitHits> {
        let file = self.directory(path)?.join(LimitHits::file(self.version));
        TextFile::open(file)
            .and_then(|file| LimitHits::read(self.version, &file, buf))
            .map_err(into_io)
    }

    /// Limits and protections of the cgroup at `path`; the limit is its own.
    pub fn settings(&self, path: &[u8], buf: &mut Vec<u8>) -> io::Result<Settings> {
        let dir = self.directory(path)?;
        let limits = MemcgSettings::read_limits(&dir, self.version, buf).map_err(into_io)?;
        let bytes = |limit: Option<Limit>| limit.and_then(Limit::bytes);
        Ok(Settings {
            max_bytes: bytes(limits.max),
            own_max_bytes: bytes(limits.max),
            high_bytes: bytes(limits.high),
            low_bytes: bytes(limits.low).filter(|&bytes| bytes > 0),
            min_bytes: bytes(limits.min).filter(|&bytes| bytes > 0),
        })
    }

    fn directory(&self, path: &[u8]) -> io::Result<PathBuf> {
        self.memory
            .directory(path)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// How often a cgroup itself hit its limits since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LimitHits {
    /// Its hard limit.
    pub max: Option<u64>,
    /// `memory.high`.
    pub high: Option<u64>,
    /// How often it was reclaimed below `memory.low`.
    pub low: Option<u64>,
}

impl LimitHits {
    const fn file(version: Version) -> &'static str {
        match version {
            Version::V1 => "memory.failcnt",
            Version::V2 => "memory.events.local",
        }
    }

    fn read(version: Version, file: &TextFile, buf: &mut Vec<u8>) -> Result<Self, Error> {
        match version {
            Version::V1 => Ok(Self {
                max: Some(file.parse(buf, single_number)?),
                ..Self::default()
            }),
            Version::V2 => {
                let MemoryEvents { max, high, low, .. } = file.parse(buf, MemoryEvents::parse)?;
                Ok(Self { max, high, low })
            }
        }
    }
}

/// On v1 each controller is mounted under its name; systemd mounts these two as one.
fn cpu(hierarchies: &Hierarchies) -> Option<Mount> {
    if hierarchies.mode == Mode::Unified {
        return Some(hierarchies.memory.clone());
    }
    let all = hierarchies.memory.path.parent()?;
    let mut names = ["cpu", "cpu,cpuacct"].iter().map(|name| all.join(name));
    Some(Mount {
        path: names.find(|path| path.is_dir())?,
        ..hierarchies.memory.clone()
    })
}

/// One number from a file of cgroupfs, without allocating.
pub fn read_number(file: &File) -> io::Result<u64> {
    let mut text = [0; 24];
    let len = file.read_at(&mut text, 0)?;
    single_number(&text[..len])
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))
}

/// The cgroup was removed: reads of a file that is still open fail with ENODEV.
pub fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT))
        || error.kind() == io::ErrorKind::NotFound
}

/// This process, or the system, may open no more files.
pub fn is_out_of_files(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

fn into_io(error: Error) -> io::Error {
    match error {
        Error::Io { source, .. } => source,
        error if error.is_gone() => io::ErrorKind::NotFound.into(),
        error => io::Error::other(error),
    }
}

/// The files of a full look, held open.
#[derive(Debug)]
pub struct DetailFiles {
    version: Version,
    stat: TextFile,
    /// v2: `memory.events`; v1: `memory.oom_control`.
    events: Option<TextFile>,
    /// What [`LimitHits`] are read from.
    hits: Option<TextFile>,
    /// v2: `memory.swap.current`; v1: `memory.kmem.usage_in_bytes`.
    beside: Option<TextFile>,
    /// v1: `memory.kmem.tcp.usage_in_bytes`.
    sock: Option<TextFile>,
    memory_pressure: Option<PressureFile>,
    io_pressure: Option<PressureFile>,
}

impl DetailFiles {
    /// Opens the files of the cgroup at `path`: up to seven descriptors.
    pub fn open(roots: &Roots, path: &[u8]) -> io::Result<Self> {
        let dir = roots.directory(path)?;
        let optional = |name: &str| match TextFile::open(dir.join(name)) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.is_gone() => Ok(None),
            Err(error) => Err(into_io(error)),
        };
        let pressure = |name| {
            let file = PressureFile::open(roots.pressure_file(path, name)?);
            file.ok()
        };
        let [events, hits, beside, sock] = match roots.version {
            Version::V2 => [
                optional("memory.events")?,
                optional(LimitHits::file(roots.version))?,
                optional("memory.swap.current")?,
                None,
            ],
            Version::V1 => [
                optional("memory.oom_control")?,
                optional(LimitHits::file(roots.version))?,
                optional("memory.kmem.usage_in_bytes")?,
                optional("memory.kmem.tcp.usage_in_bytes")?,
            ],
        };
        Ok(Self {
            version: roots.version,
            stat: TextFile::open(dir.join("memory.stat")).map_err(into_io)?,
            events,
            hits,
            beside,
            sock,
            memory_pressure: pressure("memory.pressure"),
            io_pressure: pressure("io.pressure"),
        })
    }

    /// Reads them all. An error that is not [`is_gone`] costs the whole look.
    pub fn read(&self, buf: &mut Vec<u8>) -> io::Result<Detail> {
        self.read_detail(buf).map_err(into_io)
    }

    fn read_detail(&self, buf: &mut Vec<u8>) -> Result<Detail, Error> {
        let mut detail = self
            .stat
            .parse(buf, |content| Detail::of_stat(self.version, content))?;
        let mut number = |file: &Option<TextFile>| match file {
            Some(file) => file.parse(buf, single_number).map(Some),
            None => Ok(None),
        };
        match self.version {
            Version::V1 => {
                detail.kernel_bytes = number(&self.beside)?;
                detail.sock_bytes = number(&self.sock)?;
                if let Some(file) = &self.events {
                    detail.oom_kill_events = file.parse(buf, OomControl::parse)?.oom_kill;
                }
            }
            Version::V2 => {
                detail.swap_bytes = number(&self.beside)?;
                if let Some(file) = &self.events {
                    detail.oom_kill_events = file.parse(buf, MemoryEvents::parse)?.oom_kill;
                }
            }
        }
        if let Some(file) = &self.hits {
            let hits = LimitHits::read(self.version, file, buf)?;
            detail.max_events = hits.max;
            detail.high_events = hits.high;
            detail.low_events = hits.low;
        }
        if let Some(memory) = pressure(self.memory_pressure.as_ref(), buf)? {
            detail.psi_some_us = Some(memory.some.total_us);
            detail.psi_full_us = memory.full.map(|full| full.total_us);
        }
        if let Some(io) = pressure(self.io_pressure.as_ref(), buf)? {
            detail.io_psi_full_us = io.full.map(|full| full.total_us);
        }
        Ok(detail)
    }
}

fn pressure(
    file: Option<&PressureFile>,
    buf: &mut Vec<u8>,
) -> Result<Option<node::psi::Pressure>, Error> {
    match file {
        Some(file) => file.read(buf),
        None => Ok(None),
    }
}

/// Lets this process hold as many files as the administrator allows; returns how many that is.
pub fn raise_file_limit() -> u64 {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    let soft = limit.current;
    limit.current = limit.maximum;
    match setrlimit(Resource::Nofile, limit) {
        Ok(()) => limit.maximum,
        Err(_) => soft,
    }
    .unwrap_or(u64::MAX)
}

/// The parent of the cgroup at `path`.
pub fn parent(path: &[u8]) -> Option<&[u8]> {
    let cut = path.iter().rposition(|&byte| byte == b'/')?;
    match (cut, path.len()) {
        (0, 1) => None,
        (0, _) => Some(b"/"),
        _ => Some(&path[..cut]),
    }
}

/// Path of a directory of `mount` from the true root.
pub fn rooted(mount: &Mount, below: &Path) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt as _;
    let below = below.as_os_str().as_bytes();
    let mut path = mount.root.clone();
    if !below.is_empty() || path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(below);
    path
}
