//! Room on file systems (statvfs(3)).

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::{fs, io};

use rustix::fs::statvfs;

/// A file system, by one of its directories.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Number of the device: two directories with the same one are on the same file system.
    pub device: u64,
    /// Size.
    pub total_bytes: u64,
    /// What an unprivileged process can still write.
    pub available_bytes: u64,
    /// Files it can hold; `None` where that is not fixed (btrfs, vfat).
    pub inodes: Option<u64>,
    /// Of those, how many an unprivileged process can still make.
    pub inodes_available: Option<u64>,
}

/// The file system `path` is on; `None` if there is no such path.
pub fn room(path: &Path) -> io::Result<Option<Room>> {
    let device = match fs::metadata(path) {
        Ok(metadata) => metadata.dev(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let stat = statvfs(path)?;
    let has_inodes = stat.f_files > 0;
    Ok(Some(Room {
        device,
        total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        available_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        inodes: has_inodes.then_some(stat.f_files),
        inodes_available: has_inodes.then_some(stat.f_favail),
    }))
}

#[cfg(test)]
mod tests {
    #[test]
    fn reads_this_machine() {
        let dir = tempfile::tempdir().unwrap();
        let room = super::room(dir.path()).unwrap().unwrap();
        assert!(room.total_bytes >= room.available_bytes);
        assert_eq!(super::room(&dir.path().join("none")).unwrap(), None);
    }
}
