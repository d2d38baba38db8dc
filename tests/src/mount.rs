//! Private mounts, undone when dropped.

use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

/// A file system of its own on a temporary directory.
#[derive(Debug)]
pub struct Mount {
    directory: TempDir,
}

impl Mount {
    /// Mounts one that needs no device: `tmpfs`, `ramfs`, or `cgroup` with a controller.
    pub fn new(kind: &str, options: &str) -> Result<Self> {
        let directory = tempfile::tempdir().context("temporary directory")?;
        mount(
            Some("oomprobe-test"),
            directory.path(),
            Some(kind),
            MsFlags::empty(),
            Some(options),
        )
        .with_context(|| format!("mount {kind}"))?;
        Ok(Self { directory })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = umount2(self.path(), MntFlags::MNT_DETACH) {
            eprintln!("left behind: mount {}: {error}", self.path().display());
        }
    }
}
