//! `/proc/<pid>`: who a process is and what it holds (Documentation/filesystems/proc.rst).

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::text::{self, Error, ParseError, TextFile};

/// Most bytes of a command line that are read.
pub const CMDLINE_LEN: usize = 4096;

/// The directory of one process, held open.
///
/// The descriptor belongs to the process, not to its number: once the process is reaped every
/// read is [`Error::Gone`], even if the pid is in use again.
#[derive(Debug)]
pub struct ProcessDir {
    path: PathBuf,
    dir: OwnedFd,
}

/// From `/proc/<pid>/status`. Sizes in bytes; `None` for kernel threads and dying processes, which
/// have no memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Process id, in the namespace of the procfs mount.
    pub tgid: Option<u32>,
    /// Parent's process id.
    pub ppid: Option<u32>,
    /// Real uid.
    pub uid: Option<u32>,
    /// Threads.
    pub threads: Option<u32>,
    /// Pids from the namespace of the procfs mount to the innermost.
    pub ns_pids: Vec<u32>,
    /// Mapped, resident or not.
    pub vm_bytes: Option<u64>,
    /// Resident.
    pub rss_bytes: Option<u64>,
    /// Of that, anonymous.
    pub rss_anon_bytes: Option<u64>,
    /// Of that, files.
    pub rss_file_bytes: Option<u64>,
    /// Of that, shared memory.
    pub rss_shmem_bytes: Option<u64>,
    /// Page tables.
    pub page_tables_bytes: Option<u64>,
    /// In swap.
    pub swap_bytes: Option<u64>,
}

/// From `/proc/<pid>/stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// State letter (`R`, `S`, `D`, `Z`, …).
    pub state: u8,
    /// Parent's process id.
    pub ppid: u32,
    /// Start, ns since boot, in steps of a clock tick (10 ms).
    pub start_boot_ns: u64,
}

/// A command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cmdline {
    /// Arguments, bytes as the process set them. Empty for kernel threads and zombies.
    pub args: Vec<Vec<u8>>,
    /// There was more than [`CMDLINE_LEN`] bytes.
    pub truncated: bool,
}

impl Cmdline {
    /// Parses arguments as the process holds them in memory.
    pub fn parse(content: &[u8]) -> Self {
        let truncated = content.len() > CMDLINE_LEN;
        let content = &content[..content.len().min(CMDLINE_LEN)];
        // Each argument ends with NUL; programs that rewrite theirs leave a run of NULs behind.
        let end = content
            .iter()
            .rposition(|&byte| byte != 0)
            .map_or(0, |last| last + 1);
        let args = match &content[..end] {
            [] => Vec::new(),
            content => content
                .split(|&byte| byte == 0)
                .map(<[u8]>::to_vec)
                .collect(),
        };
        Self { args, truncated }
    }
}

