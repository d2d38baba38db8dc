//! The guest's root file system: a "newc" cpio archive (kernel: `init/initramfs.c`), written
//! uncompressed because QEMU hands it over faster than a guest under TCG unpacks anything.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

const DIRECTORY: u32 = 0o040_755;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_777;

/// A cpio archive under construction. Cloning it is how one base serves many guests.
#[derive(Debug, Clone, Default)]
pub(crate) struct Initramfs {
    archive: Vec<u8>,
    entries: u32,
    /// Directories written so far: cpio creates none by itself.
    directories: BTreeSet<String>,
}

impl Initramfs {
    /// What every guest has: `vm_init` as `/init`, busybox with its applets, and empty places.
    pub(crate) fn base(vm_init: &Path, busybox: &Path) -> Result<Self> {
        let mut archive = Self::default();
        archive.add_host_file("init", vm_init)?;
        archive.add_host_file("bin/busybox", busybox)?;
        for applet in busybox_applets(busybox)? {
            archive.add_symlink(&applet, "/bin/busybox")?;
        }
        archive.add_file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n")?;
        archive.add_file("etc/group", 0o644, b"root:x:0:\n")?;
        archive.add_directory("root")?;
        archive.add_directory("tmp")?;
        Ok(archive)
    }

    /// Adds a copy of the host's file `from`, with its permissions, at `path`.
    pub(crate) fn add_host_file(&mut self, path: &str, from: &Path) -> Result<()> {
        let what = || format!("put {} into the guest at /{path}", from.display());
        let data = fs::read(from).with_context(what)?;
        let mode = fs::metadata(from).with_context(what)?.permissions().mode() & 0o7777;
        self.add_file(path, mode, &data).with_context(what)
    }

    /// Adds the files of the host's directory `from` to the directory `path`; a missing one is empty.
    pub(crate) fn add_host_files(&mut self, path: &str, from: &Path) -> Result<()> {
        self.add_directory(path)?;
        if !from.exists() {
            return Ok(());
        }
        let what = || format!("read {}", from.display());
        let mut entries = fs::read_dir(from)
            .and_then(Iterator::collect::<std::io::Result<Vec<_>>>)
            .with_context(what)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let name = entry.file_name();
            self.add_host_file(&format!("{path}/{}", name.to_string_lossy()), &entry.path())?;
        }
        Ok(())
    }

    /// Adds a regular file owned by root, and the directories above it.
    pub(crate) fn add_file(&mut self, path: &str, mode: u32, data: &[u8]) -> Result<()> {
        let path = self.enter(path)?;
        self.write_entry(&path, REGULAR | mode, data)
    }

    /// Adds a symbolic link and the directories above it.
    pub(crate) fn add_symlink(&mut self, path: &str, target: &str) -> Result<()> {
        let path = self.enter(path)?;
        self.write_entry(&path, SYMLINK, target.as_bytes())
    }

    /// Adds a directory and those above it.
    pub(crate) fn add_directory(&mut self, path: &str) -> Result<()> {
        let path = self.enter(path)?;
        if self.directories.insert(path.clone()) {
            self.write_entry(&path, DIRECTORY, &[])?;
        }
        Ok(())
    }

    /// The finished archive.
    pub(crate) fn finish(mut self) -> Result<Vec<u8>> {
        self.write_entry("TRAILER!!!", 0, &[])?;
        Ok(self.archive)
    }

    /// Checks `path`, writes the directories above it and returns it relative to the root.
    fn enter(&mut self, path: &str) -> Result<String> {
        let path = path.trim_start_matches('/');
        ensure!(
            path.split('/').all(|name| !matches!(name, "" | "." | "..")),
            "{path:?} is not a plain path in the guest"
        );
        if let Some((above, _)) = path.rsplit_once('/') {
            self.add_directory(above)?;
        }
        Ok(path.to_owned())
    }

    fn write_entry(&mut self, path: &str, mode: u32, data: &[u8]) -> Result<()> {
        let too_big = || format!("{path} does not fit into a cpio archive");
        let size = u32::try_from(data.len()).with_context(too_big)?;
        let name_size = u32::try_from(path.len() + 1).with_context(too_big)?;
        self.entries += 1;
        self.archive.extend_from_slice(b"070701");
        // inode, mode, uid, gid, links, mtime, size, four device numbers, name size, checksum
        let fields = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            size,
            0,
            0,
            0,
            0,
            name_size,
            0,
        ];
        for field in fields {
            self.archive
                .extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.archive.extend_from_slice(path.as_bytes());
        self.archive.push(0);
        self.pad();
        self.archive.extend_from_slice(data);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.archive
            .resize(self.archive.len().next_multiple_of(4), 0);
    }
}

