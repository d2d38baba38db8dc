//! Things to read that become page cache and cost no disk, and memory to swap to.

use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, statfs};
use tempfile::NamedTempFile;

use crate::modules;
use crate::scenario::Unmet;

/// Interface of the zram module: reading the first makes a device, writing its number to the
/// second removes it.
const HOT_ADD: &str = "/sys/class/zram-control/hot_add";
const HOT_REMOVE: &str = "/sys/class/zram-control/hot_remove";

/// Something to read: its pages can be given back at any time, and reading them anew needs no disk.
#[derive(Debug)]
pub enum Source {
    /// A file with nothing in it but a hole, on a file system that has a disk: on tmpfs a hole is
    /// not cached.
    Sparse(NamedTempFile),
    /// A compressed block device that nothing was written to.
    Zram(Zram),
}

impl Source {
    /// One of this size: a file where there is a disk, a device in guests, which have none.
    pub fn new(mib: u64) -> Result<Self> {
        let directories = [std::env::temp_dir(), PathBuf::from("/var/tmp")];
        let Some(directory) = directories.iter().find(|directory| has_disk(directory)) else {
            return Ok(Self::Zram(Zram::new(mib)?));
        };
        let file = NamedTempFile::new_in(directory).context("temporary file")?;
        file.as_file().set_len(mib << 20).context("sparse file")?;
        Ok(Self::Sparse(file))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        match self {
            Self::Sparse(file) => file.path(),
            Self::Zram(device) => device.path(),
        }
    }
}

fn has_disk(directory: &Path) -> bool {
    let disks = [EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, BTRFS_SUPER_MAGIC];
    statfs(directory).is_ok_and(|fs| disks.contains(&fs.filesystem_type()))
}

/// A block device in memory, removed when dropped.
#[derive(Debug)]
pub struct Zram {
    number: String,
    path: PathBuf,
    swap: bool,
}

impl Zram {
    /// One of this size. What is written to it takes memory, compressed.
    pub fn new(mib: u64) -> Result<Self> {
        let is_there = Path::new(HOT_ADD).exists() || modules::load("zram");
        ensure!(is_there, Unmet("this kernel has no zram".to_owned()));
        let number = fs::read_to_string(HOT_ADD).context(HOT_ADD)?;
        let number = number.trim().to_owned();
        let device = Self {
            path: PathBuf::from(format!("/dev/zram{number}")),
            number,
            swap: false,
        };
        device.set("disksize", &format!("{mib}M"))?;
        Ok(device)
    }

    /// The same, in use as swap.
    pub fn swap(mib: u64) -> Result<Self> {
        let mut device = Self::new(mib)?;
        let pages = u32::try_from((mib << 20) / 4096).context("size of the swap")?;
        let header = swap_header(pages);
        OpenOptions::new()
            .write(true)
            .open(&device.path)
            .and_then(|file| file.write_all_at(&header, 0))
            .with_context(|| format!("swap header of {}", device.path.display()))?;
        let path = CString::new(device.path.as_os_str().as_bytes())?;
        // SAFETY: the path is NUL-terminated and outlives the call.
        Errno::result(unsafe { libc::swapon(path.as_ptr(), 0) }).context("swapon")?;
        device.swap = true;
        Ok(device)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `MAJOR:MINOR`.
    pub fn numbers(&self) -> Result<String> {
        let file = self.attribute("dev");
        let numbers = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        Ok(numbers.trim().to_owned())
    }

    fn attribute(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/sys/block/zram{}/{name}", self.number))
    }

    fn set(&self, name: &str, value: &str) -> Result<()> {
        let file = self.attribute(name);
        fs::write(&file, value).with_context(|| format!("{} = {value}", file.display()))
    }

    fn remove(&self) -> Result<()> {
        if self.swap {
            let path = CString::new(self.path.as_os_str().as_bytes())?;
            // SAFETY: the path is NUL-terminated and outlives the call.
            Errno::result(unsafe { libc::swapoff(path.as_ptr()) }).context("swapoff")?;
        }
        self.set("reset", "1")?;
        fs::write(HOT_REMOVE, &self.number).context(HOT_REMOVE)
    }
}

impl Drop for Zram {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            eprintln!("left behind: {}: {error:#}", self.path.display());
        }
    }
}

/// `union swap_header` (include/linux/swap.h): version 1 after the boot block, the last page, no
/// bad ones, and the magic at the end of the first page.
fn swap_header(pages: u32) -> [u8; 4096] {
    let mut header = [0; 4096];
    header[1024..1028].copy_from_slice(&1_u32.to_ne_bytes());
    header[1028..1032].copy_from_slice(&(pages - 1).to_ne_bytes());
    header[4086..].copy_from_slice(b"SWAPSPACE2");
    header
}