impl ProcessDir {
    /// Opens `<proc>/<pid>`; [`Error::Gone`] if there is no such process.
    pub fn open(proc: &Path, pid: u32) -> Result<Self, Error> {
        let path = proc.join(pid.to_string());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(dir) => Ok(Self { path, dir }),
            Err(errno) => Err(Error::io(&path, errno.into())),
        }
    }

    /// Opens `<proc>/<pid>` if the process is the one that started at `start_boot_ns` (of a
    /// kernel record); else the pid is in use again and this one is [`Error::Gone`].
    pub fn open_started_at(
        proc: &Path,
        pid: u32,
        start_boot_ns: u64,
        buf: &mut Vec<u8>,
    ) -> Result<Self, Error> {
        let process = Self::open(proc, pid)?;
        if process.stat(buf)?.started_at(start_boot_ns) {
            Ok(process)
        } else {
            Err(Error::Gone { path: process.path })
        }
    }

    /// Name of the main thread, at most 15 bytes (kernel threads: more).
    pub fn comm(&self, buf: &mut Vec<u8>) -> Result<Vec<u8>, Error> {
        self.file("comm")?.read(buf)?;
        // Only the final newline is the kernel's; a name may contain any byte but NUL.
        Ok(buf.strip_suffix(b"\n").unwrap_or(buf).to_vec())
    }

    /// Command line, at most [`CMDLINE_LEN`] bytes of it.
    pub fn cmdline(&self, buf: &mut Vec<u8>) -> Result<Cmdline, Error> {
        self.file("cmdline")?.read_up_to(CMDLINE_LEN + 1, buf)?;
        Ok(Cmdline::parse(buf))
    }

    /// Ids, threads, memory.
    pub fn status(&self, buf: &mut Vec<u8>) -> Result<Status, Error> {
        self.file("status")?.parse(buf, parse_status)
    }

    /// State, parent, start time.
    pub fn stat(&self, buf: &mut Vec<u8>) -> Result<Stat, Error> {
        let ticks = rustix::param::clock_ticks_per_second();
        self.file("stat")?
            .parse(buf, |content| parse_stat(content, ticks))
    }

    /// `oom_score_adj`, -1000 to 1000.
    pub fn oom_score_adj(&self, buf: &mut Vec<u8>) -> Result<i32, Error> {
        self.file("oom_score_adj")?.parse(buf, |content| {
            signed(content).ok_or(ParseError {
                line: 1,
                expected: "a number from -1000 to 1000",
            })
        })
    }

    fn file(&self, name: &str) -> Result<TextFile, Error> {
        let path = self.path.join(name);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.dir, name, flags, Mode::empty()) {
            Ok(fd) => Ok(TextFile::from_file(path, File::from(fd))),
            Err(errno) => Err(Error::io(&path, errno.into())),
        }
    }
}

impl Stat {
    /// True if `start_boot_ns`, as the kernel records it, is within the same clock tick.
    pub fn started_at(&self, start_boot_ns: u64) -> bool {
        let tick_ns = 1_000_000_000 / rustix::param::clock_ticks_per_second().max(1);
        start_boot_ns / tick_ns == self.start_boot_ns / tick_ns
    }
}

fn signed(content: &[u8]) -> Option<i32> {
    std::str::from_utf8(content.trim_ascii()).ok()?.parse().ok()
}

fn parse_stat(content: &[u8], ticks_per_second: u64) -> Result<Stat, ParseError> {
    let parse = || {
        // comm may hold spaces and parentheses; nothing after it does.
        let (_, rest) = text::cut_last(content, b") ")?;
        let mut fields = rest.split(|&byte| byte == b' ');
        let state = *fields.next()?.first()?;
        let ppid = text::decimal(fields.next()?)?.try_into().ok()?;
        // Field 22 of the file: 17 after the parent.
        let ticks = text::decimal(fields.nth(17)?)?;
        let start = u128::from(ticks) * 1_000_000_000 / u128::from(ticks_per_second.max(1));
        Some(Stat {
            state,
            ppid,
            start_boot_ns: start.try_into().ok()?,
        })
    };
    parse().ok_or(ParseError {
        line: 1,
        expected: "pid (comm) state ppid … starttime",
    })
}

