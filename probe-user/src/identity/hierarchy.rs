//! Where the memory controller's hierarchy and the v2 hierarchy are mounted.
//!
//! A memory cgroup lives on the v1 `memory` hierarchy (legacy and hybrid layouts) or on the v2
//! hierarchy; ids and paths mean something only together with the hierarchy they belong to.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Number of the v2 hierarchy in `/proc/<pid>/cgroup` and in `cgroup_root.hierarchy_id`.
pub const UNIFIED: u32 = 0;

/// How cgroups are arranged on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The memory controller is on v1 and v2 is not mounted.
    Legacy,
    /// The memory controller is on v1, and v2 is mounted beside it.
    Hybrid,
    /// The memory controller is on v2.
    Unified,
}

impl Mode {
    /// The name as events print it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Legacy => "legacy",
            Self::Hybrid => "hybrid",
            Self::Unified => "unified",
        }
    }
}

/// A mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Number of the hierarchy; [`UNIFIED`] is v2.
    pub hierarchy: u32,
    /// Where this process reaches it.
    pub path: PathBuf,
    /// Cgroup that is mounted there, as seen from the true root: empty for the root itself.
    pub root: Vec<u8>,
}

impl Mount {
    /// Where the cgroup at `path`, seen from the true root, is in this process's view; `None` if
    /// it is outside of what is mounted here.
    pub fn directory(&self, path: &[u8]) -> Option<PathBuf> {
        let below = match path.strip_prefix(self.root.as_slice())? {
            [] => &[],
            [b'/', below @ ..] => below,
            _ => return None,
        };
        Some(self.path.join(OsStr::from_bytes(below)))
    }

    /// True if the true root of the hierarchy is visible here; false in a private cgroup
    /// namespace, where only its own cgroup and what is below can be looked up.
    pub fn is_whole(&self) -> bool {
        // kernfs numbers a root directory 1 (`__kernfs_new_node`, fs/kernfs/dir.c).
        fs::metadata(&self.path).is_ok_and(|root| root.ino() == 1)
    }
}

/// The hierarchies that matter for memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchies {
    /// The layout.
    pub mode: Mode,
    /// The hierarchy the memory controller is on.
    pub memory: Mount,
    /// The v2 hierarchy, where it is mounted; the same as `memory` in [`Mode::Unified`].
    pub unified: Option<Mount>,
}

/// Why no memory hierarchy was found.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of procfs cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The memory controller's hierarchy is mounted nowhere in view.
    #[error(
        "no mount of the memory controller's cgroup hierarchy in {}; mount cgroup2 on \
         /sys/fs/cgroup, or give the host's root with --host-root", mountinfo.display()
    )]
    NotMounted {
        /// The table that was searched.
        mountinfo: PathBuf,
    },
}

