//! Small text files of the kernel: reading them whole, and the shapes their lines have.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Capacity of a fresh read buffer: holds `memory.stat` and `/proc/meminfo` of any kernel so far.
pub(super) const BUFFER_LEN: usize = 8192;

/// Why a file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What the file belongs to has ceased to exist: the cgroup was removed (ENODEV), the process
    /// was reaped (ESRCH), or the path is not there (ENOENT).
    #[error("{}: gone", path.display())]
    Gone {
        /// The file.
        path: PathBuf,
    },
    /// The kernel has the file but the facility behind it is off (EOPNOTSUPP).
    #[error("{}: disabled in this kernel", path.display())]
    Disabled {
        /// The file.
        path: PathBuf,
    },
    /// Any other failure of open or read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// The content is not what this file holds on any known kernel.
    #[error("{}: {source}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: ParseError,
    },
}

/// A line that could not be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: expected {expected}")]
pub struct ParseError {
    /// Line number, counted from 1.
    pub line: usize,
    /// What should have been there.
    pub expected: &'static str,
}

impl Error {
    /// Classifies what the kernel answered for `path`.
    pub(super) fn io(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.raw_os_error() {
            Some(libc::ENODEV | libc::ESRCH | libc::ENOENT) => Self::Gone { path },
            Some(libc::EOPNOTSUPP) => Self::Disabled { path },
            _ => Self::Io { path, source },
        }
    }

    /// Attaches `path` to a parse error.
    pub(super) fn malformed(path: &Path) -> impl FnOnce(ParseError) -> Self + '_ {
        |source| Self::Malformed {
            path: path.to_owned(),
            source,
        }
    }

    /// True if the object behind the file no longer exists (or never did).
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Gone { .. })
    }
}

/// Turns [`Error::Gone`] into `None`: for files that a kernel may lack.
pub(super) fn optional<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Error::Gone { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// An open file of the kernel that is read again and again from its start.
///
/// Reads neither look up a path nor, once the buffer is large enough, allocate.
#[derive(Debug)]
pub struct TextFile {
    path: PathBuf,
    file: File,
}

impl TextFile {
    /// Opens `path` for reading.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let path = path.into();
        match File::open(&path) {
            Ok(file) => Ok(Self { path, file }),
            Err(source) => Err(Error::io(&path, source)),
        }
    }

    /// Wraps a file that is open already; `path` only names it in errors.
    pub(super) fn from_file(path: PathBuf, file: File) -> Self {
        Self { path, file }
    }

    /// Replaces the content of `buf` with the whole file.
    pub fn read(&self, buf: &mut Vec<u8>) -> Result<(), Error> {
        self.read_up_to(usize::MAX, buf)
    }

    /// Replaces the content of `buf` with at most the first `limit` bytes of the file.
    pub fn read_up_to(&self, limit: usize, buf: &mut Vec<u8>) -> Result<(), Error> {
        let mut filled = 0;
        buf.resize(buf.capacity().max(BUFFER_LEN), 0);
        while filled < limit {
            if filled == buf.len() {
                buf.resize(buf.len() * 2, 0);
            }
            let end = buf.len().min(limit);
            match self.file.read_at(&mut buf[filled..end], filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    buf.clear();
                    return Err(Error::io(&self.path, error));
                }
            }
        }
        buf.truncate(filled);
        Ok(())
    }

    /// Reads the file and parses it, naming the file in a parse error.
    pub fn parse<T>(
        &self,
        buf: &mut Vec<u8>,
        parse: impl FnOnce(&[u8]) -> Result<T, ParseError>,
    ) -> Result<T, Error> {
        self.read(buf)?;
        parse(buf).map_err(Error::malformed(&self.path))
    }
}

/// Opens, reads and parses `path` once.
pub(crate) fn parse_file<T>(
    path: impl Into<PathBuf>,
    buf: &mut Vec<u8>,
    parse: impl FnOnce(&[u8]) -> Result<T, ParseError>,
) -> Result<T, Error> {
    TextFile::open(path)?.parse(buf, parse)
}

/// The lines of `text` with their numbers; empty ones are left out.
pub(crate) fn lines(text: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    text.split(|&byte| byte == b'\n')
        .enumerate()
        .map(|(index, line)| (index + 1, line.trim_ascii()))
        .filter(|(_, line)| !line.is_empty())
}

/// A decimal number that is the whole of `text`, but for white space around it.
pub(crate) fn decimal(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text.trim_ascii()).ok()?.parse().ok()
}

/// `text` cut at the first `separator`, which belongs to neither part.
pub(crate) fn cut<'a>(text: &'a [u8], separator: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = find(text, separator)?;
    Some((&text[..at], &text[at + separator.len()..]))
}

/// `text` cut at the last `separator`, which belongs to neither part.
pub(super) fn cut_last<'a>(text: &'a [u8], separator: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = text
        .windows(separator.len())
        .rposition(|window| window == separator)?;
    Some((&text[..at], &text[at + separator.len()..]))
}

/// Index of the first `needle`, which must not be empty.
pub(super) fn find(text: &[u8], needle: &[u8]) -> Option<usize> {
    text.windows(needle.len())
        .position(|window| window == needle)
}

/// Calls `visit` for every `key value` line of a flat keyed file (cgroup-v2.rst, "Flat keyed").
pub(crate) fn flat_keyed<'a>(
    text: &'a [u8],
    mut visit: impl FnMut(&'a [u8], u64),
) -> Result<(), ParseError> {
    for (line, content) in lines(text) {
        let (key, value) = cut(content, b" ")
            .and_then(|(key, value)| Some((key, decimal(value)?)))
            .ok_or(ParseError {
                line,
                expected: "a key and a decimal number",
            })?;
        visit(key, value);
    }
    Ok(())
}

/// Parser of a file that holds one decimal number.
pub fn single_number(text: &[u8]) -> Result<u64, ParseError> {
    decimal(text).ok_or(ParseError {
        line: 1,
        expected: "a decimal number",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rereads_a_file_that_grew_beyond_the_buffer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stat");
        std::fs::write(&path, "a 1\n").unwrap();
        let file = TextFile::open(&path).unwrap();
        let mut buf = Vec::new();
        file.read(&mut buf).unwrap();
        assert_eq!(buf, b"a 1\n");

        let long = "key 123456789\n".repeat(3000);
        std::fs::write(&path, &long).unwrap();
        file.read(&mut buf).unwrap();
        assert_eq!(buf, long.as_bytes());
        file.read_up_to(5, &mut buf).unwrap();
        assert_eq!(buf, b"key 1");
    }

    #[test]
    fn errors_name_path_and_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory.events");
        std::fs::write(&path, "low 0\nhigh x\n").unwrap();
        let error = parse_file(&path, &mut Vec::new(), |text| flat_keyed(text, |_, _| {}))
            .unwrap_err()
            .to_string();
        assert!(error.contains("memory.events: line 2: expected"), "{error}");

        let missing = TextFile::open(dir.path().join("missing")).unwrap_err();
        assert!(missing.is_gone());
        assert!(missing.to_string().contains("missing"));
    }

    #[test]
    fn numbers_must_be_whole() {
        assert_eq!(decimal(b" 12\n"), Some(12));
        assert_eq!(decimal(b"12 kB"), None);
        assert_eq!(decimal(b""), None);
        assert_eq!(decimal(b"99999999999999999999"), None);
    }
}