/// Paths of busybox's applets, relative to the root, busybox itself left out.
fn busybox_applets(busybox: &Path) -> Result<Vec<String>> {
    let output = Command::new(busybox)
        .arg("--list-full")
        .output()
        .with_context(|| format!("run {}", busybox.display()))?;
    ensure!(
        output.status.success(),
        "{} --list-full: {}",
        busybox.display(),
        output.status
    );
    let list = String::from_utf8(output.stdout).context("busybox --list-full")?;
    Ok(list
        .lines()
        .filter(|path| *path != "bin/busybox")
        .map(str::to_owned)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads an archive back: (path, mode, data), strictly by the format's description.
    fn read(archive: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        let mut at = 0;
        loop {
            let field = |index: usize| {
                let start = at + 6 + index * 8;
                let digits = std::str::from_utf8(&archive[start..start + 8]).unwrap();
                usize::from_str_radix(digits, 16).unwrap()
            };
            assert_eq!(&archive[at..at + 6], b"070701");
            let (mode, size, name_size) = (field(1), field(6), field(11));
            let name = &archive[at + 110..at + 110 + name_size];
            let (end, name) = name.split_last().unwrap();
            assert_eq!(*end, 0);
            let data = (at + 110 + name_size).next_multiple_of(4);
            if name == b"TRAILER!!!" {
                assert_eq!(data, archive.len());
                return entries;
            }
            let name = String::from_utf8(name.to_vec()).unwrap();
            let mode = u32::try_from(mode).unwrap();
            entries.push((name, mode, archive[data..data + size].to_vec()));
            at = (data + size).next_multiple_of(4);
        }
    }

    #[test]
    fn entries_come_back_with_their_directories_once_and_first() {
        let mut archive = Initramfs::default();
        archive.add_file("/a/b/five", 0o640, b"12345").unwrap();
        archive.add_file("a/empty", 0o755, b"").unwrap();
        archive.add_symlink("a/b/link", "/bin/x").unwrap();
        archive.add_directory("a/b").unwrap();

        let found = read(&archive.finish().unwrap());
        let expected = [
            ("a", DIRECTORY, ""),
            ("a/b", DIRECTORY, ""),
            ("a/b/five", REGULAR | 0o640, "12345"),
            ("a/empty", REGULAR | 0o755, ""),
            ("a/b/link", SYMLINK, "/bin/x"),
        ]
        .map(|(path, mode, data)| (path.to_owned(), mode, data.as_bytes().to_vec()));
        assert_eq!(found, expected);
    }

    #[test]
    fn a_path_that_leaves_the_root_or_names_nothing_is_refused() {
        for path in ["", "/", "a/../b", "a//b", "./a", "a/"] {
            assert!(
                Initramfs::default().add_file(path, 0o644, b"").is_err(),
                "{path:?}"
            );
        }
    }

    #[test]
    fn a_clone_goes_its_own_way() {
        let mut base = Initramfs::default();
        base.add_file("shared/one", 0o644, b"1").unwrap();
        let mut other = base.clone();
        other.add_file("shared/two", 0o644, b"2").unwrap();
        assert_eq!(read(&base.finish().unwrap()).len(), 2);
        assert_eq!(read(&other.finish().unwrap()).len(), 3);
    }
}