/// Finds the hierarchies in the host's view.
///
/// `host_root` is `/`, or where the host's root is mounted in a container. PID 1's mount table is
/// read first, as a container without its own PID namespace sees the host there.
pub fn find(host_root: &Path) -> Result<Hierarchies, Error> {
    let proc = host_root.join("proc");
    let prefix = if host_root == Path::new("/") {
        // Mount points in PID 1's table are relative to PID 1's root.
        proc.join("1/root")
    } else {
        host_root.to_owned()
    };
    let own = Path::new("/proc/self");
    let views = [(proc.join("1"), prefix), (own.to_owned(), "/".into())];
    let mut first_error = None;
    for (process, prefix) in views {
        match view(&process, &prefix) {
            Ok(found) => return Ok(found),
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    Err(first_error.unwrap_or(Error::NotMounted {
        mountinfo: own.join("mountinfo"),
    }))
}

/// What the process directory `process` sees, reached below `prefix`.
fn view(process: &Path, prefix: &Path) -> Result<Hierarchies, Error> {
    let read = |name: &str| {
        let path = process.join(name);
        fs::read(&path).map_err(|source| Error::Unreadable { path, source })
    };
    let mountinfo = read("mountinfo")?;
    let cgroup = read("cgroup")?;
    let mut found = parse(&mountinfo, &cgroup).ok_or_else(|| Error::NotMounted {
        mountinfo: process.join("mountinfo"),
    })?;
    for mount in std::iter::once(&mut found.memory).chain(&mut found.unified) {
        let below = mount.path.strip_prefix("/").unwrap_or(&mount.path);
        let path = prefix.join(below);
        if let Err(source) = fs::metadata(&path) {
            return Err(Error::Unreadable { path, source });
        }
        // `/proc/1/root` is a detour where both see the same directory.
        mount.path = match (fs::metadata(&path), fs::metadata(&mount.path)) {
            (Ok(there), Ok(here)) if (there.dev(), there.ino()) == (here.dev(), here.ino()) => {
                mount.path.clone()
            }
            _ => path,
        };
    }
    Ok(found)
}

/// Reads a mount table (proc_pid_mountinfo(5)) and a cgroup list (cgroups(7)) of one process.
///
/// None if the hierarchy that has the memory controller is not mounted. Mount points are as the
/// table has them.
pub fn parse(mountinfo: &[u8], cgroup: &[u8]) -> Option<Hierarchies> {
    let v1_memory = cgroup.split(|byte| *byte == b'\n').find_map(|line| {
        let mut fields = line.splitn(3, |byte| *byte == b':');
        let number: u32 = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
        let has_memory = fields.next()?.split(|b| *b == b',').any(|c| c == b"memory");
        has_memory.then_some(number)
    });
    let best = |wanted: fn(&Entry<'_>) -> bool, hierarchy| {
        mountinfo
            .split(|byte| *byte == b'\n')
            .filter_map(entry)
            .filter(wanted)
            // Of equals the first: later ones are bind mounts of it.
            .reduce(|best, next| {
                if next.rank() > best.rank() {
                    next
                } else {
                    best
                }
            })
            .map(|entry| entry.into_mount(hierarchy))
    };
    let unified = best(|entry| entry.fs_type == b"cgroup2", UNIFIED);
    let has_memory = |entry: &Entry<'_>| {
        entry.fs_type == b"cgroup"
            && entry
                .super_options
                .split(|b| *b == b',')
                .any(|o| o == b"memory")
    };
    match v1_memory {
        Some(number) => Some(Hierarchies {
            mode: if unified.is_some() {
                Mode::Hybrid
            } else {
                Mode::Legacy
            },
            memory: best(has_memory, number)?,
            unified,
        }),
        None => Some(Hierarchies {
            mode: Mode::Unified,
            memory: unified.clone()?,
            unified,
        }),
    }
}

struct Entry<'a> {
    root: Vec<u8>,
    mount_point: Vec<u8>,
    fs_type: &'a [u8],
    super_options: &'a [u8],
}

impl Entry<'_> {
    /// Higher shows more of the hierarchy: a root of `/../..` lies above the reader's cgroup
    /// namespace, `/` is that namespace's root, and anything else is a part of it.
    fn rank(&self) -> (usize, bool) {
        let height = self.is_upper().then_some(self.root.len());
        let usual = self.mount_point.starts_with(b"/sys/fs/cgroup");
        (height.unwrap_or(0), usual)
    }

    fn is_upper(&self) -> bool {
        self.root
            .split(|byte| *byte == b'/')
            .all(|name| name.is_empty() || name == b"..")
    }

    fn into_mount(self, hierarchy: u32) -> Mount {
        let root = if self.is_upper() {
            Vec::new()
        } else {
            self.root
        };
        Mount {
            hierarchy,
            path: PathBuf::from(OsString::from_vec(self.mount_point)),
            root,
        }
    }
}

/// `36 35 98:0 /root /mount/point opts [optional…] - type source super-options`
fn entry(line: &[u8]) -> Option<Entry<'_>> {
    let mut fields = line.split(|byte| *byte == b' ');
    let root = unescape(fields.nth(3)?);
    let mount_point = unescape(fields.next()?);
    fields.by_ref().find(|field| *field == b"-")?;
    let fs_type = fields.next()?;
    let super_options = fields.nth(1)?;
    Some(Entry {
        root,
        mount_point,
        fs_type,
        super_options,
    })
}

/// Undoes the `\ooo` escape of procfs (`mangle_path`, fs/seq_file.c).
pub(crate) fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = tail
            .get(..3)
            .filter(|_| first == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        if let Some(byte) = escaped {
            plain.push(byte);
            rest = &tail[3..];
        } else {
            plain.push(first);
            rest = tail;
        }
    }
    plain
}
