//! Records of `/dev/kmsg`.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::super::text::{self, Error, ParseError};

/// A read shorter than a record fails; no kernel has longer ones (`PRINTK_MESSAGE_MAX` is 2048,
/// `CONSOLE_EXT_LOG_MAX` was 8192).
const RECORD_LEN: usize = 8192;

/// Where reading starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At the oldest record the kernel still has.
    Oldest,
    /// After the newest.
    End,
}

/// What stands before the text of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// Syslog facility (0: the kernel) times 8 plus level.
    pub priority: u32,
    /// Sequence number; consecutive.
    pub seq: u64,
    /// Time, microseconds of the scheduler's clock: since boot, without time in suspend.
    pub time_us: u64,
    /// A fragment that belongs to an earlier record's line (`KERN_CONT`).
    pub continuation: bool,
}

/// One record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// What stands before the text.
    pub header: RecordHeader,
    /// Text with the kernel's escapes undone: any bytes, newlines included.
    pub text: &'a [u8],
}

/// `/dev/kmsg`, opened non-blocking.
#[derive(Debug)]
pub struct KmsgReader {
    path: PathBuf,
    file: File,
    raw: Vec<u8>,
    text: Vec<u8>,
    next_seq: Option<u64>,
    lost: u64,
}

impl KmsgReader {
    /// Opens the device at `path`.
    pub fn open(path: &Path, start: Start) -> Result<Self, Error> {
        let open = || {
            let mut file = OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_NONBLOCK)
                .open(path)?;
            if start == Start::End {
                file.seek(SeekFrom::End(0))?;
            }
            Ok(file)
        };
        Ok(Self {
            path: path.to_owned(),
            file: open().map_err(|source| Error::io(path, source))?,
            raw: vec![0; RECORD_LEN],
            text: Vec::with_capacity(1024),
            next_seq: None,
            lost: 0,
        })
    }

    /// The next record; `None` if there is none yet (wait until the descriptor is readable).
    ///
    /// Records that were overwritten before they were read are counted ([`Self::lost`]) and
    /// skipped.
    pub fn next_record(&mut self) -> Result<Option<Record<'_>>, Error> {
        let len = loop {
            match self.file.read(&mut self.raw) {
                Ok(0) => return Ok(None),
                Ok(len) => break len,
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => return Ok(None),
                    // EPIPE: the next read gives the oldest record left; its number tells how
                    // many are missing.
                    Some(libc::EINTR | libc::EPIPE) => {}
                    _ => return Err(self.error(error)),
                },
            }
        };
        let Some(header) = parse_record(&self.raw[..len], &mut self.text) else {
            return Err(Error::malformed(&self.path)(ParseError {
                line: 1,
                expected: "\"priority,sequence,microseconds,flags;text\"",
            }));
        };
        if let Some(expected) = self.next_seq {
            self.lost += header.seq.saturating_sub(expected);
        }
        self.next_seq = Some(header.seq.saturating_add(1));
        Ok(Some(Record {
            header,
            text: &self.text,
        }))
    }

    /// Records the kernel overwrote before they could be read.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    fn error(&self, source: io::Error) -> Error {
        Error::io(&self.path, source)
    }
}

impl AsFd for KmsgReader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for KmsgReader {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Parses one record as read from `/dev/kmsg` and puts its text into `text`, without the
/// dictionary lines (` KEY=value`) that may follow it.
pub fn parse_record(raw: &[u8], text: &mut Vec<u8>) -> Option<RecordHeader> {
    let (prefix, body) = text::cut(raw, b";")?;
    let mut fields = prefix.split(|&byte| byte == b',');
    let header = RecordHeader {
        priority: text::decimal(fields.next()?)?.try_into().ok()?,
        seq: text::decimal(fields.next()?)?,
        time_us: text::decimal(fields.next()?)?,
        continuation: fields.next() == Some(b"c"),
    };
    let line = body.split(|&byte| byte == b'\n').next()?;
    unescape(line, text);
    Some(header)
}

/// Undoes `\xNN`, which stands for control characters, bytes above 0x7e and the backslash.
fn unescape(line: &[u8], text: &mut Vec<u8>) {
    text.clear();
    let mut rest = line;
    while let Some((&byte, tail)) = rest.split_first() {
        let escaped = match tail {
            [b'x', high, low, ..] if byte == b'\\' => hex(*high).zip(hex(*low)),
            _ => None,
        };
        if let Some((high, low)) = escaped {
            text.push(high << 4 | low);
            rest = &tail[3..];
        } else {
            text.push(byte);
            rest = tail;
        }
    }
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| value.try_into().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn record(raw: &[u8]) -> Option<(RecordHeader, Vec<u8>)> {
        let mut text = vec![1, 2, 3];
        parse_record(raw, &mut text).map(|header| (header, text))
    }

    #[test]
    fn header_text_and_dictionary() {
        let raw = b"6,339,5140900,c,caller=T17;hid ok; more\n SUBSYSTEM=hid\n DEVICE=+hid:1\n";
        let (header, text) = record(raw).unwrap();
        let expected = RecordHeader {
            priority: 6,
            seq: 339,
            time_us: 5_140_900,
            continuation: true,
        };
        assert_eq!(header, expected);
        assert_eq!(text, b"hid ok; more");
    }

    #[test]
    fn escapes_are_undone_once() {
        let text = |raw: &str| record(format!("6,1,2,-;{raw}\n").as_bytes()).unwrap().1;
        assert_eq!(text(r"x\x0a\x1b[1m\xff"), b"x\n\x1b[1m\xff");
        assert_eq!(text(r"\x5cx41"), br"\x41");
        assert_eq!(text(r"\xg0 \x4"), br"\xg0 \x4");
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(raw: Vec<u8>) {
            let _ = record(&raw);
        }

        #[test]
        fn any_text_survives_the_kernels_escaping(text: Vec<u8>) {
            let mut raw = b"4,7,9,-;".to_vec();
            for &byte in &text {
                if (b' '..127).contains(&byte) && byte != b'\\' {
                    raw.push(byte);
                } else {
                    write!(raw, "\\x{byte:02x}").unwrap();
                }
            }
            raw.push(b'\n');
            prop_assert_eq!(record(&raw).unwrap().1, text);
        }
    }

    #[test]
    fn reads_the_running_kernels_log() {
        let device = Path::new("/dev/kmsg");
        let Ok(mut oldest) = KmsgReader::open(device, Start::Oldest) else {
            eprintln!("skipped: /dev/kmsg cannot be read");
            return;
        };
        // Other writers may fill the log meanwhile: read a bounded part of it.
        let mut last = None;
        for _ in 0..50 {
            let Some(record) = oldest.next_record().unwrap() else {
                break;
            };
            assert!(last < Some(record.header.seq));
            last = Some(record.header.seq);
        }
        assert!(last.is_some());

        let mut end = KmsgReader::open(device, Start::End).unwrap();
        if let Some(record) = end.next_record().unwrap() {
            assert!(last < Some(record.header.seq));
        }
        assert_eq!(end.lost(), 0);
    }
}
