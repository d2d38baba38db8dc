//! A directory of the kernel whose files are read relative to it: the path to it is looked up
//! once, and a directory that was removed and made anew is not taken for the same one.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};

use super::text::{self, Error, ParseError, TextFile};

/// An open directory.
#[derive(Debug)]
pub struct Dir {
    path: PathBuf,
    fd: OwnedFd,
}

impl Dir {
    /// Opens `path`.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let fd = openat(CWD, path, flags(), Mode::empty())
            .map_err(|error| Error::io(path, error.into()))?;
        Ok(Self {
            path: path.to_owned(),
            fd,
        })
    }

    /// Opens the directory called `name` in this one, or at such a path below it; a symbolic link
    /// is refused.
    pub fn child(&self, name: &[u8]) -> Result<Self, Error> {
        let path = self.path.join(OsStr::from_bytes(name));
        match openat(&self.fd, name, flags() | OFlags::NOFOLLOW, Mode::empty()) {
            Ok(fd) => Ok(Self { path, fd }),
            Err(error) => Err(Error::io(&path, error.into())),
        }
    }

    /// Inode number.
    pub fn id(&self) -> Result<u64, Error> {
        fstat(&self.fd)
            .map(|stat| stat.st_ino)
            .map_err(|error| self.error(error))
    }

    /// Reads and parses the file called `name`; `None` if there is none, or if it cannot be read
    /// for want of the facility behind it.
    pub fn parse<T>(
        &self,
        name: &str,
        buf: &mut Vec<u8>,
        parse: impl FnOnce(&[u8]) -> Result<T, ParseError>,
    ) -> Result<Option<T>, Error> {
        let path = self.path.join(name);
        let file = match openat(
            &self.fd,
            name,
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        ) {
            Ok(fd) => TextFile::from_file(path, File::from(fd)),
            Err(error) => return text::optional(Err(Error::io(&path, error.into()))),
        };
        match file.parse(buf, parse) {
            Err(Error::Disabled { .. }) => Ok(None),
            other => text::optional(other),
        }
    }

    /// Names of the directories in this one, in no order.
    pub fn directories(&self) -> Result<Vec<Vec<u8>>, Error> {
        let entries =
            rustix::fs::Dir::read_from(self.fd.as_fd()).map_err(|error| self.error(error))?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| self.error(error))?;
            let name = entry.file_name().to_bytes();
            if entry.file_type() == FileType::Directory && name != b"." && name != b".." {
                names.push(name.to_vec());
            }
        }
        Ok(names)
    }

    fn error(&self, error: rustix::io::Errno) -> Error {
        Error::io(&self.path, error.into())
    }
}

fn flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_directories() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("a\nb")).unwrap();
        std::fs::write(root.path().join("a\nb/memory.current"), "42\n").unwrap();
        std::fs::write(root.path().join("file"), "torn").unwrap();
        std::os::unix::fs::symlink("a\nb", root.path().join("link")).unwrap();

        let dir = Dir::open(root.path()).unwrap();
        assert_eq!(dir.directories().unwrap(), [b"a\nb"]);
        let buf = &mut Vec::new();
        let child = dir.child(b"a\nb").unwrap();
        let number = |dir: &Dir, name, buf: &mut _| dir.parse(name, buf, text::single_number);
        assert_eq!(number(&child, "memory.current", buf).unwrap(), Some(42));
        assert_eq!(number(&child, "memory.peak", buf).unwrap(), None);
        assert!(number(&dir, "file", buf).is_err());
        assert!(dir.child(b"link").is_err());
        assert!(dir.child(b"gone").unwrap_err().is_gone());
    }
}