fn parse_status(content: &[u8]) -> Result<Status, ParseError> {
    let mut status = Status::default();
    for (line, content) in text::lines(content) {
        // The name is escaped by the kernel, so that each line is one field.
        let Some((key, rest)) = text::cut(content, b":") else {
            return Err(ParseError {
                line,
                expected: "\"Key: value\"",
            });
        };
        let mut numbers = rest
            .split(u8::is_ascii_whitespace)
            .filter(|word| !word.is_empty())
            .map_while(text::decimal);
        let mut id = || numbers.next().and_then(|number| u32::try_from(number).ok());
        match key {
            b"Tgid" => status.tgid = id(),
            b"PPid" => status.ppid = id(),
            b"Uid" => status.uid = id(),
            b"Threads" => status.threads = id(),
            b"NSpid" => status.ns_pids = std::iter::from_fn(id).collect(),
            _ => {
                let slot = match key {
                    b"VmSize" => &mut status.vm_bytes,
                    b"VmRSS" => &mut status.rss_bytes,
                    b"RssAnon" => &mut status.rss_anon_bytes,
                    b"RssFile" => &mut status.rss_file_bytes,
                    b"RssShmem" => &mut status.rss_shmem_bytes,
                    b"VmPTE" => &mut status.page_tables_bytes,
                    b"VmSwap" => &mut status.swap_bytes,
                    _ => continue,
                };
                let bytes = numbers.next().and_then(|number| number.checked_mul(1024));
                *slot = Some(bytes.ok_or(ParseError {
                    line,
                    expected: "a number of kB",
                })?);
            }
        }
    }
    Ok(status)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn reads_itself() {
        let buf = &mut Vec::new();
        let me = ProcessDir::open(Path::new("/proc"), std::process::id()).unwrap();
        let status = me.status(buf).unwrap();
        assert_eq!(status.tgid, Some(std::process::id()));
        assert!(status.ns_pids.contains(&std::process::id()));
        let rss = status.rss_bytes.unwrap();
        let parts = status.rss_anon_bytes.unwrap()
            + status.rss_file_bytes.unwrap()
            + status.rss_shmem_bytes.unwrap();
        assert_eq!(rss, parts);
        assert!((-1000..=1000).contains(&me.oom_score_adj(buf).unwrap()));
        assert!(!me.cmdline(buf).unwrap().args.is_empty());
        assert!(!me.comm(buf).unwrap().is_empty());

        let stat = me.stat(buf).unwrap();
        assert_eq!(status.ppid, Some(stat.ppid));
        assert!(stat.start_boot_ns < super::super::clock::boot_ns());
        let mut open =
            |start| ProcessDir::open_started_at(Path::new("/proc"), std::process::id(), start, buf);
        assert!(open(stat.start_boot_ns + 1).is_ok());
        assert!(open(stat.start_boot_ns - 1).unwrap_err().is_gone());
    }

    #[test]
    fn a_reaped_process_is_gone() {
        let buf = &mut Vec::new();
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let process = ProcessDir::open(Path::new("/proc"), child.id()).unwrap();
        let held = process.file("status").unwrap();
        held.read(buf).unwrap();
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(held.read(buf).unwrap_err().is_gone());
        assert!(process.comm(buf).unwrap_err().is_gone());
        let again = ProcessDir::open(Path::new("/proc"), child.id());
        assert!(again.unwrap_err().is_gone());
    }

    #[test]
    fn comm_with_parentheses_does_not_shift_the_fields() {
        let tail = "Z 42 1 1 0 -1 4227084 0 0 0 0 0 0 0 0 20 0 1 0 500 0 0";
        for comm in ["a", ") R 9", "x) (y", "\n"] {
            let stat = parse_stat(format!("7 ({comm}) {tail}").as_bytes(), 100).unwrap();
            let expected = Stat {
                state: b'Z',
                ppid: 42,
                start_boot_ns: 5_000_000_000,
            };
            assert_eq!(stat, expected);
        }
        assert!(parse_stat(b"7 (a) R 1", 100).is_err());
    }

    #[test]
    fn command_lines() {
        let args = |content: &[u8]| Cmdline::parse(content).args;
        assert_eq!(args(b""), Vec::<Vec<u8>>::new());
        assert_eq!(args(b"\0\0"), Vec::<Vec<u8>>::new());
        assert_eq!(args(b"sh\0-c\0\0"), [&b"sh"[..], b"-c"]);
        assert_eq!(args(b"a\0\0b\0"), [&b"a"[..], b"", b"b"]);
        assert_eq!(args(b"nginx: master \xff\0\0\0"), [b"nginx: master \xff"]);
        let long = Cmdline::parse(&[b'x'; CMDLINE_LEN + 1]);
        assert!(long.truncated);
        assert_eq!(long.args[0].len(), CMDLINE_LEN);
    }

    #[test]
    fn kernel_threads_have_no_memory() {
        let status =
            parse_status(b"Name:\tkthreadd\nTgid:\t2\nUid:\t0\t0\t0\t0\nNSpid:\t2\t1\n").unwrap();
        assert_eq!(status.rss_bytes, None);
        assert_eq!(status.ns_pids, [2, 1]);
        assert_eq!(status.uid, Some(0));
    }
}
