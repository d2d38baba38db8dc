//! A cgroup of the unified (v2) hierarchy, also where the memory controller is on v1.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::deadline::{soon, until};

/// A directory that is removed when dropped.
#[derive(Debug)]
pub struct Unified(PathBuf);

impl Unified {
    /// Makes it. `None` where the hierarchy is not mounted.
    pub fn create(name: &str) -> Result<Option<Self>> {
        let mounts = fs::read_to_string("/proc/self/mounts").context("/proc/self/mounts")?;
        let mount = mounts.lines().find_map(|line| {
            let mut columns = line.split(' ').skip(1);
            let (mount, kind) = (columns.next()?, columns.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(mount))
        });
        let Some(mount) = mount else {
            return Ok(None);
        };
        let own = std::process::id();
        let directory = mount.join(format!("oomprobe-test-{name}-{own}"));
        fs::create_dir(&directory).with_context(|| format!("mkdir {}", directory.display()))?;
        Ok(Some(Self(directory)))
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        &self.0
    }

    /// Whether it can be killed by a write to it (since Linux 5.14).
    pub fn can_be_killed(&self) -> bool {
        self.0.join("cgroup.kill").exists()
    }
}

impl Drop for Unified {
    fn drop(&mut self) {
        // A member that is dying still counts.
        let removed = until(soon(), "empty", || Ok(fs::remove_dir(&self.0).ok()));
        if removed.is_err() {
            eprintln!("left behind: {}", self.0.display());
        }
    }
}

/// Writes to `cgroup.kill` of a directory of the unified hierarchy.
pub fn kill(directory: &Path) -> Result<()> {
    let file = directory.join("cgroup.kill");
    fs::write(&file, "1").with_context(|| file.display().to_string())
}
