//! Scratch memory cgroups, v1 or v2.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::cmd;

/// How long a cgroup may stay busy after its last member died.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the names of all scratch cgroups begin with; the process id of the benchmark follows.
const PREFIX: &str = "oomprobe-bench-";

/// A memory cgroup and those below it, removed when dropped.
pub(super) struct Scratch {
    pub(super) dir: PathBuf,
    /// `v1` or `v2`.
    pub(super) version: &'static str,
}

impl Scratch {
    /// A cgroup without a limit, to hold others.
    pub(super) fn create() -> Result<Self> {
        let (mount, version) = memory_mount()?;
        sweep(&mount);
        let scratch = Self {
            dir: mount.join(format!("{PREFIX}{}", std::process::id())),
            version,
        };
        scratch.control_memory_below(&mount)?;
        make(&scratch.dir)?;
        Ok(scratch)
    }

    /// A cgroup with a limit of memory and swap together.
    pub(super) fn limited(limit_bytes: u64) -> Result<Self> {
        let scratch = Self::create()?;
        scratch.limit(&scratch.dir, limit_bytes)?;
        scratch.forbid_swap(limit_bytes)?;
        Ok(scratch)
    }

    /// A cgroup with a limit below this one. Swap has none: on v1 the kernel counts no hits of it.
    pub(super) fn child(&self, name: &str, limit_bytes: u64) -> Result<PathBuf> {
        self.control_memory_below(&self.dir)?;
        let dir = self.dir.join(name);
        make(&dir)?;
        self.limit(&dir, limit_bytes)?;
        Ok(dir)
    }

    /// A cgroup without a limit, as deep below this one as `path` has it.
    pub(super) fn below(&self, path: &str) -> Result<PathBuf> {
        let mut dir = self.dir.clone();
        for name in path.split('/') {
            self.control_memory_below(&dir)?;
            dir.push(name);
            make(&dir)?;
        }
        Ok(dir)
    }

    /// How often a cgroup hit its limit, as the kernel counts it. On v1 each try to charge counts,
    /// of which there may be two before a reclaim.
    pub(super) fn hits(&self, dir: &Path) -> Result<u64> {
        let read = |file: &str| {
            let file = dir.join(file);
            fs::read_to_string(&file).with_context(|| file.display().to_string())
        };
        let count = match self.version {
            "v1" => read("memory.failcnt")?.trim().parse().ok(),
            _ => read("memory.events")?
                .lines()
                .find_map(|line| line.strip_prefix("max ")?.parse().ok()),
        };
        count.with_context(|| format!("{}: no count of limit hits", dir.display()))
    }

    /// Removes the cgroups below this one.
    pub(super) fn clear(&self) {
        remove_below(&self.dir, Instant::now() + PATIENCE);
    }

    fn control_memory_below(&self, dir: &Path) -> Result<()> {
        match self.version {
            "v1" => Ok(()),
            _ => write(&dir.join("cgroup.subtree_control"), "+memory"),
        }
    }

    fn limit(&self, dir: &Path, bytes: u64) -> Result<()> {
        let file = match self.version {
            "v1" => "memory.limit_in_bytes",
            _ => "memory.max",
        };
        write(&dir.join(file), &bytes.to_string())
    }

    /// Leaves nowhere to swap to for a cgroup with this limit.
    fn forbid_swap(&self, limit_bytes: u64) -> Result<()> {
        let (file, bytes) = match self.version {
            "v1" => ("memory.memsw.limit_in_bytes", limit_bytes),
            _ => ("memory.swap.max", 0),
        };
        let file = self.dir.join(file);
        // Absent where swap is not accounted.
        if file.exists() {
            write(&file, &bytes.to_string())?;
        }
        Ok(())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove(&self.dir, Instant::now() + PATIENCE);
    }
}

fn make(dir: &Path) -> Result<()> {
    fs::create_dir(dir).with_context(|| format!("mkdir {}", dir.display()))
}

fn write(file: &Path, value: &str) -> Result<()> {
    fs::write(file, value).with_context(|| format!("{} = {value}", file.display()))
}

/// Removes a cgroup and those below it; says so if that fails.
fn remove(dir: &Path, deadline: Instant) {
    remove_below(dir, deadline);
    // A process is charged until the reaper or its exit has freed the last page.
    while let Err(error) = fs::remove_dir(dir) {
        if Instant::now() >= deadline {
            cmd::status(
                "Warning",
                format_args!("left behind: {}: {error}", dir.display()),
            );
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn remove_below(dir: &Path, deadline: Instant) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path(), deadline);
        }
    }
}

/// Removes what benchmarks that were killed have left.
fn sweep(mount: &Path) {
    for entry in fs::read_dir(mount).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            remove(&entry.path(), Instant::now() + PATIENCE);
        }
    }
}

/// Where the memory controller's hierarchy is mounted, and its version.
fn memory_mount() -> Result<(PathBuf, &'static str)> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("/proc/self/mounts")?;
    find_memory(&mounts, |v2| {
        fs::read_to_string(v2.join("cgroup.controllers"))
            .is_ok_and(|offered| offered.split_whitespace().any(|name| name == "memory"))
    })
    .context("no cgroup hierarchy with the memory controller is mounted")
}

fn find_memory(
    mounts: &str,
    has_memory: impl Fn(&Path) -> bool,
) -> Option<(PathBuf, &'static str)> {
    mounts.lines().find_map(|line| {
        let mut columns = line.split(' ').skip(1);
        let (mount, kind, options) = (columns.next()?, columns.next()?, columns.next()?);
        let mount = PathBuf::from(mount);
        match kind {
            "cgroup" if options.split(',').any(|option| option == "memory") => Some((mount, "v1")),
            "cgroup2" if has_memory(&mount) => Some((mount, "v2")),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_with_the_memory_controller_is_found() {
        let hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n\
                      cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n\
                      cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\n";
        assert_eq!(
            find_memory(hybrid, |_| false),
            Some(("/sys/fs/cgroup/memory".into(), "v1"))
        );
        let unified = "cgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0\n";
        assert_eq!(
            find_memory(unified, |_| true),
            Some(("/sys/fs/cgroup".into(), "v2"))
        );
        assert_eq!(find_memory(unified, |_| false), None);
    }
}
